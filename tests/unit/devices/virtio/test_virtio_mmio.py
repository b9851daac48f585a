"""The virtio-mmio register file: what each register does, and any sequence of accesses."""

import gc
import os
import random
import threading

import pytest
import virtio_driver as v
from hypothesis import given, settings, strategies as st
from virtio_driver import Driver, Registers

import kvmpy
from kvmpy.devices.virtio import Block, Rng


@pytest.fixture
def memory():
    with kvmpy.GuestMemory("16M") as memory:
        yield memory


@pytest.fixture
def rng(memory):
    with Rng() as rng:
        rng.start(memory)
        yield rng


@pytest.fixture
def registers(rng):
    return Registers(rng)


def test_features_come_in_words(registers):
    registers.write(v.DEVICE_FEATURES_SEL, 1)
    assert registers.read(v.DEVICE_FEATURES) == 1
    for word in (2, 3, 0xFFFF_FFFF):
        registers.write(v.DEVICE_FEATURES_SEL, word)
        assert registers.read(v.DEVICE_FEATURES) == 0


@pytest.mark.parametrize("features", [
    0, v.F_EVENT_IDX, v.F_VERSION_1 | 1, v.F_VERSION_1 | 1 << 27, v.F_VERSION_1 | 1 << 34,
    v.F_VERSION_1 | 1 << 63,
])  # fmt: skip
def test_features_refused(registers, features):
    assert not registers.negotiate(features)
    assert registers.status == v.ACKNOWLEDGE | v.DRIVER
    registers.write(v.STATUS, v.ACKNOWLEDGE | v.DRIVER | v.FEATURES_OK | v.DRIVER_OK)
    assert registers.status == v.ACKNOWLEDGE | v.DRIVER


def test_features_stay_as_negotiated(registers, rng, memory):
    assert registers.negotiate(v.F_VERSION_1)
    registers.write(v.DRIVER_FEATURES_SEL, 0)
    registers.write(v.DRIVER_FEATURES, v.F_EVENT_IDX)
    ring = v.Ring(memory, 0, 8, 0x10_0000, False)
    assert registers.place_queue(0, 8, ring.desc, ring.avail, ring.used)
    registers.write(v.STATUS, registers.status | v.DRIVER_OK)
    for _ in range(2):  # with the event index, used_event 0 would hold back the second
        ring.add((0x20_0000, 8, v.WRITE))
        ring.expose()
        registers.write(v.QUEUE_NOTIFY, 0)
        assert registers.wait_interrupt() == 1


def test_feature_words_from_64_on_are_accepted_as_zeros(registers):
    registers.write(v.STATUS, v.ACKNOWLEDGE | v.DRIVER)
    registers.write(v.DRIVER_FEATURES_SEL, 1)
    registers.write(v.DRIVER_FEATURES, 1)
    registers.write(v.DRIVER_FEATURES_SEL, 2)
    registers.write(v.DRIVER_FEATURES, 0)
    registers.write(v.STATUS, v.ACKNOWLEDGE | v.DRIVER | v.FEATURES_OK)
    assert registers.status & v.FEATURES_OK


def test_status_bits_are_not_cleared(registers):
    assert registers.negotiate(v.F_VERSION_1)
    registers.write(v.STATUS, v.ACKNOWLEDGE)
    assert registers.status == v.ACKNOWLEDGE | v.DRIVER | v.FEATURES_OK
    registers.write(v.STATUS, v.FAILED | v.NEEDS_RESET | 0xFFFF_FF00 | 0x30)
    assert registers.status == v.ACKNOWLEDGE | v.DRIVER | v.FEATURES_OK | v.FAILED
    registers.write(v.STATUS, 0)
    assert registers.status == 0


def test_reset(rng, memory):
    rng.disconnect()
    driver = Driver(rng, memory)
    driver.ring.add((0x20_0000, 8, v.WRITE))
    driver.notify()
    driver.settle()
    assert driver.read(v.INTERRUPT_STATUS) == 1
    driver.write(v.STATUS, 0)
    assert driver.status == 0
    assert driver.read(v.INTERRUPT_STATUS) == 0
    assert driver.read(v.QUEUE_READY) == 0
    driver.ring.add((0x20_0000, 8, v.WRITE))
    driver.notify()
    driver.settle()
    assert len(driver.ring.take()) == 1


