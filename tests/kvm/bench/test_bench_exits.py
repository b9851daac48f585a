"""`bench exit`: each way leaves the guest as it says, and the time is split by counters."""

import pytest

from kvmpy.bench import exits
from kvmpy.bench.document import Report


@pytest.fixture(scope="module")
def report():
    """One quick run of all ways."""
    return exits.run(quick=True)


@pytest.mark.parametrize("way", exits.ways(), ids=lambda way: way.path)
def test_a_way(report, way, module):
    """User space sees every call of the ways that end there, and none of the others."""
    row = next(row for row in report.rows if row.path == way.path)
    if module == "kvm_pvm" and way.path in ("vmcall", "vmmcall"):
        assert row.outcome == "fails"
        assert "no end" in row.failure
        return
    assert row.outcome == ("interpreted" if module == "kvm_pvm" else "native"), row.failure
    calls, batches = row.counters["calls"], row.counters["expected_exits"]
    assert row.counters["user_exits"] == batches + (calls if way.user else 0)
    assert row.samples
    assert len(row.vms) == len(row.samples)
    assert not any(label.startswith("answered") for label in row.labels)


def test_the_split(report):
    """The shim has its share where the exit reaches it, Python where Python handles it."""
    split = {row.path: row.split for row in report.rows if row.split}
    assert all(set(parts) == {"kernel", "shim", "python"} for parts in split.values())
    assert all(parts["kernel"] > 0 for parts in split.values())
    for path in ("pio-python", "mmio-python", "hlt-python"):
        assert split[path]["python"] > 0
    for path in ("pio-shim", "mmio-shim", "cpuid", "doorbell-pio"):
        assert split[path]["python"] == 0
    assert split["pio-shim"]["shim"] > split["cpuid"]["shim"]


def test_the_report(report, module):
    """Complete, and JSON and back."""
    assert report.benchmark == "exit"
    assert [row.path for row in report.rows] == [way.path for way in exits.ways()]
    assert report.disclosure.module == module
    assert Report.from_json(report.to_json()) == report


def test_a_path_that_is_none():
    """Is refused, with those there are."""
    with pytest.raises(ValueError, match="pio-shim"):
        exits.run(["teleport"])
