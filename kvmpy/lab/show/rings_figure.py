"""The matrix of modes and rings, and who lives where, as a picture."""

from __future__ import annotations

from typing import Final

from ...report import svg
from ...report.blocks import Picture

_IDLE: Final = ("the guest's to use", "hardly any does")
#: Of rings 3, 2, 1, 0: who lives there in root mode, in non-root mode; a second line for each.
_LIVES: Final = {
    3: (("host's programs", "kvmpy, QEMU, shells"), ("guest's programs", "")),
    2: (("nobody today", "OS/2: code with I/O privilege"), _IDLE),
    1: (("nobody today", "before VT-x: guest kernels"), _IDLE),
    0: (("host's kernel", "and KVM in it"), ("guest's kernel", "")),
}  # fmt: skip
#: How many instructions a ring may run, of how many; how many exit, None where not counted.
Count = tuple[int, int, int | None]

_LABEL: Final = 44
_WIDTH: Final = 188
_GAP: Final = 14
_HEIGHT: Final = 58
_STEP: Final = 66
_TOP: Final = 30
_SIZE: Final = 13


def picture(counts: tuple[Count | None, ...]) -> Picture:
    """``counts``: of non-root rings 0, 1, 2, 3, and of root ring 3."""
    return Picture(
        _drawn(counts),
        _text(counts),
        "Who lives in which ring, and how many of the instructions below each may run. A VM exit "
        "leads from any non-root ring to root ring 0, VM entry back.",
    )


def _may_run(counts: tuple[Count | None, ...], ring: int, *, root: bool) -> str:
    count = counts[4] if root and ring == 3 else None if root else counts[ring]
    if count is None:
        return ""
    runs, total, exits = count
    return f"may run {runs} of {total}" + (f", {exits} exiting" if exits else "")


def _drawn(counts: tuple[Count | None, ...]) -> str:
    right = _LABEL + _WIDTH + _GAP
    parts = [
        svg.text(_LABEL + _WIDTH / 2, 18, "root mode", kind="lane0", anchor="middle", size=15),
        svg.text(right + _WIDTH / 2, 18, "non-root mode", kind="lane5", anchor="middle", size=15),
    ]
    for row, (ring, (root, guest)) in enumerate(_LIVES.items()):
        y = _TOP + row * _STEP
        parts.append(svg.text(0, y + _HEIGHT / 2 + 4, f"ring {ring}", kind="dim", size=_SIZE))
        parts += _cell(_LABEL, y, root, _may_run(counts, ring, root=True), "lane0", ring)
        parts += _cell(right, y, guest, _may_run(counts, ring, root=False), "lane5", ring)
    bottom = _TOP + 4 * _STEP + 8
    parts += [
        svg.arrow(right + 30, bottom, _LABEL + _WIDTH - 30, bottom, kind="bad"),
        svg.text(right + 36, bottom + 4, "VM exit, from any ring", kind="bad", size=_SIZE),
        svg.arrow(_LABEL + _WIDTH - 30, bottom + 20, right + 30, bottom + 20, kind="good"),
        svg.text(_LABEL + _WIDTH - 36, bottom + 24, "VM entry, from ring 0", kind="good",
                 anchor="end", size=_SIZE),
    ]  # fmt: skip
    label = "Two modes with four rings each: who lives where"
    return svg.drawing(right + _WIDTH + 2, bottom + 34, label, parts)


def _cell(x: float, y: float, lines: tuple[str, str], last: str, kind: str, ring: int) -> list[str]:
    shown = [line for line in (*lines[1:], last) if line]
    middle = x + _WIDTH / 2
    first = y + (_HEIGHT - 16 * len(shown)) / 2 + 4
    return [
        svg.box(x, y, _WIDTH, _HEIGHT, kind="grid" if ring in (1, 2) else kind, outline=True),
        svg.text(middle, first, lines[0], anchor="middle", size=_SIZE),
        *(
            svg.text(middle, first + 16 * (i + 1), line, kind="dim", anchor="middle", size=12)
            for i, line in enumerate(shown)
        ),
    ]


def _text(counts: tuple[Count | None, ...]) -> str:
    rule = "       +" + 2 * ("-" * 33 + "+")
    lines = [f"        {'root mode':^33} {'non-root mode':^33}".rstrip(), rule]
    for ring, (root, guest) in _LIVES.items():
        lines.append(f"ring {ring} | {root[0]:31} | {guest[0]:31} |")
        for left, right in (
            (root[1], guest[1]),
            (_may_run(counts, ring, root=True), _may_run(counts, ring, root=False)),
        ):
            if left or right:
                lines.append(f"       | {left:31} | {right:31} |")
        lines.append(rule)
    lines.append(f"       {'<------ VM exit, from any ring':^69}".rstrip())
    lines.append(f"       {'VM entry, from ring 0 ------>':^69}".rstrip())
    return "\n".join(lines)
