"""Split virtqueues: what a right driver may do, and what a wrong or hostile one gets."""

import random
import struct
import threading

import pytest
import virtio_driver as v
from hypothesis import HealthCheck, given, settings, strategies as st
from virtio_driver import INDIRECT, NEXT, WRITE, Driver, descriptor

import kvmpy
from kvmpy.devices.virtio import Block, Rng

BUFFER = 0x20_0000
TABLE = 0x28_0000
END = 16 << 20


@pytest.fixture
def memory():
    with kvmpy.GuestMemory("16M") as memory:
        yield memory


@pytest.fixture
def rng():
    with Rng() as rng:
        yield rng


# ---------------------------------------------------------------- a right driver


@pytest.mark.parametrize("event_idx", [False, True])
def test_indices_wrap(rng, memory, event_idx):
    """70,000 requests: both 16-bit indices pass their end."""
    features = v.F_VERSION_1 | (v.F_EVENT_IDX if event_idx else 0)
    driver = Driver(rng, memory, features=features)
    ring = driver.ring
    for _ in range(1100):
        heads = [ring.add((BUFFER + 16 * i, 16, WRITE)) for i in range(64)]
        ring.set_used_event(ring.used_idx + 63)
        assert driver.complete(64) == [(head, 16) for head in heads]
    assert rng.statistics.requests == 1100 * 64
    assert ring.used_idx == 1100 * 64 & 0xFFFF
    if event_idx:
        assert rng.statistics.interrupts == 1100
    assert driver.status & v.NEEDS_RESET == 0


def test_every_queue_size(rng, memory):
    for size in (1, 2, 4, 8, 16, 32, 64):
        driver = Driver(rng, memory, size=size)
        for _ in range(2 * size + 1):
            head = driver.ring.add((BUFFER, 8, WRITE))
            driver.ring.set_used_event(driver.ring.used_idx)
            assert driver.complete() == [(head, 8)]
        rng.disconnect()


def test_used_event_holds_interrupts_back(rng, memory):
    """The device interrupts when it passes used_event, not before, not again."""
    driver = Driver(rng, memory)
    ring = driver.ring
    ring.set_used_event(2)
    for _ in range(2):
        ring.add((BUFFER, 8, WRITE))
        driver.notify()
        driver.settle()
    assert len(ring.take()) == 2
    assert not driver.interrupt_pending()
    assert driver.read(v.INTERRUPT_STATUS) == 0
    ring.add((BUFFER, 8, WRITE))
    assert len(driver.complete()) == 1
    ring.add((BUFFER, 8, WRITE))
    driver.notify()
    driver.settle()
    assert not driver.interrupt_pending()


def test_no_interrupt_flag(rng, memory):
    driver = Driver(rng, memory, features=v.F_VERSION_1)
    driver.ring.set_no_interrupt(True)
    driver.ring.add((BUFFER, 8, WRITE))
    driver.notify()
    driver.settle()
    assert len(driver.ring.take()) == 1
    assert not driver.interrupt_pending()
    driver.ring.set_no_interrupt(False)
    driver.ring.add((BUFFER, 8, WRITE))
    assert len(driver.complete()) == 1


def test_device_says_when_to_notify(rng, memory):
    """avail_event is where the device stopped: the next chain is worth a notification."""
    driver = Driver(rng, memory)
    assert driver.ring.avail_event == 0
    driver.ring.add((BUFFER, 8, WRITE))
    driver.complete()
    driver.settle()
    assert driver.ring.avail_event == 1


def test_used_flags_without_event_index(rng, memory):
    driver = Driver(rng, memory, features=v.F_VERSION_1)
    driver.ring.add((BUFFER, 8, WRITE))
    driver.complete()
    driver.settle()
    assert memory.read(driver.ring.used, 2) == b"\0\0"


def test_chains_that_were_there_before_driver_ok(rng, memory):
    rng.start(memory)
    registers = v.Registers(rng)
    assert registers.negotiate(v.F_VERSION_1)
    ring = v.Ring(memory, 0, 8, 0x10_0000, False)
    assert registers.place_queue(0, 8, ring.desc, ring.avail, ring.used)
    ring.add((BUFFER, 8, WRITE))
    ring.expose()
    assert ring.take() == []
    registers.write(v.STATUS, registers.status | v.DRIVER_OK)
    assert registers.wait_interrupt() == 1
    assert ring.take() == [(0, 8)]


