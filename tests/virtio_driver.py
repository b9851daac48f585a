"""A virtio driver that plays the guest's part: it writes registers through the device's C access
function and builds rings in guest memory, without KVM (VIRTIO 1.2, "2.7 Split Virtqueues",
"4.2 Virtio Over MMIO")."""

from __future__ import annotations

import os
import select
import struct
import time
from dataclasses import dataclass, field

from kvmpy import GuestMemory, _native

ffi = _native.ffi

MAGIC, VERSION, DEVICE_ID, VENDOR_ID = 0x00, 0x04, 0x08, 0x0C
DEVICE_FEATURES, DEVICE_FEATURES_SEL = 0x10, 0x14
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x20, 0x24
QUEUE_SEL, QUEUE_NUM_MAX, QUEUE_NUM, QUEUE_READY, QUEUE_NOTIFY = 0x30, 0x34, 0x38, 0x44, 0x50
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x60, 0x64, 0x70
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x80, 0x90, 0xA0
CONFIG_GENERATION, CONFIG = 0xFC, 0x100

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80
F_INDIRECT, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
NEXT, WRITE, INDIRECT = 1, 2, 4

#: Seconds until a test gives a device up.
PATIENCE = 20


def descriptor(gpa: int, length: int, flags: int = 0, next: int = 0) -> bytes:
    return struct.pack("<QIHH", gpa, length, flags, next)


