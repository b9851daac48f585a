"""The devices that end a machine: i8042, ACPI PM1a, reset control, panic port (native/platform.c).

The run in which the guest touched one ends with Reset, PowerOff, GuestPanic or GuestCrashLoaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..fd import Owner, known_to
from ..shim import ffi, lib
from .ports import _owned

if TYPE_CHECKING:
    from .ioapic import Ioapic


class _Port:
    """One of several port ranges of a device, which it keeps alive."""

    def __init__(self, owner: object, device: Any, length: int):
        self._owner, self._device, self.length = owner, device, length


class I8042(Owner):
    """The AT's keyboard controller, without keyboard and mouse.

    It answers what a kernel asks while it probes, without delay, and ends the run with
    Reset("i8042") when the guest pulses the reset line: Linux with ``reboot=k``, or without ACPI.

    >>> i8042 = kvmpy.I8042()
    >>> vm.attach(i8042.data, 0x60)
    >>> vm.attach(i8042.command, 0x64)
    """

    def __init__(self) -> None:
        i8042 = lib.shim_i8042_new()
        if i8042 == ffi.NULL:
            raise MemoryError("no memory for a keyboard controller")
        self._i8042 = ffi.gc(i8042, lib.shim_i8042_free)
        #: Port 0x60.
        self.data = _Port(self._i8042, lib.shim_i8042_data(i8042), 1)
        #: Port 0x64.
        self.command = _Port(self._i8042, lib.shim_i8042_command(i8042), 1)


class PowerManagement(Owner):
    """ACPI's fixed hardware: the PM1a event block (status, enable) and control block, six ports.

    Sleep state S5 ends the run with PowerOff("acpi"). ``kvmpy.boot.acpi`` has the tables that
    tell a guest of it (ACPI Specification, "ACPI Register Model").

    >>> vm.attach(kvmpy.PowerManagement(), 0x600)
    """

    length = 6

    def __init__(self) -> None:
        pm = lib.shim_pm_new()
        if pm == ffi.NULL:
            raise MemoryError("no memory for the ACPI registers")
        self._pm = ffi.gc(pm, lib.shim_pm_free)
        self._device = ffi.cast("struct shim_device *", self._pm)

    def press_power_button(self) -> bool:
        """Ask the guest to shut down, from any thread. False if it does not listen (yet): then
        nothing comes of it until it does.

        >>> kvmpy.PowerManagement().press_power_button()
        False
        """
        return bool(lib.shim_pm_press_power_button(self._pm))

    def connect_line(self, vm_fd: int, gsi: int) -> None:
        """Raise the SCI through KVM_IRQ_LINE: level, on line ``gsi`` of the in-kernel irqchip.

        >>> with kvmpy.VM("2M", irqchip=True) as vm:
        ...     pm = kvmpy.PowerManagement()
        ...     pm.connect_line(vm.fileno(), kvmpy.x86.layout.SCI_IRQ)
        ...     vm.attach(pm, kvmpy.x86.layout.ACPI_PM_PORT)
        """
        known_to(vm_fd, self)
        lib.shim_pm_connect_line(self._pm, vm_fd, gsi)

    def connect_ioapic(self, ioapic: Ioapic, pin: int) -> None:
        """Raise the SCI through ``pin`` (0..23) of a user-space I/O APIC.

        >>> pm = kvmpy.PowerManagement()
        >>> pm.connect_ioapic(kvmpy.Ioapic(), kvmpy.x86.layout.SCI_IRQ)
        >>> pm.disconnect()
        """
        lib.shim_pm_connect_ioapic(self._pm, ioapic._ioapic, ioapic.checked_pin(pin))

    def _assert_line(self) -> None:
        lib.shim_pm_assert(self._pm)

    def disconnect(self) -> None:
        """Disconnect its interrupt.

        >>> kvmpy.PowerManagement().disconnect()
        """
        lib.shim_pm_connect_line(self._pm, -1, 0)


class ResetControl(Owner):
    """Intel chipsets' reset control register, one port, by custom 0xCF9: a write with bit 2 set
    ends the run with Reset("reset-control").

    >>> vm.attach(kvmpy.ResetControl(), 0xCF9)
    """

    length = 1

    def __init__(self) -> None:
        self._device = _owned(lib.shim_reset_control_new())


class PvPanic(Owner):
    """QEMU's panic event device, one port, by custom 0x505: a guest's kernel that panics ends the
    run with GuestPanic("pvpanic"), or GuestCrashLoaded("pvpanic") if a crash kernel takes over.

    >>> vm.attach(kvmpy.PvPanic(), 0x505)
    """

    length = 1

    def __init__(self) -> None:
        self._device = _owned(lib.shim_pvpanic_new())
