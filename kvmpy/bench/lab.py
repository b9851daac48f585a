"""A VM with a benchmark's guest in it: set up for a cell, run for some batches, times read.

What the modes need: ``kvmpy.x86.modes.prepare``. Beyond that a call gate is in the GDT, and CS is a
32-bit segment for compatibility mode. Interrupts are off, no timer runs. Code, data and ring 0's
stack are in two 2 MiB pages that ring 3 can use too: no SMEP, SMAP, mitigations or separate tables
but on the rungs that switch CR3, where the two sets of tables map the same.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..cpuid.cpuid import Cpuid
from ..exits.reasons import Exit, ExitLimit
from ..guests import image
from ..vm import VM
from ..x86 import descriptors as d, layout
from ..x86.modes import Mode
from . import counters
from .cells import Cell
from .failures import GuestFailed, describe
from .record import Canary

#: Alignments of entry points that the guests have, 16 bytes apart.
ALIGNMENTS: Final = 4
ALIGNMENT_STEP: Final = 16

_MEMORY: Final = 8 << 20
_GATE: Final = 0x80  # behind the shared GDT; 16 bytes in long mode
_CR4_PCIDE: Final = 1 << 17
_CPUID_PCID: Final = 1 << 17  # leaf 1, ECX
_NO_FLUSH: Final = 1 << 63  # in a value moved to CR3: keep what the TLB has for the PCID
_USER_PCID: Final = 1
_CANARY_RUNS: Final = 3


@dataclass(frozen=True)
class Batches:
    """Times of some batches, in TSC ticks: ``words`` of 32 bits as the guest has stored them.

    ``counters``: what they added (module ``counters``), with "calls", the trips made for it.
    """

    words: tuple[int, ...]
    repeats: int
    counters: Mapping[str, int]


class Lab:
    """One VM and vCPU for one of the modes.

    ``cpuid``: as ``VM.vcpu`` takes it. ``paging`` off runs legacy mode without it, where KVM offers
    no more. ``plain``: whether ring 3, and whether ring 0, is interpreted and takes plain stamps
    (``Image.variant``). ``cycles``: a counter of core cycles for ``batches`` to read, or None.
    """

    def __init__(
        self,
        mode: str,
        *,
        pin: int | None = None,
        paging: bool = True,
        cpuid: Cpuid | str = "host",
    ):
        self.mode, self.paging = mode, paging
        self.image = image.load(f"syscall-{mode}")
        self.plain = (False, False)
        self.cycles: counters.GuestCycles | None = None
        self.timeout = 2.0
        self._loaded: tuple[bool, bool] | None = None
        self.vm = VM(_MEMORY)
        try:
            self.cpu = self.vm.vcpu(pin=pin, cpuid=cpuid)
            self.vm.bus.count(self.image["DONE"], 4, mmio=True)
        except BaseException:
            self.vm.close()
            raise

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vm.close()

    # -- setting up

    @property
    def has_pcid(self) -> bool:
        """Whether the guest's CPU has PCIDs.

        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     lab.has_pcid in (True, False)
        True
        """
        return bool(self.cpu.cpuid[1].ecx & _CPUID_PCID)

    def enter(self, label: str, cell: Cell, copy: int = 0, *, ring: int | None = None) -> None:
        """Set everything up to start at an exported label; ``copy`` picks the alignment.

        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     lab.enter("canary", kvmpy.bench.cells.Cell("long64", "adds"))
        ...     lab.cpu.regs.rip == lab.image["canary"]
        True
        """
        self._load_code(cell)
        symbols = self.image
        path = "int80" if cell.level == "" else cell.path
        entry = symbols[f"entry.{path}.{cell.handler}.{copy}"]
        targets: dict[str, Any] = {"syscall": entry, "sysenter": entry}
        if self.mode != "legacy32":
            targets["syscall32"] = entry
        self.cpu.enter(
            self._mode, rip=symbols[label], ring=cell.ring if ring is None else ring,
            handlers={0x80: d.Gate(entry, dpl=3)}, **targets,
        )  # fmt: skip
        self._add_call_gate(entry)
        if self.mode == "compat32" and ring != 0:
            cs = self.cpu.sregs.cs
            cs.selector, cs.l, cs.db = d.USER_CODE32, 0, 1
        self._set_config(cell, entry)

    @property
    def _mode(self) -> Mode:
        if self.mode != "legacy32":
            return Mode.LONG_64
        return Mode.PAGED_32 if self.paging else Mode.PROTECTED_32

    def _load_code(self, cell: Cell) -> None:
        user, kernel = self.plain
        wanted = (kernel if cell.ring == 0 else user, kernel)
        if wanted != self._loaded:
            self.vm.load(self.image.variant(*wanted), at=image.ORIGIN)
            self._loaded = wanted

    def _add_call_gate(self, entry: int) -> None:
        gate = d.Gate(entry, type=d.CALL_GATE, dpl=3)
        encoded = gate.encode_legacy() if self.mode == "legacy32" else gate.encode_long()
        table = self.cpu.sregs.gdt
        self.vm.load(encoded, at=layout.supervisor_area(self.vm.memory).gdt + _GATE)
        table.limit = _GATE + len(encoded) - 1
        self.vm.load(struct.pack("<IH", 0, _GATE | 3), at=self.image["GATE_POINTER"])

    def _set_config(self, cell: Cell, entry: int) -> None:
        self._poke("NEAR_TARGET", entry)
        self._poke("KERNEL_SP", self.image["KERNEL_STACK"])
        self._poke("COUNT", 0)
        root = self.cpu.sregs.cr3
        if not root:  # no paging, so no H3 either
            return
        kernel = self.image["KERNEL_TABLES"]
        self.vm.load(self.vm.memory.read(root, layout.PAGE_SIZE), at=kernel)
        if cell.level == "H3-pcid":
            sregs = self.cpu.sregs
            sregs.cr4 |= _CR4_PCIDE
            sregs.cr3 = root | _USER_PCID
            kernel, root = kernel | _NO_FLUSH, root | _USER_PCID | _NO_FLUSH
        self._poke("KERNEL_CR3", kernel)
        self._poke("USER_CR3", root)

    def _poke(self, name: str, value: int) -> None:
        self.vm.load(value.to_bytes(8, "little"), at=self.image[name])

    def _peek(self, name: str) -> int:
        return int.from_bytes(self.vm.memory.read(self.image[name], 4), "little")

    # -- running

    @property
    def calls_seen(self) -> int:
        """Calls that ring 0's service, or the proof's handler, has counted since enter().

        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     lab.calls_seen
        0
        """
        return self._peek("COUNT")

    def run(self, exits: int) -> None:
        """Run until the guest has come out so often. Raises GuestFailed when it does otherwise.

        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     lab.enter("canary", kvmpy.bench.cells.Cell("long64", "adds"))
        ...     lab.run(1)
        """
        exit: Exit = self.cpu.run(timeout=self.timeout, max_exits=exits)
        if not isinstance(exit, ExitLimit):
            raise describe(self.cpu, self.image, exit, self.timeout)

    def batches(
        self,
        cell: Cell,
        count: int,
        *,
        block: int,
        repeats: int,
        copy: int = 0,
        second: int | None = None,
    ) -> Batches:
        """``count`` batches of ``repeats`` records, and one before that is thrown away. Each batch
        begins with trips that are not timed: a block of the second kind, or one shot.

        ``block``: trips N in the first of the two blocks (1 or 16); ``second``: in the other one,
        by default 2N.

        >>> cell = kvmpy.bench.cells.Cell("long64", "adds")
        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     len(lab.batches(cell, 3, block=1, repeats=2).words)
        12
        """
        self.enter(f"single.{cell.path}" if cell.single else "slope", cell, copy)
        second = second or 2 * block
        if not cell.single:
            self._poke("BLOCK_N", self.image[f"block.{cell.path}.{block}"])
            self._poke("BLOCK_2N", self.image[f"block.{cell.path}.{second}"])
        self._poke("REPEATS", repeats)
        record = 4 if cell.single else 2
        size = 4 * record * repeats
        records = self.image["RECORDS"]
        self.vm.load(bytes(size * (count + 1)), at=records)  # touched before it is timed
        self.run(1)
        with counters.counting(self.cpu, self.cycles) as counted:
            self.run(count)
        calls = repeats + 1 if cell.single else repeats * (block + second) + second
        counted.update(calls=count * calls, expected_exits=count)
        self._check_count(cell, (count + 1) * calls)
        raw = self.vm.memory.read(records + size, size * count)
        return Batches(struct.unpack(f"<{len(raw) // 4}I", raw), repeats, counted)

    def _check_count(self, cell: Cell, calls: int) -> None:
        """Rungs that dispatch count the calls that arrive: in the timed loops, too."""
        counts = cell.handler in ("H2", "H3")
        if counts and self.calls_seen != calls & 0xFFFF_FFFF:
            raise GuestFailed(f"of {calls} calls {self.calls_seen} arrived")

    def canary(self, ring: int, limit: float) -> Canary:
        """What a dependent addition costs in ``ring``, in TSC ticks; above ``limit`` the ring is
        interpreted. Raises GuestFailed.

        >>> with kvmpy.bench.lab.Lab("long64") as lab:
        ...     lab.canary(3, limit=1e6).interpreted
        False
        """
        cell = Cell(self.mode, "adds")
        quickest = 1 << 32
        for _ in range(_CANARY_RUNS):
            self.enter("canary", cell, ring=ring)
            self.run(1)
            quickest = min(quickest, self._peek("RECORDS"))
        cost = quickest / self.image["CANARY_ADDS"]
        return Canary(ring, cost, limit, cost > limit)
