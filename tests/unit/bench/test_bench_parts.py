"""The benchmarks' parts that need no KVM: the table, the guests' exports, the judgement."""

import dataclasses

import pytest

from kvmpy.bench import disclosure, hostcall, references, syscall
from kvmpy.bench.cells import LEVELS, MODES, PATHS, Cell, every_cell
from kvmpy.bench.counters import GuestCycles
from kvmpy.bench.disclosure import Surroundings
from kvmpy.bench.failures import instruction_at
from kvmpy.bench.judgement import judge, unexpected
from kvmpy.bench.lab import ALIGNMENT_STEP, ALIGNMENTS, Batches
from kvmpy.bench.record import Canary, Row
from kvmpy.guests import image
from kvmpy.probe.verdict import Verdict

VERDICT = Verdict(
    module="kvm_intel", ring0="native", ring3="native", ring0_ns=0.3, ring3_ns=0.3,
    extension="VT-x", hypervisor=None, nested=False, emulator=None, paging="EPT",
    unrestricted_guest=True, nested_guests=False,
)  # fmt: skip


def test_the_table_has_every_cell():
    """Three modes, four paths, each rung once; single shots for each path."""
    cells = every_cell()
    assert len(set(cells)) == len(cells)
    for mode in MODES:
        for path in PATHS:
            here = [cell for cell in cells if (cell.mode, cell.path) == (mode, path)]
            levels = [cell.level for cell in here if not cell.single]
            assert levels == list(LEVELS[:4] if mode == "legacy32" else LEVELS)
            assert [cell.level for cell in here if cell.single] == ["H0"]


