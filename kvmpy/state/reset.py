"""A vCPU's power-on state, as KVM gives it to a new vCPU (SDM vol. 3, "Processor State After
Reset"; APM vol. 2, "Initial Processor State").
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .interrupts import LAPIC_REGISTERS, Lapic, MpState, VcpuEvents
from .nested import HEADER_SIZE, NestedState
from .registers import DebugRegs, Regs, Sregs2, Xcrs
from .special import DescriptorTable, Segment
from .vcpu import VcpuState
from .xsave import Xsave

#: MSRs that are not 0 at reset: PAT.
_MSRS: Final = {0x277: 0x0007_0406_0007_0406}
#: MSRs a reset leaves alone: the host's or the VMM's to set, or read-only (FEATURE_CONTROL does go
#: to 0): TSC_RATIO, UCODE_REV, MISC_ENABLE, ARCH_CAPABILITIES, PLATFORM_INFO, PERF_CAPABILITIES,
#: SMBASE, MCi_CTL2, KVM_POLL_CONTROL; and the VMX capabilities.
_KEPT: Final = frozenset(
    (0xC000_0104, 0x8B, 0x1A0, 0x10A, 0xCE, 0x345, 0x9E, 0x4B56_4D05, *range(0x480, 0x493))
)
_DATA: Final = Segment(limit=0xFFFF, type=3, present=1, s=1)
_CODE: Final = replace(_DATA, base=0xFFFF_0000, selector=0xF000, type=11)
_TABLE: Final = DescriptorTable(limit=0xFFFF)
_APIC_ENABLED: Final = 0xFEE0_0800
_BOOT_CPU: Final = 1 << 8


def after_reset(now: VcpuState, has_lapic: bool) -> VcpuState:
    """``now`` with all that a reset changes. The boot processor is the one whose APIC base says
    so."""
    is_boot_cpu = bool(now.sregs.apic_base & _BOOT_CPU)
    waits = has_lapic and not is_boot_cpu
    leaf = now.cpuid.get(1)
    msrs = {
        index: value if index in _KEPT or _is_bank_control(index, now) else _MSRS.get(index, 0)
        for index, value in now.msrs.items()
    }
    return replace(
        now,
        mp_state=MpState.UNINITIALIZED if waits else MpState.RUNNABLE,
        regs=Regs(rip=0xFFF0, rflags=2, rdx=leaf.eax if leaf else 0x600),
        sregs=Sregs2(
            cs=_CODE, ds=_DATA, es=_DATA, fs=_DATA, gs=_DATA, ss=_DATA,
            tr=Segment(limit=0xFFFF, type=11, present=1),
            ldt=Segment(limit=0xFFFF, type=2, present=1),
            gdt=_TABLE, idt=_TABLE, cr0=0x6000_0010,
            apic_base=_APIC_ENABLED | (_BOOT_CPU if is_boot_cpu else 0),
        ),
        xsave=Xsave(bytes(len(now.xsave.data)), now.xsave.layout),
        xcrs=Xcrs(),
        debugregs=DebugRegs(),
        lapic=_lapic(now.lapic, is_boot_cpu) if now.lapic else None,
        msrs=msrs,
        one_regs={register: bytes(len(value)) for register, value in now.one_regs.items()},
        nested=_nothing_nested(now.nested) if now.nested else None,
        events=VcpuEvents(flags=now.events.flags),
        stubs=None,
    )  # fmt: skip


def _is_bank_control(index: int, now: VcpuState) -> bool:
    """MCi_CTL: as mce.setup() left it."""
    return 0x400 <= index < 0x400 + 4 * (now.mcg_cap & 0xFF) and index % 4 == 0


def _lapic(lapic: Lapic, is_boot_cpu: bool) -> Lapic:
    """SDM vol. 3, "Local APIC State After Power-Up or Reset"; and the boot processor's LINT0 takes
    the PIC's interrupts at once, as firmware would have it (KVM_X86_QUIRK_LINT0_REENABLED)."""
    lvt = {name: 1 << 16 for name in LAPIC_REGISTERS if name.startswith("lvt_")}
    if lapic["lvt_cmci"] == 0:
        del lvt["lvt_cmci"]  # there only with CMCI
    if is_boot_cpu:
        lvt["lvt_lint0"] = 0x700
    identity = (lapic.id & 0xFF) << 24
    return Lapic().replace(id=identity, version=lapic["version"], dfr=0xFFFF_FFFF, svr=0xFF, **lvt)


def _nothing_nested(nested: NestedState) -> NestedState:
    """Not in VMX operation; for SVM the global interrupt flag set."""
    if nested.format == "VMX":
        head = bytes(4) + HEADER_SIZE.to_bytes(4, "little") + b"\xff" * 16
    else:
        head = b"\0\1" + nested.data[2:4] + HEADER_SIZE.to_bytes(4, "little")
    return NestedState(head.ljust(HEADER_SIZE, b"\0"))
