"""Register values that a vCPU starts with, as plain values: nothing here touches KVM.

Field names are those of struct kvm_segment, kvm_dtable, kvm_sregs and kvm_regs, so that a state
can be applied field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..values import dataclass
from .descriptors import DATA_RW, LDT, TSS_BUSY, Descriptor

# --- CR0, CR4, EFER, RFLAGS ---------------------------------------------------------------------
CR0_PE: Final = 1 << 0
CR0_MP: Final = 1 << 1
CR0_ET: Final = 1 << 4
CR0_NE: Final = 1 << 5  # x87 errors as #MF; VMX demands it
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_OSFXSR: Final = 1 << 9
CR4_OSXMMEXCPT: Final = 1 << 10
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
RFLAGS_FIXED: Final = 1 << 1  # reads as one on every x86
RFLAGS_IOPL_SHIFT: Final = 12

# --- MSRs ---------------------------------------------------------------------------------------
MSR_SYSENTER_CS: Final = 0x174
MSR_SYSENTER_ESP: Final = 0x175
MSR_SYSENTER_EIP: Final = 0x176
MSR_STAR: Final = 0xC000_0081
MSR_LSTAR: Final = 0xC000_0082
MSR_CSTAR: Final = 0xC000_0083
MSR_SFMASK: Final = 0xC000_0084
MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
MSR_KERNEL_GS_BASE: Final = 0xC000_0102
# STAR[63:48] for SYSRET (USER_CODE32), STAR[47:32] for SYSCALL (KERNEL_CODE).
STAR_SELECTORS: Final = 0x23 << 48 | 0x10 << 32
# Cleared by SYSCALL, as Linux has it: AC, NT, IOPL, DF, IF, TF.
SFMASK_VALUE: Final = 0x47700

# FPU control after FNINIT and reset.
FCW_RESET: Final = 0x37F
MXCSR_RESET: Final = 0x1F80

GENERAL_REGISTERS: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)


@dataclass(frozen=True)
class Segment:
    """A segment register with its descriptor cache, as in struct kvm_segment."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 1
    dpl: int = 0
    db: int = 0
    s: int = 1
    l: int = 0  # noqa: E741 -- the field's name in struct kvm_segment
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @classmethod
    def load(cls, selector: int, descriptor: Descriptor) -> Segment:
        """The cache after loading `selector` that refers to `descriptor`.

        >>> from kvmpy.x86.descriptors import USER_CODE64, code_segment
        >>> kvmpy.x86.state.Segment.load(USER_CODE64, code_segment(3, long=True)).l
        1
        """
        return cls(
            base=descriptor.base,
            limit=descriptor.limit,
            selector=selector,
            type=descriptor.type,
            present=int(descriptor.present),
            dpl=descriptor.dpl,
            db=int(descriptor.big),
            s=int(not descriptor.system),
            l=int(descriptor.long),
            g=int(descriptor.limit >= 1 << 20),
            avl=int(descriptor.avl),
        )

    @classmethod
    def real(cls, selector: int, type: int = DATA_RW) -> Segment:
        """A real-mode segment: base = selector * 16, 64 KiB; VM entry checks demand just that.

        >>> hex(kvmpy.x86.state.Segment.real(0x1234).base)
        '0x12340'
        """
        return cls(base=selector << 4, limit=0xFFFF, selector=selector, type=type)


# VM entry wants LDTR unusable, or else an LDT with base and limit; nothing here uses one.
NO_LDT: Final = Segment(type=LDT, present=0, s=0, unusable=1)


def task_segment(selector: int, base: int, limit: int) -> Segment:
    """TR with a busy TSS, the only thing VM entry accepts. `limit` below 1 MiB, in bytes.

    >>> hex(kvmpy.x86.state.task_segment(0x40, 0x1000, 0x67).type)
    '0xb'
    """
    return Segment(base=base, limit=limit, selector=selector, type=TSS_BUSY, s=0)


@dataclass(frozen=True)
class DescriptorTable:
    """GDTR or IDTR."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True)
class SpecialRegisters:
    """The part of struct kvm_sregs that a mode determines; APIC base and the rest stay."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr3: int
    cr4: int
    efer: int
    cr2: int = 0
    cr8: int = 0


@dataclass(frozen=True)
class StubTable:
    """Where a guest's reporting stubs are, and which address its 64-bit SYSCALL goes to.

    `stubs` is the address of slot 0. The real-mode stubs, for all 256 vectors, are at a fixed place
    of their own (`layout`).
    """

    stubs: int
    lstar: int


@dataclass(frozen=True)
class CpuState:
    """Everything to set on a vCPU before its first run.

    Apply in this order: `sregs` (KVM_SET_SREGS), `msrs` (KVM_SET_MSRS; after SREGS, since FS and GS
    base live in both), `fcw` and `mxcsr` (KVM_SET_FPU), `regs` (KVM_SET_REGS). `regs` has all
    sixteen general registers, `rip` and `rflags`.
    """

    sregs: SpecialRegisters
    regs: Mapping[str, int]
    msrs: Mapping[int, int]
    stub_table: StubTable
    fcw: int = FCW_RESET
    mxcsr: int = MXCSR_RESET
