"""Which modes and rings this KVM can run, and how: found out by running a few instructions.

Each probe has a VM of its own. A loop of dependent additions is timed from outside. A CPU needs
less than a nanosecond for an instruction, KVM's instruction emulator (which is also what kvm_pvm
runs ring 0 in) some hundred.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Final, Literal

from .._measure import lib
from ..errors import KvmIoctlError, KvmpyError
from ..exits import reasons as exits
from ..exits.explain import headline
from ..host.cpu import identify
from ..vcpu import VCPU
from ..vm import VM
from ..x86.descriptors import Gate
from ..x86.modes import Mode

ModeOutcome = Literal["native", "emulated", "fails"]

_ADDS: Final = 16
_PORT: Final = 0x10
#: ``add eax, ebx`` 16 times; ``dec ecx``; ``jnz`` back; ``out _PORT, al``. The bytes mean the same
#: with 16-bit operands. IOPL 3 lets every ring write the port: leaving through ring 0 instead, by
#: an exception, would abort QEMU's TCG ("invalid tss type") in 32-bit modes.
_LOOP: Final = b"\x01\xd8" * _ADDS + b"\xff\xc9\x75\xdc\xe6" + bytes([_PORT])
_INSTRUCTIONS: Final = _ADDS + 2
_CODE: Final = 0x1000
_END: Final = _CODE + len(_LOOP) - 2
_GENERAL_PROTECTION: Final = 13

#: ns for an instruction above which it was interpreted: CPUs are below 1, KVM's emulator
#: takes 200 and more. Where the CPU itself is slow (QEMU's TCG, Bochs), so many times what the
#: same loop takes outside of any guest.
EMULATED_NS: Final = 50.0
EMULATED_FACTOR: Final = 25.0
_HOST_ROUNDS: Final = 4000
_SHORT, _LONG = 10, 60_000  # rounds of the loop; all must fit 16 bits
#: Rounds, and attempts before it counts as interpreted.
_TRIALS: Final = ((100, 1), (400, 3))
#: Where the CPU itself is emulated, an entry can take a millisecond.
_PATIENT_TRIALS: Final = (*_TRIALS, (8000, 4))
_ATTEMPTS: Final = 3
_TIMEOUT: Final = 1.0  # seconds for one run, which takes milliseconds

#: Modes and the rings that each has.
MODES: Final[tuple[tuple[Mode, tuple[int, ...]], ...]] = (
    (Mode.REAL_16, (0,)),
    (Mode.PROTECTED_32, (0, 1, 2, 3)),
    (Mode.PAGED_32, (0, 1, 2, 3)),
    (Mode.LONG_64, (0, 1, 2, 3)),
)


@dataclass(frozen=True, slots=True)
class ModeResult:
    """How code in a mode and ring runs. ``nanoseconds`` for an instruction; ``detail`` says how
    it failed."""

    mode: Mode
    ring: int
    outcome: ModeOutcome
    nanoseconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WayIn:
    """What a system-call instruction does in 64-bit ring 3: ``ring`` in which its handler starts,
    None if it does not; ``detail`` says what came instead."""

    instruction: str
    ring: int | None
    detail: str = ""


class _ProbeError(Exception):
    """The guest ended otherwise than it should."""


def probe(mode: Mode, ring: int) -> ModeResult:
    """Run and time the loop in ``mode`` and ``ring``. Raises only if no VM can be made."""
    with VM(memory="1M") as vm:
        vm.load(_LOOP, at=_CODE)
        try:
            nanoseconds = _time_loop(vm.vcpu(), mode, ring)
        except (_ProbeError, KvmIoctlError) as error:
            return ModeResult(mode, ring, "fails", None, str(error))
    outcome: ModeOutcome = "emulated" if nanoseconds > emulated_ns() else "native"
    return ModeResult(mode, ring, outcome, nanoseconds)


@functools.cache
def emulated_ns() -> float:
    """Nanoseconds for an instruction above which it was interpreted, on this CPU."""
    quickest = math.inf
    for _ in range(_ATTEMPTS):
        start = time.perf_counter_ns()
        lib.measure_spin(_HOST_ROUNDS)
        quickest = min(quickest, time.perf_counter_ns() - start)
    return max(EMULATED_NS, EMULATED_FACTOR * quickest / (_HOST_ROUNDS * _INSTRUCTIONS))


def probe_all() -> list[ModeResult]:
    """Every mode in every ring it has."""
    return [probe(mode, ring) for mode, rings in MODES for ring in rings]


def _time_loop(cpu: VCPU, mode: Mode, ring: int) -> float:
    """Nanoseconds for an instruction of the loop.

    Other work of the host, and of the host's host, only adds to a run: the shortest of a few
    counts, and one that is fast settles it.
    """
    _run_loop(cpu, mode, ring, _SHORT)  # the first entry of all takes milliseconds
    for rounds, attempts in _PATIENT_TRIALS if identify().emulator else _TRIALS:
        quickest: float = math.inf
        for _ in range(attempts):
            quickest = min(quickest, _run_loop(cpu, mode, ring, rounds))
            if quickest <= rounds * _INSTRUCTIONS * emulated_ns():
                return _difference(cpu, mode, ring, _LONG)
    return _difference(cpu, mode, ring, rounds, quickest)


def _difference(cpu: VCPU, mode: Mode, ring: int, rounds: int, longest: float = math.inf) -> float:
    """Nanoseconds for an instruction, by runs of ``rounds`` (or one that took ``longest``) and
    short ones, so that the cost of entry and exit cancels."""
    if longest == math.inf:
        longest = min(_run_loop(cpu, mode, ring, rounds) for _ in range(_ATTEMPTS))
    shortest = min(_run_loop(cpu, mode, ring, _SHORT) for _ in range(_ATTEMPTS))
    return max(0.0, (longest - shortest) / ((rounds - _SHORT) * _INSTRUCTIONS))


def _run_loop(cpu: VCPU, mode: Mode, ring: int, rounds: int) -> int:
    """Nanoseconds of one run. Raises _ProbeError unless it ended as it should, with the sum."""
    iopl = 0 if mode is Mode.REAL_16 else 3
    cpu.enter(mode, rip=_CODE, ring=ring, regs={"rcx": rounds, "rbx": 1}, iopl=iopl)
    start = time.perf_counter_ns()
    exit = cpu.run(timeout=_TIMEOUT)
    elapsed = time.perf_counter_ns() - start
    wrote = isinstance(exit, exits.IoOut) and exit.port == _PORT
    # kvm_pvm heeds no IOPL: there the OUT gives #GP, which ends the loop as well.
    if not wrote and not _refused(exit, _END, ring):
        raise _ProbeError(_headline(exit))
    if wrote and cpu.sregs.cs.selector & 3 != ring:
        raise _ProbeError(f"the code runs in ring {cpu.sregs.cs.selector & 3}")
    mask = (1 << (16 if mode is Mode.REAL_16 else 32)) - 1
    if cpu.regs.rax & mask != rounds * _ADDS & mask:
        raise _ProbeError(f"wrong sum: {cpu.regs.rax & mask:#x}, not {rounds * _ADDS & mask:#x}")
    return elapsed


def _halted(cpu: VCPU, exit: exits.Exit, at: int) -> bool:
    return isinstance(exit, exits.Hlt) and cpu.regs.rip == at + 1


def _refused(exit: exits.Exit, at: int, ring: int) -> bool:
    """Whether the instruction at ``at`` gave #GP in ``ring``."""
    if not isinstance(exit, exits.GuestException):
        return False
    report = exit.report
    at_end = report.vector == _GENERAL_PROTECTION and report.rip == at
    return at_end and report.cs is not None and report.cs & 3 == ring


