"""The guest's performance counters: which events it may count (KVM API, "4.120
KVM_SET_PMU_EVENT_FILTER"), or whether it has any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from .. import ioctls
from ..errors import UnsupportedError
from ..shim import ffi, lib
from ..vm_fd import VmFd

MASKED: int = lib.KVM_PMU_EVENT_FLAG_MASKED_EVENTS
_EXCLUDE = 1 << 55


def intel_event(select: int, umask: int) -> int:
    """An event of Intel's PMU: event select 0..0xff, unit mask 0..0xff (SDM vol. 3,
    "Performance Monitoring").

    >>> hex(kvmpy.pmu.intel_event(0xC0, 0x01))
    '0x1c0'
    """
    _check("event select", select, 8)
    _check("unit mask", umask, 8)
    return umask << 8 | select


def amd_event(select: int, umask: int) -> int:
    """An event of AMD's PMU: event select 0..0xfff, unit mask 0..0xff (APM vol. 2, "Performance
    Monitoring Counters"). Bits 11:8 of the select go to 35:32.

    >>> hex(kvmpy.pmu.amd_event(0x1C7, 0x02))
    '0x1000002c7'
    """
    _check("event select", select, 12)
    _check("unit mask", umask, 8)
    return (select >> 8) << 32 | umask << 8 | select & 0xFF


def masked_event(select: int, mask: int, match: int, *, exclude: bool = False) -> int:
    """Events with this select (0..0xfff) whose unit mask, under ``mask``, equals ``match``.
    ``exclude`` takes them out of what other entries of the same select match.

    >>> hex(kvmpy.pmu.masked_event(0xC0, mask=0xF0, match=0x10))
    '0xf0000000000010c0'
    """
    _check("event select", select, 12)
    _check("mask", mask, 8)
    _check("match", match, 8)
    event = mask << 56 | (select >> 8) << 32 | match << 8 | select & 0xFF
    return event | _EXCLUDE if exclude else event


def _check(what: str, value: int, bits: int) -> None:
    if value < 0 or value >> bits:
        raise ValueError(f"{what} {value:#x} is not in 0..{(1 << bits) - 1:#x}")


class VmPmu(VmFd):
    """The PMU on the VM descriptor."""

    def set_pmu_event_filter(
        self,
        events: Iterable[int],
        action: Literal["allow", "deny"] = "allow",
        *,
        fixed_counters: int | None = None,
        masked: bool = False,
    ) -> None:
        """KVM_SET_PMU_EVENT_FILTER: the guest counts only these events, or all but these. Any
        other stays at zero. It takes the place of the filter before; ``[]`` with "deny" is none.

        ``events``: from :func:`kvmpy.pmu.intel_event` or :func:`~kvmpy.pmu.amd_event`; with
        ``masked`` all from :func:`~kvmpy.pmu.masked_event`. KVM takes 300.
        ``fixed_counters``: bit i, with "allow", leaves fixed counter i on, and with "deny" turns it
        off (Intel). By default the action spares all of them.

        Raises UnsupportedError without KVM_CAP_PMU_EVENT_FILTER or, for ``masked``,
        KVM_CAP_PMU_EVENT_MASKED_EVENTS; KvmIoctlError: E2BIG for too many events.

        >>> vm.set_pmu_event_filter([kvmpy.pmu.intel_event(0xC0, 0)], "deny")
        """
        if action not in ("allow", "deny"):
            raise ValueError(f"action {action!r} is neither 'allow' nor 'deny'")
        capability = "KVM_CAP_PMU_EVENT_MASKED_EVENTS"
        if masked and not self.check_extension(capability):
            raise UnsupportedError(f"this KVM has no masked PMU events ({capability})", capability)
        if fixed_counters is None:
            fixed_counters = 0xFFFF_FFFF if action == "allow" else 0
        listed = list(events)
        table = ffi.new("struct kvm_pmu_event_filter *", {"events": listed})
        table.action = lib.KVM_PMU_EVENT_ALLOW if action == "allow" else lib.KVM_PMU_EVENT_DENY
        table.nevents = len(listed)
        table.fixed_counter_bitmap = fixed_counters
        table.flags = MASKED if masked else 0
        detail = f"{action} {len(listed)} events"
        ioctls.KVM_SET_PMU_EVENT_FILTER(self.fileno(), table, detail)

    def disable_pmu(self) -> None:
        """KVM_CAP_PMU_CAPABILITY: this VM's vCPUs have no PMU, whatever CPUID says. Before the
        first vCPU; ``VM(pmu=False)`` does it.

        Raises UnsupportedError without the capability: KVM then gives no VM a PMU, or cannot
        take it away.

        >>> if kvm.check_extension("KVM_CAP_PMU_CAPABILITY"):
        ...     kvmpy.VM("1M", pmu=False).close()
        """
        capability = "KVM_CAP_PMU_CAPABILITY"
        if not self.check_extension(capability) & lib.KVM_PMU_CAP_DISABLE:
            raise UnsupportedError(
                f"this KVM cannot take the PMU from a VM ({capability})", capability
            )
        self.enable_capability(capability, lib.KVM_PMU_CAP_DISABLE)
