"""A VM's clock (KVM API, "4.29 KVM_GET_CLOCK"), and the default frequency of its vCPUs' TSC."""

from __future__ import annotations

from typing import ClassVar

from .. import ioctls
from ..errors import UnsupportedError
from ..record import Record
from ..shim import ffi, lib
from ..text import flags_text
from ..values import dataclass
from ..vm_fd import VmFd

_REALTIME: int = lib.KVM_CLOCK_REALTIME


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


class VmClock(VmFd):
    """What VM has for its clock."""

    @property
    def clock(self) -> Clock:
        """kvmclock, a :class:`kvmpy.state.Clock` (KVM API, "4.29 KVM_GET_CLOCK").

        Assigning a Clock, or nanoseconds, sets it: the guest's clock goes on from there. A Clock
        that has the flag REALTIME goes on as if it had never stopped: KVM adds the wall-clock
        time since (Linux 5.16 and later). Of a saved clock ``clock.clock`` alone leaves it out.

        >>> vm.clock = 10**9
        >>> vm.clock.clock >= 10**9
        True
        """
        structure = ffi.new("struct kvm_clock_data *")
        ioctls.KVM_GET_CLOCK(self.fileno(), structure)
        return Clock.from_c(structure)

    @clock.setter
    def clock(self, value: Clock | int) -> None:
        structure = ffi.new("struct kvm_clock_data *")
        if isinstance(value, int):
            structure.clock = value
        else:
            # Before 5.16 KVM takes no flags, and says so by the capability's value.
            known = self.check_extension(lib.KVM_CAP_ADJUST_CLOCK)
            structure.clock, structure.realtime = value.clock, value.realtime
            structure.flags = value.flags & known & _REALTIME
        ioctls.KVM_SET_CLOCK(self.fileno(), structure, f"{structure.clock} ns")

    @property
    def tsc_khz(self) -> int:
        """Frequency in kHz that the TSC of vCPUs made from now on has. Assigning needs
        KVM_CAP_VM_TSC_CONTROL, Linux 5.16 (KVM API, "4.55 KVM_SET_TSC_KHZ").

        >>> if vm.check_extension("KVM_CAP_VM_TSC_CONTROL"):
        ...     vm.tsc_khz = vm.tsc_khz
        """
        return ioctls.KVM_GET_TSC_KHZ(self.fileno())

    @tsc_khz.setter
    def tsc_khz(self, value: int) -> None:
        if not self.check_extension("KVM_CAP_VM_TSC_CONTROL"):
            raise UnsupportedError(
                "KVM_SET_TSC_KHZ on a VM: this KVM has no KVM_CAP_VM_TSC_CONTROL",
                "KVM_CAP_VM_TSC_CONTROL",
            )
        ioctls.KVM_SET_TSC_KHZ(self.fileno(), value, f"{value} kHz")
