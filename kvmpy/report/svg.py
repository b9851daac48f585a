"""Drawing as SVG: elements as strings, their text escaped, their colours a style sheet's to change.

Elements carry a class that a page gives a colour (:data:`CLASSES`), and colours of their own for
where a picture stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from .table import printable

#: Classes that pages know, and the colours of a picture that stands alone. The eight of "lane" are
#: told apart by colour-blind readers too, and in grey (Okabe and Ito).
CLASSES: Final = {
    "ink": "#1b1f24",
    "dim": "#5f6670",
    "grid": "#d8dbe0",
    "paper": "#ffffff",
    "good": "#1a7f4b",
    "warn": "#9a6700",
    "bad": "#b3261e",
    "lane0": "#0072b2",
    "lane1": "#e69f00",
    "lane2": "#009e73",
    "lane3": "#cc79a7",
    "lane4": "#56b4e9",
    "lane5": "#d55e00",
    "lane6": "#f0e442",
    "lane7": "#999999",
}


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """An SVG element of ``width`` by ``height`` units, which a page scales to its own width.

    ``label``: what it shows, for who cannot see it.

    >>> kvmpy.report.svg.drawing(10, 5, "nothing", [])[:31]
    '<svg xmlns="http://www.w3.org/2'
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
            f'role="img" font-family="sans-serif" font-size="12" fill="{CLASSES["ink"]}" '
            f'aria-label="{escape(printable(label))}">',
            *parts,
            "</svg>",
        ]
    )


def text(
    x: float, y: float, words: str, *, kind: str = "ink", anchor: str = "start", size: float = 12
) -> str:
    """Words with their baseline at ``y``; ``anchor``: start, middle or end, which is at ``x``.

    >>> kvmpy.report.svg.text(1, 2, "a<b", kind="dim").endswith(">a&lt;b</text>")
    True
    """
    return (
        f'<text class="{kind}" fill="{CLASSES[kind]}" x="{x:.1f}" y="{y:.1f}" '
        f'text-anchor="{anchor}" font-size="{size:g}">{escape(printable(words))}</text>'
    )


def box(
    x: float, y: float, width: float, height: float, *, kind: str, title: str = "",
    outline: bool = False,
) -> str:  # fmt: skip
    """A rectangle, filled or as an ``outline``; ``title`` is shown under a pointer.

    >>> kvmpy.report.svg.box(0, 0, 4, 2, kind="lane0")
    '<rect class="lane0" fill="#0072b2" x="0.0" y="0.0" width="4.0" height="2.0"/>'
    """
    colour = CLASSES[kind]
    paint = f'fill="none" stroke="{colour}"' if outline else f'fill="{colour}"'
    name = f"{kind} outline" if outline else kind
    shape = (
        f'<rect class="{name}" {paint} x="{x:.1f}" y="{y:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}"'
    )
    return f"{shape}><title>{escape(printable(title))}</title></rect>" if title else f"{shape}/>"


def line(
    x1: float, y1: float, x2: float, y2: float, *, kind: str = "ink", width: float = 1,
    dashed: bool = False,
) -> str:  # fmt: skip
    """A straight line.

    >>> kvmpy.report.svg.line(0, 0, 9, 0, kind="grid")[:28]
    '<line class="grid outline" s'
    """
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return (
        f'<line class="{kind} outline" stroke="{CLASSES[kind]}" stroke-width="{width:g}"{dashes} '
        f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float, *, kind: str = "ink") -> str:
    """A line with a head at its end.

    >>> kvmpy.report.svg.arrow(0, 0, 10, 0).count("<path")
    1
    """
    length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-9)
    dx, dy = 6 * (x2 - x1) / length, 6 * (y2 - y1) / length
    head = (
        f"M{x2:.1f} {y2:.1f}L{x2 - dx - dy / 2:.1f} {y2 - dy + dx / 2:.1f}"
        f"L{x2 - dx + dy / 2:.1f} {y2 - dy - dx / 2:.1f}z"
    )
    return (
        line(x1, y1, x2, y2, kind=kind)
        + f'<path class="{kind}" fill="{CLASSES[kind]}" d="{head}"/>'
    )