def test_direct_descriptors_may_precede_the_indirect_one(rng, memory):
    driver = Driver(rng, memory)
    rows = descriptor(BUFFER + 0x100, 8, WRITE | NEXT, 1) + descriptor(BUFFER + 0x200, 8, WRITE)
    memory.write(TABLE, rows)
    head = driver.ring.add((BUFFER, 8, WRITE), (TABLE, 32, INDIRECT))
    assert driver.complete() == [(head, 24)]


def test_write_flag_of_an_indirect_descriptor_means_nothing(rng, memory):
    driver = Driver(rng, memory)
    memory.write(TABLE, descriptor(BUFFER, 8, WRITE))
    head = driver.ring.add((TABLE, 16, INDIRECT | WRITE))
    assert driver.complete() == [(head, 8)]


def test_as_many_pieces_as_there_may_be(rng, memory):
    driver = Driver(rng, memory)
    head = driver.ring.add_indirect(TABLE, *[(BUFFER + i, 1, WRITE) for i in range(1024)])
    assert driver.complete() == [(head, 1024)]


def test_unaligned_indirect_table(rng, memory):
    driver = Driver(rng, memory)
    memory.write(TABLE + 3, descriptor(BUFFER, 8, WRITE))
    head = driver.ring.add((TABLE + 3, 16, INDIRECT))
    assert driver.complete() == [(head, 8)]


# ---------------------------------------------------------------- a wrong one


def fails(driver, reason):
    """The device wants a reset, says so by a configuration interrupt, and works again after it."""
    rng, memory = driver.device, driver.memory
    before = driver.ring.take()
    driver.notify()
    assert driver.wait_interrupt() & 2
    assert driver.status & v.NEEDS_RESET
    assert reason in rng.fault
    assert driver.ring.take() == before
    driver.notify()
    driver.settle()
    assert driver.ring.take() == []
    rng.disconnect()
    again = Driver(rng, memory)
    head = again.ring.add((BUFFER, 8, WRITE))
    assert again.complete() == [(head, 8)]


@pytest.fixture
def driver(rng, memory):
    return Driver(rng, memory, size=16)


def raw(driver, *rows, head=0):
    """Descriptors from 0 on, as they are, and ``head`` made available."""
    for i, row in enumerate(rows):
        driver.ring.put_descriptor(i, row)
    driver.ring.offer(head)


OUTSIDE = "outside guest memory"


@pytest.mark.parametrize(("row", "reason"), [
    (descriptor(END, 1, WRITE), OUTSIDE),
    (descriptor(END - 1, 2, WRITE), OUTSIDE),
    (descriptor(0, 0xFFFF_FFFF, WRITE), OUTSIDE),
    (descriptor((1 << 64) - 1, 1, WRITE), OUTSIDE),
    (descriptor((1 << 64) - 16, 0xFFFF_FFFF, WRITE), OUTSIDE),
    (descriptor(1 << 52, 4096, WRITE), OUTSIDE),
    (descriptor(BUFFER, 8, WRITE | NEXT, 0), "loops"),
    (descriptor(BUFFER, 8, WRITE | NEXT, 16), "past its table"),
    (descriptor(BUFFER, 8, WRITE | NEXT, 0xFFFF), "past its table"),
    (descriptor(TABLE, 16, INDIRECT | NEXT, 1), "with a next one"),
    (descriptor(TABLE, 0, INDIRECT), "no whole number"),
    (descriptor(TABLE, 15, INDIRECT), "no whole number"),
    (descriptor(TABLE, 0xFFFF_FFFF, INDIRECT), "no whole number"),
    (descriptor(END, 16, INDIRECT), "table lies outside"),
    (descriptor(END - 16, 32, INDIRECT), "table lies outside"),
    (descriptor(TABLE, 0xFFFF_FFF0, INDIRECT), "table lies outside"),
    (descriptor((1 << 64) - 16, 32, INDIRECT), "table lies outside"),
])  # fmt: skip
def test_bad_descriptor(driver, row, reason):
    raw(driver, row)
    fails(driver, reason)


@pytest.mark.parametrize(("rows", "reason"), [
    ([descriptor(BUFFER, 8, WRITE | NEXT, 1), descriptor(BUFFER, 8, 0)], "comes after"),
    ([descriptor(BUFFER, 8, NEXT, 1), descriptor(BUFFER, 8, NEXT, 2),
      descriptor(BUFFER, 8, NEXT, 0)], "loops"),
    ([descriptor(0, END, WRITE | NEXT, i + 1) for i in range(15)]
     + [descriptor(0, END, WRITE | NEXT, 0)], "loops"),
])  # fmt: skip
def test_bad_chain(driver, rows, reason):
    raw(driver, *rows)
    fails(driver, reason)


