"""Two-level scheduling as a picture: pCPU lanes, the vCPUs on them, the guest threads on those."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from typing import Final

from ..report import svg
from ..report.blocks import Picture
from .lanes import Lane, Part, lanes, window, within
from .result import Result
from .timeline import Span

#: One character for each vCPU.
NAMES: Final = string.digits + string.ascii_letters + "@&"
RUNS, WAITS, NOBODY = "#", "-", "."

#: Characters of a line before its bars, which take the rest of 79.
LABEL: Final = 13
_BARS: Final = 64
_MOST_LANES: Final = 60  # of threads: more are left out
_INDENT: Final = ("", " ", "   ")

_LEFT, _WIDTH, _ROW = 84, 430, 18  # units of the drawing
_MOST_PARTS: Final = 4000  # boxes in one drawing, about 0.5 MB


def picture(result: Result, span: Span | None = None) -> Picture:
    """Who ran when, from ``span[0]`` to ``span[1]`` ns, by default a part of the run's middle.

    >>> print(kvmpy.sched.gantt.picture(sched_result).text.splitlines()[0][:40])
    pCPU 0       000001111111111100000000000
    """
    start, end = span or window(result)
    shown = visible(result)
    caption = (
        f"{_ms(end - start)} of {_ms(result.wall)} ms on {result.module}: vCPUs take turns on a "
        "pCPU, guest threads take turns on a vCPU."
    )
    return Picture(_drawing(shown, start, end), "\n".join(_text(shown, start, end)), caption)


def visible(result: Result) -> list[Lane]:
    """The lanes of the picture: those of guest threads only where there are not too many.

    >>> len(kvmpy.sched.gantt.visible(sched_result))
    7
    """
    return lanes(result, threads=len(result.vcpus) * result.threads <= _MOST_LANES)


def _ms(ns: float) -> str:
    return f"{ns / 1e6:.1f}" if ns < 1e8 else f"{ns / 1e6:.0f}"


# -- text


def _text(shown: Sequence[Lane], start: int, end: int) -> Iterator[str]:
    for lane in shown:
        label = _INDENT[lane.level] + lane.label
        yield f"{label:<{LABEL}}{_bar(lane, start, end)}".rstrip()
    first, last = f"{_ms(start)} ms", f"{_ms(end)} ms"
    yield " " * LABEL + first + " " * (_BARS - len(first) - len(last)) + last
    yield f"{RUNS} runs   {WAITS} has its vCPU, which waits for the pCPU   {NOBODY} none of these"


def _bar(lane: Lane, start: int, end: int) -> str:
    """A character for each column: what fills most of it, if anything fills half. What is shorter
    than a column counts for half of the one it is in: however short, it is there."""
    columns: list[dict[str, float]] = [{} for _ in range(_BARS)]
    scale = _BARS / (end - start)
    for part in within(lane.parts, start, end):
        left, right = (part.start - start) * scale, (part.end - start) * scale
        for column in range(int(left), min(int(right) + 1, _BARS)):
            covered = min(right, column + 1) - max(left, column)
            if right - left < 1 and int((left + right) / 2) == column:
                covered = max(covered, 0.5)
            mark = _mark(lane, part)
            columns[column][mark] = columns[column].get(mark, 0.0) + covered
    empty = NOBODY if lane.level == 0 else " "
    return "".join(_most(column, empty) for column in columns)


def _mark(lane: Lane, part: Part) -> str:
    if lane.level == 0:
        return NAMES[part.vcpu % len(NAMES)]
    return RUNS if part.mark == "runs" else WAITS


def _most(column: dict[str, float], empty: str) -> str:
    if sum(column.values()) < 0.5:
        return empty
    return max(column, key=lambda mark: column[mark])


# -- drawing


def colour(vcpu: int) -> str:
    """The class of a vCPU's colour (``kvmpy.report.svg.CLASSES``).

    >>> kvmpy.sched.gantt.colour(9)
    'lane1'
    """
    return f"lane{vcpu % 8}"


def _drawing(shown: Sequence[Lane], start: int, end: int) -> str:
    height = _ROW * len(shown) + 54
    label = f"who ran from {_ms(start)} to {_ms(end)} ms: pCPUs, vCPUs, guest threads"
    return svg.drawing(_LEFT + _WIDTH + 14, height, label, _elements(shown, start, end))


def _elements(shown: Sequence[Lane], start: int, end: int) -> Iterator[str]:
    bottom = _ROW * len(shown) + 6
    for i in range(5):
        x = _LEFT + _WIDTH * i / 4
        yield svg.line(x, 4, x, bottom, kind="grid")
        at = start + (end - start) * i / 4
        yield _tick(i, bottom + 14, at)
    yield from _legend(bottom + 34)
    room = max(1, _MOST_PARTS // max(1, len(shown)))
    for row, lane in enumerate(shown):
        yield from _row(lane, 6 + _ROW * row, start, end, room)


def _legend(y: float) -> Iterator[str]:
    yield svg.box(_LEFT, y - 8, 24, 8, kind="dim")
    yield svg.text(_LEFT + 30, y, "runs", kind="dim", size=11)
    yield svg.line(_LEFT + 80, y - 4, _LEFT + 104, y - 4, kind="dim", width=1.5)
    yield svg.text(_LEFT + 110, y, "has its vCPU, which waits for the pCPU", kind="dim", size=11)


def _tick(quarter: int, y: float, ns: float) -> str:
    x = _LEFT + _WIDTH * quarter / 4
    anchor = "end" if quarter == 4 else "middle"
    return svg.text(x, y, f"{_ms(ns)} ms", kind="dim", anchor=anchor, size=11)


def _row(lane: Lane, y: float, start: int, end: int, room: int) -> Iterator[str]:
    size = (12, 12, 11)[lane.level]
    yield svg.text(4 + 10 * lane.level, y + 11, lane.label, size=size,
                   kind="dim" if lane.level == 2 else "ink")  # fmt: skip
    scale = _WIDTH / (end - start)
    # What is too small to see is joined to its neighbour.
    step = max(0.3 / scale, (end - start) / room)
    height = (13, 11, 8)[lane.level]
    for part in joined(list(within(lane.parts, start, end)), step):
        x, width = _LEFT + (part.start - start) * scale, (part.end - part.start) * scale
        kind = colour(part.vcpu)
        if part.mark == "waits":
            yield svg.line(x, y + 6, x + width, y + 6, kind=kind, width=1.5)
        else:
            title = f"vCPU {part.vcpu}, {lane.label}: {_ms(part.start)} to {_ms(part.end)} ms"
            yield svg.box(x, y + (13 - height) / 2, max(width, 0.3), height, kind=kind, title=title)


def joined(parts: Sequence[Part], step: float) -> list[Part]:
    """Neighbours of one vCPU and mark put together where less than ``step`` ns lie between their
    begins: at most one part a step and vCPU is left.

    >>> from kvmpy.sched.lanes import Part
    >>> kvmpy.sched.gantt.joined([Part(0, 1, 0), Part(2, 3, 0), Part(50, 60, 0)], step=10)
    [Part(start=0, end=3, vcpu=0, mark='runs'), Part(start=50, end=60, vcpu=0, mark='runs')]
    """
    found: list[Part] = []
    open_: dict[tuple[int, str], int] = {}
    for part in parts:
        key = part.vcpu, part.mark
        index = open_.get(key)
        if index is not None and part.start - found[index].start < step:
            found[index] = Part(found[index].start, part.end, *key)
        else:
            open_[key] = len(found)
            found.append(part)
    return found


# -- the whole run


def shares(result: Result, bins: int = 80) -> Picture:
    """How much of each pCPU each of its vCPUs had, over the whole run, in ``bins`` columns.

    >>> kvmpy.sched.gantt.shares(sched_result, bins=4).text.splitlines()[0][:20]
    'pCPU 0       vCPU 0 '
    """
    shown = [lane for lane in lanes(result, threads=False) if lane.level == 0]
    end = max(1, result.wall)
    drawn: list[str] = []
    texts: list[str] = []
    for row, lane in enumerate(shown):
        top = 4 + 66 * row
        drawn.append(svg.text(4, top + 34, lane.label))
        drawn.append(svg.box(_LEFT, top, _WIDTH, 60, kind="grid", outline=True))
        totals = _bins(lane.parts, end, bins)
        drawn += _stacked(totals, top, end / bins)
        texts += _share_lines(lane, totals, end)
    bottom = 66 * len(shown)
    drawn += (_tick(i, bottom + 14, end * i / 4) for i in range(5))
    label = "share of each pCPU's time, by vCPU"
    return Picture(
        svg.drawing(_LEFT + _WIDTH + 14, bottom + 22, label, drawn),
        "\n".join(texts),
        "The whole run: how much of its pCPU's time each vCPU had. The rest others had, or nobody.",
    )


def _bins(parts: Sequence[Part], end: int, bins: int) -> list[dict[int, float]]:
    """For each of ``bins`` columns, ns by vCPU."""
    totals: list[dict[int, float]] = [{} for _ in range(bins)]
    for part in parts:
        first, last = part.start * bins // end, part.end * bins // end
        for column in range(max(0, first), min(bins - 1, last) + 1):
            low, high = column * end / bins, (column + 1) * end / bins
            covered = max(0.0, min(part.end, high) - max(part.start, low))
            totals[column][part.vcpu] = totals[column].get(part.vcpu, 0.0) + covered
    return totals


def _stacked(totals: Sequence[dict[int, float]], top: float, width: float) -> Iterator[str]:
    step = _WIDTH / len(totals)
    for column, by_vcpu in enumerate(totals):
        y = top + 60.0
        for vcpu in sorted(by_vcpu):
            height = 60 * min(1.0, by_vcpu[vcpu] / width)
            y -= height
            yield svg.box(_LEFT + column * step, y, step + 0.1, height, kind=colour(vcpu))


def _share_lines(lane: Lane, totals: Sequence[dict[int, float]], end: int) -> Iterator[str]:
    vcpus = sorted({vcpu for column in totals for vcpu in column})
    for i, vcpu in enumerate(vcpus):
        share = sum(column.get(vcpu, 0.0) for column in totals) / end
        label = lane.label if i == 0 else ""
        name = f"vCPU {vcpu}"
        yield f"{label:<{LABEL}}{name:<8} {RUNS * round(share * 40):<40} {share:6.1%}"
