"""A vCPU's attributes, its TPR, interrupts and NMIs queued from outside."""

from __future__ import annotations

from .. import ioctls
from ..errors import UnsupportedError
from ..ioctls.attributes import Attributes
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd


class VcpuApic(VcpuFd):
    """Capabilities, attributes, TPR reporting and the VAPIC page of a vCPU."""

    @property
    def attributes(self) -> Attributes:
        """The vCPU's attributes (KVM_CAP_VCPU_ATTRIBUTES): on x86 KVM_VCPU_TSC_CTRL.

        >>> cpu.attributes.has(0, 0)  # KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET
        True
        """
        return Attributes(lambda: self._settle(0), "KVM_CAP_VCPU_ATTRIBUTES")

    @property
    def tsc_offset(self) -> int:
        """The guest's TSC less the host's (scaled to the guest's frequency), in TSC ticks; negative
        for a guest that began after the host. KVM's vCPU attributes, "KVM_VCPU_TSC_CTRL".

        Setting it raises UnsupportedError where KVM takes it and leaves the TSC as it is (guests
        whose RDTSC shows the host's).

        >>> cpu.tsc_offset = cpu.tsc_offset
        """
        value = self.attributes.get(lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET)
        return value - (1 << 64) if value >> 63 else value

    @tsc_offset.setter
    def tsc_offset(self, ticks: int) -> None:
        if not -(1 << 63) <= ticks < 1 << 64:
            raise ValueError(f"TSC offset {ticks:#x} does not fit in 64 bits")
        self.attributes.set(lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET, ticks & (1 << 64) - 1)
        if (self.tsc_offset ^ ticks) & (1 << 64) - 1:
            raise UnsupportedError(
                f"this KVM accepts a TSC offset ({ticks:#x}) and ignores it: its guests read the "
                "host's TSC"
            )

    def report_tpr_access(self, enabled: bool = True) -> None:
        """KVM_TPR_ACCESS_REPORTING: the guest's accesses to the LAPIC's task priority register come
        as the exit :class:`TprAccess`, after the access.

        Processors that virtualize the register do not report it, nor does a VM without irqchip.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.vcpu().report_tpr_access()
        """
        control = ffi.new("struct kvm_tpr_access_ctl *", {"enabled": enabled})
        ioctls.KVM_TPR_ACCESS_REPORTING(self._settle(0), control, f"{enabled}")

    def set_vapic_address(self, gpa: int) -> None:
        """KVM_SET_VAPIC_ADDR: KVM keeps the TPR, and the highest interrupts in request and in
        service, in 4 bytes of guest memory for code patched by user space; 0 for no longer.

        In a VM with an irqchip; else KvmIoctlError (EINVAL).

        >>> with kvmpy.VM("1M", irqchip=True) as other:
        ...     other.vcpu().set_vapic_address(0x3000)
        """
        address = ffi.new("struct kvm_vapic_addr *", {"vapic_addr": gpa})
        ioctls.KVM_SET_VAPIC_ADDR(self._settle(0), address, f"gpa {gpa:#x}")

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt.

        >>> cpu.nmi()
        """
        ioctls.KVM_NMI(self.fileno())

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: queue an external interrupt, in a VM without in-kernel irqchip.

        ``vector`` 0..255. The guest must be ready for it: RFLAGS.IF set, none queued.

        >>> cpu.interrupt(0x20)
        >>> cpu.events.interrupt.nr
        32
        """
        request = ffi.new("struct kvm_interrupt *", {"irq": vector})
        ioctls.KVM_INTERRUPT(self.fileno(), request, f"vector {vector}")
