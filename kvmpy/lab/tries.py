"""A few instructions around one that is looked at, run in a ring of a guest, or in this process.

The guest programs: native/guests/lab-tries.inc says what a try is. Each is started anew, with all
registers and tables as they should be, so it matters to none what another has done.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final, Literal

from .._measure import ffi, lib
from ..errors import KvmIoctlError, UnsupportedError
from ..exits.reasons import (
    Exit,
    GuestException,
    Hlt,
    InternalError,
    IoIn,
    IoOut,
    MmioWrite,
    Timeout,
)
from ..guests import image
from ..probe.verdict import Verdict
from ..vm import VM
from ..x86.exceptions import VECTORS
from ..x86.modes import Mode

LONG: Final = "long mode"
LEGACY: Final = "32-bit protected mode"
#: Paging is off in 32-bit mode: kvm_pvm has none there, and rings need none.
MODES: Final = {LONG: (Mode.LONG_64, "lab-long64"), LEGACY: (Mode.PROTECTED_32, "lab-legacy32")}
RINGS: Final = (0, 1, 2, 3)
IF: Final = 1 << 9
PORT: Final = 0x80  # of the tries "in" and "out"

_MEMORY: Final = 4 << 20
_REPORT: Final = 0xD000_0000  # no memory there
_SCRATCH: Final = 0x20_0000
_VECTOR: Final = 0x40  # of the try "int_n"
_SECONDS: Final = 2.0
_REPEATS: Final = 3

#: What became of a try: it came to its end; an exception; an exit to user space; KVM's instruction
#: emulator does not know the instruction; it did not come back; something else.
Kind = Literal["runs", "exception", "exit", "unknown", "hangs", "fails"]


@dataclass(frozen=True)
class Tried:
    """What became of a try.

    ``name``: of the exception ("#GP"), the exit ("HLT") or the failure. ``error_code``: the
    exception's. ``value`` and ``second``: what the try found, if it came to its end.
    ``handled``: VM exits that KVM dealt with itself, and the guest never knew; None where they
    cannot be counted. ``signal``: what this process's kernel made of an exception.
    """

    kind: Kind
    name: str = ""
    error_code: int | None = None
    value: int = 0
    second: int = 0
    handled: int | None = None
    signal: str = ""

    @property
    def shown(self) -> bool:
        """Whether it tells something of the instruction, not of what KVM lacks here."""
        return self.kind in ("runs", "exception", "exit")

    @property
    def word(self) -> str:
        """In a table's cell."""
        after = ", exit" if self.handled else ""
        if self.kind == "runs":
            return "exits" if self.handled else "runs"
        if self.kind == "exception":
            return f"{self.name}{after}"
        return f"exit: {self.name}" if self.kind == "exit" else self.kind


@dataclass(frozen=True)
class Try:
    """A try of the guest programs and what it starts with.

    ``operand``: a value, or the control register ("cr0", "cr3") whose value it is. ``table``: "gdt"
    or "idt": the operand in memory is a pointer to it. ``flags``: RFLAGS. ``cr4``: bits to set.
    """

    name: str
    operand: int | str = 0
    table: str = ""
    flags: int = IF
    cr4: int = 0


