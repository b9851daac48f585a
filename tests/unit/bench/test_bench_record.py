"""The benchmarks' records: JSON and back, and what is refused."""

import json

import made_up
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kvmpy.bench.document import RecordError, Report
from kvmpy.bench.record import OUTCOMES, Canary, Disclosure, Reference, Row

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e18, max_value=1e18)
#: Generating text for the first time takes seconds on a busy host.
SLOW_HOSTS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
WORDS = st.integers(-(1 << 63) + 1, (1 << 63) - 1)


def _disclosure(**changes):
    values = {
        "module": "kvm_amd", "parameters": {"kvm_amd.npt": "Y"}, "verdict": "v", "ring0": "native",
        "ring3": "native", "cpu_model": "m", "vendor": "AuthenticAMD", "microcode": "0x1",
        "kernel": "Linux 6.12", "command_line": "quiet", "tsc_khz": 2_500_000,
        "invariant_tsc": True, "tsc_scaling": None, "paging": "NPT",
        "mitigations": {"meltdown": "Not affected"}, "governor": "", "smt": (1,),
        "pinned_cpu": None, "hypervisor": None, "nested": False, "emulator": None,
        "virtual_time": False, "load_average": (0.1, 0.2, 0.3),
        "date": "2025-01-01T00:00:00+00:00", "versions": {"kvmpy": "0.1.0"},
    }  # fmt: skip
    return Disclosure(**(values | changes))


def _report(*rows):
    reference = Reference("a CPU", "int80", 610.0, "ticks", "round trip", "a list")
    return Report("syscall", rows, (reference,), _disclosure(), True, 1.5, ("a warning",))


@st.composite
def rows(draw):
    samples = tuple(draw(st.lists(WORDS, max_size=4)))
    return Row(
        name=draw(st.text()),
        kind=draw(st.sampled_from(["path", "baseline", "calibration", "host", "exit"])),
        mode=draw(st.text()),
        path=draw(st.text()),
        samples=samples,
        calls=draw(st.integers(1, 1 << 40)),
        vms=tuple(range(len(samples))),
        outcome=draw(st.sampled_from(OUTCOMES)),
        vector=draw(st.none() | st.integers(0, 255)),
        canaries=(Canary(0, draw(FINITE), draw(FINITE), draw(st.booleans())),),
        counters=draw(st.dictionaries(st.text(), WORDS, max_size=3)),
        block=draw(st.none() | st.integers(1, 64)),
        cycles=draw(st.none() | FINITE),
        split=draw(st.dictionaries(st.text(), FINITE, max_size=3)),
        labels=tuple(draw(st.lists(st.text(), max_size=2))),
    )


@SLOW_HOSTS
@given(st.lists(rows(), max_size=3))
def test_there_and_back(made):
    report = _report(*made)
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json(indent=2).encode()) == report


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
GOOD = json.loads(_report(Row("x", "path", "long64", "int80", samples=(1, 2))).to_json())


@st.composite
def damaged(draw):
    """A good document with one value, anywhere, replaced by anything."""
    document = json.loads(json.dumps(GOOD))
    node = document
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or draw(st.booleans()):
            node[key] = draw(ANYTHING)
            return json.dumps(document)
        node = inner


@SLOW_HOSTS
@given(damaged() | ANYTHING.map(json.dumps) | st.text() | st.binary())
def test_hostile_text(text):
    """A report or a RecordError, and nothing else; what is accepted can be computed with."""
    try:
        report = Report.from_json(text)
    except RecordError:
        return
    for row in report.rows:
        assert all(abs(value) < 1e19 for value in row.per_call)
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"calls": 0}, "calls is 0"),
        ({"vms": [1]}, "not parallel"),
        ({"samples": [1 << 64]}, "64 bits"),
        ({"outcome": "fast"}, "outcome is 'fast'"),
        ({"level": None}, "level is None"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_refused(change, words):
    """With the place and the value."""
    document = json.loads(json.dumps(GOOD))
    document["rows"][0].update(change)
    with pytest.raises(RecordError, match=words):
        Report.from_json(json.dumps(document))


def test_what_is_missing():
    document = json.loads(json.dumps(GOOD))
    del document["disclosure"]["module"]
    with pytest.raises(RecordError, match=r"report\.disclosure lacks module"):
        Report.from_json(json.dumps(document))


def test_too_deep():
    with pytest.raises(RecordError):
        Report.from_json("[" * 100_000)


def test_statistics_are_for_other_readers():
    """They are in the JSON of rows with samples, and computed anew by who reads it."""
    report = made_up.report()
    document = json.loads(report.to_json())
    row = next(row for row in document["rows"] if row["samples"])
    assert row["statistics"]["batches"] == len(row["samples"])
    assert row["statistics"]["vms"] == made_up.VMS
    assert row["statistics"]["ci95_low"] <= row["statistics"]["median"]
    assert all("statistics" not in row for row in document["rows"] if not row["samples"])
    row["statistics"] = "a lie"
    assert Report.from_json(json.dumps(document)) == report


def test_exits_a_call_are_counted():
    row = Row("x", "path", "long64", "int80", samples=(1, 2), calls=10, counters={
        "calls": 1000, "exits": 12, "irq_exits": 1, "expected_exits": 10, "insn_emulation": 10,
    })  # fmt: skip
    document = json.loads(_report(row).to_json())
    assert document["rows"][0]["statistics"]["exits_per_call"] == 0.001
    assert document["rows"][0]["statistics"]["interpreted_per_call"] == 0
