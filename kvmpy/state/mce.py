"""Machine checks: ``cpu.mce`` (KVM API, "4.104 KVM_X86_GET_MCE_CAP_SUPPORTED" to "4.106")."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import ioctls
from ..shim import ffi

if TYPE_CHECKING:
    from ..vcpu_fd import VcpuFd


class VcpuMce:
    """A vCPU's machine-check banks."""

    def __init__(self, cpu: VcpuFd):
        self._cpu = cpu

    def setup(self, banks: int, flags: int = 0) -> None:
        """Give it ``banks`` machine-check banks (1..32) and the abilities ``flags``, bits of
        IA32_MCG_CAP from 8 on (SDM vol. 3, "IA32_MCG_CAP MSR"), of which KVM.mce_capabilities has
        those KVM knows. Empties all banks (KVM API, "4.105 KVM_X86_SETUP_MCE").

        >>> cpu.mce.setup(4)
        >>> cpu.msrs[0x179] & 0xFF
        4
        """
        if not 0 < banks < 256 or flags & 0xFF:
            raise ValueError(f"{banks} banks, flags {flags:#x}: 1..255, and bits 0-7 clear")
        self.set_mcg_cap(banks | flags)

    def set_mcg_cap(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE with the whole of IA32_MCG_CAP, as it was read.

        >>> cpu.mce.set_mcg_cap(4)
        """
        value = ffi.new("uint64_t *", mcg_cap)
        ioctls.KVM_X86_SETUP_MCE(self._cpu._settle(0), value, f"MCG_CAP {mcg_cap:#x}")

    def inject(
        self, bank: int, status: int, *, addr: int = 0, misc: int = 0, mcg_status: int = 0
    ) -> None:
        """Report a machine check in ``bank``: the values of its MCi_STATUS (bit 63, VAL, set),
        MCi_ADDR and MCi_MISC, and of MCG_STATUS. An uncorrected one (bit 61, UC) raises #MC, or
        a triple fault if CR4.MCE is clear or one is under way (KVM API, "4.106 KVM_X86_SET_MCE").

        >>> cpu.mce.setup(4)
        >>> cpu.mce.inject(1, 1 << 63, addr=0x1000)
        >>> hex(cpu.msrs[0x400 + 4 * 1 + 2])
        '0x1000'
        """
        event = ffi.new("struct kvm_x86_mce *")
        event.bank, event.status, event.addr, event.misc = bank, status, addr, misc
        event.mcg_status = mcg_status
        ioctls.KVM_X86_SET_MCE(self._cpu._settle(0), event, f"bank {bank}, status {status:#x}")
