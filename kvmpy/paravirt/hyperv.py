"""Hyper-V enlightenments (KVM API, "4.118 KVM_GET_SUPPORTED_HV_CPUID", "4.113
KVM_HYPERV_EVENTFD"; Microsoft's Hypervisor Top Level Functional
Specification)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import ioctls
from ..cpuid.cpuid import Cpuid
from ..fd import number_of
from ..ioctls import capabilities
from ..ioctls.growing import read_table
from ..shim import ffi, lib

if TYPE_CHECKING:
    from ..fd import HasFileno
    from ..vcpu_fd import VcpuFd
    from ..vm_fd import VmFd


class VmHyperv:
    """``vm.hyperv``: the VM as one of Hyper-V's."""

    def __init__(self, vm: VmFd):
        self._vm = vm

    def eventfd(
        self, conn_id: int, eventfd: int | HasFileno = -1, *, deassign: bool = False
    ) -> None:
        """KVM_HYPERV_EVENTFD: the guest's HvSignalEvent on connection ``conn_id`` (24 bits) signals
        ``eventfd``. ``deassign`` undoes it. KVM API, 4.113.

        Raises UnsupportedError without KVM_CAP_HYPERV_EVENTFD.

        >>> import os; event = os.eventfd(0)
        >>> if kvm.check_extension("KVM_CAP_HYPERV_EVENTFD"):
        ...     vm.hyperv.eventfd(1, event)
        ...     vm.hyperv.eventfd(1, deassign=True)
        >>> os.close(event)
        """
        request = ffi.new("struct kvm_hyperv_eventfd *", {"conn_id": conn_id})
        request.fd = number_of(eventfd)
        request.flags = lib.KVM_HYPERV_EVENTFD_DEASSIGN if deassign else 0
        ioctls.KVM_HYPERV_EVENTFD(self._vm.fileno(), request, f"connection {conn_id:#x}")


class VcpuHyperv:
    """``cpu.hyperv``: the vCPU as one of Hyper-V's."""

    def __init__(self, cpu: VcpuFd):
        self._cpu = cpu

    def supported_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_HV_CPUID of this vCPU: what depends on enabled capabilities (SynIC,
        enlightened VMCS) shows only here. KVM API, 4.118.

        >>> if kvm.check_extension("KVM_CAP_HYPERV_CPUID"):
        ...     assert 0x4000_0001 in [leaf.function for leaf in cpu.hyperv.supported_cpuid()]
        """
        capabilities.require(self._cpu.vm, "KVM_CAP_HYPERV_CPUID")
        return Cpuid._from_c(read_table(ioctls.KVM_GET_SUPPORTED_HV_CPUID, self._cpu._settle(0)))

    def enforce_cpuid(self, on: bool = True) -> None:
        """KVM_CAP_HYPERV_ENFORCE_CPUID: the guest has only those Hyper-V features that CPUID
        leaves 0x40000003 and 4 show.

        >>> if vm.check_extension("HYPERV_ENFORCE_CPUID"):
        ...     cpu.hyperv.enforce_cpuid()
        """
        self._cpu.enable_capability("HYPERV_ENFORCE_CPUID", int(on))

    def synic(self, *, clear_pages: bool = False) -> None:
        """KVM_CAP_HYPERV_SYNIC2: a synthetic interrupt controller, whose changes come back as
        HypervSynic; needs the in-kernel irqchip. ``clear_pages``: KVM_CAP_HYPERV_SYNIC, which
        clears its pages when the guest enables them.

        >>> if vm.check_extension("HYPERV_SYNIC2"):
        ...     with kvmpy.VM(irqchip=True) as other:
        ...         other.vcpu().hyperv.synic()
        """
        self._cpu.enable_capability("HYPERV_SYNIC" if clear_pages else "HYPERV_SYNIC2")
