"""What a reporting stub says: the exception or system call that led a vCPU there.

A stub is recognised by RIP alone; everything else is read from the stack of the guest, which is
hostile input: what cannot be read makes the report shorter, and nothing is raised.

Source: SDM vol. 3, "Interrupt and Exception Handling".
"""

from __future__ import annotations

from typing import Final, Protocol

from ..values import dataclass
from . import layout
from .bits import VECTORS as VECTORS
from .layout import MemoryLike
from .state import CR0_PE, EFER_LMA, StubTable
from .walk import Paging, walk

# vector: mnemonic, name
ERROR_CODE_VECTORS: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
_SELECTOR_VECTORS: Final = frozenset({10, 11, 12, 13})
_PAGE_FAULT: Final = 14
_SYSCALL_KINDS: Final = {
    layout.SYSCALL_SLOT: "SYSCALL",
    layout.SYSCALL32_SLOT: "SYSCALL from compatibility mode",
    layout.SYSENTER_SLOT: "SYSENTER",
}
_FLAGS_VM: Final = 1 << 17


class SegmentLike(Protocol):
    """What is used of a segment register."""

    @property
    def base(self) -> int: ...
    @property
    def selector(self) -> int: ...
    @property
    def db(self) -> int: ...


class SpecialRegistersLike(Protocol):
    """What is used of the special registers; ``kvmpy.state.Sregs`` fits."""

    @property
    def cs(self) -> SegmentLike: ...
    @property
    def ss(self) -> SegmentLike: ...
    @property
    def cr0(self) -> int: ...
    @property
    def cr2(self) -> int: ...
    @property
    def cr3(self) -> int: ...
    @property
    def cr4(self) -> int: ...
    @property
    def efer(self) -> int: ...


class RegistersLike(Protocol):
    """What is used of the general registers."""

    @property
    def rip(self) -> int: ...
    @property
    def rsp(self) -> int: ...
    @property
    def rflags(self) -> int: ...
    @property
    def rcx(self) -> int: ...
    @property
    def r11(self) -> int: ...


@dataclass(frozen=True)
class ExceptionReport:
    """An exception or interrupt without a handler of the guest's own.

    ``rip``, ``cs``, ``rflags`` are where it happened, from the guest's stack; None where the stack
    could not be read. ``rsp`` and ``ss`` are those of the interrupted code. ``cr2`` is given for
    page faults. ``software`` marks an INT n instruction. ``note`` is a likely cause, or empty.
    """

    vector: int
    name: str
    error_code: int | None
    rip: int | None
    cs: int | None
    rflags: int | None
    rsp: int | None
    ss: int | None
    cr2: int | None
    software: bool = False
    note: str = ""

    def __str__(self) -> str:
        if self.rip is None or self.cs is None:
            where = "at an unknown place: the stack frame is unreadable"
        else:
            where = f"at {self.cs:04x}:{self.rip:#x}"
        parts = [f"{self.name} (vector {self.vector}) {where}"]
        if self.error_code is not None:
            details = describe_error_code(self.vector, self.error_code)
            parts.append(f"error code {self.error_code:#x} ({details})")
        if self.cr2 is not None:
            parts.append(f"CR2 {self.cr2:#x}")
        if self.rsp is not None:
            stack = f"{self.ss:04x}:" if self.ss is not None else ""
            parts.append(f"stack {stack}{self.rsp:#x}")
        return ", ".join(parts) + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class SyscallReport:
    """A system call for which the guest had set no target.

    ``rip``, ``rsp`` and ``rflags`` are those of the caller, None where the instruction does not
    save them: SYSENTER saves nothing, and legacy SYSCALL only the return address.
    """

    kind: str
    rip: int | None
    rsp: int | None
    rflags: int | None
    note: str = ""

    def __str__(self) -> str:
        origin = f", return address {self.rip:#x}" if self.rip is not None else ""
        return f"{self.kind} without a handler{origin}" + (f"; {self.note}" if self.note else "")


Report = ExceptionReport | SyscallReport


def vector_name(vector: int) -> str:
    """Mnemonic and name of a vector: "#PF page fault", "interrupt 0x80".

    >>> kvmpy.x86.exceptions.vector_name(14)
    '#PF page fault'
    """
    return " ".join(VECTORS[vector]) if vector in VECTORS else f"interrupt {vector:#x}"


