"""MC146818A real-time clock with CMOS memory (native/rtc.c)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..fd import Owner, known_to
from ..shim import ffi, lib

if TYPE_CHECKING:
    from .ioapic import Ioapic


class Rtc(Owner):
    """The AT's clock and CMOS memory: two ports, index and data, by custom 0x70 and 0x71.

    It shows the host's time in UTC. The guest may set it: the host's stays as it is, and
    ``offset`` tells the difference. Alarm, periodic and update interrupts work once connected.

    ``low_memory`` and ``high_memory``: RAM below and above 4 GiB in bytes, for the registers in
    which firmware leaves them (both 0: unknown).

    >>> vm.attach(kvmpy.Rtc(low_memory=16 << 20), 0x70)
    """

    length = 2

    def __init__(self, low_memory: int = 0, high_memory: int = 0) -> None:
        rtc = lib.shim_rtc_new()
        if rtc == ffi.NULL:
            raise MemoryError("no memory for a clock")
        self._rtc: Any = ffi.gc(rtc, lib.shim_rtc_free)
        self._device = ffi.cast("struct shim_device *", self._rtc)
        lib.shim_rtc_set_memory(self._rtc, low_memory, high_memory)

    @property
    def offset(self) -> int:
        """Seconds by which the guest's clock is ahead of the host's.

        >>> kvmpy.Rtc().offset
        0
        """
        offset: int = lib.shim_rtc_offset(self._rtc)
        return offset

    def connect_line(self, vm_fd: int, gsi: int) -> None:
        """Interrupt through KVM_IRQ_LINE, on line ``gsi`` of the in-kernel irqchip.

        It takes a thread, which sleeps while the guest wants no interrupt. Raises OSError when
        there can be none.

        >>> with kvmpy.VM("2M", irqchip=True) as vm:
        ...     rtc = kvmpy.Rtc()
        ...     rtc.connect_line(vm.fileno(), kvmpy.x86.layout.RTC_IRQ)
        ...     vm.attach(rtc, kvmpy.x86.layout.RTC_PORT)
        """
        known_to(vm_fd, self)
        _check(lib.shim_rtc_connect(self._rtc, vm_fd, gsi, -1))

    def connect_eventfd(self, eventfd: int) -> None:
        """Interrupt through an eventfd that an irqfd listens to. See :meth:`connect_line`.

        >>> import os
        >>> event = os.eventfd(0)
        >>> rtc = kvmpy.Rtc()
        >>> rtc.connect_eventfd(event)
        >>> rtc.disconnect()
        >>> os.close(event)
        """
        _check(lib.shim_rtc_connect(self._rtc, -1, 0, eventfd))

    def connect_ioapic(self, ioapic: Ioapic, pin: int) -> None:
        """Interrupt through ``pin`` (0..23) of a user-space I/O APIC. See :meth:`connect_line`.

        >>> rtc = kvmpy.Rtc()
        >>> rtc.connect_ioapic(kvmpy.Ioapic(), kvmpy.x86.layout.RTC_IRQ)
        >>> rtc.disconnect()
        """
        pin = ioapic.checked_pin(pin)
        _check(lib.shim_rtc_connect_ioapic(self._rtc, ioapic._ioapic, pin))

    def _assert_line(self) -> None:
        lib.shim_rtc_assert(self._rtc)

    def disconnect(self) -> None:
        """Disconnect its interrupt, and end its thread.

        >>> kvmpy.Rtc().disconnect()
        """
        lib.shim_rtc_disconnect(self._rtc)


def _check(error: int) -> None:
    if error:
        raise OSError(-error, os.strerror(-error))