class Guest:
    """A VM with one of the guest programs, and the vCPU that tries.

    ``counted``: whether exits can be counted (KVM's statistic "exits", of what runs natively).
    """

    def __init__(self, mode: str, verdict: Verdict, pin: int | None = None):
        self.mode, program = MODES[mode]
        self.image = image.load(program)
        self.vm = VM(_MEMORY)
        try:
            self.cpu = self.vm.vcpu(pin=pin)
            self.vm.load(self.image.code, at=image.ORIGIN)
            self.counted = verdict.ring0 == "native" and _has_statistics(self)
            self._attempt(Try("nothing"), 0, 0, ())  # the first entry of all takes longer
        except BaseException:
            self.vm.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vm.close()

    def has(self, name: str) -> bool:
        """Whether the mode has the try."""
        return f"try.{name}" in self.image.symbols

    def attempt(self, what: Try, ring: int, *, iopl: int = 0, ports: tuple[int, ...] = ()) -> Tried:
        """Make a try in a ring; ``ports``: those that the I/O bitmap lets all rings use.

        What else exits, such as the host's own interrupts, only adds: of a few attempts the one
        with the fewest exits counts.
        """
        best: Tried | None = None
        for _ in range(_REPEATS):
            outcome = self._attempt(what, ring, iopl, ports)
            if best is None or (outcome.handled or 0) < (best.handled or 0):
                best = outcome
            if not outcome.handled:
                break
        assert best is not None
        return best

    def _attempt(self, what: Try, ring: int, iopl: int, ports: tuple[int, ...]) -> Tried:
        cpu, symbols = self.cpu, self.image
        cpu.enter(
            self.mode, rip=symbols[f"try.{what.name}"], ring=ring, iopl=iopl, io_ports=ports,
            regs={"rdi": _REPORT, "rsi": _SCRATCH, "rflags": what.flags},
            handlers={_VECTOR: symbols["interrupt"]},
        )  # fmt: skip
        if isinstance(what.operand, str):
            cpu.regs.rbx = getattr(cpu.sregs, what.operand)
        else:
            cpu.regs.rbx = what.operand
        memory = bytes(16)
        if what.table:
            table = getattr(cpu.sregs, what.table)
            memory = table.limit.to_bytes(2, "little") + table.base.to_bytes(8, "little")
        self.vm.load(memory, at=_SCRATCH)
        before = self._exits()
        try:
            if what.cr4:
                cpu.sregs.cr4 |= what.cr4
            exit = cpu.run(timeout=_SECONDS)
        except KvmIoctlError as error:
            return Tried("fails", str(error))
        after = self._exits()
        # One exit is the one that ended it.
        handled = None if before is None or after is None else max(after - before - 1, 0)
        return self._outcome(exit, handled)

    def _exits(self) -> int | None:
        return int(self.cpu.stats["exits"]) if self.counted else None

    def _outcome(self, exit: Exit, handled: int | None) -> Tried:
        match exit:
            case MmioWrite(gpa=gpa) if gpa == _REPORT:
                mask = (1 << self.mode.bits) - 1
                regs = self.cpu.regs
                return Tried("runs", "", None, regs.rax & mask, regs.rdx & mask, handled)
            case GuestException(report=report):
                name = report.name.partition(" ")[0]
                return Tried("exception", name, report.error_code, handled=handled)
            case Hlt():
                return Tried("exit", "HLT", handled=handled)
            case IoIn(port=port) if port == PORT:
                return Tried("exit", "IN", handled=handled)
            case IoOut(port=port) if port == PORT:
                return Tried("exit", "OUT", handled=handled)
            case InternalError(suberror=1):
                return Tried("unknown")
            case Timeout():
                return Tried("hangs")
        return Tried("fails", type(exit).__name__)


def _has_statistics(guest: Guest) -> bool:
    try:
        return "exits" in guest.cpu.stats
    except UnsupportedError:
        return False


def here(what: Try) -> Tried:
    """Make a 64-bit try in this process: root ring 3. A child makes it, in case it dies of it.

    Raises OSError when no child process can be made.
    """
    program = image.load(MODES[LONG][1])
    code = program.code
    # A control register's value is nothing this process could know: any will do to be refused.
    operand = 0 if isinstance(what.operand, str) else what.operand
    result = ffi.new("struct measure_host_try *")
    entry = program[f"try.{what.name}"] - image.ORIGIN
    memory = bytes(16)
    error = lib.measure_host_try(
        ffi.from_buffer(code), len(code), entry, operand, memory, len(memory), result
    )
    if error:
        raise OSError(-error, "cannot try an instruction in a child process")
    if result.reported:
        return Tried("runs", value=result.rax, second=result.rdx)
    if result.signal in (0, signal.SIGALRM):
        return Tried("hangs" if result.signal else "fails")
    name = signal.Signals(result.signal).name
    mnemonic = VECTORS[result.vector][0] if result.vector in VECTORS else f"#{result.vector}"
    return Tried("exception", mnemonic, result.error_code, signal=name)
