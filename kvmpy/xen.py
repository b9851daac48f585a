"""KVM as Xen's stand-in: hypercalls, shared pages, event channels, timers.

KVM API, "4.28 KVM_XEN_HVM_CONFIG", "4.126 KVM_XEN_HVM_SET_ATTR" to "4.129", "4.135
KVM_XEN_HVM_EVTCHN_SEND", "KVM_CAP_XEN_HVM". It takes a KVM built with CONFIG_KVM_XEN.

An attribute is a value of a class of its own: ``vm.set_xen_attribute(xen.SharedInfo(gfn))``,
``vm.get_xen_attribute(xen.SharedInfo)``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from . import _native, capabilities, ioctls
from .routing import XEN_2LEVEL

if TYPE_CHECKING:
    from .vm import VM

_lib, _ffi = _native.lib, _native.ffi

INVALID = (1 << 64) - 1
"""The gfn or gpa that takes a shared page back (KVM_XEN_INVALID_GFN, KVM_XEN_INVALID_GPA)."""
_PAGE = 4096


class Attribute:
    """Base of the attributes: the number KVM has for it, and its member of the C union."""

    number: ClassVar[int]
    member: ClassVar[str]

    def _fill(self, structure: Any) -> None:
        structure.type = self.number
        target = getattr(structure.u, self.member)
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(target, int):
                setattr(structure.u, self.member, value)
            else:
                setattr(target, field.name, value)

    @classmethod
    def _of(cls, structure: Any) -> Self:
        target = getattr(structure.u, cls.member)
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if isinstance(target, int):
            return cls(**{names[0]: target})
        return cls(**{name: getattr(target, name) for name in names})


class VmAttribute(Attribute):
    """Of a VM."""


class VcpuAttribute(Attribute):
    """Of a vCPU."""


@dataclass(frozen=True)
class LongMode(VmAttribute):
    """Whether the shared pages have 64-bit layout."""

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_LONG_MODE
    member: ClassVar[str] = "long_mode"
    enabled: int


@dataclass(frozen=True)
class SharedInfo(VmAttribute):
    """The shared_info page: its guest frame number; INVALID for none."""

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_SHARED_INFO
    member: ClassVar[str] = "shared_info"
    gfn: int


@dataclass(frozen=True)
class UpcallVector(VmAttribute):
    """The vector by which all vCPUs hear of events."""

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR
    member: ClassVar[str] = "vector"
    vector: int


@dataclass(frozen=True)
class Version(VmAttribute):
    """What HYPERVISOR_xen_version says: ``major << 16 | minor``."""

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_XEN_VERSION
    member: ClassVar[str] = "xen_version"
    version: int


@dataclass(frozen=True)
class RunstateUpdateFlag(VmAttribute):
    """Whether XEN_RUNSTATE_UPDATE marks runstate times that are being written."""

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG
    member: ClassVar[str] = "runstate_update_flag"
    enabled: int


@dataclass(frozen=True)
class EventChannel(VmAttribute):
    """What KVM does with the guest's sends on ``send_port``: raise ``port`` of ``vcpu``, or, with
    ``eventfd``, signal that. ``type``: 1 interdomain, 2 IPI. It can only be set.

    ``flags``: KVM_XEN_EVTCHN_DEASSIGN 1, _UPDATE 2, _RESET 4 (all of them).
    """

    number: ClassVar[int] = _lib.KVM_XEN_ATTR_TYPE_EVTCHN
    member: ClassVar[str] = "evtchn"
    send_port: int
    type: int = 2
    port: int = 0
    vcpu: int = 0
    priority: int = XEN_2LEVEL
    eventfd: int | None = None
    flags: int = 0

    def _fill(self, structure: Any) -> None:
        structure.type = self.number
        channel = structure.u.evtchn
        channel.send_port, channel.type, channel.flags = self.send_port, self.type, self.flags
        if self.eventfd is not None:
            channel.deliver.eventfd.port, channel.deliver.eventfd.fd = 0, self.eventfd
            return
        target = channel.deliver.port
        target.port, target.vcpu, target.priority = self.port, self.vcpu, self.priority

    @classmethod
    def _of(cls, structure: Any) -> Self:
        raise TypeError("KVM does not tell about event channels: this attribute can only be set")


@dataclass(frozen=True)
class VcpuInfo(VcpuAttribute):
    """Where the vCPU's vcpu_info is; INVALID for none."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class VcpuTimeInfo(VcpuAttribute):
    """Where an additional copy of the paravirtual clock is kept."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class RunstateAddress(VcpuAttribute):
    """Where the vcpu_runstate_info is kept."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class RunstateCurrent(VcpuAttribute):
    """The runstate now: RUNSTATE_running 0, _runnable 1, _blocked 2, _offline 3."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT
    member: ClassVar[str] = "runstate"
    state: int


@dataclass(frozen=True)
class RunstateData(VcpuAttribute):
    """The runstate and the time spent in each, ns, as a whole: of a vCPU that is restored."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA
    member: ClassVar[str] = "runstate"
    state: int
    state_entry_time: int
    time_running: int
    time_runnable: int
    time_blocked: int
    time_offline: int


