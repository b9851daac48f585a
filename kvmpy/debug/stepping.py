"""Single steps: one Step per instruction, with what it did.

KVM steps by RFLAGS.TF, and that leaves traces which are mended here: TF in what PUSHF, INT n and
SYSCALL save, and the loss of TF where an instruction enters a handler (there a debug register
takes over).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import GuestMemoryError, KvmpyError
from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..x86.bits import TF, is_64bit, linear_rip
from .breakpoints import _Budget, _Debugger, debugger_of

if TYPE_CHECKING:
    from .guest_debug import VcpuGuestDebug

_LONGEST = 15  # bytes of an instruction
_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")


@dataclass(frozen=True)
class Step:
    """One instruction that a vCPU executed, or stopped in.

    ``rip`` is its linear address, ``code`` the bytes from there on (15 at most: KVM does not tell
    where it ends; empty where they cannot be read), ``before`` and ``after`` the general
    registers. ``exit``: None, or what nobody handled; the instruction is not finished then, unless
    ``finished``.
    """

    rip: int
    code: bytes
    before: Mapping[str, int]
    after: Mapping[str, int]
    exit: Exit | None = None
    finished: bool = True

    @property
    def changed(self) -> dict[str, tuple[int, int]]:
        """Registers that differ, as (before, after); RIP left out.

        >>> kvmpy.Step(0, b"", {"rax": 1, "rip": 0}, {"rax": 2, "rip": 2}).changed
        {'rax': (1, 2)}
        """
        pairs = ((name, (self.before[name], self.after[name])) for name in self.before)
        return {name: pair for name, pair in pairs if pair[0] != pair[1] and name != "rip"}

    @property
    def instruction(self) -> bytes:
        """The instruction's bytes, when the next one in line came after it; else all of ``code``.

        >>> kvmpy.Step(0, bytes(15), {"rip": 0x10}, {"rip": 0x12}).instruction
        b'\\x00\\x00'
        """
        length = self.after["rip"] - self.before["rip"]
        return self.code[:length] if 0 < length <= _LONGEST else self.code

    def __str__(self) -> str:
        parts = [f"{name} {old:#x} -> {new:#x}" for name, (old, new) in self.changed.items()]
        changes = f" ({', '.join(parts)})" if parts else ""
        after = f" {self.exit}" if self.exit is not None else ""
        return f"{self.rip:#x}: {self.instruction.hex(' ')}{changes}{after}"


def steps(
    cpu: Any, limit: int | None, timeout: float | None, block_interrupts: bool
) -> Iterator[Step]:
    """See :meth:`VCPU.steps`.

    >>> list(kvmpy.debug.stepping.steps(cpu, 0, None, False))
    []
    """
    if limit is not None and limit < 0:
        raise ValueError(f"limit {limit} is negative")
    return _Stepper(cpu, _Budget(timeout), block_interrupts).steps(limit)


class _Stepper:
    def __init__(self, cpu: VcpuGuestDebug, budget: _Budget, block_interrupts: bool):
        self.cpu, self.budget, self.block_interrupts = cpu, budget, block_interrupts

    @property
    def debugger(self) -> _Debugger:
        return debugger_of(self.cpu)  # breakpoints may come and go between the steps

    def steps(self, limit: int | None) -> Iterator[Step]:
        try:
            yield from self._steps(limit)
        finally:
            self.debugger.retire()

    def _steps(self, limit: int | None) -> Iterator[Step]:
        count = 0
        while limit is None or count < limit:
            before = self.cpu.regs.as_dict()
            rip, code = linear_rip(self.cpu.regs, self.cpu.sregs), self._code()
            exit = self._execute(code)
            while exit is not None:
                finished, waits = self._progress(before)
                yield self._step(rip, code, before, exit, finished)
                count += 1
                if _is_end(exit) or (limit is not None and count >= limit):
                    return
                if finished:
                    break
                exit = self._go_on(code, waits)
            else:
                yield self._step(rip, code, before, None, True)
                count += 1

    def _step(
        self, rip: int, code: bytes, before: dict[str, int], exit: Exit | None, finished: bool
    ) -> Step:
        return Step(rip, code, before, self.cpu.regs.as_dict(), exit, finished)

    def _code(self) -> bytes:
        for size in (_LONGEST, 16 - linear_rip(self.cpu.regs, self.cpu.sregs) % 16):
            try:
                return self.cpu.read_virtual(linear_rip(self.cpu.regs, self.cpu.sregs), size)
            except (GuestMemoryError, ValueError):
                continue
        return b""

    def _execute(self, code: bytes) -> Exit | None:
        """One instruction from its beginning."""
        opcode = opcode_of(code, is_64bit(self.cpu.sregs))
        target = self._target(opcode)
        exit = self.debugger.step(
            self.budget,
            without=self.debugger.standing_on(),
            block_interrupts=self.block_interrupts,
            target=target,
        )
        if exit is None:
            self._mend(opcode, target)
        return exit

    def _go_on(self, code: bytes, waits: bool) -> Exit | None:
        """The instruction after its exit was handled: None when it is finished."""
        if waits and not self.debugger.complete():
            return None
        return self._execute(code)

    def _progress(self, before: dict[str, int]) -> tuple[bool, bool]:
        """(finished, waits for completion), before registers are looked at."""
        if self.cpu._shim.pending:
            return False, True
        return self.cpu.regs.rip != before["rip"], False

    # -- where TF does not reach, and where it shows

    def _target(self, opcode: bytes) -> int | None:
        """Where an instruction that clears TF goes."""
        from .handlers import handler_address

        try:
            return handler_address(self.cpu, opcode)
        except KvmpyError:
            return None

    def _mend(self, opcode: bytes, target: int | None) -> None:
        from .handlers import saved_flags

        if opcode[:2] == b"\x0f\x05":
            self.cpu.regs.r11 &= ~TF
            return
        arrived = target is not None and linear_rip(self.cpu.regs, self.cpu.sregs) == target
        where = saved_flags(self.cpu, opcode, arrived)
        if where is None:
            return
        try:
            byte = self.cpu.read_virtual(where + 1, 1)[0]
            self.cpu.write_virtual(where + 1, bytes([byte & ~(TF >> 8)]))
        except GuestMemoryError:
            return  # the guest's stack is in no RAM of ours: nothing was saved there


def _is_end(exit: Exit) -> bool:
    return not exit.resumable or isinstance(exit, (exits.Kicked, exits.Timeout))


def opcode_of(code: bytes, long: bool) -> bytes:
    """An instruction's bytes without legacy prefixes and REX.

    >>> kvmpy.debug.stepping.opcode_of(b"\\x66\\x48\\x9c", True).hex()
    '9c'
    """
    at = 0
    while at < len(code) and code[at] in _PREFIXES:
        at += 1
    if long and at < len(code) and code[at] & 0xF0 == 0x40:
        at += 1
    return code[at:]
