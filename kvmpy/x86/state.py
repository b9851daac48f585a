"""Register values that a vCPU starts with, as plain values: nothing here touches KVM.

Field names are those of struct kvm_segment, kvm_dtable, kvm_sregs and kvm_regs, so that a state
can be applied field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..state.special import Segment, SpecialRegisters
from ..values import dataclass
from .bits import CR0, CR4, EFER, FCW_RESET, MXCSR_RESET, mask
from .descriptors import DATA_RW, LDT, TSS_BUSY, Descriptor

# --- CR0, CR4, EFER, RFLAGS ---------------------------------------------------------------------
CR0_PE: Final = mask(CR0, "PE")
CR0_MP: Final = mask(CR0, "MP")
CR0_ET: Final = mask(CR0, "ET")
CR0_NE: Final = mask(CR0, "NE")  # x87 errors as #MF; VMX demands it
CR0_WP: Final = mask(CR0, "WP")
CR0_PG: Final = mask(CR0, "PG")
CR4_PSE: Final = mask(CR4, "PSE")
CR4_PAE: Final = mask(CR4, "PAE")
CR4_OSFXSR: Final = mask(CR4, "OSFXSR")
CR4_OSXMMEXCPT: Final = mask(CR4, "OSXMMEXCPT")
EFER_SCE: Final = mask(EFER, "SCE")
EFER_LME: Final = mask(EFER, "LME")
EFER_LMA: Final = mask(EFER, "LMA")
EFER_NXE: Final = mask(EFER, "NXE")
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


def loaded_segment(selector: int, descriptor: Descriptor) -> Segment:
    """The descriptor cache after loading ``selector`` that refers to ``descriptor``.

    >>> from kvmpy.x86.descriptors import USER_CODE64, code_segment
    >>> kvmpy.x86.state.loaded_segment(USER_CODE64, code_segment(3, long=True)).l
    1
    """
    return Segment(
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


def real_segment(selector: int, type: int = DATA_RW) -> Segment:
    """A real-mode segment: base = selector * 16, 64 KiB; VM entry checks demand just that.

    >>> hex(kvmpy.x86.state.real_segment(0x1234).base)
    '0x12340'
    """
    return Segment(selector << 4, 0xFFFF, selector, type, present=1, s=1)


# VM entry wants LDTR unusable, or else an LDT with base and limit; nothing here uses one.
NO_LDT: Final = Segment(type=LDT, unusable=1)


def task_segment(selector: int, base: int, limit: int) -> Segment:
    """TR with a busy TSS, the only thing VM entry accepts. ``limit`` below 1 MiB, in bytes.

    >>> hex(kvmpy.x86.state.task_segment(0x40, 0x1000, 0x67).type)
    '0xb'
    """
    return Segment(base, limit, selector, TSS_BUSY, present=1)


@dataclass(frozen=True)
class StubTable:
    """Where a guest's reporting stubs are, and which address its 64-bit SYSCALL goes to.

    ``stubs`` is the address of slot 0. The real-mode stubs, for all 256 vectors, are at a fixed
    place of their own (``layout``).
    """

    stubs: int
    lstar: int


@dataclass(frozen=True)
class CpuState:
    """Everything to set on a vCPU before its first run.

    Apply in this order: ``sregs`` (KVM_SET_SREGS), ``msrs`` (KVM_SET_MSRS; after SREGS, since FS
    and GS base live in both), ``fcw`` and ``mxcsr`` (KVM_SET_FPU), ``regs`` (KVM_SET_REGS).
    ``regs`` has all sixteen general registers, ``rip`` and ``rflags``.
    """

    sregs: SpecialRegisters
    regs: Mapping[str, int]
    msrs: Mapping[int, int]
    stub_table: StubTable
    fcw: int = FCW_RESET
    mxcsr: int = MXCSR_RESET