@dataclass(frozen=True)
class RunstateAdjust(VcpuAttribute):
    """What to add to the times, ns: they may wrap. ``state`` INVALID leaves it. Can only be set."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST
    member: ClassVar[str] = "runstate"
    state: int = INVALID
    time_running: int = 0
    time_runnable: int = 0
    time_blocked: int = 0
    time_offline: int = 0


@dataclass(frozen=True)
class VcpuId(VcpuAttribute):
    """Xen's number for the vCPU."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID
    member: ClassVar[str] = "vcpu_id"
    id: int


@dataclass(frozen=True)
class Timer(VcpuAttribute):
    """The singleshot timer: the event channel it raises, and when, ns; 0 for not at all."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_TIMER
    member: ClassVar[str] = "timer"
    port: int
    priority: int = XEN_2LEVEL
    expires_ns: int = 0


@dataclass(frozen=True)
class VcpuUpcallVector(VcpuAttribute):
    """The vector by which this vCPU hears of events."""

    number: ClassVar[int] = _lib.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR
    member: ClassVar[str] = "vector"
    vector: int


_A = TypeVar("_A", bound=VmAttribute)
_V = TypeVar("_V", bound=VcpuAttribute)


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
            flags = _lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        config = _ffi.new("struct kvm_xen_hvm_config *", {"flags": flags, "msr": msr})
        config.blob_size_32, config.blob_size_64 = _pages(blob_32, 32), _pages(blob_64, 64)
        kept = [_ffi.from_buffer(blob) for blob in (blob_32, blob_64)]
        config.blob_addr_32, config.blob_addr_64 = (
            int(_ffi.cast("uintptr_t", address)) if len(address) else 0 for address in kept
        )
        ioctls.KVM_XEN_HVM_CONFIG(self.fileno(), config, f"msr {msr:#x}, flags {flags:#x}")

    def get_xen_attribute(self, kind: type[_A]) -> _A:
        """KVM_XEN_HVM_GET_ATTR. KVM API, 4.127.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     assert vm.get_xen_attribute(kvmpy.xen.LongMode).enabled in (0, 1)
        """
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        structure = _ffi.new("struct kvm_xen_hvm_attr *", {"type": kind.number})
        ioctls.KVM_XEN_HVM_GET_ATTR(self.fileno(), structure, kind.__name__)
        return kind._of(structure)

    def set_xen_attribute(self, value: VmAttribute) -> None:
        """KVM_XEN_HVM_SET_ATTR. KVM API, 4.126.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.set_xen_attribute(kvmpy.xen.LongMode(True))
        """
        capabilities.require(self, "KVM_CAP_XEN_HVM")
        structure = _ffi.new("struct kvm_xen_hvm_attr *")
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
        event = _ffi.new("struct kvm_irq_routing_xen_evtchn *")
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
        structure = _ffi.new("struct kvm_xen_vcpu_attr *", {"type": kind.number})
        ioctls.KVM_XEN_VCPU_GET_ATTR(self._settle(0), structure, kind.__name__)
        return kind._of(structure)

    def set_xen_attribute(self, value: VcpuAttribute) -> None:
        """KVM_XEN_VCPU_SET_ATTR. KVM API, 4.128.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     cpu.set_xen_attribute(kvmpy.xen.VcpuInfo(0x3000))
        """
        capabilities.require(self.vm, "KVM_CAP_XEN_HVM")
        structure = _ffi.new("struct kvm_xen_vcpu_attr *")
        value._fill(structure)
        ioctls.KVM_XEN_VCPU_SET_ATTR(self._settle(0), structure, f"{value}")
