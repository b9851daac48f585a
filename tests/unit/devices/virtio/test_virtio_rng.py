"""The entropy device, driven as a guest would."""

import os

import pytest
import virtio_driver as v
from virtio_driver import WRITE, Driver

import kvmpy
from kvmpy.devices.virtio import Rng

BUFFER = 0x20_0000


@pytest.fixture
def memory():
    with kvmpy.GuestMemory("16M") as memory:
        yield memory


@pytest.fixture
def rng():
    with Rng() as rng:
        yield rng


def test_identification(rng, memory):
    driver = Driver(rng, memory)
    assert driver.read(v.MAGIC) == 0x74726976
    assert driver.read(v.VERSION) == 2
    assert driver.read(v.DEVICE_ID) == 4
    assert driver.features() == v.F_VERSION_1 | v.F_EVENT_IDX | v.F_INDIRECT
    assert driver.read(v.QUEUE_NUM_MAX) == 64


@pytest.mark.parametrize("features", [v.F_VERSION_1, v.F_VERSION_1 | v.F_EVENT_IDX, None])
def test_fills_buffers(rng, memory, features):
    driver = Driver(rng, memory, features=features)
    for _ in range(3):
        head = driver.ring.add((BUFFER, 64, WRITE), (BUFFER + 0x1000, 1000, WRITE))
        if features != v.F_VERSION_1:
            driver.ring.set_used_event(driver.ring.used_idx)
        assert driver.complete() == [(head, 1064)]
    assert memory.read(BUFFER, 64) != bytes(64)
    assert len(set(memory.read(BUFFER + 0x1000, 1000))) > 100
    assert memory.read(BUFFER + 64, 0x1000 - 64) == bytes(0x1000 - 64)
    assert rng.statistics.requests == 3
    assert rng.statistics.bytes_in == 3 * 1064


def test_long_request_is_cut_to_64_kib(rng, memory):
    driver = Driver(rng, memory)
    head = driver.ring.add((BUFFER, 1 << 20, WRITE))
    assert driver.complete() == [(head, 65536)]
    assert memory.read(BUFFER + 65536, 4096) == bytes(4096)


def test_nothing_to_write_into(rng, memory):
    driver = Driver(rng, memory)
    head = driver.ring.add((BUFFER, 64, 0))
    assert driver.complete() == [(head, 0)]


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def workers():
    """The kernel's list of threads: one that was joined may be on it for a moment longer."""
    names = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.add(file.read().strip())
        except OSError:
            continue
    return "kvmpy-rng" in names


def test_no_thread_and_no_descriptor_is_left(memory, wait_until):
    before = descriptors()
    for _ in range(10):
        with Rng() as rng:
            driver = Driver(rng, memory)
            driver.ring.add((BUFFER, 64, WRITE))
            driver.notify()
            assert descriptors() > before
            assert workers()
        assert descriptors() == before
    wait_until(lambda: not workers())
