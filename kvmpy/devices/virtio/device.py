"""What all virtio devices have in common: registers, queues, a worker thread, a place in a VM."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import GuestMemoryError, KvmpyError
from ...fd import Owner, gone, hears_of_forks
from ...shim import ffi, lib
from ...values import dataclass

if TYPE_CHECKING:
    from typing import Self

    from ...memory.guest import GuestMemory, Region
    from ...vm import VM


_QUEUE_NOTIFY = 0x50


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a device has done so far.

    ``requests`` were returned to the driver, ``errors`` of them with a failure. ``bytes_in`` were
    written into guest memory, ``bytes_out`` read from it: the data only. ``notifications`` reached
    the worker; several of the driver's may have become one. ``interrupts`` were sent. ``accesses``
    are exits to the registers.
    """

    requests: int
    errors: int
    bytes_in: int
    bytes_out: int
    notifications: int
    interrupts: int
    accesses: int


class VirtioDevice(Owner):
    """A virtio-mmio device (VIRTIO 1.2, "4.2 Virtio Over MMIO"), served by a thread in C.

    Made by its subclasses. :meth:`connect` puts it into a VM; :meth:`disconnect` takes it out, as
    does closing the VM; then it can be connected again. :meth:`close` gives back what is behind
    it. A driver that breaks the rules of the rings finds DEVICE_NEEDS_RESET in the status register,
    and the device stands still until the driver resets it: see :attr:`fault`.
    """

    #: Bytes of the register file.
    length: int = lib.VIRTIO_MMIO_LENGTH

    def __init__(self, device: Any):
        if device == ffi.NULL:
            raise MemoryError("no memory for a virtio device")
        self._virtio = ffi.gc(device, lib.shim_virtio_free)
        self._memory: GuestMemory | None = None
        #: Keep the host mappings of guest memory while C has their addresses.
        self._pins: list[tuple[Region, Any]] = []
        self._follower: _Follower | None = None
        self._undo = contextlib.ExitStack()
        self._vm: weakref.ref[VM] | None = None
        self._closed = False
        self._gpa = -1
        self._gsi: int | None = None
        self._process = os.getpid()
        hears_of_forks(self)

    def _in_child(self) -> None:
        self._closed, self._undo = True, contextlib.ExitStack()
        self._memory = self._follower = self._vm = None
        self._unpin()

    @property
    def _device(self) -> Any:
        return ffi.addressof(self._virtio, "device")

    # -- in a VM

    def connect(self, vm: VM, gpa: int, gsi: int | None = None) -> None:
        """Put the device's registers at ``gpa``, its interrupt on ``gsi``, and start its worker.

        ``gpa``: a multiple of 4, 512 bytes that are neither memory nor claimed. ``gsi``: an input
        of the in-kernel irqchip, raised as an edge by irqfd; None leaves the interrupt to whoever
        reads :attr:`interrupt_fd`. Notifications arrive by ioeventfd: they cost no exit.

        Raises ClosedError after close(), KvmpyError if it is connected already, ClaimError if the
        address is taken and KvmIoctlError if KVM refuses.

        >>> rng = kvmpy.devices.virtio.Rng()
        >>> rng.connect(vm, 0xD000_0000)
        >>> rng.close()
        """
        if gpa % 4:
            raise ValueError(f"gpa {gpa:#x} is not a multiple of 4")
        self.start(vm.memory)
        undo = self._undo
        try:
            self._vm = weakref.ref(vm)
            self._set_memory()  # with the rights that this VM gives
            vm.attach(self, gpa, mmio=True)
            undo.callback(_unless_gone, vm, lambda: vm.release(gpa, mmio=True))
            for queue, fd in enumerate(self.queue_fds):
                vm.ioeventfd(fd, gpa + _QUEUE_NOTIFY, length=4, datamatch=queue)
                undo.callback(_unless_gone, vm, _release_notify(vm, fd, gpa, queue))
            if gsi is not None:
                fd = self.interrupt_fd
                vm.irqfd(fd, gsi)
                undo.callback(_unless_gone, vm, lambda: vm.irqfd(fd, gsi, deassign=True))
        except BaseException:
            self.disconnect()
            raise
        self._gpa, self._gsi = gpa, gsi

    def start(self, memory: GuestMemory) -> None:
        """Start the worker on ``memory`` without a VM: somebody else passes on accesses to the
        registers, and uses :attr:`queue_fds` and :attr:`interrupt_fd`. Ends with disconnect().

        >>> with kvmpy.devices.virtio.Rng() as rng:
        ...     rng.start(memory)
        ...     len(rng.queue_fds)
        1
        """
        if self._closed:
            raise gone("device", self._process)
        if self._memory is not None:
            raise KvmpyError("this device is connected already: disconnect() it first")
        try:
            self._pin(*memory.regions)
            table = self._table()
            _check(lib.shim_virtio_start(self._virtio, table, len(table)))
        except BaseException:
            self._unpin()
            raise
        self._follower = _Follower(self)
        memory._followers.append(self._follower)
        self._memory = memory

    def _pin(self, *regions: Region) -> None:
        for region in regions:
            # A slice: the region's own view must remain free to be released.
            self._pins.append((region, ffi.from_buffer(region.view[:])))

    def _unpin(self) -> None:
        pins, self._pins = self._pins, []
        for _, buffer in pins:
            ffi.release(buffer)

    def _table(self) -> Any:
        pins = sorted(self._pins, key=lambda pin: pin[0].gpa)
        table = ffi.new("struct virtio_region[]", len(pins))
        for row, (region, buffer) in zip(table, pins, strict=True):
            row.gpa, row.size, row.read_only = region.gpa, region.size, self._forbidden(region)
            row.hva = ffi.cast("uint8_t *", buffer)
        return table

    def _forbidden(self, region: Region) -> bool:
        """What a guest may not write, its devices may not: its own VM's slot says so."""
        vm = self._vm() if self._vm is not None else None
        for slot in () if vm is None else vm.slots.values():
            if slot.region is region:
                return slot.read_only
        return region.read_only

    def _adopt_region(self, region: Region) -> None:
        """Memory that is added later is the device's too."""
        self._pin(region)
        self._set_memory()

    def _uses(self, region: Region) -> bool:
        return self._memory is not None and region in self._memory.regions

    def _drop_region(self, region: Region) -> None:
        """The region just adopted is none after all."""
        (pin,) = (pin for pin in self._pins if pin[0] is region)
        self._pins.remove(pin)
        self._set_memory()
        ffi.release(pin[1])

    def _set_memory(self) -> None:
        table = self._table()
        _check(lib.shim_virtio_set_memory(self._virtio, table, len(table)))

    def disconnect(self) -> None:
        """Take the device out of its VM: end the worker, reset the device. Waits for the request
        in progress; harmless when it is not connected.

        >>> rng = kvmpy.devices.virtio.Rng()
        >>> rng.connect(vm, 0xD000_0000)
        >>> rng.disconnect(); rng.connected
        False
        >>> rng.close()
        """
        # Out of KVM before its eventfds go; the worker before the memory it works on.
        undo, self._undo = self._undo, contextlib.ExitStack()
        undo.close()
        lib.shim_virtio_stop(self._virtio)
        memory, self._memory = self._memory, None
        if memory is not None and self._follower in memory._followers:
            memory._followers.remove(self._follower)
        self._follower = self._vm = None
        self._gpa, self._gsi = -1, None
        self._unpin()

    @property
    def connected(self) -> bool:
        """Whether the worker runs.

        >>> kvmpy.devices.virtio.Rng().connected
        False
        """
        return self._memory is not None

    @property
    def gpa(self) -> int | None:
        """Where its registers are, None when it is in no VM.

        >>> with kvmpy.devices.virtio.Rng() as rng:
        ...     rng.connect(vm, 0xD000_0000)
        ...     hex(rng.gpa)
        '0xd0000000'
        """
        return self._gpa if self._vm is not None else None

    @property
    def gsi(self) -> int | None:
        """Its interrupt line, None without one.

        >>> kvmpy.devices.virtio.Rng().gsi is None
        True
        """
        return self._gsi

    @property
    def queue_fds(self) -> list[int]:
        """An eventfd per queue: a write is the driver's notification. Empty when not connected.

        >>> kvmpy.devices.virtio.Rng().queue_fds
        []
        """
        if self._memory is None:
            return []
        count = lib.shim_virtio_queues(self._virtio)
        return [lib.shim_virtio_queue_fd(self._virtio, queue) for queue in range(count)]

    @property
    def interrupt_fd(self) -> int:
        """An eventfd that the device signals for an interrupt, -1 when not connected.

        >>> kvmpy.devices.virtio.Rng().interrupt_fd
        -1
        """
        fd: int = lib.shim_virtio_interrupt_fd(self._virtio)
        return fd

    # -- what it has done

    @property
    def statistics(self) -> Statistics:
        """Counts since it was made.

        >>> kvmpy.devices.virtio.Rng().statistics.requests
        0
        """
        words = ffi.new("uint64_t[]", lib.SHIM_VIRTIO_STATISTICS)
        lib.shim_virtio_statistics(self._virtio, words)
        return Statistics(*ffi.unpack(words, len(words)))

    @property
    def fault(self) -> str:
        """Why the driver was last told to reset the device (DEVICE_NEEDS_RESET), "" for never.

        >>> kvmpy.devices.virtio.Rng().fault
        ''
        """
        queue = ffi.new("unsigned *")
        text = lib.shim_virtio_fault(self._virtio, queue)
        return f"queue {queue[0]}: {ffi.string(text).decode()}" if text != ffi.NULL else ""

    # -- life

    @property
    def closed(self) -> bool:
        """Whether close() was called.

        >>> kvmpy.devices.virtio.Rng().closed
        False
        """
        return self._closed

    def close(self) -> None:
        """Disconnect, and give back what is behind the device: files, descriptors.

        >>> rng = kvmpy.devices.virtio.Rng()
        >>> rng.close(); rng.closed
        True
        """
        if not self._closed:
            self._closed = True
            self.disconnect()
            lib.shim_virtio_close(self._virtio)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    def __repr__(self) -> str:
        name = type(self).__name__
        if self._closed:
            return f"<{name}, closed>"
        if self._vm is None:
            return f"<{name}, not in a VM>"
        line = "" if self._gsi is None else f", gsi {self._gsi}"
        return f"<{name} at {self._gpa:#x}{line}>"


