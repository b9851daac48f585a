"""82093AA I/O APIC in user space, for a split irqchip (native/ioapic.c)."""

from __future__ import annotations

import contextlib
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..errors import KvmpyError
from ..fd import Owner
from ..interrupts.irqchips import IoapicState
from ..interrupts.routing import MsiRoute, _table
from ..shim import ffi, lib
from ..x86 import layout

if TYPE_CHECKING:
    from ..fd import HasFileno
    from ..interrupts.routing import Route
    from ..vm import VM


class Ioapic(Owner):
    """The I/O APIC of a VM whose irqchip is "split": 24 pins, version 0x20 with an EOI register.

    It is answered in C. GSI 0..23 are its pins: what the guest writes into a redirection entry
    becomes that GSI's MSI route in KVM, so an irqfd ends in a LAPIC at once. Devices that drive a
    line do it by :meth:`set_line`, or in C after their ``connect_ioapic()``. A level-triggered line
    that is still up at the guest's EOI interrupts again: a LAPIC's EOI does not come out of
    ``run()`` as IoapicEoi any longer. Interrupts of delivery mode ExtINT are lost: there is no PIC.

    Intel 82093AA data sheet; KVM API, "KVM_CAP_SPLIT_IRQCHIP".

    >>> with kvmpy.VM("2M", irqchip="split") as vm:
    ...     ioapic = kvmpy.Ioapic()
    ...     ioapic.connect(vm)
    ...     vm.ioapic is ioapic
    True
    """

    #: Bytes of the register file.
    length: int = lib.SHIM_IOAPIC_LENGTH
    pins: int = lib.SHIM_IOAPIC_PINS

    def __init__(self) -> None:
        ioapic = lib.shim_ioapic_new()
        if ioapic == ffi.NULL:
            raise MemoryError("no memory for an I/O APIC")
        self._ioapic: Any = ffi.gc(ioapic, lib.shim_ioapic_put)
        self._device = ffi.cast("struct shim_device *", self._ioapic)
        self._vm: weakref.ref[VM] | None = None
        self._gpa = layout.IOAPIC_BASE

    # -- in a VM

    def connect(self, vm: VM, gpa: int = layout.IOAPIC_BASE) -> None:
        """Put the registers at ``gpa`` and take over the pins' GSIs. Routes of other GSIs stay.

        Raises KvmpyError when it is connected already, or the VM has an I/O APIC or no split
        irqchip with 24 pins; ValueError when one of its GSIs has a route; ClaimError when the
        address is taken; KvmIoctlError.

        >>> with kvmpy.VM("2M", irqchip="split") as vm:
        ...     kvmpy.Ioapic().connect(vm)
        """
        if self._vm is not None:
            raise KvmpyError("this I/O APIC is connected already: disconnect() it first")
        if vm.irqchip != "split" or vm.ioapic is not None or vm.ioapic_pins < self.pins:
            raise KvmpyError(
                "an I/O APIC needs a VM with irqchip='split' and its 24 pins, that has none yet"
            )
        most = vm.check_extension(lib.KVM_CAP_IRQ_ROUTING)
        structure, entries = _table(vm.gsi_routes, most)
        self._check_others(entries)
        vm.attach(self, gpa, mmio=True)
        error = lib.shim_ioapic_connect(self._ioapic, vm.fileno(), structure)
        if error:
            vm.release(gpa, mmio=True)
            raise _routing_error(vm.fileno(), error)
        lib.shim_bus_set_ioapic(vm.bus._bus, self._ioapic)
        self._vm, self._gpa, vm.ioapic = weakref.ref(vm), gpa, self

    def disconnect(self) -> None:
        """Out of the VM: its GSIs lead nowhere, EOIs are exits again. Harmless when it is in none.

        >>> kvmpy.Ioapic().disconnect()
        """
        vm = None if self._vm is None else self._vm()
        self._vm = None
        lib.shim_ioapic_disconnect(self._ioapic)
        if vm is None or vm.closed:
            return
        lib.shim_bus_set_ioapic(vm.bus._bus, ffi.NULL)
        vm.ioapic = None
        vm.release(self._gpa, mmio=True)
        with contextlib.suppress(KvmpyError):  # of a VM that is dead, or another process's
            vm.set_gsi_routing(vm.gsi_routes)

    def _check_others(self, routes: tuple[Route, ...]) -> None:
        for route in routes:
            if route.gsi < self.pins:
                raise ValueError(f"gsi {route.gsi} is a pin of the I/O APIC: the guest routes it")

    def _set_others(self, structure: Any, routes: tuple[Route, ...]) -> None:
        """The routes that the VM has beside the pins."""
        self._check_others(routes)
        error = lib.shim_ioapic_set_others(self._ioapic, structure)
        if error:
            vm = None if self._vm is None else self._vm()
            raise _routing_error(-1 if vm is None else vm.fileno(), error)

    # -- pins

    def checked_pin(self, pin: int) -> int:
        """``pin``, if there is one of that number. Raises ValueError.

        >>> kvmpy.Ioapic().checked_pin(4)
        4
        """
        if not 0 <= pin < self.pins:
            raise ValueError(f"pin {pin} is not in 0..{self.pins - 1}")
        return pin

    def set_line(self, pin: int, level: bool) -> None:
        """Drive ``pin`` (0..23), from any thread. A line has one driver.

        >>> ioapic = kvmpy.Ioapic()
        >>> ioapic.set_line(9, True)
        >>> hex(ioapic.state.irr)
        '0x200'
        """
        lib.shim_ioapic_set_line(self._ioapic, self.checked_pin(pin), level)

    def resample(self, pin: int, eventfd: int | HasFileno | None) -> None:
        """Have ``eventfd`` signalled at each EOI of ``pin``, and when the guest unmasks it, as long
        as it is level-triggered; None takes it back, as it must before the eventfd is closed.
        What :meth:`VM.irqfd` does with its ``resample``. Raises KvmpyError if there is one.

        >>> import os
        >>> event, ioapic = os.eventfd(0), kvmpy.Ioapic()
        >>> ioapic.resample(9, event)
        >>> ioapic.resample(9, None)
        >>> os.close(event)
        """
        fd = -1
        if eventfd is not None:
            fd = eventfd if isinstance(eventfd, int) else eventfd.fileno()
        if lib.shim_ioapic_resample(self._ioapic, self.checked_pin(pin), fd):
            raise KvmpyError(f"pin {pin} has an eventfd for its EOI already")

    # -- what the guest made of it

    @property
    def state(self) -> IoapicState:
        """The registers now; in ``irr`` the lines that devices hold up.

        >>> kvmpy.Ioapic().state.redirtbl[4]
        <vector 0x0 to APIC 0x0: fixed, physical, active high, edge, masked>
        """
        state = ffi.new("struct kvm_ioapic_state *")
        lib.shim_ioapic_state(self._ioapic, state)
        return replace(IoapicState.from_c(state), base_address=self._gpa)

    @property
    def routes(self) -> tuple[MsiRoute, ...]:
        """The pins' routes, as KVM has them: those that are unmasked, or have their EOI to come.

        >>> kvmpy.Ioapic().routes
        ()
        """
        words = ffi.new("uint32_t[]", 2 * self.pins)
        lib.shim_ioapic_routes(self._ioapic, words)
        pairs = [(words[2 * pin], words[2 * pin + 1]) for pin in range(self.pins)]
        return tuple(MsiRoute(pin, *pair) for pin, pair in enumerate(pairs) if pair[0])

    def __repr__(self) -> str:
        if self._vm is None:
            return "<Ioapic, not in a VM>"
        return f"<Ioapic at {self._gpa:#x}, {len(self.routes)} of {self.pins} pins in use>"


def _routing_error(vm_fd: int, error: int) -> Exception:
    return ioctls.KVM_SET_GSI_ROUTING.error(vm_fd, -error, "the I/O APIC's pins")
