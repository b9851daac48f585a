"""What saves a VM exits: eventfds for interrupts and for writes, coalesced writes.

KVM API, "4.75 KVM_IRQFD", "4.59 KVM_IOEVENTFD", "4.116 KVM_(UN)REGISTER_COALESCED_MMIO".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..fd import number_of
from ..ioctls import capabilities
from ..run.bus import ClaimError
from ..shim import ffi, lib
from .lines import VmInterrupts

if TYPE_CHECKING:
    from ..fd import HasFileno
    from .lines import UserIoapic


class VmEvents(VmInterrupts):
    """irqfd, ioeventfd and coalesced writes of a VM."""

    #: Zones of coalesced writes: (pio, first, size).
    _zones: frozenset[tuple[bool, int, int]] = frozenset()
    #: irqfds whose EOI our I/O APIC tells: (eventfd, gsi).
    _resampled: frozenset[tuple[int, int]] = frozenset()

    def irqfd(
        self,
        eventfd: int | HasFileno,
        gsi: int,
        *,
        resample: int | HasFileno | None = None,
        deassign: bool = False,
    ) -> None:
        """KVM_IRQFD: a write to ``eventfd`` raises ``gsi`` as an edge. KVM API, 4.75.

        ``resample``: a second eventfd, for a level-triggered line: the line stays up until the
        guest's EOI, which lowers it and signals ``resample``; whoever still wants it writes to
        ``eventfd`` again. With a split irqchip KVM knows of no line; then it is the business of
        the VM's :class:`Ioapic`. ``deassign`` undoes it.

        >>> import os; event = os.eventfd(0)
        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.irqfd(event, 4)
        ...     other.irqfd(event, 4, deassign=True)
        >>> os.close(event)
        """
        request = ffi.new("struct kvm_irqfd *")
        request.fd, request.gsi = number_of(eventfd), gsi
        if deassign:
            request.flags |= lib.KVM_IRQFD_FLAG_DEASSIGN
        if resample is not None and self.ioapic is None:
            capabilities.require(self, "KVM_CAP_IRQFD_RESAMPLE")
            request.flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = number_of(resample)
        ioctls.KVM_IRQFD(self.fileno(), request, f"eventfd {request.fd}, gsi {gsi}")
        if self.ioapic is not None:
            self._resample(self.ioapic, request, None if deassign else resample)

    def _resample(self, ioapic: UserIoapic, request: Any, resample: int | HasFileno | None) -> None:
        """With an irqfd made or taken back: what KVM does not know of."""
        key = request.fd, request.gsi
        if resample is None:
            if key in self._resampled:
                ioapic.resample(request.gsi, None)
                self._resampled -= {key}
            return
        try:
            ioapic.resample(request.gsi, resample)
        except BaseException:
            request.flags |= lib.KVM_IRQFD_FLAG_DEASSIGN
            ioctls.KVM_IRQFD(self.fileno(), request)
            raise
        self._resampled |= {key}

    def ioeventfd(
        self,
        eventfd: int | HasFileno,
        address: int,
        *,
        length: int = 0,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None:
        """KVM_IOEVENTFD: a guest's write to ``address`` signals ``eventfd`` instead of exiting.

        ``address``: guest physical, or a port with ``pio``. ``length``: only writes of that many
        bytes (1, 2, 4, 8); 0 takes any. ``datamatch``: only writes of that value; needs a length.
        ``deassign`` undoes it: all else must be as it was. KVM API, 4.59.

        >>> import os; event = os.eventfd(0)
        >>> vm.ioeventfd(event, 0xD000_0050, length=4, datamatch=0)
        >>> vm.ioeventfd(event, 0xD000_0050, length=4, datamatch=0, deassign=True)
        >>> os.close(event)
        """
        request = ffi.new("struct kvm_ioeventfd *")
        request.fd, request.addr, request.len = number_of(eventfd), address, length
        if datamatch is not None:
            request.datamatch = datamatch
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if pio:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if deassign:
            request.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        detail = f"eventfd {request.fd}, {'port' if pio else 'gpa'} {address:#x}, length {length}"
        ioctls.KVM_IOEVENTFD(self.fileno(), request, detail)

    def coalesce(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: have KVM keep the guest's writes to these ``size`` bytes at
        a guest physical address (ports, with ``pio``) and exit only when its ring is full, which
        holds 169 for the whole VM (older kernels exit after half as many). KVM API, 4.116.

        Whoever owns the address gets each write as always: a C device, a counter, a batch handler
        and a Python handler, called once for each. All that a vCPU wrote comes before its next
        exit is handled, and before ``run()`` returns; so a handler may find the guest further on
        than the instruction that wrote. Writes that nobody claimed end the run as MmioWrite or
        IoOut, one at a time; the exit behind them is the next run's. Reads exit as always.

        While a handler has a write, exits of other vCPUs wait for it.

        Raises ClaimError for a zone that overlaps one there is; UnsupportedError.

        >>> vm.coalesce(0xD000_0000, 0x1000)
        >>> vm.coalesce(0x80, 1, pio=True)
        """
        page = capabilities.require(self, "KVM_CAP_COALESCED_MMIO")
        if pio:
            capabilities.require(self, "KVM_CAP_COALESCED_PIO")
        end = 1 << 16 if pio else 1 << 64
        if address < 0 or not 1 <= size < 1 << 32 or address + size > end:
            raise ClaimError(f"invalid {_zone(pio, address, size)}: a zone holds at least one byte")
        for other in self._zones:  # KVM takes back every zone that contains the one it is told
            if other[0] == pio and other[1] < address + size and address < other[1] + other[2]:
                raise ClaimError(f"{_zone(pio, address, size)} overlaps {_zone(*other)}")
        error = lib.shim_bus_coalesce(self.bus._bus, page, self.run_size)
        if error:
            raise OSError(-error, os.strerror(-error), "the ring of coalesced writes")
        self._zone_ioctl(ioctls.KVM_REGISTER_COALESCED_MMIO, address, size, pio)
        self._zones |= {(pio, address, size)}

    def uncoalesce(self, address: int, size: int, *, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: writes to the zone, one that :meth:`coalesce` was given,
        exit again. Raises ClaimError for any other. KVM API, 4.116.

        >>> vm.coalesce(0xD000_0000, 0x1000)
        >>> vm.uncoalesce(0xD000_0000, 0x1000)
        """
        if (pio, address, size) not in self._zones:
            raise ClaimError(f"{_zone(pio, address, size)} is not coalesced")
        self._zone_ioctl(ioctls.KVM_UNREGISTER_COALESCED_MMIO, address, size, pio)
        self._zones -= {(pio, address, size)}

    def _zone_ioctl(self, ioctl: ioctls.Ioctl, address: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *")
        zone.addr, zone.size, zone.pio = address, size, pio
        ioctl(self.fileno(), zone, _zone(pio, address, size))


def _zone(pio: bool, address: int, size: int) -> str:
    return f"{'port' if pio else 'MMIO'} zone {address:#x}+{size:#x}"
