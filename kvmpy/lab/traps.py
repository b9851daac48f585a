"""Three ways into the kernel, in the order they came: int 0x80, SYSENTER, SYSCALL.

A guest's ring 3 makes each call once, and stops three times: before the instruction, at the first
one of the handler, and back in ring 3. Registers and stacks of the three states say what the CPU
saves, what it loads, and from where, and what it leaves to software. Then the hole of 2012: SYSRET
to an address that is not canonical.

Sources: SDM vol. 3, "Performing Fast Calls to System Procedures with the SYSENTER and SYSEXIT
Instructions", "Fast System Calls in 64-Bit Mode"; SDM vol. 2, pages of INT n, SYSENTER, SYSEXIT,
SYSCALL, SYSRET; APM vol. 2, "Fast System Call and Return", "SYSENTER and SYSEXIT (Legacy Mode
Only)"; APM vol. 3, the instructions' pages.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from ..bench import disclosure
from ..bench.cells import INSTRUCTIONS, MODES, Cell
from ..bench.failures import GuestFailed, describe
from ..bench.hostcall import canary_limit
from ..bench.lab import Lab
from ..errors import KvmIoctlError
from ..exits.reasons import Exit, ExitLimit, GuestException, IoOut
from ..host.cpu import identify
from ..probe import verdict as backend
from ..x86 import descriptors as d, layout, paging, state as st

PATHS: Final = ("int80", "sysenter", "syscall")
#: Where a path is missing although every CPU has it, the same kind of gate under another vector.
STAND_IN: Final = {"int80": "int3"}
NAMES: Final = {**INSTRUCTIONS, "int3": "int 3"}

# What the CPU could take its new state from; each value is found at one place only.
_SYSENTER_STACK: Final = 0x20_7000
_USER_STACK: Final = 0x20_6000
_CODE_AT_THE_TOP: Final = 0x22_0000  # a page, and three of tables that map it
#: The last page of the lower half: the address behind it is not canonical.
TOP_PAGE: Final = (1 << 47) - layout.PAGE_SIZE
NOT_CANONICAL: Final = 1 << 47

_IF, _DF, _AC = 1 << 9, 1 << 10, 1 << 18
#: RFLAGS of the program: nothing that a kernel may rely on in its own code.
USER_FLAGS: Final = st.RFLAGS_FIXED | _IF | _DF | _AC
_SYSCALL: Final = b"\x0f\x05"
_OUT_SIZE: Final = 2  # of the instruction that stops the handler
_STORE_SIZE: Final = {"long64": 9, "compat32": 5, "legacy32": 5}  # of that in ring 3
_REGISTERS: Final = ("rax", "rcx", "rdx", "rbx", "rsi", "rdi", "rbp", "r11")


@dataclass(frozen=True)
class State:
    """A moment of the guest. ``general``: ``rax`` to ``rbp`` and ``r11``, by name; ``cpl``: its
    ring."""

    rip: int
    rsp: int
    cs: int
    ss: int
    rflags: int
    cpl: int
    gs_base: int
    general: dict[str, int]


@dataclass(frozen=True)
class Trip:
    """One call. ``path``: of ``PATHS``, or what stands in for it; ``failure``: how it ended, "" if
    it came back, and ``vector`` of the exception.

    ``before``, ``inside``, ``after``: at the instruction, at the handler's first one, and back.
    ``pushed``: what ring 0's stack has gained, the last word first. ``sources``: the values that
    the CPU can load, by their name: MSRs, the gate's and the TSS's fields.
    """

    mode: str
    path: str
    failure: str = ""
    vector: int | None = None
    before: State | None = None
    inside: State | None = None
    after: State | None = None
    pushed: tuple[int, ...] = ()
    sources: dict[str, int] = field(default_factory=dict)
    back: int = 0


@dataclass(frozen=True)
class Sysret:
    """SYSRET to ``NOT_CANONICAL``, with the program's RSP already in RSP.

    ``entered``: whether ring 3 came to it by SYSCALL, at the end of ``TOP_PAGE``; if not, ring 0
    was started at SYSRET. ``ring``: in which the exception was raised, None if there was none;
    ``frame``: what it pushed (error code, RIP, CS, RFLAGS, RSP, SS), at ``frame_at``.
    """

    user_rsp: int
    ring0_rsp: int
    sysret_at: int
    entered: bool
    vector: int | None = None
    ring: int | None = None
    frame_at: int = 0
    frame: tuple[int, ...] = ()
    failure: str = ""

    @property
    def rip(self) -> int | None:
        """Where the exception was raised.

        >>> kvmpy.lab.traps.Sysret(0, 0, 0, True, 13, 3, 0, (0, 0x800000000000)).rip == 1 << 47
        True
        """
        return self.frame[1] if self.frame else None


@dataclass(frozen=True)
class Result:
    """``trips``: each mode of ``MODES`` and each of ``PATHS``, and stand-ins. ``paging``: whether
    legacy mode has it. ``interpreted``: whether KVM's emulator runs ring 0."""

    module: str
    verdict: str
    emulator: str | None
    vendor: str
    cpu_model: str
    interpreted: bool
    paging: bool
    trips: tuple[Trip, ...]
    sysret: Sysret