@pytest.mark.parametrize(("rows", "reason"), [
    ([descriptor(TABLE, 16, INDIRECT)], "where none may be"),
    ([descriptor(BUFFER, 8, WRITE | NEXT, 0)], "loops"),
    ([descriptor(BUFFER, 8, WRITE | NEXT, 5), descriptor(BUFFER, 8, WRITE)], "past its table"),
    ([descriptor(BUFFER, 0, WRITE | NEXT, 1), descriptor(BUFFER, 0, WRITE | NEXT, 0)], "loops"),
    ([descriptor(END, 1, WRITE)], OUTSIDE),
    ([descriptor(BUFFER, 1, WRITE | NEXT, i + 1) for i in range(1024)]
     + [descriptor(BUFFER, 1, WRITE)], "too many"),
    ([descriptor(BUFFER, 0, WRITE | NEXT, i + 1) for i in range(60_000)]
     + [descriptor(BUFFER, 1, WRITE)], "too many descriptors"),
    ([descriptor(0, END, WRITE | NEXT, i + 1) for i in range(256)]
     + [descriptor(0, END, WRITE)], "4 GiB"),
])  # fmt: skip
def test_bad_indirect_table(driver, rows, reason):
    driver.memory.write(TABLE, b"".join(rows))
    raw(driver, descriptor(TABLE, 16 * len(rows), INDIRECT))
    fails(driver, reason)


def test_indirect_was_not_negotiated(rng, memory):
    driver = Driver(rng, memory, features=v.F_VERSION_1)
    memory.write(TABLE, descriptor(BUFFER, 8, WRITE))
    raw(driver, descriptor(TABLE, 16, INDIRECT))
    fails(driver, "where none may be")


@pytest.mark.parametrize("head", [16, 17, 0x7FFF, 0xFFFF])
def test_bad_head(driver, head):
    raw(driver, head=head)
    fails(driver, "past its table")


@pytest.mark.parametrize("ahead", [17, 0x7FFF, 0xFFFF])
def test_available_index_runs_ahead(driver, ahead):
    driver.ring.avail_idx = ahead
    fails(driver, "runs ahead")


def test_available_index_goes_back(driver):
    for _ in range(3):
        driver.ring.add((BUFFER, 8, WRITE))
    driver.complete(1)
    driver.settle()
    driver.ring.avail_idx = 1
    fails(driver, "runs ahead")


def test_write_into_read_only_memory(rng, memory):
    memory.add(0x1000_0000, 4096, read_only=True)
    driver = Driver(rng, memory)
    driver.ring.add((0x1000_0000, 8, WRITE))
    fails(driver, "read-only")
    assert memory.read(0x1000_0000, 8) == bytes(8)


def test_fault_before_driver_ok_is_told_then(rng, memory):
    rng.start(memory)
    registers = v.Registers(rng)
    assert registers.negotiate(v.F_VERSION_1)
    assert not registers.place_queue(0, 8, END, 0, 0)
    assert registers.status & v.NEEDS_RESET
    assert registers.read(v.INTERRUPT_STATUS) == 0
    registers.write(v.STATUS, registers.status | v.DRIVER_OK)
    assert registers.read(v.INTERRUPT_STATUS) == 2


@pytest.mark.parametrize(("size", "desc", "avail", "used"), [
    (0, 0x1000, 0x2000, 0x3000), (3, 0x1000, 0x2000, 0x3000), (128, 0x1000, 0x2000, 0x3000),
    (0x1_0008, 0x1000, 0x2000, 0x3000), (0xFFFF_FFFF, 0x1000, 0x2000, 0x3000),
    (8, 0x1008, 0x2000, 0x3000), (8, 0x1000, 0x2001, 0x3000), (8, 0x1000, 0x2000, 0x3002),
    (8, END, 0x2000, 0x3000), (8, END - 16, 0x2000, 0x3000), (8, 0x1000, END - 20, 0x3000),
    (8, 0x1000, 0x2000, END - 64), (8, 0x1000, 0x2000, (1 << 64) - 4),
    (8, (1 << 64) - 16, 0x2000, 0x3000), (8, 0x1000, 0x2000, 0x1000_0000),
])  # fmt: skip
def test_queue_that_cannot_be(rng, memory, size, desc, avail, used):
    memory.add(0x1000_0000, 4096, read_only=True)
    rng.start(memory)
    registers = v.Registers(rng)
    assert registers.negotiate(v.F_VERSION_1)
    assert not registers.place_queue(0, size, desc, avail, used)
    assert registers.status & v.NEEDS_RESET
    assert "queue 0: " in rng.fault
    assert registers.negotiate(v.F_VERSION_1)
    assert registers.place_queue(0, 8, 0x1000, 0x2000, 0x3000)
    assert registers.status & v.NEEDS_RESET == 0


