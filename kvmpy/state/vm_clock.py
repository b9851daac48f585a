"""A VM's clock and the default frequency of its vCPUs' TSC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import ioctls
from ..errors import UnsupportedError
from ..shim import ffi, lib

if TYPE_CHECKING:
    from .clock import Clock

_REALTIME: int = lib.KVM_CLOCK_REALTIME


class ClockMethods:
    """What VM has for its clock."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...
        def check_extension(self, capability: int | str) -> int: ...

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
        from .clock import Clock

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
