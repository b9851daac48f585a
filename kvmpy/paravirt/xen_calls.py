"""The ioctls by which KVM plays Xen: ``vm.xen`` and ``cpu.xen``. The attributes that they carry are
in :mod:`kvmpy.xen`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .. import ioctls
from ..interrupts.routing import XEN_2LEVEL
from ..ioctls import capabilities
from ..shim import ffi, lib

if TYPE_CHECKING:
    from ..vcpu_fd import VcpuFd
    from ..vm_fd import VmFd
    from .xen import VcpuAttribute, VmAttribute


_PAGE = 4096

_A = TypeVar("_A", bound="VmAttribute")
_V = TypeVar("_V", bound="VcpuAttribute")


def _pages(blob: bytes, bits: int) -> int:
    if len(blob) % _PAGE or len(blob) > 255 * _PAGE:
        raise ValueError(f"the {bits}-bit blob is {len(blob)} bytes, not 0 to 255 pages of {_PAGE}")
    return len(blob) // _PAGE


class VmXen:
    """``vm.xen``: the VM as one of Xen's."""

    def __init__(self, vm: VmFd):
        self._vm = vm

    def configure(
        self, msr: int, *, flags: int | None = None, blob_32: bytes = b"", blob_64: bytes = b""
    ) -> None:
        """KVM_XEN_HVM_CONFIG: a write to ``msr`` fills the hypercall page. KVM API, 4.28.

        ``flags``: KVM_XEN_HVM_CONFIG_*; by default _INTERCEPT_HCALL: KVM writes the page itself
        and hypercalls exit as :class:`Xen`. With flags 0 the page is copied from the blobs, whole
        pages, one for each mode. Raises UnsupportedError without KVM_CAP_XEN_HVM or for flags
        that it lacks.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.xen.configure(0x4000_0000)
        """
        if flags is None:
            flags = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
        capabilities.require(self._vm, "KVM_CAP_XEN_HVM")
        config = ffi.new("struct kvm_xen_hvm_config *", {"flags": flags, "msr": msr})
        config.blob_size_32, config.blob_size_64 = _pages(blob_32, 32), _pages(blob_64, 64)
        kept = [ffi.from_buffer(blob) for blob in (blob_32, blob_64)]
        config.blob_addr_32, config.blob_addr_64 = (
            int(ffi.cast("uintptr_t", address)) if len(address) else 0 for address in kept
        )
        ioctls.KVM_XEN_HVM_CONFIG(self._vm.fileno(), config, f"msr {msr:#x}, flags {flags:#x}")

    def get(self, kind: type[_A]) -> _A:
        """KVM_XEN_HVM_GET_ATTR. KVM API, 4.127.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     assert vm.xen.get(kvmpy.xen.LongMode).enabled in (0, 1)
        """
        capabilities.require(self._vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_hvm_attr *", {"type": kind.number})
        ioctls.KVM_XEN_HVM_GET_ATTR(self._vm.fileno(), structure, kind.__name__)
        return kind._of(structure)

    def set(self, value: VmAttribute) -> None:
        """KVM_XEN_HVM_SET_ATTR. KVM API, 4.126.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.xen.set(kvmpy.xen.LongMode(True))
        """
        capabilities.require(self._vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_hvm_attr *")
        value._fill(structure)
        ioctls.KVM_XEN_HVM_SET_ATTR(self._vm.fileno(), structure, f"{value}")

    def send_event(self, port: int, vcpu: int, priority: int = XEN_2LEVEL) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND: raise event channel ``port`` on vCPU ``vcpu``. KVM API, 4.135.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM") & 0x20:  # KVM_XEN_HVM_CONFIG_EVTCHN_SEND
        ...     vm.xen.set(kvmpy.xen.SharedInfo(3))
        ...     cpu.xen.set(kvmpy.xen.VcpuInfo(0x4000))
        ...     vm.xen.send_event(1, 0)
        """
        capabilities.require(self._vm, "KVM_CAP_XEN_HVM")
        event = ffi.new("struct kvm_irq_routing_xen_evtchn *")
        event.port, event.vcpu, event.priority = port, vcpu, priority
        ioctls.KVM_XEN_HVM_EVTCHN_SEND(self._vm.fileno(), event, f"port {port}, vCPU {vcpu}")


class VcpuXen:
    """``cpu.xen``: the vCPU as one of Xen's."""

    def __init__(self, cpu: VcpuFd):
        self._cpu = cpu

    def get(self, kind: type[_V]) -> _V:
        """KVM_XEN_VCPU_GET_ATTR. KVM API, 4.129.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     assert cpu.xen.get(kvmpy.xen.VcpuInfo).gpa == kvmpy.xen.INVALID
        """
        capabilities.require(self._cpu.vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_vcpu_attr *", {"type": kind.number})
        ioctls.KVM_XEN_VCPU_GET_ATTR(self._cpu._settle(0), structure, kind.__name__)
        return kind._of(structure)

    def set(self, value: VcpuAttribute) -> None:
        """KVM_XEN_VCPU_SET_ATTR. KVM API, 4.128.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     cpu.xen.set(kvmpy.xen.VcpuInfo(0x3000))
        """
        capabilities.require(self._cpu.vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_vcpu_attr *")
        value._fill(structure)
        ioctls.KVM_XEN_VCPU_SET_ATTR(self._cpu._settle(0), structure, f"{value}")