def test_rings_may_end_where_memory_does(rng, memory):
    rng.start(memory)
    registers = v.Registers(rng)
    for place in range(3):
        where = [0x1000, 0x2000, 0x3000]
        where[place] = END - (16 * 8, 6 + 2 * 8, 8 + 8 * 8)[place]
        assert registers.negotiate(v.F_VERSION_1)
        assert registers.place_queue(0, 8, *where)


# ---------------------------------------------------------------- a hostile one

addresses = st.one_of(
    st.integers(0, END), st.integers(END - 64, END + 64), st.integers(0, (1 << 64) - 1),
    st.sampled_from([0x10_0000, 0x10_8000, 0x10_C000, TABLE, TABLE + 8, BUFFER]),
)  # fmt: skip
lengths = st.one_of(
    st.integers(0, 600), st.integers(0, (1 << 32) - 1), st.sampled_from([16, 32, 160, 512, END])
)
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
nexts = st.one_of(st.integers(0, 16), st.integers(0, 0xFFFF))
rows = st.builds(descriptor, addresses, lengths, flags, nexts)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with Block(path) as block:
        yield block


@given(
    table=st.lists(rows, min_size=1, max_size=16),
    indirect=st.lists(rows, max_size=16),
    heads=st.lists(st.one_of(st.integers(0, 16), st.integers(0, 0xFFFF)), max_size=20),
    ahead=st.one_of(st.integers(0, 20), st.integers(0, 0xFFFF)),
    features=st.sampled_from([0, v.F_EVENT_IDX, v.F_INDIRECT, v.F_EVENT_IDX | v.F_INDIRECT]),
    used_event=st.integers(0, 0xFFFF),
)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_rings(disk, table, indirect, heads, ahead, features, used_event):
    """Any descriptors, any available ring: the device comes to rest, and works after a reset."""
    with kvmpy.GuestMemory("16M") as memory:
        driver = Driver(disk, memory, size=16, features=v.F_VERSION_1 | features)
        for i, row in enumerate(table):
            driver.ring.put_descriptor(i, row)
        memory.write(TABLE, b"".join(indirect))
        for head in heads:
            driver.ring.offer(head)
        driver.ring.set_used_event(used_event)
        driver.ring.avail_idx = ahead
        driver.notify()
        driver.settle()
        # A wild buffer may have overwritten the rings; the device's own state counts.
        if driver.status & v.NEEDS_RESET:
            assert disk.fault
            assert driver.read(v.INTERRUPT_STATUS) & 2
        disk.disconnect()
        again = Driver(disk, memory, size=16)
        memory.write(BUFFER, struct.pack("<IIQ", 8, 0, 0))
        head = again.ring.add((BUFFER, 16, 0), (BUFFER + 32, 20, WRITE), (BUFFER + 64, 1, WRITE))
        again.notify()
        again.settle()
        assert again.ring.take() == [(head, 21)]
        disk.disconnect()


def test_descriptors_change_while_they_are_walked(disk, memory):
    """Another vCPU rewrites the table all the time. Whatever the device sees, it checks what it
    uses: it serves or it wants a reset, again and again."""
    choices = [
        descriptor(BUFFER, 16, NEXT, 1), descriptor(BUFFER + 64, 512, WRITE | NEXT, 2),
        descriptor(BUFFER + 1024, 1, WRITE), descriptor(END, 512, WRITE | NEXT, 2),
        descriptor(BUFFER, 16, NEXT, 0), descriptor(TABLE, 48, INDIRECT),
        descriptor((1 << 64) - 1, 0xFFFF_FFFF, WRITE), descriptor(BUFFER, 0xFFFF_FFFF, NEXT, 1),
    ]  # fmt: skip
    seed = random.Random(4)
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            memory.write(0x10_0000 + 16 * seed.randrange(3), seed.choice(choices))

    memory.write(TABLE, b"".join(choices[:3]))
    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        for _ in range(40):
            driver = Driver(disk, memory, size=16)
            for i in range(3):
                memory.write(0x10_0000 + 16 * i, choices[i])
            for _ in range(16):
                driver.ring.offer(0)
            driver.notify()
            driver.settle()
            if not driver.status & v.NEEDS_RESET:
                assert len(driver.ring.take()) == 16
            disk.disconnect()
    finally:
        stop.set()
        thread.join()
