"""KVM as Xen's stand-in: hypercalls, shared pages, event channels, timers.

KVM API, "4.28 KVM_XEN_HVM_CONFIG", "4.126 KVM_XEN_HVM_SET_ATTR" to "4.129", "4.135
KVM_XEN_HVM_EVTCHN_SEND", "KVM_CAP_XEN_HVM". It takes a KVM built with CONFIG_KVM_XEN.

An attribute is a value of a class of its own: ``vm.xen.set(xen.SharedInfo(gfn))``,
``vm.xen.get(xen.SharedInfo)``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from ..interrupts.routing import XEN_2LEVEL
from ..shim import lib
from ..values import dataclass, names

INVALID = (1 << 64) - 1
"""The gfn or gpa that takes a shared page back (KVM_XEN_INVALID_GFN, KVM_XEN_INVALID_GPA)."""
INTERDOMAIN, IPI = 2, 5
"""Types of event channels: EVTCHNSTAT_* of Xen's public headers."""


class Attribute:
    """Base of the attributes: the number KVM has for it, and its member of the C union."""

    number: ClassVar[int]
    member: ClassVar[str]

    def _fill(self, structure: Any) -> None:
        structure.type = self.number
        target = getattr(structure.u, self.member)
        for name in names(self):
            value = getattr(self, name)
            if isinstance(target, int):
                setattr(structure.u, self.member, value)
            else:
                setattr(target, name, value)

    @classmethod
    def _of(cls, structure: Any) -> Self:
        target = getattr(structure.u, cls.member)
        if isinstance(target, int):
            return cls(**{names(cls)[0]: target})
        return cls(**{name: getattr(target, name) for name in names(cls)})


class VmAttribute(Attribute):
    """Of a VM."""


class VcpuAttribute(Attribute):
    """Of a vCPU."""


@dataclass(frozen=True)
class LongMode(VmAttribute):
    """Whether the shared pages have 64-bit layout."""

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_LONG_MODE
    member: ClassVar[str] = "long_mode"
    enabled: int


@dataclass(frozen=True)
class SharedInfo(VmAttribute):
    """The shared_info page: its guest frame number; INVALID for none."""

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_SHARED_INFO
    member: ClassVar[str] = "shared_info"
    gfn: int


@dataclass(frozen=True)
class UpcallVector(VmAttribute):
    """The vector by which all vCPUs hear of events."""

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR
    member: ClassVar[str] = "vector"
    vector: int


@dataclass(frozen=True)
class Version(VmAttribute):
    """What HYPERVISOR_xen_version says: ``major << 16 | minor``."""

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_XEN_VERSION
    member: ClassVar[str] = "xen_version"
    version: int


@dataclass(frozen=True)
class RunstateUpdateFlag(VmAttribute):
    """Whether XEN_RUNSTATE_UPDATE marks runstate times that are being written."""

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG
    member: ClassVar[str] = "runstate_update_flag"
    enabled: int


@dataclass(frozen=True)
class EventChannel(VmAttribute):
    """What KVM does with the guest's sends on ``send_port``: raise ``port`` of ``vcpu``, or, with
    ``eventfd``, signal that. ``type``: INTERDOMAIN, or IPI, whose ``port`` is its ``send_port``. It
    can only be set.

    ``flags``: KVM_XEN_EVTCHN_DEASSIGN 1, _UPDATE 2, _RESET 4 (all of them).
    """

    number: ClassVar[int] = lib.KVM_XEN_ATTR_TYPE_EVTCHN
    member: ClassVar[str] = "evtchn"
    send_port: int
    type: int = INTERDOMAIN
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

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class VcpuTimeInfo(VcpuAttribute):
    """Where an additional copy of the paravirtual clock is kept."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class RunstateAddress(VcpuAttribute):
    """Where the vcpu_runstate_info is kept."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR
    member: ClassVar[str] = "gpa"
    gpa: int


@dataclass(frozen=True)
class RunstateCurrent(VcpuAttribute):
    """The runstate now: RUNSTATE_running 0, _runnable 1, _blocked 2, _offline 3."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT
    member: ClassVar[str] = "runstate"
    state: int


@dataclass(frozen=True)
class RunstateData(VcpuAttribute):
    """The runstate and the time spent in each, ns, as a whole: of a vCPU that is restored.
    ``state_entry_time`` is the sum of the times, and not later than the VM's clock."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA
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

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST
    member: ClassVar[str] = "runstate"
    state: int = INVALID
    time_running: int = 0
    time_runnable: int = 0
    time_blocked: int = 0
    time_offline: int = 0

    def _fill(self, structure: Any) -> None:
        super()._fill(structure)
        # KVM refuses times that do not add up to this one.
        times = self.time_running + self.time_runnable + self.time_blocked + self.time_offline
        structure.u.runstate.state_entry_time = times & INVALID


@dataclass(frozen=True)
class VcpuId(VcpuAttribute):
    """Xen's number for the vCPU."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID
    member: ClassVar[str] = "vcpu_id"
    id: int


@dataclass(frozen=True)
class Timer(VcpuAttribute):
    """The singleshot timer: the event channel it raises, and when, ns; 0 for not at all."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_TIMER
    member: ClassVar[str] = "timer"
    port: int
    priority: int = XEN_2LEVEL
    expires_ns: int = 0


@dataclass(frozen=True)
class VcpuUpcallVector(VcpuAttribute):
    """The vector by which this vCPU hears of events."""

    number: ClassVar[int] = lib.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR
    member: ClassVar[str] = "vector"
    vector: int
