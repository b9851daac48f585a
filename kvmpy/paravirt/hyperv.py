"""Hyper-V enlightenments (KVM API, "4.118 KVM_GET_SUPPORTED_HV_CPUID", "4.113
KVM_HYPERV_EVENTFD"; Microsoft's Hypervisor Top Level Functional
Specification)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .. import ioctls
from ..cpuid.cpuid import Cpuid
from ..interrupts.eventfds import HasFileno, _descriptor
from ..ioctls import capabilities
from ..shim import ffi, lib

if TYPE_CHECKING:
    from ..vm import VM


def _supported_cpuid(fd: int) -> Cpuid:
    """The leaves 0x40000000 on that KVM's enlightenments ask for. E2BIG means: a larger table."""
    ioctl, entries = ioctls.KVM_GET_SUPPORTED_HV_CPUID, 16
    while True:
        table = ffi.new("struct kvm_cpuid2 *", {"entries": entries})
        table.nent = entries
        result = ioctl.raw(fd, table)
        if result >= 0:
            return Cpuid._from_c(table)
        if result != -errno.E2BIG or entries >= 1 << 12:
            raise ioctl.error(fd, -result, f"{entries} entries")
        entries *= 2


class HypervMethods:
    """The part of a VM that is about Hyper-V."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

    def hyperv_eventfd(
        self, conn_id: int, eventfd: int | HasFileno = -1, *, deassign: bool = False
    ) -> None:
        """KVM_HYPERV_EVENTFD: the guest's HvSignalEvent on connection ``conn_id`` (24 bits) signals
        ``eventfd``. ``deassign`` takes it back. KVM API, 4.113.

        Raises UnsupportedError without KVM_CAP_HYPERV_EVENTFD.

        >>> import os; event = os.eventfd(0)
        >>> if kvm.check_extension("KVM_CAP_HYPERV_EVENTFD"):
        ...     vm.hyperv_eventfd(1, event)
        ...     vm.hyperv_eventfd(1, deassign=True)
        >>> os.close(event)
        """
        request = ffi.new("struct kvm_hyperv_eventfd *", {"conn_id": conn_id})
        request.fd = _descriptor(eventfd)
        request.flags = lib.KVM_HYPERV_EVENTFD_DEASSIGN if deassign else 0
        ioctls.KVM_HYPERV_EVENTFD(self.fileno(), request, f"connection {conn_id:#x}")


class HypervVcpuMethods:
    """The part of a vCPU that is about Hyper-V."""

    if TYPE_CHECKING:
        vm: VM

        def _settle(self, fields: int) -> int: ...

    def supported_hyperv_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_HV_CPUID of this vCPU: what depends on enabled capabilities (SynIC,
        enlightened VMCS) shows only here. KVM API, 4.118.

        >>> if kvm.check_extension("KVM_CAP_HYPERV_CPUID"):
        ...     assert 0x4000_0001 in [leaf.function for leaf in cpu.supported_hyperv_cpuid()]
        """
        capabilities.require(self.vm, "KVM_CAP_HYPERV_CPUID")
        return _supported_cpuid(self._settle(0))