def _headline(exit: exits.Exit) -> str:
    if isinstance(exit, exits.Timeout):
        return f"no end within {_TIMEOUT:g} s"
    if isinstance(exit, exits.GuestException):
        report = exit.report
        code = "" if report.error_code is None else f", error code {report.error_code:#x}"
        return f"{report.name}{code}" + (f"; {report.note}" if report.note else "")
    return headline(exit)


# --- from ring 3 into ring 0 --------------------------------------------------------------------

_WAYS: Final = (
    ("int 0x80", b"\xcd\x80"),
    ("int3", b"\xcc"),
    ("syscall", b"\x0f\x05"),
    ("sysenter", b"\x0f\x34"),
)
_HANDLER: Final = 0x2000


def ways_in() -> list[WayIn]:
    """Try each instruction that can lead from 64-bit ring 3 to ring 0."""
    return [_try_way(name, code) for name, code in _WAYS]


def _try_way(name: str, code: bytes) -> WayIn:
    gate = Gate(_HANDLER, dpl=3)
    with VM(memory="1M") as vm:
        vm.load(code + b"\xf4", at=_CODE)
        vm.load(b"\xf4", at=_HANDLER)
        cpu = vm.vcpu()
        try:
            cpu.enter(
                Mode.LONG_64, rip=_CODE, ring=3, handlers={3: gate, 0x80: gate},
                syscall=_HANDLER, sysenter=_HANDLER,
            )  # fmt: skip
            exit = cpu.run(timeout=_TIMEOUT)
            if _halted(cpu, exit, _HANDLER):
                return WayIn(name, 0)
        except KvmpyError as error:
            return WayIn(name, None, str(error))
    if _refused(exit, _HANDLER, 3):
        return WayIn(name, 3, "the handler starts, still in ring 3")
    return WayIn(name, None, _headline(exit))
