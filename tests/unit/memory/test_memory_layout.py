"""Regions that move and go, and the VMs that follow; pre-faulting's loop. No KVM needed."""

import errno

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy import ioctls
from kvmpy.errors import ClosedError, GuestMemoryError
from kvmpy.memory.guest import GuestMemory
from kvmpy.memory.guest_memfd import VmType, decode_vm_types
from kvmpy.memory.regions import VcpuMemory

MIB = 1 << 20


class Follower:
    """A VM as its memory sees it: keeps a layout of its own, and refuses when told to."""

    def __init__(self):
        self.layout = {}
        self.refuses = False

    def _change(self):
        if self.refuses:
            raise OSError("refused")

    def add(self, region):
        self._change()
        self.layout[region] = region.gpa

    def move(self, region, gpa):
        self._change()
        self.layout[region] = gpa

    def remove(self, region):
        self._change()
        del self.layout[region]


@pytest.fixture
def two():
    """A memory of 1 MiB at 0 and 64 KiB at 16 MiB, and two VMs that have it."""
    with GuestMemory() as memory:
        followers = [Follower(), Follower()]
        memory._adopters.extend(followers)
        memory.add(0, MIB)
        memory.add(16 * MIB, "64K")
        yield memory, *followers


def test_move(two):
    """Content, order and low memory's fast path go along; all VMs follow."""
    memory, first, second = two
    low, high = memory.regions
    memory.write(0x100, b"low")
    memory.write(16 * MIB, b"high")
    memory.move(low, 32 * MIB)
    memory.move(high, 0)
    assert memory.regions == (high, low)
    assert memory.read(32 * MIB + 0x100, 3) == b"low"
    assert bytes(memory[0:4]) == b"high"
    assert first.layout == second.layout == {low: 32 * MIB, high: 0}
    with pytest.raises(GuestMemoryError):
        memory[0:MIB]


def test_move_onto_itself(two):
    """By less than its own size."""
    memory, _, _ = two
    low, _ = memory.regions
    memory.write(0, b"x")
    memory.move(low, 0x1000)
    assert memory.read(0x1000, 1) == b"x"
    assert not memory.contains(0)


@pytest.mark.parametrize("gpa", [16 * MIB, 16 * MIB + 0xF000, 15 * MIB + 4096, -4096, 1, 1 << 52])
def test_places_that_are_none(two, gpa):
    """Taken, unaligned, outside: nothing moves, no VM is told."""
    memory, first, _ = two
    low, _ = memory.regions
    with pytest.raises(GuestMemoryError):
        memory.move(low, gpa)
    assert (low.gpa, first.layout[low]) == (0, 0)


@pytest.mark.parametrize("which", [0, 1])
def test_a_vm_that_refuses(two, which):
    """Then all are as they were."""
    memory, *followers = two
    low, high = before = memory.regions
    followers[which].refuses = True
    for change in (
        lambda: memory.move(low, 64 * MIB),
        lambda: memory.remove(high),
        lambda: memory.add(64 * MIB, "4K"),
    ):
        with pytest.raises(OSError, match="refused"):
            change()
        assert memory.regions == before
        assert [f.layout for f in followers] == [{low: 0, high: 16 * MIB}] * 2


def test_remove(two):
    """Gone for host and guests; a view that is held stays readable."""
    memory, first, second = two
    _, high = memory.regions
    memory.write(16 * MIB, b"kept")
    view = memory[16 * MIB : 16 * MIB + 4]
    memory.remove(high)
    assert not memory.contains(16 * MIB)
    assert high not in first.layout
    assert high not in second.layout
    assert bytes(view) == b"kept"
    with pytest.raises(GuestMemoryError, match="not part of"):
        memory.remove(high)
    with pytest.raises(GuestMemoryError, match="not part of"):
        memory.move(high, 0)
    memory.add(16 * MIB, "64K")


def test_memory_that_a_virtio_device_uses(two):
    """Its queues may lie anywhere: no region moves or goes until it is out; one that is added is
    the device's too, and is taken back when a VM refuses it."""
    memory, first, _ = two
    low, high = before = memory.regions
    with kvmpy.devices.virtio.Rng() as rng:
        rng.start(memory)
        with pytest.raises(
            GuestMemoryError, match=r"Rng.*uses this memory: disconnect\(\) it first"
        ):
            memory.move(low, 64 * MIB)
        with pytest.raises(GuestMemoryError, match="uses this memory"):
            memory.remove(high)
        assert memory.regions == before
        assert first.layout == {low: 0, high: 16 * MIB}
        memory.add(32 * MIB, "64K")
        first.refuses = True
        with pytest.raises(OSError, match="refused"):
            memory.add(48 * MIB, "64K")
        assert len(rng._pins) == len(memory.regions) == 3
        first.refuses = False
    memory.move(low, 64 * MIB)
    assert low.gpa == 64 * MIB


def test_closed():
    """Says so."""
    memory = GuestMemory("1M")
    (region,) = memory.regions
    memory.close()
    for use in (lambda: memory.move(region, 0), lambda: memory.remove(region)):
        with pytest.raises(ClosedError):
            use()


def test_hva():
    """The address of the mapping's first byte."""
    with GuestMemory("1M") as memory:
        (region,) = memory.regions
        assert region.hva % 4096 == 0
        memory.write(0, b"here")
        assert kvmpy._native.ffi.string(kvmpy._native.ffi.cast("char *", region.hva), 4) == b"here"


@given(st.integers(0, (1 << 70) - 1))
def test_vm_types(mask):
    """Every bit is a type; without any there is the default."""
    found = decode_vm_types(mask)
    assert sum(1 << int(kind) for kind in found) == (mask or 1)
    assert all(isinstance(kind, VmType) for kind in found if kind <= 5)


class FakeVcpu(VcpuMemory):
    """What pre_fault_memory() needs of a vCPU."""

    def __init__(self):
        pass

    def fileno(self):
        return 5


def test_pre_fault_goes_on_until_all_is_there(monkeypatch):
    """KVM returns early after progress, and with EINTR or EAGAIN without any: the rest follows."""
    answers = [0x1000, -errno.EINTR, 0x3000, -errno.EAGAIN, 0x4000]
    seen = []

    def raw(self, fd, request):
        seen.append((request.gpa, request.size))
        answer = answers.pop(0)
        if answer < 0:
            return answer
        request.gpa += answer
        request.size -= answer
        return 0

    monkeypatch.setattr(ioctls.Ioctl, "raw", raw)
    assert FakeVcpu().pre_fault_memory(0x10_0000, 0x8000) == 0x8000
    assert seen == [(0x10_0000, 0x8000), (0x10_1000, 0x7000), (0x10_1000, 0x7000),
                    (0x10_4000, 0x4000), (0x10_4000, 0x4000)]  # fmt: skip
    assert not answers


def test_pre_fault_error_says_where(monkeypatch):
    """What is left, and what the errno means."""

    def raw(self, fd, request):
        if request.gpa == 0x2000:
            return -errno.ENOENT
        request.gpa, request.size = 0x2000, 0x1000
        return 0

    monkeypatch.setattr(ioctls.Ioctl, "raw", raw)
    with pytest.raises(kvmpy.KvmIoctlError, match=r"gpa 0x2000, size 0x1000.*no memory slot"):
        FakeVcpu().pre_fault_memory(0x1000, 0x2000)
