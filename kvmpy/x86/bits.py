"""The bits of x86's registers by name, what they say together, and the names of vectors: the one
place that knows them (SDM vol. 3, "Control Registers", "Debug Registers"; APM vol. 2, "EFER").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ..text import flags_text

if TYPE_CHECKING:
    from typing import Protocol

    class SpecialLike(Protocol):
        """Special registers, live or saved: what tells the mode."""

        @property
        def cs(self) -> Any: ...
        @property
        def efer(self) -> int: ...

    class GeneralLike(Protocol):
        """General registers, live or saved."""

        @property
        def rip(self) -> int: ...


GENERAL: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
"""The general registers, RIP and RFLAGS, in the order of struct kvm_regs."""

SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")

RFLAGS: Final[Mapping[int, str]] = {
    0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 14: "NT",
    16: "RF", 17: "VM", 18: "AC", 19: "VIF", 20: "VIP", 21: "ID",
}  # fmt: skip
CR0: Final[Mapping[int, str]] = {
    0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD",
    31: "PG",
}  # fmt: skip
CR4: Final[Mapping[int, str]] = {
    0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE",
    9: "OSFXSR", 10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 13: "VMXE", 14: "SMXE", 16: "FSGSBASE",
    17: "PCIDE", 18: "OSXSAVE", 19: "KL", 20: "SMEP", 21: "SMAP", 22: "PKE", 23: "CET", 24: "PKS",
    25: "UINTR", 28: "LAM_SUP",
}  # fmt: skip
EFER: Final[Mapping[int, str]] = {
    0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME", 13: "LMSLE", 14: "FFXSR", 15: "TCE",
    17: "MCOMMIT", 18: "INTWB", 20: "UAIE", 21: "AUTOIBRS",
}  # fmt: skip
DR6: Final[Mapping[int, str]] = {
    0: "B0", 1: "B1", 2: "B2", 3: "B3", 13: "BD", 14: "BS", 15: "BT",
}  # fmt: skip
"""Bits that a debug exception can set; the others have fixed values."""

VECTORS: Final[Mapping[int, tuple[str, str]]] = {
    0: ("#DE", "divide error"),
    1: ("#DB", "debug exception"),
    2: ("NMI", "non-maskable interrupt"),
    3: ("#BP", "breakpoint"),
    4: ("#OF", "overflow"),
    5: ("#BR", "BOUND range exceeded"),
    6: ("#UD", "invalid opcode"),
    7: ("#NM", "device not available"),
    8: ("#DF", "double fault"),
    9: ("#CSO", "coprocessor segment overrun"),
    10: ("#TS", "invalid TSS"),
    11: ("#NP", "segment not present"),
    12: ("#SS", "stack-segment fault"),
    13: ("#GP", "general protection"),
    14: ("#PF", "page fault"),
    16: ("#MF", "x87 floating-point error"),
    17: ("#AC", "alignment check"),
    18: ("#MC", "machine check"),
    19: ("#XM", "SIMD floating-point exception"),
    20: ("#VE", "virtualization exception"),
    21: ("#CP", "control protection"),
    28: ("#HV", "hypervisor injection"),
    29: ("#VC", "VMM communication"),
    30: ("#SX", "security exception"),
}
"""Vector -> name and meaning (SDM vol. 3, "Protected-Mode Exceptions and Interrupts"; APM vol. 2,
"Exceptions and Interrupts")."""

DELIVERY_MODES: Final = (
    "fixed", "lowest-priority", "smi", "reserved-3", "nmi", "init", "startup", "extint"
)  # fmt: skip
"""Of interrupts, by number: in the local APIC, the I/O APIC and an MSI's data word. "startup" is
the local APIC's alone."""


def mask(bits: Mapping[int, str], *names: str) -> int:
    """The value with these bits set.

    >>> hex(kvmpy.x86.bits.mask(kvmpy.x86.bits.EFER, "LME", "LMA"))
    '0x500'
    """
    numbers = {name: bit for bit, name in bits.items()}
    return sum(1 << numbers[name] for name in names)


FCW_RESET: Final = 0x37F
MXCSR_RESET: Final = 0x1F80
"""FPU control after FNINIT and reset (SDM vol. 1, "Programming with the x87 FPU", "MXCSR")."""

LMA: Final = mask(EFER, "LMA")
PE: Final = mask(CR0, "PE")
TF: Final = mask(RFLAGS, "TF")


def is_long(sregs: SpecialLike) -> bool:
    """Whether the vCPU is in long mode, 64-bit or compatibility.

    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> kvmpy.x86.bits.is_long(cpu.sregs)
    True
    """
    return bool(sregs.efer & LMA)


