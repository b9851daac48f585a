"""The scheduling guest's logs: read as a stranger's bytes, and believed where they make sense."""

import struct

import pytest
from hypothesis import given, strategies as st

from kvmpy.sched import timeline
from kvmpy.sched.logs import Log, Ring
from kvmpy.sched.timeline import Raw, TscClock

SLOTS, COUNTER, BASE = 8, 0, 64
RING = Ring(COUNTER, BASE, SLOTS, 16, number=1)
U64 = st.integers(0, (1 << 64) - 1)


class Memory(bytearray):
    """Guest memory with one ring of two words a slot: a value, and the record's number."""

    def __init__(self):
        super().__init__(BASE + SLOTS * 16)

    def read(self, gpa, size):
        return bytes(self[gpa : gpa + size])

    def put(self, index, value, number=None):
        slot = BASE + index % SLOTS * 16
        self[slot : slot + 16] = struct.pack("<2Q", value, index + 1 if number is None else number)

    def count(self, value):
        self[COUNTER : COUNTER + 8] = struct.pack("<Q", value)


def test_records_come_once_and_in_order():
    """Also around the ring's end."""
    memory, taken = Memory(), []
    log = Log(RING, memory.read)
    for first in range(0, 30, 5):
        for index in range(first, first + 5):
            memory.put(index, 100 + index)
        memory.count(first + 5)
        taken += [value for value, _ in log.take()]
    assert taken == [100 + index for index in range(30)]
    assert (log.lost, log.damaged) == (0, 0)


def test_overwritten_records_are_counted():
    """Of 20 records in 8 slots, 12 are gone, and the guest may be writing over the oldest."""
    memory = Memory()
    for index in range(20):
        memory.put(index, index)
    memory.count(20)
    log = Log(RING, memory.read)
    assert [value for value, _ in log.take()] == list(range(13, 20))
    assert (log.lost, log.damaged) == (13, 0)


def test_a_record_on_its_way_is_waited_for():
    """The guest takes a slot, is interrupted, and fills it in later."""
    memory = Memory()
    memory.put(0, 7)
    memory.put(1, 8, number=0)
    memory.put(2, 9)
    memory.count(3)
    log = Log(RING, memory.read)
    assert log.take() == [(7, 1)]
    assert log.take() == []
    memory.put(1, 8)
    assert log.take() == [(8, 2), (9, 3)]


def test_at_the_end_nothing_is_on_its_way():
    """What is incomplete then is damaged, and what follows it is read."""
    memory = Memory()
    memory.put(0, 7, number=0)
    memory.put(1, 8)
    memory.count(2)
    log = Log(RING, memory.read)
    assert log.take(final=True) == [(8, 2)]
    assert log.damaged == 1


def test_what_is_overwritten_during_the_read_is_dropped():
    """The counter is read again afterwards."""
    memory = Memory()
    for index in range(6):
        memory.put(index, index)
    memory.count(6)

    def read(gpa, size):
        found = memory.read(gpa, size)
        if gpa >= BASE:
            memory.count(11)
        return found

    log = Log(RING, read)
    assert [value for value, _ in log.take()] == [4, 5]
    assert log.lost == 4


def test_a_counter_that_goes_back_is_damage():
    """And nothing is read."""
    memory = Memory()
    memory.put(0, 7)
    memory.count(1)
    log = Log(RING, memory.read)
    log.take()
    memory.count(0)
    assert log.take() == []
    assert log.damaged == 1


@given(st.lists(st.tuples(U64, st.lists(U64, min_size=2 * SLOTS, max_size=2 * SLOTS)), max_size=5))
def test_any_memory_can_be_read(rounds):
    """Never more records than slots, each with the number of its place, no number twice."""
    memory, numbers = Memory(), []
    log = Log(RING, memory.read)
    for count, words in rounds:
        memory.count(count)
        memory[BASE:] = struct.pack(f"<{2 * SLOTS}Q", *words)
        taken = log.take(final=count % 2 == 0)
        assert len(taken) <= SLOTS
        numbers += [number for _, number in taken]
    assert numbers == sorted(set(numbers))


# ---------------------------------------------------------------- what they mean

CLOCK = TscClock(1000, 10_001_000, khz=1e6)  # a tick is a ns, the run is 10 ms
MS = 1_000_000


def switch(number, entered, left, source, target, *, alive=0, steal=(0, 0), reason=0):
    info = reason << 16 | target << 8 | source
    return (1000 + alive, 1000 + entered, 1000 + left, *steal, info, number)


START = switch(1, 0, 0, 0xFF, 0, reason=4)


def build(switches, gaps=(), *, alive=10 * MS, threads=2, has_steal=True):
    gaps = [(1000 + start, 1000 + end, *rest) for start, end, *rest in gaps]
    raw = Raw(1000, switches, gaps, 1000 + alive)
    return timeline.build(raw, CLOCK, threads=threads, pcpu=3, gap_ns=20_000, has_steal=has_steal)


def kinds(line):
    return [(gap.start, gap.end, gap.kind) for gap in line.gaps]


