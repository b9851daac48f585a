"""Two reports compared, row by row: by how much, how sure, and whether it may be chance.

The unit is the VM: the medians of the VMs of one run against those of the other, so that a row
with thousands of batches from a few VMs is not surer than it should be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Literal

from ..errors import KvmpyError
from .document import Report
from .figures import MODES, Class, by_vm, classify, figure, rate
from .record import Disclosure, Row
from .shift import MannWhitney, hodges_lehmann, holm, mann_whitney
from .stats import Interval

#: Differences with a p below this, adjusted for the number of rows, are shown as such.
ALPHA: Final = 0.05
#: With fewer VMs on a side no p survives the adjustment for a table of 40 rows.
MIN_VMS: Final = 8
#: Of the disclosure: what differs between any two runs. The verdict's text has times in it; what
#: it says is in other fields too.
_EXPECTED: Final = ("date", "load_average", "verdict")

Finding = Literal["slower", "faster", "no difference shown", "not compared"]


class CompareError(KvmpyError, ValueError):
    """Two reports that have nothing in common to compare."""


@dataclass(frozen=True)
class Delta:
    """One row in both reports.

    ``shift``: how much the second is slower, in ``unit`` ("ns", or "ticks" where the rate of a TSC
    is not known), negative if faster. ``relative``: the shift as a share of the first median.
    ``test``: with the p of this row alone; ``p``: adjusted for all rows that were compared (Holm).
    ``units``: "VMs", or "batches" where there are too few VMs: p is then smaller than it should
    be, as batches of a VM are not independent. All None if not compared; ``reason`` says why, and
    ``alike`` whether both failed in the same way.
    """

    label: str
    mode: str
    kind: Class
    unit: str = "ns"
    before: float | None = None
    after: float | None = None
    shift: Interval | None = None
    relative: float | None = None
    test: MannWhitney | None = None
    p: float | None = None
    units: str = ""
    reason: str = ""
    alike: bool = False

    @property
    def finding(self) -> Finding:
        """In words. "No difference shown" is not "no difference": the interval says what
        difference there may still be.

        >>> kvmpy.bench.compare.compare(report, report).deltas[0].finding
        'no difference shown'
        """
        if self.shift is None or self.p is None:
            return "not compared"
        if self.p >= ALPHA or self.shift.low <= 0 <= self.shift.high:
            return "no difference shown"
        return "slower" if self.shift.value > 0 else "faster"


@dataclass(frozen=True)
class Comparison:
    """``deltas`` in the first report's order, then the rows that only the second has.
    ``differences``: fields of the disclosures that are not the same, as (name, first, second)."""

    deltas: tuple[Delta, ...]
    differences: tuple[tuple[str, str, str], ...]
    virtual_time: bool


def compare(first: Report, second: Report) -> Comparison:
    """Compare the rows that two reports have in common; the other rows are named.

    Raises CompareError if they are of different benchmarks, or have no row in common.

    >>> found = kvmpy.bench.compare.compare(report, report)
    >>> {delta.finding for delta in found.deltas} == {"no difference shown", "not compared"}
    True
    """
    if first.benchmark != second.benchmark:
        raise CompareError(
            f"one report is of 'bench {first.benchmark}', the other of 'bench {second.benchmark}'"
        )
    ours, theirs = _by_key(first), _by_key(second)
    if not ours.keys() & theirs.keys():
        raise CompareError("the two reports have no row in common")
    disclosures = first.disclosure, second.disclosure
    deltas = [_delta(ours.get(key), theirs.get(key), disclosures) for key in {**ours, **theirs}]
    return Comparison(
        tuple(_adjusted(deltas)),
        tuple(_differences(*disclosures)),
        first.disclosure.virtual_time or second.disclosure.virtual_time,
    )


def _by_key(report: Report) -> dict[tuple[str, str, str, str, str], Row]:
    rows = {row.key: row for row in report.rows}
    if len(rows) < len(report.rows):
        raise CompareError("a report has two rows of the same kind, mode, path, rung and measure")
    return rows


def _delta(
    before: Row | None, after: Row | None, disclosures: tuple[Disclosure, Disclosure]
) -> Delta:
    row = before or after
    assert row is not None
    label = figure(replace(row, samples=(), vms=(), alignments=()), disclosures[0]).label
    bare = Delta(label, MODES.get(row.mode, row.mode), classify(row))
    if before is None or after is None:
        return replace(bare, reason=f"only in the {'second' if before is None else 'first'} report")
    if before.outcome != after.outcome or before.failure != after.failure:
        was, now = (row.failure or row.outcome for row in (before, after))
        return replace(bare, reason=f"{was} before, {now} now")
    if before.outcome == "fails":
        return replace(bare, reason=before.failure, alike=True)
    if not (before.samples and after.samples):
        return replace(bare, reason="no samples")
    return _measured(bare, before, after, disclosures)


def _measured(
    bare: Delta, before: Row, after: Row, disclosures: tuple[Disclosure, Disclosure]
) -> Delta:
    rates = rate(before, disclosures[0]), rate(after, disclosures[1])
    known = None not in rates
    if not known and before.unit != after.unit:
        return replace(bare, reason="in ticks and in ns, and the rate of a TSC is not known")
    scales = [ns if known and ns else 1.0 for ns in rates]
    units, *sides = _units(before, after)
    xs, ys = ([x * scale for x in side] for side, scale in zip(sides, scales, strict=True))
    shift = hodges_lehmann(xs, ys)
    middle = median(xs)
    return replace(
        bare,
        unit="ns" if known else "ticks",
        before=middle,
        after=median(ys),
        shift=shift,
        relative=shift.value / middle if middle else None,
        test=mann_whitney(xs, ys),
        units=units,
    )


def _units(before: Row, after: Row) -> tuple[str, list[float], list[float]]:
    groups = by_vm(before), by_vm(after)
    if min(map(len, groups)) >= MIN_VMS:
        xs, ys = ([float(median(group)) for group in side] for side in groups)
        return "VMs", xs, ys
    return "batches", list(before.per_call), list(after.per_call)


def _adjusted(deltas: Sequence[Delta]) -> list[Delta]:
    adjusted = iter(holm([delta.test.p for delta in deltas if delta.test]))
    return [replace(delta, p=next(adjusted)) if delta.test else delta for delta in deltas]


def _differences(first: Disclosure, second: Disclosure) -> list[tuple[str, str, str]]:
    found = []
    for field in dataclasses.fields(Disclosure):
        pair = getattr(first, field.name), getattr(second, field.name)
        if pair[0] == pair[1] or field.name in _EXPECTED:
            continue
        if isinstance(pair[0], dict) and isinstance(pair[1], dict):
            for key in sorted(pair[0].keys() | pair[1].keys()):
                before, after = (str(side.get(key, "absent")) for side in pair)
                if before != after:
                    found.append((f"{field.name}.{key}", before, after))
        else:
            found.append((field.name, str(pair[0]), str(pair[1])))
    return found
