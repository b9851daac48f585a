"""The VM's clock as a value (KVM API, "4.29 KVM_GET_CLOCK")."""

from __future__ import annotations

from typing import ClassVar

from ..record import Record, flags_text
from ..values import dataclass


@dataclass(frozen=True, repr=False)
class Clock(Record):
    """kvmclock: ``clock``, the guest's nanoseconds since it started; with flag REALTIME
    ``realtime``, the host's CLOCK_REALTIME in ns at that moment; with HOST_TSC ``host_tsc``.

    TSC_STABLE: the guest's clock is derived from the TSC alone, the same on all vCPUs.

    >>> kvmpy.state.Clock(clock=5, flags=2)
    <Clock 5 ns, flags 0x2[TSC_STABLE]>
    """

    c_name = "struct kvm_clock_data"
    flag_names: ClassVar = {"flags": {1: "TSC_STABLE", 2: "REALTIME", 3: "HOST_TSC"}}
    clock: int = 0
    flags: int = 0
    realtime: int = 0
    host_tsc: int = 0

    def __repr__(self) -> str:
        real = f", realtime {self.realtime}" if self.flags & 4 else ""
        tsc = f", host TSC {self.host_tsc}" if self.flags & 8 else ""
        flags = flags_text(self.flags, self.flag_names["flags"])
        return f"<Clock {self.clock} ns{real}{tsc}, flags {flags}>"
