"""Distributions drawn as SVG: a violin for each row on one logarithmic axis, and a closer look.

The violins show where a row lies and how far its tail reaches; the histogram at the right of each
shows its shape, from the minimum to the fence beyond which a batch was disturbed.
Colours are attributes, which a style sheet overrides.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from ..report.table import number, printable
from .figures import Figure

WIDTH: Final = 960
_LABEL, _ZOOM, _GAP = 190, 170, 24  # pixels: the labels' column, the histogram's, between them
_ROW, _TOP, _BOTTOM = 36, 8, 26
_BIN = 2  # pixels
_LEFT, _RIGHT = _LABEL, WIDTH - _ZOOM - _GAP
_HALF = 10  # of the tallest violin
_ZOOM_BINS = 34
_FINE: Final = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)  # marks of an axis of less than a decade


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis over whole steps of 1, 2, 5."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Axis:
        low, high = _step_below(min(values)), _step_above(max(values))
        return cls(low, high if high > low else _step_above(low * 1.5))

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return _LEFT + share * (_RIGHT - _LEFT)

    def marks(self) -> list[float]:
        marks = list(_steps(self.low, self.high))
        if len(marks) < 4:
            marks = list(_steps(self.low, self.high, _FINE))
        elif len(marks) > 12:  # decades alone, and not all of them if they are many
            decades = [m for m in marks if f"{m:e}".startswith("1.0")]
            marks = decades[:: len(decades) // 12 + 1]
        return marks


def _steps(low: float, high: float, digits: Sequence[float] = (1, 2, 5)) -> Iterable[float]:
    exponent = math.floor(math.log10(low))
    while 10.0**exponent <= high:
        for digit in digits:
            value = float(f"{digit}e{exponent}")
            if low <= value <= high:
                yield value
        exponent += 1


def _step_below(value: float) -> float:
    exponent = math.floor(math.log10(value))
    # float() of the text, not 10 ** exponent: this is the exact decimal, the same everywhere.
    return max(
        (step for digit in (1, 2, 5) if (step := float(f"{digit}e{exponent}")) <= value),
        default=float(f"5e{exponent - 1}"),
    )


def _step_above(value: float) -> float:
    exponent = math.floor(math.log10(value))
    steps = [float(f"{digit}e{exponent}") for digit in (1, 2, 5, 10)]
    return next((step for step in steps if step > value), steps[-1])


def distributions(
    found: Iterable[Figure], unit: str = "ns", among: Iterable[Figure] | None = None
) -> str:
    """An SVG element with a line for each figure that has samples; "" if none has.

    ``unit``: "ns", or "ticks" for all that can be in ticks only. The figures of a drawing share an
    axis, so they must be of one class (see :mod:`kvmpy.bench.figures`); ``among``: the figures of
    all drawings that are to have the same axis. Slopes that noise made 0 or less have no place on a
    logarithmic axis: their number is said.

    >>> figures = kvmpy.bench.figures.figures(report)[:2]
    >>> kvmpy.bench.svg.distributions(figures).count('class="violin"')
    2
    """
    drawn = [(figure, _values(figure)) for figure in found if figure.summary]
    positive = [value for _, values in drawn for value in values if value > 0]
    if not positive:
        return ""
    wider = [v for figure in among or () if figure.summary for v in _values(figure) if v > 0]
    axis = _Axis.over(positive + wider)
    height = _TOP + _ROW * len(drawn) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#1b1f24" '
        f'aria-label="Distributions, {unit} a call, logarithmic axis">',
        *_grid(axis, height - _BOTTOM, unit),
    ]
    for i, (figure, values) in enumerate(drawn):
        parts += _line(figure, values, axis, _TOP + _ROW * i + _ROW / 2)
    return "\n".join([*parts, "</svg>"])


def _values(figure: Figure) -> list[float]:
    scale = 1.0 if figure.ns is None else figure.ns
    return sorted(value * scale for value in figure.row.per_call)


def _grid(axis: _Axis, bottom: float, unit: str) -> Iterable[str]:
    for mark in axis.marks():
        x = axis.at(mark)
        yield (
            f'<line class="grid" stroke="#d8dbe0" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" '
            f'y2="{bottom:.1f}"/>'
        )
        yield _note(x, bottom + 16, _mark(mark), "middle")
    yield _note(_LEFT - 40, bottom + 16, unit)
    yield _note(_RIGHT + _GAP, bottom + 16, "closer: undisturbed")


def _note(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text class="mark" font-size="10" fill="#667" x="{x:.1f}" y="{y:.1f}" '
        f'text-anchor="{anchor}">{escape(printable(text))}</text>'
    )


def _mark(value: float) -> str:
    return number(value).replace(".0", "") if value >= 10 else f"{value:g}"


def _line(figure: Figure, values: Sequence[float], axis: _Axis, y: float) -> Iterable[str]:
    summary = figure.summary
    assert summary is not None
    scale = 1.0 if figure.ns is None else figure.ns
    low, high = (fence * scale for fence in summary.fences)
    middle = summary.median * scale
    shown = [value for value in values if value > 0]
    told = (
        f"{figure.mode} {figure.label}: median {number(middle)}, "
        f"{len(values)} batches of {figure.row.calls} calls, {summary.groups} VMs"
    )
    yield f"<g><title>{escape(printable(told))}</title>"
    yield f'<text x="0" y="{y - 1:.1f}">{escape(printable(figure.label))}</text>'
    missing = len(values) - len(shown)
    below = f"{figure.mode}; {missing} at 0 or less" if missing else figure.mode
    yield _note(0, y + 12, below)
    if shown:
        yield from _violin(shown, low, high, axis, y)
    if middle > 0:
        x = axis.at(middle)
        yield f'<path class="median" fill="#b3261e" d="M{x:.1f} {y - 10:.1f}l-4 -6h8z"/>'
    yield from _zoom(values, summary.floor * scale, high, middle, y)
    yield "</g>"


def _violin(
    values: Sequence[float], low: float, high: float, axis: _Axis, y: float
) -> Iterable[str]:
    """Bins of 2 pixels; heights by the square root of the count, so that one batch still shows."""
    first, last = bisect_left(values, low), bisect_right(values, high)
    bins = Counter(int((axis.at(value) - _LEFT) / _BIN) for value in values)
    tallest = max(bins.values())
    parts = (
        ("violin", "#2f6fb3", values[first:last]),
        ("tail", "#d9822b", [*values[:first], *values[last:]]),
    )
    for name, colour, part in parts:
        found = Counter(int((axis.at(value) - _LEFT) / _BIN) for value in part)
        path = "".join(
            f"M{_LEFT + _BIN * n} {y - half:.1f}h{_BIN}v{2 * half:.1f}h-{_BIN}z"
            for n, count in sorted(found.items())
            for half in (max(1.2, _HALF * math.sqrt(count / tallest)),)
        )
        if path:
            yield f'<path class="{name}" fill="{colour}" d="{path}"/>'


def _zoom(
    values: Sequence[float], low: float, high: float, middle: float, y: float
) -> Iterable[str]:
    """A histogram from ``low`` to ``high`` on an axis of its own, with its bounds beneath it."""
    left, base = _RIGHT + _GAP, y + 6
    if not high > low:
        return
    width = (_ZOOM - 4) / _ZOOM_BINS
    counts = Counter(
        min(_ZOOM_BINS - 1, int((value - low) / (high - low) * _ZOOM_BINS))
        for value in values
        if low <= value <= high
    )
    tallest = max(counts.values())
    path = "".join(
        f"M{left + n * width:.1f} {base:.1f}v-{20 * count / tallest:.1f}"
        f"h{width - 0.6:.1f}V{base:.1f}z"
        for n, count in sorted(counts.items())
    )
    x = left + (middle - low) / (high - low) * (_ZOOM - 4)
    yield f'<path class="histogram" fill="#2f6fb3" d="{path}"/>'
    yield f'<path class="median" fill="#b3261e" d="M{x - 0.75:.2f} {base + 2:.1f}v-23h1.5v23z"/>'
    yield _note(left, base + 10, number(low))
    yield _note(left + _ZOOM - 4, base + 10, number(high), "end")
