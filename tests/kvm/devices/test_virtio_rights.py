"""What a guest may not write, its virtio devices may not write for it."""

import socket
import time

import pytest
from virtio_driver import (
    DRIVER_OK,
    F_VERSION_1,
    NEEDS_RESET,
    QUEUE_NOTIFY,
    STATUS,
    WRITE,
    Registers,
    Ring,
)

import kvmpy
from kvmpy.devices.virtio import Net, Rng


class Card(Registers):
    """A driver of the entropy device, in this process: where the host sees what it writes."""

    RING, DATA = 0x10_0000, 0x40_0000

    def __init__(self, device, memory):
        super().__init__(device)
        self.memory = memory
        assert self.negotiate(F_VERSION_1)
        self.ring = Ring(memory, 0, 8, self.RING, False)
        assert self.place_queue(0, 8, self.ring.desc, self.ring.avail, self.ring.used)
        self.write(STATUS, self.status | DRIVER_OK)

    def ask(self, gpa=None):
        """16 random bytes at ``gpa``; False when the device wants a reset instead."""
        self.ring.add((self.DATA if gpa is None else gpa, 16, WRITE))
        self.ring.expose()
        self.write(QUEUE_NOTIFY, 0)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.ring.take():
                return True
            if self.status & NEEDS_RESET:
                return False
            time.sleep(0.005)
        raise AssertionError("neither")


@pytest.fixture
def entropy():
    """A VM whose memory above 4 MiB is a region of its own, and its entropy device."""
    with kvmpy.VM(memory="4M", irqchip=True) as vm, Rng() as rng:
        vm.memory.add(Card.DATA, "64K")
        rng.connect(vm, 0xD000_0000)
        yield vm, rng


def test_a_slot_made_read_only_binds_the_devices_too(entropy):
    vm, rng = entropy
    card = Card(rng, vm.memory)
    assert card.ask()
    slot = vm.slots.at(Card.DATA)
    slot.read_only = True
    vm.memory.write(Card.DATA, bytes(16))
    assert not card.ask()
    assert vm.memory.read(Card.DATA, 16) == bytes(16)
    slot.read_only = False
    assert Card(rng, vm.memory).ask()  # after a reset
    assert vm.memory.read(Card.DATA, 16) != bytes(16)


def test_rings_that_may_no_longer_be_written(entropy):
    vm, rng = entropy
    card = Card(rng, vm.memory)
    assert card.ask()
    before = vm.memory.read(card.ring.used, 256)
    vm.slots.at(Card.RING).read_only = True
    assert card.status & NEEDS_RESET
    card.ring.add((Card.DATA, 16, WRITE))
    card.ring.expose()
    card.write(QUEUE_NOTIFY, 0)
    time.sleep(0.2)
    assert vm.memory.read(card.ring.used, 256) == before


def test_another_vm_keeps_its_own_right(entropy):
    vm, rng = entropy
    with kvmpy.VM(memory=vm.memory, irqchip=True) as other, Rng() as its:
        its.connect(other, 0xD000_0000)
        vm.slots.at(Card.DATA).read_only = True
        assert other.slots.at(Card.DATA).read_only is False
        assert Card(its, vm.memory).ask()
        assert not Card(rng, vm.memory).ask()
        other.slots.at(Card.DATA).read_only = True
        vm.slots.at(Card.DATA).read_only = False
        assert not Card(its, vm.memory).ask()
        assert Card(rng, vm.memory).ask()


def test_buffers_that_wait_when_they_become_read_only():
    """The network device has taken them, and must not fill them."""
    wire, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with wire, end, kvmpy.VM(memory="4M", irqchip=True) as vm, Net(end.fileno()) as net:
        vm.memory.add(Card.DATA, "64K")
        net.connect(vm, 0xD000_0000)
        card = Registers(net)
        assert card.negotiate(F_VERSION_1)
        ring = Ring(vm.memory, 0, 8, Card.RING, False)
        assert card.place_queue(0, 8, ring.desc, ring.avail, ring.used)
        card.write(STATUS, card.status | DRIVER_OK)
        for i in range(2):
            ring.add((Card.DATA + 0x1000 * i, 2048, WRITE))
        ring.expose()
        card.write(QUEUE_NOTIFY, 0)
        wire.send(bytes(12) + b"\xa5" * 60)
        wait = time.monotonic() + 20
        while not (taken := ring.take()) and time.monotonic() < wait:
            time.sleep(0.005)
        assert taken
        vm.slots.at(Card.DATA).read_only = True
        wire.send(bytes(12) + b"\x5a" * 60)
        time.sleep(0.2)
        assert vm.memory.read(Card.DATA + 0x1000, 0x1000) == bytes(0x1000)
        assert card.status & NEEDS_RESET
