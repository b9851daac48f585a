"""Where an instruction that enters a handler goes, and where it saves RFLAGS (SDM vol. 3,
"Interrupt and Exception Handling"; SDM vol. 2, SYSCALL, SYSENTER, PUSHF)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..x86.bits import is_64bit, is_long

if TYPE_CHECKING:
    from .guest_debug import VcpuGuestDebug

_SOFTWARE_INTERRUPTS = {0xCC: 3, 0xCE: 4, 0xF1: 1}


def vector_of(opcode: bytes) -> int | None:
    """The vector of INT3, INTO, INT1 or INT n; None for any other instruction.

    >>> kvmpy.debug.handlers.vector_of(b"\\xcd\\x80")
    128
    """
    if len(opcode) >= 2 and opcode[0] == 0xCD:
        return opcode[1]
    return _SOFTWARE_INTERRUPTS.get(opcode[0]) if opcode else None


def handler_address(cpu: VcpuGuestDebug, opcode: bytes) -> int | None:
    """The linear address that SYSCALL, SYSENTER, INT n and their like go to, as far as MSRs and
    the IDT tell; None for other instructions, and where there is no handler.

    Raises KvmpyError when an MSR or the IDT cannot be read.

    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000, handlers={0x80: 0x2000})
    >>> hex(kvmpy.debug.handlers.handler_address(cpu, b"\\xcd\\x80"))
    '0x2000'
    """
    long = is_long(cpu.sregs)
    if opcode[:2] == b"\x0f\x05":
        return cpu.msrs["LSTAR" if cpu.sregs.cs.l else "CSTAR"] if long else None
    if opcode[:2] == b"\x0f\x34":
        return cpu.msrs["SYSENTER_EIP"]
    vector = vector_of(opcode)
    return None if vector is None else _gate_target(cpu, vector, long)


def _gate_target(cpu: VcpuGuestDebug, vector: int, long: bool) -> int | None:
    base = cpu.sregs.idt.base
    if not cpu.sregs.cr0 & 1:
        raw = cpu.read_virtual(base + 4 * vector, 4)
        return int.from_bytes(raw[2:], "little") * 16 + int.from_bytes(raw[:2], "little")
    size = 16 if long else 8
    raw = cpu.read_virtual(base + size * vector, size)
    if not raw[5] & 0x80:
        return None  # not present: #NP, and that one's handler is not known here
    high = raw[6:8] if raw[5] & 8 else b""  # a 16-bit gate has no upper half
    offset = int.from_bytes(raw[:2] + high, "little")
    return offset | int.from_bytes(raw[8:12], "little") << 32 if long else offset


def saved_flags(cpu: VcpuGuestDebug, opcode: bytes, arrived: bool) -> int | None:
    """The linear address of the RFLAGS that the instruction just executed has pushed; None if it
    has not. ``arrived``: it entered its handler.

    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000, rsp=0x8000)
    >>> hex(kvmpy.debug.handlers.saved_flags(cpu, b"\\x9c", False))  # PUSHF
    '0x8000'
    """
    stack = _stack(cpu)
    if opcode[:1] == b"\x9c":
        return stack
    if not arrived or vector_of(opcode) is None:
        return None
    if is_long(cpu.sregs):
        return stack + 16
    return stack + (8 if cpu.sregs.cr0 & 1 else 4)


def _stack(cpu: VcpuGuestDebug) -> int:
    sregs = cpu.sregs
    if is_64bit(sregs):
        return cpu.regs.rsp
    mask = 0xFFFF_FFFF if sregs.ss.db else 0xFFFF
    return sregs.ss.base + (cpu.regs.rsp & mask) & 0xFFFF_FFFF