def is_64bit(sregs: SpecialLike) -> bool:
    """Whether the vCPU executes 64-bit code.

    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> kvmpy.x86.bits.is_64bit(cpu.sregs)
    True
    """
    return bool(sregs.efer & LMA and sregs.cs.l)


def linear_rip(regs: GeneralLike, sregs: SpecialLike) -> int:
    """RIP as a linear address: in 64-bit code itself, else from CS's base, modulo 2**32.

    >>> cpu.enter(kvmpy.REAL_MODE, rip=0x7C00)
    >>> hex(kvmpy.x86.bits.linear_rip(cpu.regs, cpu.sregs))
    '0x7c00'
    """
    if is_64bit(sregs):
        return regs.rip
    base: int = sregs.cs.base
    return base + regs.rip & 0xFFFF_FFFF


def family_and_model(signature: int) -> tuple[int, int]:
    """Family and model of a processor by EAX of CPUID leaf 1, the extended ones added up as the
    manuals say (SDM vol. 2, "CPUID", leaf 01H).

    >>> kvmpy.x86.bits.family_and_model(0x306C3)
    (6, 60)
    """
    family, model = signature >> 8 & 0xF, signature >> 4 & 0xF
    if family in (6, 15):
        model |= signature >> 12 & 0xF0
    return family + (signature >> 20 & 0xFF if family == 15 else 0), model


_CODE_TYPES = ("execute", "execute/read", "execute, conforming", "execute/read, conforming")
_DATA_TYPES = ("read", "read/write", "read, expand-down", "read/write, expand-down")
_SYSTEM_TYPES = {1: "TSS16", 2: "LDT", 3: "TSS16 busy", 9: "TSS", 11: "TSS busy"}


def segment_kind(segment: Any) -> str:
    """The type in words, of anything with the fields of struct kvm_segment.

    >>> kvmpy.x86.bits.segment_kind(cpu.sregs.ldt)
    'LDT'
    """
    if segment.unusable or not segment.present:
        return "unusable"
    if not segment.s:
        return _SYSTEM_TYPES.get(segment.type, f"system type {segment.type}")
    if segment.type & 8:
        width = "64" if segment.l else "32" if segment.db else "16"
        return f"code{width} {_CODE_TYPES[segment.type >> 1 & 3]}"
    return f"data {_DATA_TYPES[segment.type >> 1 & 3]}"


def segment_text(segment: Any) -> str:
    """A segment register as a line of text, of anything with the fields of struct kvm_segment.

    >>> kvmpy.x86.bits.segment_text(cpu.sregs.cs)
    'f000 base 00000000ffff0000 limit 0000ffff dpl 0 code16 execute/read'
    """
    return (
        f"{segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x} "
        f"dpl {segment.dpl} {segment_kind(segment)}"
    )


def table_text(table: Any) -> str:
    """GDTR or IDTR as text.

    >>> kvmpy.x86.bits.table_text(cpu.sregs.idt)
    'base 0000000000000000 limit ffff'
    """
    return f"base {table.base:016x} limit {table.limit:04x}"


def general_text(values: Mapping[str, int]) -> str:
    """The general registers, RIP and RFLAGS as lines of text.

    >>> print(kvmpy.x86.bits.general_text(cpu.regs.as_dict()))
    rax 0000000000000000 ...
    """
    rflags = values["rflags"]
    flags = " ".join(name for bit, name in RFLAGS.items() if rflags >> bit & 1)
    lines = []
    for row in (GENERAL[0:4], GENERAL[4:8], GENERAL[8:12], GENERAL[12:16]):
        lines.append("  ".join(f"{name:>3} {values[name]:016x}" for name in row))
    lines.append(f"rip {values['rip']:016x}  rflags {rflags:08x} [{flags}] iopl {rflags >> 12 & 3}")
    return "\n".join(lines)


def special_text(sregs: Any) -> str:
    """Segments, tables and control registers as lines of text, of anything with the fields of
    struct kvm_sregs.

    >>> print(kvmpy.x86.bits.special_text(cpu.sregs))
    cs f000 base 00000000ffff0000 ...
    """
    lines = [f"{name} {segment_text(getattr(sregs, name))}" for name in SEGMENTS]
    lines += [f"{name} {table_text(getattr(sregs, name))}" for name in ("gdt", "idt")]
    lines.append(
        f"cr0 {sregs.cr0:08x} cr2 {sregs.cr2:016x} cr3 {sregs.cr3:016x} cr4 {sregs.cr4:08x} "
        f"cr8 {sregs.cr8:x} efer {sregs.efer:04x}"
    )
    flags = (("cr0", sregs.cr0, CR0), ("cr4", sregs.cr4, CR4), ("efer", sregs.efer, EFER))
    lines.append("  ".join(f"{name} {flags_text(value, bits)}" for name, value, bits in flags))
    return "\n".join(lines)
