"""The PC around the vCPUs: its devices on their ports, virtio slots, and the firmware's tables.

Every machine has a serial port, debug console, debug exit, POST port, keyboard controller, reset
control and clock: none costs a guest anything that does not look at it. With interrupt controllers
(KVM's, or KVM's LAPICs and an I/O APIC here) there are ACPI's registers, the panic port and virtio
devices too, and the tables that tell a kernel of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..boot.acpi import VirtioMmio, build_acpi
from ..boot.mptable import build_mp_table
from ..devices.platform import I8042, PowerManagement, PvPanic, ResetControl
from ..devices.ports import DebugConsole, DebugExitPort, PostPort
from ..devices.rtc import Rtc
from ..devices.uart import Uart
from ..values import replace
from ..x86 import layout
from ..x86.modes import write_real_mode_stubs

if TYPE_CHECKING:
    from ..devices.virtio.device import VirtioDevice
    from ..memory.guest import GuestMemory
    from ..vm import VM


class Pc:
    """The devices of one VM. ``output``: descriptor for serial port and debug console, or None.

    ``virtio``: devices, connected in this order to the slots of the memory map. They are closed
    with the Pc. Raises ValueError when there are more than slots, or when they have no interrupt
    controller.
    """

    def __init__(self, vm: VM, output: int | None, virtio: Sequence[VirtioDevice] = ()):
        self.vm = vm
        self.virtio = tuple(virtio)
        self.serial = Uart(output)
        self.debug_console = DebugConsole(output)
        self.post = PostPort()
        self.i8042 = I8042()
        low = vm.memory.regions[0].size
        self.rtc = Rtc(low, vm.memory.size - low)
        self.power = PowerManagement()
        self._attach()
        if vm.irqchip == "kernel":
            self._connect_lines()
        elif vm.irqchip == "split":
            self._connect_ioapic()
        self.slots = self._connect_virtio()

    def _attach(self) -> None:
        attach = self.vm.attach
        attach(self.serial, layout.COM1_PORT)
        attach(self.debug_console, layout.DEBUGCON_PORT)
        attach(DebugExitPort(), layout.DEBUG_EXIT_PORT)
        attach(self.post, layout.POST_PORT)
        attach(self.i8042.data, layout.I8042_DATA_PORT)
        attach(self.i8042.command, layout.I8042_COMMAND_PORT)
        attach(self.rtc, layout.RTC_PORT)
        attach(ResetControl(), layout.RESET_CONTROL_PORT)
        # Nothing is there, and Debian's kernel asks 16,000 times: that is for C to say.
        self._absent = {port: self.vm.count_io(port) for port in layout.PCI_CONFIG_PORTS}
        if self.vm.has_irqchip:
            attach(self.power, layout.ACPI_PM_PORT)
            attach(PvPanic(), layout.PVPANIC_PORT)

    def _connect_lines(self) -> None:
        for chip, base in layout.PIC_BASES.items():
            self.vm.set_irqchip(chip, replace(self.vm.get_irqchip(chip), irq_base=base))
        fd = self.vm.fileno()
        self.serial.connect_line(fd, layout.COM1_IRQ)
        self.rtc.connect_line(fd, layout.RTC_IRQ)
        self.power.connect_line(fd, layout.SCI_IRQ)

    def _connect_ioapic(self) -> None:
        from ..devices.ioapic import Ioapic

        ioapic = Ioapic()
        ioapic.connect(self.vm)
        self.serial.connect_ioapic(ioapic, layout.COM1_IRQ)
        self.rtc.connect_ioapic(ioapic, layout.RTC_IRQ)
        self.power.connect_ioapic(ioapic, layout.SCI_IRQ)

    def _connect_virtio(self) -> tuple[VirtioMmio, ...]:
        if self.virtio and not self.vm.has_irqchip:
            raise ValueError("virtio devices need an interrupt controller: irqchip='kernel'"
                             " or 'split'")  # fmt: skip
        if len(self.virtio) > len(layout.VIRTIO_MMIO_GSIS):
            raise ValueError(
                f"{len(self.virtio)} virtio devices: there are interrupts for "
                f"{len(layout.VIRTIO_MMIO_GSIS)}"
            )
        slots = []
        for number, device in enumerate(self.virtio):
            gpa = layout.VIRTIO_MMIO_BASE + number * layout.VIRTIO_MMIO_SIZE
            gsi = layout.VIRTIO_MMIO_GSIS[number]
            device.connect(self.vm, gpa, gsi)
            slots.append(VirtioMmio(gpa, layout.VIRTIO_MMIO_SIZE, gsi))
        return tuple(slots)

    def write_tables(self, apic_ids: Sequence[int], *, acpi: bool = True) -> int | None:
        """ACPI's tables, and the MP table for kernels that have or want no ACPI. The gpa of the
        RSDP; None without ACPI."""
        memory, pic = self.vm.memory, self.vm.irqchip == "kernel"
        if len(apic_ids) < 255:  # whose ids have 8 bits
            build_mp_table(memory, apic_ids, pic=pic)
        return build_acpi(memory, apic_ids, self.slots, pic=pic).rsdp if acpi else None

    @property
    def absent(self) -> Counter[tuple[str, int]]:
        """Accesses to what is not there and is answered in C: ("in"/"out", port).

        >>> kvmpy.machine.pc.Pc(vm, None).absent
        Counter()
        """
        counts: Counter[tuple[str, int]] = Counter()
        for port, counter in self._absent.items():
            counts["in", port], counts["out", port] = counter.reads, counter.writes
        return +counts

    def disconnect(self) -> None:
        """Disconnect all interrupts: the VM's descriptor is about to go."""
        for device in (self.serial, self.rtc, self.power):
            device.disconnect()

    def close(self) -> None:
        """Close the virtio devices and what is behind them, after the VM."""
        for device in self.virtio:
            device.close()


def stand_in_for_firmware(memory: GuestMemory) -> None:
    """There is no BIOS, so a call of it is reported by name. Of its data area the two fields that
    kernels look at: Xen places its trampoline by the size of base memory."""
    write_real_mode_stubs(memory)
    base_memory = min(memory.regions[0].size, layout.LOW_MEMORY_END) >> 10
    memory.write(layout.BDA_COM1, layout.COM1_PORT.to_bytes(2, "little"))
    memory.write(layout.BDA_BASE_MEMORY, base_memory.to_bytes(2, "little"))
