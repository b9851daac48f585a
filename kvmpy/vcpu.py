"""A vCPU: all of its topics in one class (KVM API, "4.7 KVM_CREATE_VCPU" and on)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .debug.methods import VcpuDebug
from .interrupts.apic import VcpuApic
from .memory.dirty import VcpuDirtyRing
from .memory.regions import VcpuMemory
from .run.enabling import VcpuEnabling
from .run.enter import VcpuEnter
from .run.page import VcpuRunPage
from .state.saving import VcpuSaving
from .stats.methods import VcpuRunStats, WithStats
from .x86.bits import GENERAL, SEGMENTS

if TYPE_CHECKING:
    from .paravirt.hyperv import VcpuHyperv
    from .paravirt.xen_calls import VcpuXen
    from .state.mce import VcpuMce
    from .vm import VM


class VCPU(
    VcpuDebug, VcpuEnter, VcpuSaving, VcpuApic, VcpuDirtyRing, VcpuEnabling, VcpuMemory,
    VcpuRunPage, VcpuRunStats, WithStats,
):  # fmt: skip
    """A virtual CPU. Made by :meth:`VM.vcpu`.

    One thread at a time runs it; any thread may :meth:`kick` or :meth:`close` it.
    """

    vm: VM

    def __setattr__(self, name: str, value: object) -> None:
        if name in _REGISTERS:
            raise AttributeError(f"a vCPU has no {name}: set cpu.{_REGISTERS[name]}.{name}")
        super().__setattr__(name, value)

    # Rare topics are objects of their own, made when they are asked for.

    @property
    def mce(self) -> VcpuMce:
        """Machine checks: ``cpu.mce.setup(4)``, ``cpu.mce.inject(...)``.

        >>> cpu.mce.setup(4)
        """
        from .state.mce import VcpuMce

        return VcpuMce(self)

    @property
    def xen(self) -> VcpuXen:
        """Xen's attributes: ``cpu.xen.get(...)``, ``cpu.xen.set(...)``.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     cpu.xen.set(kvmpy.xen.VcpuInfo(0x3000))
        """
        from .paravirt.xen_calls import VcpuXen

        return VcpuXen(self)

    @property
    def hyperv(self) -> VcpuHyperv:
        """Hyper-V's enlightenments: ``cpu.hyperv.synic()``, ``cpu.hyperv.supported_cpuid()``.

        >>> if kvm.check_extension("KVM_CAP_HYPERV_CPUID"):
        ...     assert len(cpu.hyperv.supported_cpuid()) > 1
        """
        from .paravirt.hyperv import VcpuHyperv

        return VcpuHyperv(self)

    def close(self) -> None:
        """Close the vCPU. A run in another thread ends with ClosedError first.

        >>> cpu.close()
        >>> cpu
        <VCPU 0, closed>
        """
        self._close_stats()
        super().close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<VCPU {self.id}, closed>"
        pinned = f", pinned to pCPU {self._pin_list()}" if self._pin else ""
        return f"<VCPU {self.id} fd {self._fd}{pinned}>"


#: By name, where they are: setting them on the vCPU itself would do nothing.
_REGISTERS = {
    **dict.fromkeys(GENERAL, "regs"),
    **dict.fromkeys((*SEGMENTS, "gdt", "idt"), "sregs"),
    **dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "efer"), "sregs"),
}
