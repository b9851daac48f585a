"""The benchmark's statistics and its table. No timings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.rows import Row, alternate, table
from bench.stats import bootstrap, compare, mad


def test_mad_is_the_median_distance_from_the_median() -> None:
    assert mad([1, 1, 2, 2, 4, 6, 9]) == 1


def test_bootstrap_of_equal_samples_has_no_width() -> None:
    estimate = bootstrap([3.0] * 10)
    assert (estimate.value, estimate.low, estimate.high) == (3, 3, 3)


def test_bootstrap_brackets_the_median_and_repeats_itself() -> None:
    samples = [float(i * i % 37) for i in range(60)]
    estimate = bootstrap(samples)
    assert min(samples) < estimate.low <= estimate.value <= estimate.high < max(samples)
    assert estimate == bootstrap(samples)


def test_bootstrap_narrows_with_more_samples() -> None:
    few = bootstrap([float(i % 10) for i in range(20)])
    many = bootstrap([float(i % 10) for i in range(2000)])
    assert many.high - many.low < few.high - few.low


def test_bootstrap_needs_samples() -> None:
    with pytest.raises(ValueError, match="no samples"):
        bootstrap([])


def test_compare_works_on_pairs() -> None:
    """Drift that both sides share drops out."""
    bare = [float(i) for i in range(1, 100)]
    twice = [2 * b for b in bare]
    assert compare("ratio", bare, twice).value == 2
    assert compare("ratio", bare, twice).low == compare("ratio", bare, twice).high == 2
    later = [b + 5 for b in bare]
    assert compare("difference", bare, later).low == compare("difference", bare, later).high == 5
    assert compare("value", (), [1.0, 2.0, 9.0]).value == 2


def test_compare_refuses_unpaired_samples() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare("ratio", [1.0, 2.0], [1.0])


def test_alternate_takes_turns_and_drops_the_warm_up() -> None:
    calls: list[str] = []

    def subject(name: str) -> float:
        calls.append(name)
        return len(calls)

    names = ("a", "b", "c")
    samples = alternate({n: lambda n=n: subject(n) for n in names}, rounds=4, warm_up=2)
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab", "abc"]


def _row(limit: float | None) -> Row:
    return Row("exit", "ratio", "us", limit, ours=[2.2, 2.2, 2.2], bare=[2.0, 2.0, 2.0])


@pytest.mark.parametrize(("limit", "met"), [(1.2, True), (1.05, False), (None, None)])
def test_limit(limit: float | None, met: bool | None) -> None:
    assert _row(limit).met is met


def test_table_is_aligned_and_says_what_was_missed() -> None:
    rows = [_row(1.05), Row("import", "difference", "ms", 50, [30.0], [20.0])]
    header, rule, first, second = table(rows).splitlines()
    assert set(rule) == {"-"}
    assert "1.100x" in first
    assert "<= 1.05x" in first
    assert first.endswith(" NO")
    assert "+10.0 ms" in second
    assert second.endswith("yes")
    assert len({len(line) for line in (header, rule, first, second)}) == 1


def test_record_keeps_the_samples() -> None:
    record = _row(1.2).record()
    assert record["kvmpy"]["samples"] == [2.2, 2.2, 2.2]
    assert record["bare"] == {"median": 2.0, "mad": 0.0, "samples": [2.0, 2.0, 2.0]}
    assert record["met"] is True
    assert record["confidence_interval"] == [pytest.approx(1.1)] * 2
