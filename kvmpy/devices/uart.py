"""16550A UART."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..fd import Owner, known_to
from ..shim import ffi, lib
from .sink import Sink

if TYPE_CHECKING:
    from .ioapic import Ioapic


class Uart(Owner):
    """A 16550A: eight ports, a transmitter that is always ready, a receiver that never overruns.

    ``fd``: where transmitted bytes go; None keeps them (see :class:`Sink`).
    """

    length = 8

    def __init__(self, fd: int | None = None):
        self.sink = Sink(fd)
        uart = lib.shim_uart_new(self.sink._sink)
        if uart == ffi.NULL:
            raise MemoryError("no memory for a UART")
        self._device: Any = ffi.gc(uart, lib.shim_uart_free)

    def _drain(self) -> None:
        self.sink.drain()

    @property
    def output(self) -> bytes:
        """What the guest has sent, when no descriptor takes it.

        >>> serial = kvmpy.Uart()
        >>> vm.attach(serial, 0x3f8)
        >>> vm.load(kvmpy.asm("mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5), serial.output
        (Hlt(), b'A')
        """
        return self.sink.output

    def receive(self, data: bytes, *, space_eventfd: int | None = None) -> int:
        """Send bytes to the guest, from any thread. Returns how many were taken; fewer than all
        means that the queue (4 KiB) is full, and ``space_eventfd`` is signalled when there is
        room again. It must stay open until then, or until a later call (``receive(b"")``) replaces
        it.

        >>> kvmpy.Uart().receive(b"ls")
        2
        """
        event = -1 if space_eventfd is None else space_eventfd
        taken: int = lib.shim_uart_receive(self._device, data, len(data), event)
        return taken

    @property
    def backlog(self) -> int:
        """Bytes the guest has yet to read.

        >>> serial = kvmpy.Uart()
        >>> serial.receive(b"ls"), serial.backlog
        (2, 2)
        """
        count: int = lib.shim_uart_backlog(self._device)
        return count

    def connect_line(self, vm_fd: int, gsi: int) -> None:
        """Interrupt through KVM_IRQ_LINE: level, on line ``gsi`` of the in-kernel irqchip.

        >>> vm = kvmpy.VM("2M", irqchip=True)
        >>> serial = kvmpy.Uart()
        >>> serial.connect_line(vm.fileno(), 4)
        >>> serial.disconnect()
        >>> vm.close()
        """
        known_to(vm_fd, self)
        lib.shim_uart_connect_line(self._device, vm_fd, gsi)

    def connect_eventfd(self, eventfd: int) -> None:
        """Interrupt through an eventfd that an irqfd listens to.

        >>> import os
        >>> serial, event = kvmpy.Uart(), os.eventfd(0)
        >>> serial.connect_eventfd(event)
        >>> serial.disconnect()
        >>> os.close(event)
        """
        error = lib.shim_uart_connect_eventfd(self._device, eventfd)
        if error:
            raise OSError(-error, os.strerror(-error))

    def connect_ioapic(self, ioapic: Ioapic, pin: int) -> None:
        """Interrupt through ``pin`` (0..23) of a user-space I/O APIC, as the guest has it: an edge
        or a level.

        >>> serial = kvmpy.Uart()
        >>> serial.connect_ioapic(kvmpy.Ioapic(), 4)
        >>> serial.disconnect()
        """
        lib.shim_uart_connect_ioapic(self._device, ioapic._ioapic, ioapic.checked_pin(pin))

    def _assert_line(self) -> None:
        lib.shim_uart_assert(self._device)

    def disconnect(self) -> None:
        """Disconnect its interrupt.

        >>> kvmpy.Uart().disconnect()
        """
        lib.shim_uart_connect_eventfd(self._device, -1)