def run(pin: int | None = None) -> Result:
    """Make every call in every mode, then SYSRET to an address that is not canonical.

    The vCPU's thread is pinned to pCPU ``pin``, or to the last that it may use.

    Raises a KvmUnavailableError without usable KVM, PinError for a pCPU that is not available.

    >>> result = kvmpy.lab.experiment("traps").run()
    >>> {trip.mode for trip in result.trips}
    {...'long64'...}
    """
    verdict, host = backend.verdict(), identify()
    with disclosure.pinned(pin) as cpu:
        paging = _has_paging(cpu)
        trips = tuple(_trips(cpu, paging))
        hole = _sysret(cpu)
    return Result(
        module=verdict.module,
        verdict=verdict.summary,
        emulator=verdict.emulator,
        vendor=host.vendor,
        cpu_model=host.model,
        interpreted=verdict.ring0 == "emulated",
        paging=paging,
        trips=trips,
        sysret=hole,
    )


def _has_paging(pin: int | None) -> bool:
    """Whether 32-bit code can have paging here."""
    with Lab("legacy32", pin=pin) as lab:
        try:
            lab.canary(3, canary_limit())
        except GuestFailed:
            return False
    return True


# -- one call


def _trips(pin: int | None, paging: bool) -> Iterator[Trip]:
    for mode in MODES:
        for path in PATHS:
            trip = _try(mode, path, pin, paging)
            yield trip
            if trip.failure and path in STAND_IN and mode == "long64":
                yield _try(mode, STAND_IN[path], pin, paging)


def _try(mode: str, path: str, pin: int | None, paging: bool) -> Trip:
    """In a VM of its own: a call that fails may leave anything behind."""
    with Lab(mode, pin=pin, paging=paging) as lab:
        try:
            return _trip(lab, path)
        except KvmIoctlError as error:
            return Trip(mode, path, str(error))


def _trip(lab: Lab, path: str) -> Trip:
    cpu, image, mode = lab.cpu, lab.image, lab.mode
    handler = f"entry.{'int80' if path == 'int3' else path}.stop.0"
    lab.enter(f"try.{path}", Cell(mode, "int80" if path == "int3" else path, "stop"))
    if path == "int3":
        gate = d.Gate(image[handler], dpl=3).encode_long()
        lab.vm.load(gate, at=layout.supervisor_area(lab.vm.memory).idt + 3 * len(gate))
    cpu.msrs[st.MSR_SYSENTER_ESP] = _SYSENTER_STACK  # not the TSS's
    if mode != "legacy32":  # the two handlers are alike
        cpu.msrs[st.MSR_CSTAR] = image["entry.syscall.stop.1"]
    back = image[f"back.{path}"]
    _set_registers(lab, path, back)
    sources = _sources(lab)
    before = _state(lab)

    exit = cpu.run(timeout=lab.timeout)
    if not isinstance(exit, IoOut) or exit.port != image["PORT_STOP"]:
        return _failed(lab, path, exit, before)
    inside = _state(lab, _OUT_SIZE)
    pushed = _pushed(lab, sources, inside.rsp)
    trip = Trip(mode, path, "", None, before, inside, None, pushed, sources, back)
    exit = cpu.run(timeout=lab.timeout, max_exits=1)
    if not isinstance(exit, ExitLimit):
        error = describe(cpu, image, exit, lab.timeout)
        return replace(trip, failure=str(error), vector=error.vector)
    return replace(trip, after=_state(lab, _STORE_SIZE[mode]))


def _set_registers(lab: Lab, path: str, back: int) -> None:
    """All different from one another. A program that uses SYSENTER has put its stack and return
    address where SYSEXIT takes them: nobody else knows them in ring 0."""
    names = _REGISTERS[:-1] if lab.mode == "legacy32" else _REGISTERS
    values: dict[str, int] = {name: 0x1111_1111 * (i + 1) for i, name in enumerate(names)}
    values.update(rsp=_USER_STACK, rflags=USER_FLAGS)
    if path == "sysenter":
        values.update(rcx=_USER_STACK, rdx=back)
    lab.cpu.regs.update(values)


def _sources(lab: Lab) -> dict[str, int]:
    """What the CPU can load its new state from, by name, all of it read back from the guest."""
    cpu, long = lab.cpu, lab.mode != "legacy32"
    area = layout.supervisor_area(lab.vm.memory)
    size = 16 if long else 8
    gate = d.Gate.decode(lab.vm.memory.read(area.idt + 0x80 * size, size))
    task = lab.vm.memory.read(area.tss, d.TSS_SIZE)
    star = cpu.msrs[st.MSR_STAR]
    found = {
        "gate.offset": gate.offset,
        "gate.CS": gate.selector,
        "SYSENTER_CS": cpu.msrs[st.MSR_SYSENTER_CS],
        "SYSENTER_ESP": cpu.msrs[st.MSR_SYSENTER_ESP],
        "SYSENTER_EIP": cpu.msrs[st.MSR_SYSENTER_EIP],
        "STAR[31:0]": star & 0xFFFF_FFFF,
        "STAR[47:32]": star >> 32 & 0xFFFF,
        "STAR[63:48]": star >> 48,
    }
    if long:
        found |= {
            "LSTAR": cpu.msrs[st.MSR_LSTAR],
            "CSTAR": cpu.msrs[st.MSR_CSTAR],
            "FMASK": cpu.msrs[st.MSR_SFMASK],
            "TSS.RSP0": d.Tss64.decode(task).rsp[0],
        }
    else:
        tss = d.Tss32.decode(task)
        found |= {"TSS.ESP0": tss.esp[0], "TSS.SS0": tss.ss[0]}
    return found


