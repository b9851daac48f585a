"""One row of the table: what was measured, its samples, its limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

from .stats import Estimate, Kind, compare, mad


@dataclass(frozen=True)
class Row:
    """Samples are in ``unit``; ``limit`` is a factor for a ratio, else in ``unit``; None: no limit
    was set, the row explains another one. ``bare`` is empty where there is nothing to compare."""

    name: str
    kind: Kind
    unit: str
    limit: float | None
    ours: Sequence[float]
    bare: Sequence[float] = field(default=())

    @cached_property
    def estimate(self) -> Estimate:
        """The ratio, difference or value that the limit is about."""
        return compare(self.kind, self.bare, self.ours)

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        return None if self.limit is None else self.estimate.value <= self.limit

    def record(self) -> dict[str, Any]:
        """For JSON, samples included."""
        estimate = self.estimate
        result = {
            "name": self.name,
            "kind": self.kind,
            "unit": self.unit,
            "estimate": estimate.value,
            "confidence_interval": [estimate.low, estimate.high],
            "limit": self.limit,
            "met": self.met,
        }
        for name, samples in (("kvmpy", self.ours), ("bare", self.bare)):
            if samples:
                spread = {"median": median(samples), "mad": mad(samples)}
                result[name] = {**spread, "samples": list(samples)}
        return result


def alternate(
    subjects: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """``rounds`` samples of each subject, taken in turns; who begins changes from round to round,
    so that nobody always runs in the wake of the same other."""
    names = list(subjects)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            value = subjects[name]()
            if number >= 0:
                samples[name].append(value)
    return samples


_HEADER = ("", "{peer}", "kvmpy", "kvmpy to {peer}", "95 % interval", "limit", "met")


def _number(value: float, unit: str) -> str:
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f} {unit}"


def _cells(row: Row) -> tuple[str, ...]:
    estimate = row.estimate
    factor = row.kind == "ratio"

    def show(value: float) -> str:
        sign = "+" if row.kind == "difference" and value >= 0 else ""
        return f"{value:.3f}x" if factor else sign + _number(value, row.unit)

    limit = "" if row.limit is None else f"{row.limit:g}x" if factor else show(row.limit)
    return (
        row.name,
        _number(median(row.bare), row.unit) if row.bare else "",
        _number(median(row.ours), row.unit),
        show(estimate.value) if row.bare else "",
        f"{show(estimate.low)} .. {show(estimate.high)}",
        f"<= {limit}" if limit else "",
        {True: "yes", False: "NO", None: ""}[row.met],
    )


def table(rows: Sequence[Row], peer: str = "bare C") -> str:
    """The rows as text, columns aligned. ``peer``: what kvmpy is compared with."""
    lines = [tuple(cell.format(peer=peer) for cell in _HEADER), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        name, *cells = line
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)