@pytest.mark.parametrize("mode", MODES)
def test_entries_are_aligned_as_they_say(mode):
    """Each handler exists four times, 16 bytes apart within a cache line."""
    guest = image.load(f"syscall-{mode}")
    for path in PATHS:
        for handler in ("H0", "H1", "H2", "H3", "proof", "stamp"):
            for copy in range(ALIGNMENTS):
                address = guest[f"entry.{path}.{handler}.{copy}"]
                assert address % 64 == ALIGNMENT_STEP * copy
                assert address >= guest["kernel"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", PATHS)
def test_blocks_have_as_many_trips_as_they_say(mode, path):
    """Each is the first one's bytes so many times, but for addresses within."""
    guest = image.load(f"syscall-{mode}")
    code = {"int80": b"\xcd\x80", "sysenter": b"\x0f\x34", "syscall": b"\x0f\x05",
            "callgate": b"\xff\x1c\x25" if mode == "long64" else b"\xff\x1d"}[path]  # fmt: skip
    counts = (1, 2, 16, 32)
    starts = [guest[f"block.{path}.{count}"] for count in counts]
    later = [value for value in guest.symbols.values() if value > starts[-1]]
    for count, start, end in zip(counts, starts, [*starts[1:], min(later)], strict=True):
        assert guest.code[start - image.ORIGIN : end - image.ORIGIN].count(code) == count


@pytest.mark.parametrize("name", ["syscall-long64", "syscall-compat32", "exit-ladder"])
def test_plain_stamps(name):
    """Only the stamps change, each at its length; ring 0's and ring 3's apart."""
    guest = image.load(name)
    plain = guest.variant(True, True)
    assert len(plain) == len(guest.code)
    changed = {at for at, (a, b) in enumerate(zip(guest.code, plain, strict=True)) if a != b}
    spans = {address - image.ORIGIN + i for address in guest.stamps for i in range(3)}
    assert changed
    assert changed <= spans
    kernel = guest.variant(False, True)
    assert all(
        at + image.ORIGIN >= guest["kernel"]
        for at, (a, b) in enumerate(zip(guest.code, kernel, strict=True))
        if a != b
    )


def test_instructions_by_name():
    guest = image.load("syscall-long64")
    assert instruction_at(guest, guest["entry.int80.H0.0"]) == "iretq"
    assert instruction_at(guest, guest["entry.syscall.H0.3"]) == "sysretq"
    assert instruction_at(guest, guest["canary"] + 2) == "canary+0x2"
    assert instruction_at(guest, 0xFFFF_FFFF_FFFF_FFFF) == "0xffffffffffffffff"


def _judged(counters, canaries=(), verdict=VERDICT, vendor_differs=False):
    row = Row("x", "path", "long64", "int80", counters=counters, canaries=canaries)
    return judge(row, verdict, vendor_differs)


QUIET = {"calls": 100_000, "expected_exits": 100, "exits": 103, "irq_exits": 3,
         "insn_emulation": 100}  # fmt: skip


def test_native_is_proved():
    """The batches' own exits and the host's interrupts are no disturbance."""
    assert unexpected(QUIET) == (0, 0)
    judged = _judged(QUIET)
    assert (judged.outcome, judged.labels) == ("native", ())


def test_some_exits_are_a_warning():
    judged = _judged(QUIET | {"exits": 120})
    assert judged.outcome == "native"
    assert judged.labels == ("not proved native: unexpected exits in over 0.01% of the calls",)


@pytest.mark.parametrize("name", ["exits", "insn_emulation"])
def test_an_exit_a_call_is_kvm(name):
    judged = _judged(QUIET | {name: 100_100})
    assert judged.outcome == "emulated-by-kvm"
    assert judged.labels == ("1.0 exits a call",)


def test_without_counters_nothing_is_proved():
    judged = _judged({"calls": 10, "expected_exits": 1})
    assert judged.outcome == "native"
    assert judged.labels == ("no counter proves that it ran without exits",)


def test_interpreted_rings_are_named():
    slow, quick = Canary(0, 1900.0, 50.0, True), Canary(3, 0.7, 50.0, False)
    judged = _judged(QUIET | {"insn_emulation": 900_000}, (quick, slow))
    assert judged.outcome == "interpreted"
    assert judged.labels == ("ring 0 is interpreted",)


def test_what_else_is_said():
    verdict = dataclasses.replace(VERDICT, emulator="QEMU TCG")
    labels = _judged(QUIET, verdict=verdict, vendor_differs=True).labels
    assert labels == ("the guest's CPUID vendor is not the host's", "virtual time")


def test_references_name_their_sources():
    for reference in (*references.SYSCALL, *references.EXIT):
        assert reference.source
        assert reference.platform
        assert reference.value > 0


def test_a_cell_knows_its_way():
    assert Cell("long64", "syscall", "H3-pcid").handler == "H3"
    assert Cell("long64", "nearcall", "H1").rings == (0,)
    assert Cell("compat32", "adds").kind == "calibration"


def test_the_host_s_calls_come_in_rounds():
    """So that a comparison has as many units of them as of VMs."""
    calls = hostcall.HostCalls()
    for number in range(3):
        calls.take(number, batches=4)
    for row in calls.rows():
        assert row.vms == (0,) * 4 + (1,) * 4 + (2,) * 4
        assert len(row.samples) == 12
        assert row.counters["calls"] == 3 * 5 * row.calls * 3


def test_a_counter_that_there_is():
    """A clock of the kernel's stands in for the CPU's counter: it opens, reads, and is closed."""
    software, task_clock = 1, 1  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK
    with GuestCycles(software, task_clock) as cycles:
        if cycles.trouble:
            pytest.skip(f"perf_event_open: {cycles.trouble}")
        before = cycles.read()
        assert sum(range(10_000))
        assert cycles.read() > before
    assert cycles.read() is None


def test_a_counter_that_there_is_not():
    with GuestCycles(type=0xFFFF) as cycles:
        assert cycles.trouble
        assert cycles.read() is None


def test_what_disturbs_is_told_before_the_run():
    told = []
    verdict = dataclasses.replace(VERDICT, nested=True, hypervisor="KVM")
    around = Surroundings(verdict, None, frozenset({0, 1}), told.append)
    names = [item.name for item in told[0]]
    assert {"nested", "not pinned"} <= set(names)
    assert any(text.startswith("nested: ") for text in around.warnings())
    assert len(around.warnings()) >= len(names)


def test_waiting_for_the_pcpu_is_told(monkeypatch):
    """An hour in the run queue, in a run of some microseconds."""
    waited = iter([0, 3_600_000_000_000])
    monkeypatch.setattr(disclosure, "run_delay", lambda: {"run_delay_ns": next(waited)})
    around = Surroundings(VERDICT, None, frozenset({0}))
    assert any(text.startswith("waiting: ") for text in around.warnings())


def test_cycles_are_those_of_the_trips_alone():
    """Whatever the loop around them and the exits take."""

    class FakeLab:
        cycles = object()

        def batches(self, cell, count, *, block, repeats, second):
            trips = count * (repeats * (block + second) + second)
            return Batches((), repeats, {"guest_cycles": 131 * trips + 50_000})

    series = syscall._Series(Cell("long64", "syscall", "H0"), block=16, repeats=4)
    assert syscall._cycles_per_call(FakeLab(), series, 10) == 131
    single = syscall._Series(Cell("long64", "syscall", "H0", single=True), block=1, repeats=8)
    assert syscall._cycles_per_call(FakeLab(), single, 10) is None
