"""What becomes of the sensitive instructions, as a bar for each place a kernel can be put."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ...report import svg
from ...report.blocks import Picture

#: verdict -> colour, letter in the text, words.
_KINDS: Final = {
    "traps": ("good", "#", "traps"),
    "leaks": ("warn", "o", "leaks"),
    "differs": ("bad", "x", "differs, silently"),
    "own": ("lane0", "=", "runs on the guest's own"),
    "": ("grid", ".", "not shown"),
}
_WIDTH: Final = 440
_BAR: Final = 28
_STEP: Final = 58

#: verdict -> how many instructions.
Counts = Mapping[str, int]


def picture(bars: Mapping[str, Counts]) -> Picture:
    """``bars``: where the kernel is -> what its instructions do there."""
    return Picture(
        _drawn(bars),
        _text(bars),
        "A monitor can emulate what traps, and nothing else. In non-root ring 0 it need not.",
    )


def _drawn(bars: Mapping[str, Counts]) -> str:
    parts = []
    for row, (place, counts) in enumerate(bars.items()):
        y = 20.0 + row * _STEP
        parts.append(svg.text(0, y - 6, place, size=14))
        total, x = sum(counts.values()), 0.0
        for verdict, number in _present(counts):
            kind = _KINDS[verdict][0]
            width = number / total * _WIDTH
            shade = "paper" if verdict else "ink"
            parts.append(svg.box(x, y, width - 2, _BAR, kind=kind, title=_KINDS[verdict][2]))
            middle = x + width / 2 - 1
            parts.append(
                svg.text(middle, y + 19, str(number), kind=shade, anchor="middle", size=14)
            )
            x += width
    y = len(bars) * _STEP + 6.0
    x = 0.0
    for verdict, (kind, _, words) in _KINDS.items():
        if any(counts.get(verdict) for counts in bars.values()):
            width = 28 + 7.0 * len(words)
            if x + width > _WIDTH:
                x, y = 0.0, y + 20
            parts.append(svg.box(x, y, 12, 12, kind=kind))
            parts.append(svg.text(x + 17, y + 11, words, size=13))
            x += width + 8
    return svg.drawing(_WIDTH, y + 20, "A kernel's sensitive instructions: what they do", parts)


def _text(bars: Mapping[str, Counts]) -> str:
    width = max(map(len, bars))
    lines = []
    for place, counts in bars.items():
        bar = " ".join(_KINDS[verdict][1] * number for verdict, number in _present(counts))
        lines.append(f"{place:{width}}  {bar}")
    legend = (
        f"{letter} {words}"
        for verdict, (_, letter, words) in _KINDS.items()
        if any(counts.get(verdict) for counts in bars.values())
    )
    return "\n".join([*lines, "", "  ".join(legend)])


def _present(counts: Counts) -> list[tuple[str, int]]:
    return [(verdict, counts[verdict]) for verdict in _KINDS if counts.get(verdict)]
