"""Deferred writes: the ring keeps order and loses nothing; counters count."""

import gc

import pytest

import kvmpy
from kvmpy.run import loop


def collect(vm, ports):
    """Registers a batch handler; returns the list it fills with (port, size, value)."""
    records, batches = [], []

    @vm.on_io_batch(ports)
    def handler(batch):
        batches.append(len(batch))
        records.extend((address, size, value) for address, size, value, _ in batch)

    return records, batches


def test_writes_come_before_run_returns(start, vm):
    """A few writes: one batch, in order, with sizes; then the exit."""
    records, batches = collect(vm, range(0x20, 0x24))
    cpu = start("mov eax, 0x11223344; out 0x20, al; out 0x22, ax; out 0x21, eax; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert records == [(0x20, 1, 0x44), (0x22, 2, 0x3344), (0x21, 4, 0x1122_3344)]
    assert batches == [3]


def test_nothing_is_lost_when_the_ring_is_full(start, vm, monkeypatch):
    """More writes than the ring holds, the last ones too, in order."""
    monkeypatch.setattr(loop, "RING_SIZE", 16)
    records, batches = collect(vm, 0x20)
    cpu = start("xor eax, eax; 1: out 0x20, eax; inc eax; cmp eax, 53; jne 1b; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert [value for _, _, value in records] == list(range(53))
    assert batches == [16, 16, 16, 5]


@pytest.mark.slow
def test_the_ring_as_it_is(start, vm):
    """The real size, twice full."""
    records, batches = collect(vm, 0x20)
    n = 2 * loop.RING_SIZE + 7
    cpu = start(f"xor eax, eax; 1: out 0x20, eax; inc eax; cmp eax, {n}; jne 1b; hlt")
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert [value for _, _, value in records] == list(range(n))
    assert max(batches) == loop.RING_SIZE


def test_strings(start, vm, monkeypatch):
    """REP OUTS across the ring's end: each element once, in order."""
    monkeypatch.setattr(loop, "RING_SIZE", 8)
    records, _ = collect(vm, 0x20)
    vm.load(bytes(range(50)), at=0x3000)
    cpu = start("mov esi, 0x3000; mov ecx, 50; mov dx, 0x20; rep outsb; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert records == [(0x20, 1, value) for value in range(50)]


def test_timeout_delivers_what_there_is(start, vm):
    """A run that its budget ends drains the ring first."""
    records, _ = collect(vm, 0x20)
    cpu = start("xor eax, eax; 1: out 0x20, eax; inc eax; jmp 1b")
    assert cpu.run(max_exits=5, timeout=5) == kvmpy.ExitLimit()
    assert [value for _, _, value in records] == [0, 1, 2, 3, 4]
    assert cpu.run(max_exits=2, timeout=5) == kvmpy.ExitLimit()
    assert [value for _, _, value in records] == [0, 1, 2, 3, 4, 5, 6]


def test_exception_of_another_handler_keeps_the_ring(start, vm):
    """What is in the ring when a handler raises comes with the next run, still in order."""
    records, _ = collect(vm, 0x20)

    @vm.on_io(0x30)
    def fails(port, size, value):
        raise LookupError

    cpu = start("mov al, 1; out 0x20, al; out 0x30, al; inc al; out 0x20, al; hlt")
    with pytest.raises(LookupError):
        cpu.run(timeout=5)
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert [value for _, _, value in records] == [1, 2]


def test_exception_of_the_batch_handler(start, vm):
    """Comes out of run() unchanged; the vCPU can be run again."""
    fail = [True]

    @vm.on_io_batch(0x20)
    def handler(batch):
        if fail[0]:
            raise LookupError("batch")

    cpu = start("out 0x20, al; hlt; out 0x20, al; hlt")
    with pytest.raises(LookupError, match="batch"):
        cpu.run(timeout=5)
    fail[0] = False
    cpu.expect(kvmpy.Hlt, timeout=5)


def test_two_vcpus_have_a_ring_each(start, vm):
    """Records of one vCPU come when that one runs."""
    records, _ = collect(vm, 0x20)
    first = start("mov al, 1; out 0x20, al; hlt")
    second = start("mov al, 2; out 0x20, al; hlt", at=0x2000)
    first.expect(kvmpy.Hlt, timeout=5)
    assert records == [(0x20, 1, 1)]
    second.expect(kvmpy.Hlt, timeout=5)
    assert records == [(0x20, 1, 1), (0x20, 1, 2)]


def test_time_stamps_rise(start, vm):
    """Each record has the host's TSC."""
    stamps = []
    vm.on_io_batch(0x20)(lambda batch: stamps.extend(tsc for *_, tsc in batch))
    cpu = start("out 0x20, al; out 0x20, al; out 0x20, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert stamps == sorted(stamps)
    assert len(set(stamps)) == 3


def test_a_batch_is_not_for_keeping(start, vm):
    """A batch kept beyond its handler says so; a slice of its words does not dangle."""
    kept = []
    vm.on_io_batch(0x20)(lambda batch: kept.extend((batch, batch.words[1:2])))
    cpu = start("mov al, 7; out 0x20, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    with pytest.raises(ValueError, match="released"):
        list(kept[0])
    vm.close()
    del cpu
    gc.collect()
    assert kept[1][0] == 7


def test_counters(start, vm):
    """Reads and writes, of a range, apart from others."""
    counter, other = vm.count_io(range(0x40, 0x48)), vm.count_io(0x48)
    cpu = start("out 0x40, al; out 0x47, ax; in al, 0x41; in eax, 0x42; in al, 0x43; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert (counter.reads, counter.writes) == (3, 2)
    assert (other.reads, other.writes) == (0, 0)
    assert repr(counter) == "<Counter 3 reads, 2 writes>"


def test_counter_outlives_its_vm():
    """It is the caller's to keep."""
    with kvmpy.VM("1M") as vm:
        counter = vm.count_io(0x10)
    assert counter.writes == 0


def test_stats(start, vm):
    """Exits by reason; times from measure() on."""
    vm.count_io(0x10)
    cpu = start("out 0x10, al; in al, 0x10; out 0x10, al; hlt; out 0x10, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    stats = cpu.run_stats
    assert (stats["IO"], stats["HLT"], stats["MMIO"], stats.total) == (3, 1, 0, 4)
    assert stats.guest_ns is None
    assert all(row.handling_ns is None for row in stats)
    cpu.measure()
    cpu.expect(kvmpy.Hlt, timeout=5)
    stats = cpu.run_stats
    assert (stats["IO"], stats["HLT"]) == (4, 2)
    assert stats.guest_ns > 0
    by_reason = {row.reason: row.handling_ns for row in stats}
    assert 0 < by_reason["IO"] < 60_000_000_000
    assert stats.python_ns == 0  # the run has not been left yet


def test_a_handler_that_raises_takes_nothing_from_the_others(start, vm):
    """They get their writes, and the exit that ended the run is the next run's."""
    got = []

    @vm.on_io_batch(0x10)
    def bad(batch):
        raise RuntimeError("the first")

    @vm.on_io_batch(0x11)
    def good(batch):
        got.extend(value for _, _, value, _ in batch)

    @vm.on_io_batch(0x12)
    def worse(batch):
        raise LookupError("the last")

    cpu = start("mov al, 5; out 0x10, al; out 0x11, al; out 0x12, al; in al, 0x13; hlt")
    with pytest.raises(LookupError, match="the last") as caught:
        cpu.run(timeout=60)
    assert isinstance(caught.value.__context__, RuntimeError)  # the other is not lost either
    assert got == [5]
    exit = cpu.run(timeout=60)
    assert isinstance(exit, kvmpy.IoIn)
    assert exit.port == 0x13
    cpu.answer(0x77)
    assert cpu.run(timeout=60) == kvmpy.Hlt()
    assert cpu.regs.rax & 0xFF == 0x77


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_the_guest_does_not_run_past_an_exit_that_a_handler_hid(start, vm, kind):
    @vm.on_io_batch(0x10)
    def bad(batch):
        raise kind

    cpu = start("out 0x10, al; hlt; mov byte ptr [0x3000], 1; hlt")
    with pytest.raises(kind):
        cpu.run(timeout=60)
    assert cpu.run(timeout=60) == kvmpy.Hlt()
    assert vm.memory.read(0x3000, 1) == b"\0"
