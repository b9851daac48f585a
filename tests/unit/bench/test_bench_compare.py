"""Two made-up reports compared: what changed is found, what did not is not, the rest is named."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import made_up
import pytest

from kvmpy.bench import tables
from kvmpy.bench.compare import CompareError, Comparison, Delta, compare
from kvmpy.bench.document import Report
from kvmpy.bench.record import Row


def of(*rows: Row, **disclosed: Any) -> Report:
    return dataclasses.replace(made_up.report(**disclosed), rows=rows)


def delta(found: Comparison, label: str, mode: str = "64-bit") -> Delta:
    (item,) = [d for d in found.deltas if d.label == label and d.mode == mode]
    return item


def shown(found: Comparison) -> str:
    return "\n".join(" | ".join(row) for t in tables.comparison_tables(found) for row in t.rows)


def test_a_three_percent_change_is_found_and_nothing_else() -> None:
    found = compare(made_up.report(seed=1), made_up.report(seed=2, faster=1.03))
    changed = {d.label for d in found.deltas if d.finding in ("slower", "faster")}
    assert changed == {"SYSCALL H0", "SYSCALL H2"}
    h0 = delta(found, "SYSCALL H0")
    assert h0.finding == "slower"
    assert h0.relative == pytest.approx(0.03, abs=0.003)
    assert h0.shift is not None
    assert h0.shift.low < 0.03 * 99 * 0.4 < h0.shift.high  # 0.4 ns in a tick
    assert (h0.unit, h0.units) == ("ns", "VMs")
    assert compare(made_up.report(2, 1.03), made_up.report(1)).deltas[0].finding == "faster"


def test_runs_that_are_alike_show_no_difference_in_95_of_100() -> None:
    """Of 60 pairs of reports with nothing changed, at most a few have any row that differs."""
    wrong = 0
    for seed in range(60):
        first, second = (
            of(*(made_up.row("path", "long64", f"p{n}", "H0", 99, seed=s) for n in range(5)))
            for s in (2 * seed + 100, 2 * seed + 101)
        )
        found = compare(first, second)
        wrong += any(d.finding != "no difference shown" for d in found.deltas)
    assert wrong <= 8  # 3 are expected; 8 and more happen once in 200


def test_vms_are_the_unit() -> None:
    """A thousand batches of VMs that were placed differently prove nothing about the rows."""
    clock = random.Random(5)

    def placed() -> Row:
        medians = [100 + 10 * clock.random() for _ in range(10)]
        samples = tuple(round(m * 64) for m in medians for _ in range(100))
        vms = tuple(vm for vm in range(10) for _ in range(100))
        return Row("s", "path", "long64", "syscall", "H0", samples=samples, calls=64, vms=vms)

    found = compare(of(placed()), of(placed()))
    assert found.deltas[0].finding == "no difference shown"
    assert found.deltas[0].units == "VMs"


def test_too_few_vms_are_compared_by_batches_and_that_is_said() -> None:
    row = made_up.row("path", "long64", "syscall", "H0", 99)
    few = dataclasses.replace(row, vms=tuple(vm % 2 for vm in row.vms))
    found = compare(of(few), of(few))
    assert found.deltas[0].units == "batches"
    assert any("not independent" in note for note in tables.comparison_notes(found))


def test_a_row_that_changed_its_outcome_is_not_compared() -> None:
    native = made_up.row("path", "long64", "int80", "H0", 600)
    interpreted = dataclasses.replace(native, outcome="interpreted")
    found = compare(of(native), of(interpreted))
    assert found.deltas[0].finding == "not compared"
    assert found.deltas[0].reason == "native before, interpreted now"
    assert "native before, interpreted now" in shown(found)


def test_failed_rows_and_rows_of_one_report_are_named() -> None:
    first = of(made_up.failed("compat32", "syscall", "#UD at syscall"),
               made_up.row("path", "long64", "int80", "H0"))  # fmt: skip
    second = of(made_up.failed("compat32", "syscall", "#UD at syscall"),
                made_up.row("path", "long64", "syscall", "H0"))  # fmt: skip
    found = compare(first, second)
    assert found.deltas[0].alike
    assert "1 cell fails in both, in the same way." in tables.comparison_notes(found)
    assert "#UD" not in shown(found)
    assert [d.reason for d in found.deltas] == [
        "#UD at syscall", "only in the first report", "only in the second report",
    ]  # fmt: skip


def test_cells_that_fail_otherwise_now_are_shown() -> None:
    before, after = (made_up.failed("compat32", "syscall", how) for how in ("#UD", "#GP"))
    found = compare(of(before), of(after))
    assert found.deltas[0].reason == "#UD before, #GP now"
    assert "#UD before, #GP now" in shown(found)


def test_a_calibration_loop_that_differs_warns_of_the_host() -> None:
    """What happens between two runs on a host whose clock or load changed: every row shifts."""

    def ran(factor: float) -> Report:
        row = made_up.row
        return of(row("calibration", "long64", "adds", "", 40 * factor, share=0),
                  row("path", "long64", "syscall", "H0", 99 * factor))  # fmt: skip

    notes = tables.comparison_notes(compare(ran(1), ran(1.03)))
    assert any("differs by +3.0%" in note and "tell of the host" in note for note in notes)
    alike = tables.comparison_notes(compare(ran(1), ran(1)))
    assert not any("calibration" in note for note in alike)


def test_interpreted_rows_have_a_table_of_their_own() -> None:
    found = compare(made_up.report(), made_up.report(1))
    titles = [table.title for table in tables.comparison_tables(found)]
    assert titles == [
        "Native", "The host's own system calls, root ring 3 -> root ring 0",
        "Calibration: ring 3 alone", "Interpreted: a ring on the way runs in KVM's emulator",
    ]  # fmt: skip
    native = tables.comparison_tables(found)[0]
    assert not any("compat 32" in row for row in native.rows)


def test_clocks_of_different_rates_are_compared_in_ns() -> None:
    row = made_up.row("path", "long64", "syscall", "H0", 100, share=0)
    twice = made_up.row("path", "long64", "syscall", "H0", 200, share=0)
    found = compare(of(row), of(twice, tsc_khz=2 * made_up.TSC_KHZ)).deltas[0]
    assert found.unit == "ns"
    assert found.relative == pytest.approx(0, abs=0.001)
    unknown = compare(of(row, tsc_khz=None), of(row)).deltas[0]
    assert (unknown.unit, unknown.before) == ("ticks", pytest.approx(100.7, rel=0.01))


def test_ticks_and_ns_do_not_mix() -> None:
    row = made_up.row("host", "host", "getppid", "")
    found = compare(of(row, tsc_khz=None), of(dataclasses.replace(row, unit="ns")))
    assert "the rate of a TSC is not known" in found.deltas[0].reason


def test_what_differs_around_them_is_told() -> None:
    mitigations = {"meltdown": "Mitigation: PTI"}
    found = compare(
        made_up.report(),
        made_up.report(kernel="6.12.0", mitigations=mitigations, date="another", virtual_time=True),
    )
    assert ("kernel", "6.1.0", "6.12.0") in found.differences
    assert ("mitigations.meltdown", "Not affected", "Mitigation: PTI") in found.differences
    assert ("mitigations.retbleed", "Mitigation: Enhanced IBRS", "absent") in found.differences
    assert "date" not in [name for name, *_ in found.differences]
    assert any("Time is virtual" in note for note in tables.comparison_notes(found))


def test_reports_with_nothing_in_common_are_refused() -> None:
    with pytest.raises(CompareError, match=r"'bench syscall'.*'bench exit'"):
        compare(made_up.report(), made_up.report(benchmark="exit"))
    with pytest.raises(CompareError, match="no row in common"):
        compare(of(made_up.row("path", "long64", "a")), of(made_up.row("path", "long64", "b")))
    twins = of(made_up.row("path", "long64", "a"), made_up.row("path", "long64", "a", seed=1))
    with pytest.raises(CompareError, match="two rows of the same"):
        compare(twins, twins)