def _release_notify(vm: VM, fd: int, gpa: int, queue: int) -> Callable[[], None]:
    return lambda: vm.ioeventfd(fd, gpa + _QUEUE_NOTIFY, length=4, datamatch=queue, deassign=True)


def _unless_gone(vm: VM, undo: Callable[[], None]) -> None:
    """A VM that is closed, dead or another process's has let go already."""
    if not vm.closed:
        with contextlib.suppress(KvmpyError):
            undo()


def _check(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))


class _Follower:
    """The device as its memory knows it: weak, or memory and device would keep each other."""

    def __init__(self, device: VirtioDevice):
        self._device = weakref.ref(device)

    def add(self, region: Region) -> None:
        device = self._device()
        if device is not None:
            device._adopt_region(region)

    def changed(self, region: Region) -> None:
        device = self._device()
        if device is not None:
            device._set_memory()

    def move(self, region: Region, gpa: int) -> None:
        self._refuse(region)

    def remove(self, region: Region) -> None:
        device = self._device()
        if device is not None and not device._uses(region):
            device._drop_region(region)  # another user of the memory would not have it
        else:
            self._refuse(region)

    def _refuse(self, region: Region) -> None:
        # The worker goes by the addresses of the queues it was given when they were set up.
        device = self._device()
        if device is not None:
            raise GuestMemoryError(
                f"{region!r}: {device!r} uses this memory: disconnect() it first"
            )
