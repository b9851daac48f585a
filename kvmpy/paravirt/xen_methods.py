"""The ioctls by which KVM plays Xen: methods of a VM and of a vCPU.

Apart from the attributes that they carry (:mod:`kvmpy.xen`), which few scripts need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from .. import ioctls
from ..ioctls import capabilities
from ..shim import ffi, lib

if TYPE_CHECKING:
    from ..vm import VM
    from .xen import VcpuAttribute, VmAttribute


_PAGE = 4096
#: An event's priority: deliver by the 2-level ABI.
XEN_2LEVEL = 0xFFFF_FFFF

_A = TypeVar("_A", bound="VmAttribute")
_V = TypeVar("_V", bound="VcpuAttribute")


def _pages(blob: bytes, bits: int) -> int:
    if len(blob) % _PAGE or len(blob) > 255 * _PAGE:
        raise ValueError(f"the {bits}-bit blob is {len(blob)} bytes, not 0 to 255 pages of {_PAGE}")
    return len(blob) // _PAGE


class XenMethods:
    """The part of a VM that plays Xen."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...
        def check_extension(self, capability: int | str) -> int: ...

    def configure_xen(
        self, msr: int, *, flags: int | None = None, blob_32: bytes = b"", blob_64: bytes = b""
    ) -> None:
        """KVM_XEN_HVM_CONFIG: a write to ``msr`` fills the hypercall page. KVM API, 4.28.

        ``flags``: KVM_XEN_HVM_CONFIG_*; by default _INTERCEPT_HCALL: KVM writes the page itself
        and hypercalls exit as :class:`Xen`. With flags 0 the page is copied from the blobs, whole
        pages, one for each mode. Raises UnsupportedError without KVM_CAP_XEN_HVM or for flags it
        has not.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.configure_xen(0x4000_0000)
        """
        if flags is None:
            flags = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        config = ffi.new("struct kvm_xen_hvm_config *", {"flags": flags, "msr": msr})
        config.blob_size_32, config.blob_size_64 = _pages(blob_32, 32), _pages(blob_64, 64)
        kept = [ffi.from_buffer(blob) for blob in (blob_32, blob_64)]
        config.blob_addr_32, config.blob_addr_64 = (
            int(ffi.cast("uintptr_t", address)) if len(address) else 0 for address in kept
        )
        ioctls.KVM_XEN_HVM_CONFIG(self.fileno(), config, f"msr {msr:#x}, flags {flags:#x}")

    def get_xen_attribute(self, kind: type[_A]) -> _A:
        """KVM_XEN_HVM_GET_ATTR. KVM API, 4.127.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     assert vm.get_xen_attribute(kvmpy.xen.LongMode).enabled in (0, 1)
        """
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_hvm_attr *", {"type": kind.number})
        ioctls.KVM_XEN_HVM_GET_ATTR(self.fileno(), structure, kind.__name__)
        return kind._of(structure)

    def set_xen_attribute(self, value: VmAttribute) -> None:
        """KVM_XEN_HVM_SET_ATTR. KVM API, 4.126.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.set_xen_attribute(kvmpy.xen.LongMode(True))
        """
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_hvm_attr *")
        value._fill(structure)
        ioctls.KVM_XEN_HVM_SET_ATTR(self.fileno(), structure, f"{value}")

    def send_xen_event(self, port: int, vcpu: int, priority: int = XEN_2LEVEL) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND: raise event channel ``port`` on vCPU ``vcpu``. KVM API, 4.135.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM") & 0x20:  # KVM_XEN_HVM_CONFIG_EVTCHN_SEND
        ...     vm.set_xen_attribute(kvmpy.xen.SharedInfo(3))
        ...     cpu.set_xen_attribute(kvmpy.xen.VcpuInfo(0x4000))
        ...     vm.send_xen_event(1, 0)
        """
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        event = ffi.new("struct kvm_irq_routing_xen_evtchn *")
        event.port, event.vcpu, event.priority = port, vcpu, priority
        ioctls.KVM_XEN_HVM_EVTCHN_SEND(self.fileno(), event, f"port {port}, vCPU {vcpu}")


class XenVcpuMethods:
    """The part of a vCPU that is about Xen."""

    if TYPE_CHECKING:
        vm: VM

        def _settle(self, fields: int) -> int: ...

    def get_xen_attribute(self, kind: type[_V]) -> _V:
        """KVM_XEN_VCPU_GET_ATTR. KVM API, 4.129.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     assert cpu.get_xen_attribute(kvmpy.xen.VcpuInfo).gpa == kvmpy.xen.INVALID
        """
        capabilities.require(self.vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_vcpu_attr *", {"type": kind.number})
        ioctls.KVM_XEN_VCPU_GET_ATTR(self._settle(0), structure, kind.__name__)
        return kind._of(structure)

    def set_xen_attribute(self, value: VcpuAttribute) -> None:
        """KVM_XEN_VCPU_SET_ATTR. KVM API, 4.128.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     cpu.set_xen_attribute(kvmpy.xen.VcpuInfo(0x3000))
        """
        capabilities.require(self.vm, "KVM_CAP_XEN_HVM")
        structure = ffi.new("struct kvm_xen_vcpu_attr *")
        value._fill(structure)
        ioctls.KVM_XEN_VCPU_SET_ATTR(self._settle(0), structure, f"{value}")