def describe_error_code(vector: int, code: int) -> str:
    """An error code in words, for a page fault or a fault that concerns a selector.

    >>> kvmpy.x86.exceptions.describe_error_code(14, 6)
    'user write, no page translation'
    """
    if vector == _PAGE_FAULT:
        access = "fetch" if code & 0x10 else "write" if code & 2 else "read"
        cause = "reserved bit in" if code & 8 else "protection of" if code & 1 else "no"
        return f"{'user' if code & 4 else 'supervisor'} {access}, {cause} page translation"
    if vector in _SELECTOR_VECTORS and code:
        external = ", external event" if code & 1 else ""
        if code & 2:
            return f"IDT gate {code >> 3 & 0xFF:#x}{external}"
        return f"{'LDT' if code & 4 else 'GDT'} selector {code & 0xFFF8:#x}{external}"
    return "no selector" if vector in _SELECTOR_VECTORS else "no detail"


def identify(
    table: StubTable,
    regs: RegistersLike,
    sregs: SpecialRegistersLike,
    memory: MemoryLike,
) -> Report | None:
    """Name what led to the stub that has written to ``EXCEPTION_PORT``.

    ``table``: from the ``CpuState`` with which the vCPU was started. ``regs, sregs``: the vCPU's
    registers at the exit. RIP may be at the OUT or after it. ``memory``: guest RAM, for the stack
    frame.

    Returns None when RIP is in no stub: guest code wrote to the port itself.

    :meth:`VCPU.run` calls it and hands its report on in a GuestException:

    >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> cpu.run(timeout=5).report.name
    '#UD invalid opcode'
    """
    linear = sregs.cs.base + regs.rip
    slot: int | None = None
    if not sregs.cr0 & CR0_PE:
        slot = layout.real_vector_at(linear, sregs.cs.selector)
    elif table.stubs <= linear < table.stubs + layout.STUB_SIZE * layout.STUB_SLOTS:
        slot = (linear - table.stubs) // layout.STUB_SIZE
        if slot >= layout.EXCEPTION_VECTORS:
            return _syscall_report(slot, regs, sregs)
    if slot is None:
        return None
    return _Frame(table, regs, sregs, memory).report(slot)


def _syscall_report(slot: int, regs: RegistersLike, sregs: SpecialRegistersLike) -> SyscallReport:
    kind = _SYSCALL_KINDS[slot]
    if slot == layout.SYSENTER_SLOT:
        return SyscallReport(kind, None, None, None, "SYSENTER saves no return address")
    if not sregs.efer & EFER_LMA:  # ESP is unchanged, EFLAGS.IF and VM are lost
        return SyscallReport(kind, regs.rcx & 0xFFFF_FFFF, regs.rsp & 0xFFFF_FFFF, None)
    return SyscallReport(kind, regs.rcx, regs.rsp, regs.r11)