def test_a_gap_that_was_waiting_is_the_schedulers():
    """KVM's steal time tells it from an exit and from a stall."""
    line = build(
        [START],
        [
            (1 * MS, 3 * MS, 1_990_000, 1),  # all of it stolen
            (4 * MS, 4 * MS + 30_000, 1_990_000, 2),  # an exit
            (5 * MS, 6 * MS, 1_990_000, 3),  # long, and yet nobody of this host had the pCPU
        ],
    )
    assert kinds(line) == [
        (1 * MS, 3 * MS, "descheduled"),
        (4 * MS, 4 * MS + 30_000, "exit"),
        (5 * MS, 6 * MS, "stall"),
    ]
    assert [(part.start, part.end, part.pcpu) for part in line.slices] == [
        (0, 1 * MS, 3),
        (3 * MS, 10 * MS, 3),
    ]
    assert line.steal == 1_990_000


def test_a_gap_that_was_waiting_in_part_is_two():
    """Else one half would hide the other."""
    line = build([START], [(1 * MS, 5 * MS, 1 * MS, 1)])
    assert kinds(line) == [(1 * MS, 2 * MS, "descheduled"), (2 * MS, 5 * MS, "stall")]


def test_without_steal_time_length_decides():
    """0.1 ms is longer than exits are and shorter than the host's slices."""
    gaps = [(1 * MS, 1 * MS + 50_000, 0, 1), (2 * MS, 3 * MS, 0, 2)]
    line = build([START], gaps, has_steal=False)
    assert [gap.kind for gap in line.gaps] == ["exit", "descheduled"]
    assert line.steal is None


def test_a_gap_that_ends_in_ring_0_is_one():
    """The timer's interrupt waited for the vCPU to come back: no thread saw that gap."""
    late = switch(2, 5 * MS, 5 * MS + 100, 0, 1, alive=2 * MS, steal=(2_990_000, 2_990_000))
    line = build([START, late])
    assert kinds(line) == [(2 * MS, 5 * MS, "descheduled")]


def test_interpreting_ring_0_is_no_gap():
    """However long it takes, unless the host took the vCPU away meanwhile."""
    slow = switch(2, 2 * MS, 3 * MS, 0, 1, alive=2 * MS)
    taken = switch(3, 5 * MS, 8 * MS, 1, 0, alive=5 * MS, steal=(0, 2_900_000))
    line = build([START, slow, taken])
    assert kinds(line) == [(5 * MS, 7_900_000, "descheduled")]


def test_threads_have_the_time_between_switches():
    """A write is no switch, and does not end a slice."""
    line = build(
        [
            START,
            switch(2, 2 * MS, 2 * MS + 10, 0, 0, alive=2 * MS, reason=3),
            switch(3, 4 * MS, 4 * MS + 10, 0, 1, alive=4 * MS, reason=1),
            switch(4, 6 * MS, 6 * MS + 10, 1, 0xFF, alive=6 * MS, reason=2),
        ],
        alive=0,
    )
    found = [(part.thread, part.start, part.end, part.ended) for part in line.thread_slices]
    assert found == [(0, 0, 4 * MS, "yield"), (1, 4 * MS + 10, 6 * MS, "exit")]
    assert line.end == 6 * MS + 10


@pytest.mark.parametrize(
    "bad",
    [
        switch(2, 5 * MS, 4 * MS, 0, 1),  # left before it was entered
        switch(2, 5 * MS, 99 * MS, 0, 1),  # behind the run's end
        switch(2, 5 * MS, 5 * MS, 7, 1),  # no such thread
        switch(2, 5 * MS, 5 * MS, 0, 1, reason=5),  # no such reason
        (1, 2, 3),  # cut off
    ],
)
def test_records_that_make_no_sense_are_counted(bad):
    """And the rest is as it would be without them."""
    line = build([START, bad])
    assert line.damaged == 1
    assert line.switches == build([START]).switches


RECORD = st.lists(
    st.one_of(U64, st.integers(900, 10_002_000), st.integers(0, 5)), min_size=7, max_size=7
).map(tuple)
GAP = st.lists(st.one_of(U64, st.integers(900, 10_002_000)), min_size=4, max_size=4).map(tuple)


@given(st.lists(RECORD, max_size=8), st.lists(GAP, max_size=8), U64, U64, st.booleans())
def test_any_records_give_a_timeline(switches, gaps, started, alive, has_steal):
    """Within the run, in order, nothing over another; slices and gaps of the scheduler's are the
    whole; steal is no more than there was time."""
    raw = Raw(started, switches, gaps, alive)
    line = timeline.build(raw, CLOCK, threads=2, pcpu=0, gap_ns=20_000, has_steal=has_steal)
    whole = CLOCK.ns(CLOCK.end)
    assert 0 <= line.start <= line.end <= whole
    for parts in (line.slices, line.gaps, line.thread_slices):
        edges = [edge for part in parts for edge in (part.start, part.end)]
        assert edges == sorted(edges)
        assert all(0 <= edge <= whole for edge in edges)
    away = [(gap.start, gap.end) for gap in line.gaps if gap.kind == "descheduled"]
    inside = timeline.common([(line.start, line.end)], away)
    lost = sum(end - start for start, end in inside)
    assert sum(part.end - part.start for part in line.slices) + lost == line.end - line.start
    assert (line.steal is None) is not has_steal
    assert not has_steal or 0 <= line.steal <= whole