def _state(lab: Lab, behind: int = 0) -> State:
    """The guest as it is; ``behind``: bytes of the instruction that made it exit."""
    regs, sregs = lab.cpu.regs.copy(), lab.cpu.sregs
    names = _REGISTERS[:-1] if lab.mode == "legacy32" else _REGISTERS
    return State(
        rip=regs.rip - behind,
        rsp=regs.rsp,
        cs=sregs.cs.selector,
        ss=sregs.ss.selector,
        rflags=regs.rflags,
        cpl=sregs.cs.selector & 3,
        gs_base=sregs.gs.base,
        general={name: getattr(regs, name) for name in names},
    )


def _pushed(lab: Lab, sources: dict[str, int], rsp: int) -> tuple[int, ...]:
    """The words on ring 0's stack of the TSS, if that is the one in use."""
    top = sources["TSS.ESP0" if lab.mode == "legacy32" else "TSS.RSP0"]
    if not top - layout.PAGE_SIZE < rsp <= top:
        return ()
    width, letter = (4, "I") if lab.mode == "legacy32" else (8, "Q")
    raw = lab.vm.memory.read(rsp, top - rsp)
    return struct.unpack(f"<{len(raw) // width}{letter}", raw)


def _failed(lab: Lab, path: str, exit: Exit, before: State) -> Trip:
    error = describe(lab.cpu, lab.image, exit, lab.timeout)
    return Trip(lab.mode, path, str(error), error.vector, before)


# -- SYSRET to an address that is not canonical


def _sysret(pin: int | None) -> Sysret:
    """By the way it was found in kernels: a SYSCALL in the last two bytes of the lower half, whose
    return address is the first that is not canonical; the handler is SYSRET alone. Where a SYSCALL
    does not come to ring 0, ring 0 is started at SYSRET."""
    cell = Cell("long64", "syscall", "H0")
    for entered in (True, False):
        with Lab("long64", pin=pin) as lab:
            sysret_at = lab.image["entry.syscall.H0.0"]
            lab.enter("try.syscall", cell, ring=3 if entered else 0)
            flags = st.RFLAGS_FIXED
            if entered:
                _map_top(lab)
                lab.cpu.regs.update(rip=NOT_CANONICAL - 2, rsp=_USER_STACK)
            else:
                lab.cpu.regs.update(
                    rip=sysret_at, rsp=_USER_STACK, rcx=NOT_CANONICAL, r11=flags
                )  # fmt: skip
            found = _sysret_ends(lab, Sysret(_USER_STACK, 0, sysret_at, entered))
        # In ring 3 at SYSRET itself: SYSCALL has not changed the ring.
        if not found.failure and (found.ring, found.rip) != (3, sysret_at):
            break
    return found


def _map_top(lab: Lab) -> None:
    """``TOP_PAGE``, with SYSCALL at its end."""
    memory, page = lab.vm.memory, layout.PAGE_SIZE
    flags = paging.PRESENT | paging.WRITABLE | paging.USER | paging.ACCESSED | paging.DIRTY
    memory.write(_CODE_AT_THE_TOP, _SYSCALL.rjust(page, b"\x90"))
    target = _CODE_AT_THE_TOP
    for level in range(1, 4):
        table = _CODE_AT_THE_TOP + level * page
        memory.write(table, struct.pack("<Q", target | flags).rjust(page, b"\0"))
        target = table
    half = page // 2  # the last of the lower half of the PML4
    memory.write(lab.cpu.sregs.cr3 + half - 8, struct.pack("<Q", target | flags))


def _sysret_ends(lab: Lab, begun: Sysret) -> Sysret:
    area = layout.supervisor_area(lab.vm.memory)
    begun = replace(begun, ring0_rsp=area.ring0_stack_top)
    try:
        exit = lab.cpu.run(timeout=lab.timeout)
    except KvmIoctlError as error:
        return replace(begun, failure=str(error))
    if not isinstance(exit, GuestException) or exit.report.error_code is None:
        return replace(begun, failure=str(describe(lab.cpu, lab.image, exit, lab.timeout)))
    at = lab.cpu.regs.rsp
    frame = struct.unpack("<6Q", lab.vm.memory.read(at, 48))
    return replace(
        begun, vector=exit.report.vector, ring=frame[2] & 3, frame_at=at, frame=frame
    )  # fmt: skip