class _Frame:
    """The stack frame of an interrupt, in the width that the CPU mode gives it."""

    def __init__(
        self,
        table: StubTable,
        regs: RegistersLike,
        sregs: SpecialRegistersLike,
        memory: MemoryLike,
    ) -> None:
        self.table, self.regs, self.sregs, self.memory = table, regs, sregs, memory
        self.paging = Paging.of(sregs.cr0, sregs.cr4, sregs.efer)
        if not sregs.cr0 & CR0_PE:
            self.width = 2
        else:
            self.width = 8 if sregs.efer & EFER_LMA else 4
        # The stack pointer wraps at 64 KiB when the stack segment is a 16-bit one.
        wide_stack = self.width == 8 or sregs.ss.db
        self.stack_mask = (1 << 64) - 1 if self.width == 8 else 0xFFFF_FFFF
        self.sp_mask = self.stack_mask if wide_stack else 0xFFFF
        self.stack_base = 0 if self.width == 8 else sregs.ss.base

    def read(self, linear: int, size: int) -> bytes | None:
        """Bytes at a linear address in one page, or None."""
        found = walk(self.memory, self.sregs.cr3, linear, self.paging)
        if found.gpa is None:
            return None
        try:
            return bytes(self.memory.read(found.gpa, size))
        except ValueError:
            return None

    def pushed(self, index: int) -> int | None:
        """Item ``index`` on the stack, 0 being the one pushed last."""
        offset = (self.regs.rsp + index * self.width) & self.sp_mask
        linear = (self.stack_base + offset) & self.stack_mask
        if linear % layout.PAGE_SIZE > layout.PAGE_SIZE - self.width:
            halves = [self.read(linear + i & self.stack_mask, 1) for i in range(self.width)]
            data = b"".join(half for half in halves if half is not None)
        else:
            data = self.read(linear, self.width) or b""
        return int.from_bytes(data, "little") if len(data) == self.width else None

    def is_software(self, vector: int, cs: int | None, rip: int | None) -> bool:
        """Whether the instruction before the return address is INT n, INT3 or INTO."""
        if cs is None or rip is None:
            return False
        base = cs << 4 if self.width == 2 else 0  # flat segments are all that kvmpy sets up
        first, second = (self.read(base + rip - back & self.stack_mask, 1) for back in (2, 1))
        if first == b"\xcd" and second == bytes((vector,)):
            return True
        return (vector, second) in ((3, b"\xcc"), (4, b"\xce"))

    def has_error_code(self, vector: int) -> bool:
        if self.width == 2 or vector not in ERROR_CODE_VECTORS:
            return False
        if self.width == 8:
            # RSP is aligned to 16 before five or, with an error code, six items are pushed. So
            # ``int 13``, which pushes none, does not pass for a #GP.
            return self.regs.rsp % 16 == 0
        return not self.is_software(vector, self.pushed(1), self.pushed(0))

    def report(self, vector: int) -> ExceptionReport:
        with_code = self.has_error_code(vector)
        first = int(with_code)
        code = self.pushed(0) if with_code else None
        rip, cs, rflags = (self.pushed(first + i) for i in range(3))
        cs = None if cs is None else cs & 0xFFFF
        rsp, ss = self._stack(first + 3, cs, rflags)
        software = not with_code and self.is_software(vector, cs, rip)
        cr2 = self.sregs.cr2 if vector == _PAGE_FAULT and not software else None
        by_number = software and vector not in (3, 4)
        name = f"interrupt {vector:#x}" if by_number else vector_name(vector)
        note = self._note(vector, code, cs, rip, cr2, software)
        return ExceptionReport(vector, name, code, rip, cs, rflags, rsp, ss, cr2, software, note)

    def _stack(
        self, index: int, cs: int | None, rflags: int | None
    ) -> tuple[int | None, int | None]:
        """RSP and SS of the interrupted code: pushed in long mode and on a change of ring."""
        if cs is None or rflags is None:
            return None, None
        outer = cs & 3 > self.sregs.cs.selector & 3 or bool(rflags & _FLAGS_VM)
        if self.width == 8 or (self.width == 4 and outer):
            ss = self.pushed(index + 1)
            return self.pushed(index), None if ss is None else ss & 0xFFFF
        return self.regs.rsp + index * self.width & self.sp_mask, self.sregs.ss.selector

    def _note(
        self,
        vector: int,
        code: int | None,
        cs: int | None,
        rip: int | None,
        cr2: int | None,
        software: bool,
    ) -> str:
        if software and self.width == 2:
            return f"the guest ran `int {vector:#x}`: real mode starts without a BIOS"
        if software:
            return f"the guest ran `int {vector:#x}` and has no handler for it"
        lstar = self.table.lstar
        if vector == _PAGE_FAULT and lstar and cr2 == rip == lstar:
            return (
                "a SYSCALL: this host jumped to LSTAR without leaving CPL 3, and that page is "
                "for ring 0 only (kvm_pvm emulates 64-bit SYSCALL so)"
            )
        if cs is None or rip is None or self.width == 2:
            return ""
        if vector == 13 and lstar and cs & 3 == 3 and 0 <= rip - lstar < layout.PAGE_SIZE:
            return "the SYSCALL handler runs in ring 3: kvm_pvm's 64-bit SYSCALL stays at CPL 3"
        if vector == 13 and code is not None and code & 7 == 2:
            gate = code >> 3 & 0xFF
            return f"`int {gate:#x}` in ring {cs & 3}: the gate is not present or its DPL too low"
        return self._undefined(rip) if vector == 6 else ""

    def _undefined(self, rip: int) -> str:
        """A #UD whose instruction exists, but not here."""
        first, second = self.read(rip, 1), self.read(rip + 1 & self.stack_mask, 1)
        if first in (b"\xcc", b"\xcd") and second:
            number = second[0] if first == b"\xcd" else 3
            return f"`int {number:#x}`: kvm_pvm runs only `int 3` and `int 4`, in 64-bit ring 3"
        if first == b"\x0f" and second == b"\x34":
            return "SYSENTER: AMD has none in long mode, kvm_pvm none in 64-bit code"
        if first == b"\x0f" and second == b"\x05":
            return "SYSCALL: Intel has none outside 64-bit code"
        return ""
