"""The old way against the new: a guest kernel in ring 1 under a monitor, and in non-root ring 0.

The guest (native/guests/lab-deprivilege.S) has both: a 32-bit kernel, and a monitor that can take
ring 0 from it. "ring1": the kernel under the monitor, trap-and-emulate, as it is; "patched": the
monitor has replaced the instructions that ought to trap and do not (``popek-goldberg``) by INT3;
"ring0": without the monitor, where KVM's hardware puts a kernel. And from 64-bit code: why ring 1
went out of use.

Sources: SDM vol. 3, "Protection" and "Interrupt and Exception Handling"; Popek and Goldberg,
"Formal Requirements for Virtualizable Third Generation Architectures" (1974); Robin and Irvine,
"Analysis of the Intel Pentium's Ability to Support a Secure Virtual Machine Monitor" (2000).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ..bench import counters
from ..errors import KvmpyError
from ..exits.explain import headline
from ..exits.reasons import Hlt, IoIn, IoOut, IrqWindowOpen
from ..guests import image
from ..probe import verdict as backend
from ..vm import VM
from ..x86.modes import Mode
from .deprivilege_store import Store, stores

Way = Literal["ring1", "patched", "ring0"]
WAYS: Final[tuple[Way, ...]] = ("ring1", "patched", "ring0")

#: What is counted: the guest's name for it, and ours.
OPERATIONS: Final = {
    "syscall": "system call",
    "cli_sti": "CLI, STI",
    "irqsave": "PUSHF, CLI, POPF",
    "cr3": "read, load CR3",
    "load_ss": "MOV to SS",
    "lgdt": "LGDT",
    "lidt": "LIDT",
    "in": "IN",
    "hlt": "HLT",
}
_REPEATS: Final = 32
_MEMORY: Final = 8 << 20
_TIMEOUT: Final = 10.0
_MOST_EXITS: Final = 1000
_CR4_UMIP: Final = 1 << 11
_IF: Final = 1 << 9
_TS: Final = 1 << 3


@dataclass(frozen=True)
class Cost:
    """What one operation costs in one way. ``traps``: to the monitor, by cause. ``exits``: to KVM,
    without the host's interrupts and page faults; None where KVM does not count them, or interprets
    the kernel."""

    traps: dict[str, float]
    exits: float | None

    @property
    def total(self) -> float:
        """Traps of all causes.

        >>> from kvmpy.lab.deprivilege import Cost
        >>> Cost({"cli": 1.0, "sti": 1.0}, 0.0).total
        2.0
        """
        return sum(self.traps.values())


@dataclass(frozen=True)
class Sight:
    """What the kernel has seen in one way.

    ``cs``: that PUSH CS pushes. ``gdt``, ``idt``: bases by SGDT and SIDT. ``tr``: by STR. ``ts``:
    CR0.TS by SMSW, which it had set. ``interrupts``: IF by PUSHF, after CLI. ``late_ticks``: timer
    interrupts that came when POPF had set IF, one being due; ``early_ticks``: when it had cleared
    IF, none being due.
    """

    cs: int
    gdt: int
    idt: int
    tr: int
    ts: bool
    interrupts: bool
    late_ticks: int
    early_ticks: int


@dataclass(frozen=True)
class Result:
    """``costs``: operation -> way -> Cost, ``sights``: way -> Sight; what could not be run is
    absent, and ``failures`` (by way) say why. ``limit_stops``: whether a segment's limit has
    kept ring 1 out of the monitor's memory, None if it was not tried. ``stores``: the ring against
    the page and the segment. ``caveats``: what cannot be shown here, and why."""

    module: str
    verdict: str
    emulator: str | None
    paging: str | None
    repeats: int
    costs: dict[str, dict[Way, Cost]]
    sights: dict[Way, Sight]
    limit_stops: bool | None
    failures: dict[Way, str]
    stores: tuple[Store, ...]
    caveats: tuple[str, ...]


def run(pin: int | None = None) -> Result:
    """Run the kernel in the three ways, and the stores. ``pin``: the pCPU to run on.

    >>> result = kvmpy.lab.experiment("deprivilege").run()
    >>> [store.ring for store in result.stores if store.stored][0]
    2
    """
    verdict = backend.verdict()
    costs: dict[str, dict[Way, Cost]] = {}
    sights: dict[Way, Sight] = {}
    failures: dict[Way, str] = {}
    limit_stops: bool | None = None
    for way in WAYS:
        with _Kernel(way, pin, verdict) as kernel:
            try:
                kernel.boot()
                for name in OPERATIONS:
                    costs.setdefault(name, {})[way] = kernel.cost(name)
                sights[way] = kernel.look()
                if way == "ring1":
                    limit_stops = kernel.limit_stops()
            except KvmpyError as error:
                failures[way] = str(error)
    return Result(
        module=verdict.module,
        verdict=verdict.summary,
        emulator=verdict.emulator,
        paging=verdict.paging,
        repeats=_REPEATS,
        costs=costs,
        sights=sights,
        limit_stops=limit_stops,
        failures=failures,
        stores=stores(pin),
        caveats=tuple(_caveats(verdict, failures, limit_stops)),
    )


def _caveats(
    verdict: backend.Verdict, failures: dict[Way, str], limit_stops: bool | None
) -> Iterable[str]:
    if verdict.ring0 == "emulated":
        yield (
            f"{verdict.module} interprets rings 0 to 2, in an emulator that knows no 32-bit paging "
            "and no 32-bit IRET: neither way gets as far as its first application here. "
            "kvm_intel and kvm_amd show both."
        )
    elif failures:
        yield "A way that fails: " + "; ".join(f"{way}: {text}" for way, text in failures.items())
    if verdict.emulator == "QEMU TCG" and limit_stops is False:
        yield (
            "QEMU's TCG checks no segment limits, so nothing keeps ring 1 out of the monitor's "
            "memory here. A CPU does: #GP."
        )


class _Stopped(KvmpyError):
    """The guest has stopped where it should not have."""


class _Kernel:
    """A VM with the kernel in it, in one of the ways."""

    def __init__(self, way: Way, pin: int | None, verdict: backend.Verdict):
        self.way = way
        self.image = image.load("lab-deprivilege")
        self._counts = verdict.ring0 == "native"
        self._traps = {
            name.removeprefix("trap."): address
            for name, address in self.image.symbols.items()
            if name.startswith("trap.")
        }
        self.vm = VM(_MEMORY)
        try:
            self.vm.load(self.image.code, at=image.ORIGIN)
            self.cpu = self.vm.vcpu(pin=pin)
            self._poke("PATCHING", way == "patched")
            # kvm_pvm has no 32-bit paging: as far as it goes.
            mode = Mode.PROTECTED_32 if verdict.module == "kvm_pvm" else Mode.PAGED_32
            entry = self.image["kernel" if way == "ring0" else "monitor"]
            self.cpu.enter(mode, rip=entry, rsp=self.image["K_STACK"])
            self.cpu.sregs.cr4 &= ~_CR4_UMIP
        except BaseException:
            self.vm.close()
            raise

    def __enter__(self) -> _Kernel:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vm.close()

    def boot(self) -> None:
        """Until the kernel waits for its first operation."""
        self._run()

    def operate(self, name: str, repeats: int) -> tuple[dict[str, int], int | None]:
        """One operation so often: the monitor's counters, and KVM's exits, that it has added."""
        self._poke("OPERATION", self.image[f"op.{name}"])
        self._poke("REPEATS", repeats)
        before = {cause: self._peek(address) for cause, address in self._traps.items()}
        with counters.counting(self.cpu) as added:
            self._run()
        after = {cause: self._peek(address) for cause, address in self._traps.items()}
        traps = {cause: after[cause] - before[cause] for cause in after}
        exits = added.get("exits") if self._counts else None
        return traps, None if exits is None else exits - added.get("irq_exits", 0)

    def cost(self, name: str) -> Cost:
        """Of one time: the difference between so many and twice as many, after a first run that
        touches all memory."""
        self.operate(name, 1)
        fewer, fewer_exits = self.operate(name, _REPEATS)
        more, more_exits = self.operate(name, 2 * _REPEATS)
        exits = None
        if more_exits is not None and fewer_exits is not None:
            exits = (more_exits - fewer_exits) / _REPEATS
        each = {cause: (more[cause] - fewer[cause]) / _REPEATS for cause in more}
        return Cost({cause: count for cause, count in each.items() if count}, exits)

    def look(self) -> Sight:
        """What the kernel sees."""
        for name in ("look", "popf_on", "popf_off"):
            self.operate(name, 1)
        word = [self._peek(self.image["RESULTS"] + 4 * index) for index in range(11)]
        return Sight(
            cs=word[0] & 0xFFFF,
            gdt=word[1],
            idt=word[2],
            tr=word[3] & 0xFFFF,
            ts=bool(word[4] & _TS),
            interrupts=bool(word[5] & _IF),
            late_ticks=word[8],
            early_ticks=word[10],
        )

    def limit_stops(self) -> bool:
        """Whether a store to the monitor's memory has been stopped."""
        traps, _ = self.operate("escape", 1)
        return traps["limit"] == 1 and not self._peek(self.image["VICTIM"])

    def _run(self) -> None:
        """To the end of an operation. The host is the device here: for the kernel in ring 0, of
        its timer too."""
        cpu, ports = self.cpu, self.image
        for _ in range(_MOST_EXITS):
            exit = cpu.run(timeout=_TIMEOUT)
            if isinstance(exit, (Hlt, IoIn)):
                continue
            if isinstance(exit, IrqWindowOpen):
                cpu.request_interrupt_window = False
                cpu.interrupt(ports["VECTOR_TIMER"])
                continue
            if isinstance(exit, IoOut) and exit.port == ports["PORT_DONE"]:
                return
            if isinstance(exit, IoOut) and exit.port == ports["PORT_TIMER"]:
                cpu.request_interrupt_window = True
                continue
            at = self.image.nearest(cpu.regs.rip)
            if isinstance(exit, IoOut) and exit.port == ports["PORT_PANIC"]:
                raise _Stopped(f"an exception (vector {cpu.regs.rax & 0xFF}), behind {at}")
            raise _Stopped(f"{headline(exit)}, in {at}")
        raise _Stopped(f"more than {_MOST_EXITS} exits")

    def _poke(self, name: str, value: int) -> None:
        self.vm.load(value.to_bytes(4, "little"), at=self.image[name])

    def _peek(self, address: int) -> int:
        return int.from_bytes(self.vm.memory.read(address, 4), "little")