class Registers:
    """The register file of a device, as a vCPU reaches it."""

    def __init__(self, device):
        self.device = device

    def _access(self, offset: int, value: bytes, is_write: bool) -> bytes:
        device, size = self.device._device, len(value)
        data = ffi.new("uint8_t[]", value)
        stop = device.access(device, ffi.NULL, offset, data, size, is_write)
        assert stop == -1  # SHIM_CONTINUE
        return bytes(ffi.buffer(data, size))

    def read(self, offset: int, size: int = 4) -> int:
        return int.from_bytes(self._access(offset, b"\xff" * size, False), "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self._access(offset, value.to_bytes(size, "little"), True)

    @property
    def status(self) -> int:
        return self.read(STATUS)

    def config(self, offset: int, size: int) -> int:
        return self.read(CONFIG + offset, size)

    def features(self) -> int:
        value = 0
        for word in range(2):
            self.write(DEVICE_FEATURES_SEL, word)
            value |= self.read(DEVICE_FEATURES) << (32 * word)
        return value

    def negotiate(self, features: int) -> bool:
        """As far as FEATURES_OK; whether the device took them."""
        self.write(STATUS, 0)
        self.write(STATUS, ACKNOWLEDGE)
        self.write(STATUS, ACKNOWLEDGE | DRIVER)
        for word in range(2):
            self.write(DRIVER_FEATURES_SEL, word)
            self.write(DRIVER_FEATURES, features >> (32 * word) & 0xFFFF_FFFF)
        self.write(STATUS, self.status | FEATURES_OK)
        return bool(self.status & FEATURES_OK)

    def place_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> bool:
        """Whether the device has taken the queue into use."""
        self.write(QUEUE_SEL, index)
        self.write(QUEUE_NUM, size)
        for register, gpa in ((QUEUE_DESC, desc), (QUEUE_DRIVER, driver), (QUEUE_DEVICE, device)):
            self.write(register, gpa & 0xFFFF_FFFF)
            self.write(register + 4, gpa >> 32)
        self.write(QUEUE_READY, 1)
        return self.read(QUEUE_READY) == 1

    def wait_interrupt(self, seconds: float = PATIENCE) -> int:
        """Wait for an interrupt, acknowledge and return its causes."""
        fd = self.device.interrupt_fd
        assert select.select([fd], [], [], seconds)[0], "no interrupt"
        os.eventfd_read(fd)
        causes = self.read(INTERRUPT_STATUS)
        self.write(INTERRUPT_ACK, causes)
        return causes

    def interrupt_pending(self) -> bool:
        return bool(select.select([self.device.interrupt_fd], [], [], 0)[0])


@dataclass
class Ring:
    """One split virtqueue, the driver's side. ``base``: where its 64 KiB are."""

    memory: GuestMemory
    index: int
    size: int
    base: int
    event_idx: bool
    avail_idx: int = 0
    used_idx: int = 0
    free: list[int] = field(default_factory=list)
    chains: dict[int, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.desc, self.avail, self.used = self.base, self.base + 0x8000, self.base + 0xC000
        self.free = list(range(self.size))
        self.memory.write(self.base, bytes(0x10000))

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def _put_u16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    @property
    def avail_event(self) -> int:
        return self._u16(self.used + 4 + 8 * self.size)

    def set_used_event(self, index: int) -> None:
        self._put_u16(self.avail + 4 + 2 * self.size, index)

    def set_no_interrupt(self, flag: bool) -> None:
        self._put_u16(self.avail, int(flag))

    def put_descriptor(self, index: int, data: bytes) -> None:
        self.memory.write(self.desc + 16 * index, data)

    def offer(self, head: int) -> None:
        """Entry of the available ring; visible with expose()."""
        self._put_u16(self.avail + 4 + 2 * (self.avail_idx % self.size), head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF

    def expose(self) -> None:
        self._put_u16(self.avail + 2, self.avail_idx)

    def add(self, *buffers: tuple[int, int, int]) -> int:
        """A chain of (gpa, length, flags) in the table. Gives its head."""
        indices = [self.free.pop(0) for _ in buffers]
        for i, (gpa, length, flags) in enumerate(buffers):
            last = i + 1 == len(buffers)
            flags |= 0 if last else NEXT
            next = 0 if last else indices[i + 1]
            self.put_descriptor(indices[i], descriptor(gpa, length, flags, next))
        self.chains[indices[0]] = indices
        self.offer(indices[0])
        return indices[0]

    def add_indirect(self, table: int, *buffers: tuple[int, int, int]) -> int:
        """A chain in a table of its own at ``table``."""
        last = len(buffers) - 1
        rows = [
            descriptor(gpa, length, flags | (NEXT if i < last else 0), i + 1 if i < last else 0)
            for i, (gpa, length, flags) in enumerate(buffers)
        ]
        self.memory.write(table, b"".join(rows))
        return self.add((table, 16 * len(buffers), INDIRECT))

    def take(self) -> list[tuple[int, int]]:
        """What the device has returned: (head, bytes written)."""
        done = []
        while self.used_idx != self._u16(self.used + 2):
            element = self.used + 4 + 8 * (self.used_idx % self.size)
            head, length = struct.unpack("<II", self.memory.read(element, 8))
            self.free += self.chains.pop(head, [])
            done.append((head, length))
            self.used_idx = (self.used_idx + 1) & 0xFFFF
        return done


class Driver(Registers):
    """Brings a device up and drives its queues. ``features``: to accept; None for all offered."""

    def __init__(self, device, memory: GuestMemory, *, size: int = 0, features: int | None = None):
        super().__init__(device)
        self.memory = memory
        device.start(memory)
        offered = self.features()
        self.accepted = offered if features is None else features
        assert self.negotiate(self.accepted)
        self.rings = []
        for index in range(len(device.queue_fds)):
            self.write(QUEUE_SEL, index)
            ring = Ring(
                memory, index, size or self.read(QUEUE_NUM_MAX), 0x10_0000 + index * 0x1_0000,
                bool(self.accepted & F_EVENT_IDX),
            )  # fmt: skip
            assert self.place_queue(index, ring.size, ring.desc, ring.avail, ring.used)
            self.rings.append(ring)
        self.write(STATUS, self.status | DRIVER_OK)
        self.ring = self.rings[0]

    def notify(self, queue: int = 0) -> None:
        self.rings[queue].expose()
        self.write(QUEUE_NOTIFY, queue)

    def settle(self) -> None:
        """Until the worker has seen all notifications and done what they were about."""
        for _ in range(1000):
            # Changing a queue's set-up waits for the worker. 2 is no value QueueReady has.
            self.write(QUEUE_READY, 2)
            if not select.select(self.device.queue_fds, [], [], 0)[0]:
                self.write(QUEUE_READY, 2)  # it had taken the signal, and perhaps just begun
                if not select.select(self.device.queue_fds, [], [], 0)[0]:
                    return
            time.sleep(0.001)
        raise AssertionError("the worker does not come to rest")

    def complete(self, count: int = 1, queue: int = 0) -> list[tuple[int, int]]:
        """Notify, and wait until ``count`` chains are back."""
        done: list[tuple[int, int]] = []
        self.notify(queue)
        while len(done) < count:
            # No cause: it was acknowledged together with an interrupt before.
            assert self.wait_interrupt() in (0, 1)
            done += self.rings[queue].take()
        return done