def test_queue_is_not_ready_before_features(registers):
    registers.write(v.STATUS, v.ACKNOWLEDGE | v.DRIVER)
    assert not registers.place_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert registers.status & v.NEEDS_RESET == 0


def test_queue_in_use_keeps_its_place(registers):
    assert registers.negotiate(v.F_VERSION_1)
    assert registers.place_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert registers.place_queue(0, 64, 0xFFFF_FFF0, 0, 0)  # still: nothing was taken
    assert registers.status & v.NEEDS_RESET == 0
    registers.write(v.QUEUE_READY, 0)
    assert registers.read(v.QUEUE_READY) == 0
    assert not registers.place_queue(0, 64, 0xFFFF_FFF0, 0, 0)


@pytest.mark.parametrize("queue", [1, 3, 4, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_queue_that_is_none(registers, queue):
    assert registers.negotiate(v.F_VERSION_1)
    registers.write(v.QUEUE_SEL, queue)
    assert registers.read(v.QUEUE_NUM_MAX) == 0
    assert not registers.place_queue(queue, 8, 0x1000, 0x2000, 0x3000)
    registers.write(v.QUEUE_NOTIFY, queue)
    assert registers.status & v.NEEDS_RESET == 0


def test_no_shared_memory(registers):
    registers.write(0xAC, 0)
    assert [registers.read(offset) for offset in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4


@pytest.mark.parametrize("size", [1, 2, 8])
def test_control_registers_are_32_bits_wide(registers, size):
    assert registers.read(v.MAGIC, size) == 0
    registers.write(v.STATUS, v.ACKNOWLEDGE, size)
    assert registers.status == 0


@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_control_registers_are_aligned(registers, offset):
    assert registers.read(offset) == 0


@pytest.mark.parametrize("offset", [0x200, 0x1000, 1 << 63, (1 << 64) - 1])
def test_past_the_end(registers, offset):
    for size in (1, 2, 4, 8):
        assert registers.read(offset, size) == 0
        registers.write(offset, 1, size)


def test_config_space_in_every_width(tmp_path, memory):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(0x1234 * 512))
    with Block(path) as block:
        block.start(memory)
        registers = Registers(block)
        capacity = (0x1234).to_bytes(8, "little")
        for size in (1, 2, 4, 8):
            for offset in range(8 - size + 1):
                expected = int.from_bytes(capacity[offset : offset + size], "little")
                assert registers.config(offset, size) == expected
                registers.write(v.CONFIG + offset, 0, size)
        assert registers.read(0x1FC, 8) == 0
        assert registers.read(0x1FF, 8) == 0
        assert registers.config(0, 8) == 0x1234


def test_reset_while_the_worker_is_busy(tmp_path, memory):
    """A guest that resets its disk in the middle of requests, from another vCPU: each time the
    device is at rest when the write is over."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 << 20))
    with Block(path) as block:
        for _ in range(50):
            driver = Driver(block, memory)
            memory.write(0x20_0000, bytes(16))
            for _ in range(32):
                driver.ring.add((0x20_0000, 16, 0), (0x80_0000, 8 << 20, v.WRITE),
                                (0x20_0020, 1, v.WRITE))  # fmt: skip
            driver.notify()
            driver.write(v.STATUS, 0)
            assert driver.status == 0
            used = memory.read(driver.ring.used, 4)
            memory.write(0x80_0000, b"\xaa" * 4096)
            assert memory.read(driver.ring.used, 4) == used
            assert memory.read(0x80_0000, 4096) == b"\xaa" * 4096
            block.disconnect()


accesses = st.tuples(
    st.one_of(
        st.sampled_from([v.STATUS, v.QUEUE_SEL, v.QUEUE_NUM, v.QUEUE_READY, v.QUEUE_NOTIFY,
                         v.DRIVER_FEATURES, v.DRIVER_FEATURES_SEL, v.INTERRUPT_ACK]),
        st.integers(0, 0x80).map(lambda i: 4 * i), st.integers(0, 0x210),
        st.integers(0, (1 << 64) - 1),
    ),
    st.one_of(st.integers(0, 16), st.sampled_from([0x1000, 0x2000, 0x3000]),
              st.integers(0, (1 << 64) - 1)),
    st.sampled_from([4, 4, 4, 1, 2, 8]), st.booleans(),
)  # fmt: skip


@given(st.lists(accesses, min_size=50, max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_accesses(sequence):
    """Thousands of random reads and writes: the device answers, and comes up as ever after."""
    with kvmpy.GuestMemory("16M") as memory, Rng() as rng:
        rng.start(memory)
        registers = Registers(rng)
        for offset, value, size, is_write in sequence:
            if is_write:
                registers.write(offset, value & ((1 << 8 * size) - 1), size)
            else:
                assert 0 <= registers.read(offset, size) < 1 << 8 * size
        assert registers.read(v.MAGIC) == 0x74726976
        rng.disconnect()
        driver = Driver(rng, memory)
        head = driver.ring.add((0x20_0000, 8, v.WRITE))
        assert driver.complete() == [(head, 8)]


def test_accesses_from_several_vcpus(tmp_path, memory):
    """Four threads write registers at random while requests are under way."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    often = (v.STATUS, v.QUEUE_READY, v.QUEUE_NOTIFY, v.QUEUE_NUM, v.QUEUE_SEL, v.INTERRUPT_ACK)

    def storm(seed):
        choose = random.Random(seed)
        registers = Registers(block)
        for _ in range(3000):
            offset = choose.choice((*often, choose.randrange(0x210)))
            if choose.random() < 0.7:
                registers.write(offset, choose.choice([0, 1, 3, 11, 15, choose.getrandbits(32)]))
            else:
                registers.read(offset)

    with Block(path) as block:
        driver = Driver(block, memory)
        threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert driver.read(v.MAGIC) == 0x74726976
        block.disconnect()
        driver = Driver(block, memory)
        assert driver.status & v.DRIVER_OK


# ---------------------------------------------------------------- life


def test_order_of_life(memory):
    rng = Rng()
    registers = Registers(rng)
    assert registers.read(v.MAGIC) == 0x74726976  # before it was ever started
    registers.write(v.QUEUE_NOTIFY, 0)
    assert registers.negotiate(v.F_VERSION_1)
    assert not registers.place_queue(0, 8, 0x1000, 0x2000, 0x3000)  # there is no memory
    rng.disconnect()
    rng.start(memory)
    with pytest.raises(kvmpy.KvmpyError, match="connected already"):
        rng.start(memory)
    assert rng.connected
    rng.disconnect()
    rng.disconnect()
    assert not rng.connected
    assert rng.interrupt_fd == -1
    rng.start(memory)
    rng.close()
    rng.close()
    with pytest.raises(kvmpy.ClosedError):
        rng.start(memory)
    assert registers.read(v.MAGIC) == 0x74726976
    registers.write(v.STATUS, 0)


def test_start_on_closed_memory():
    memory = kvmpy.GuestMemory("2M")
    memory.close()
    with Rng() as rng:
        rng.start(memory)  # there is none: no queue can be placed
        registers = Registers(rng)
        assert registers.negotiate(v.F_VERSION_1)
        assert not registers.place_queue(0, 8, 0x1000, 0x2000, 0x3000)


def test_dropped_without_close(memory):
    before = len(os.listdir("/proc/self/fd"))
    rng = Rng()
    rng.start(memory)
    del rng
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
    assert memory._adopters == []


def test_memory_is_given_back(memory):
    with Rng() as rng:
        rng.start(memory)
        memory.close()
        with pytest.raises(kvmpy.ClosedError):
            memory[0:1]
        rng.disconnect()
        assert rng._pins == []
