"""Tables of text cells, and numbers as their cells, for whatever prints them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

#: Marks a row that is a heading over the ones below it.
HEADING: Final = "#"
#: Cells that stand out: how, by the names of kvmpy.report.svg's classes.
_TONES: Final = {
    "interpreted": "warn", "emulated": "warn",
    "faster": "good", "slower": "bad", "no difference shown": "dim",
    "traps": "good", "leaks": "warn", "ignored": "warn", "differs": "bad", "unknown": "dim",
}  # fmt: skip
#: In the place of a figure that is not there.
DASH: Final = "-"


@dataclass(frozen=True)
class Table:
    """``rows`` have a cell for each of ``header``; a row of two cells, the first HEADING, is a
    heading. All columns but the first ``left`` are numbers, to be aligned at the right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    notes: tuple[str, ...] = ()


def tone(cell: str) -> str:
    """How a cell stands out: "good", "warn", "bad", "dim", or "" for not. Exceptions are bad.

    >>> [kvmpy.report.table.tone(cell) for cell in ("slower", "#GP", "42")]
    ['bad', 'bad', '']
    """
    return "bad" if cell.startswith(HEADING) else _TONES.get(cell, "")


def printable(text: str) -> str:
    """The text with what is no character to print (controls, lone surrogates) as ``\\x1b``.

    Names and labels come from a file or a guest, and a terminal obeys some characters.

    >>> print(kvmpy.report.table.printable("a" + chr(27) + "b"))
    a\\x1bb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def number(value: float | None) -> str:
    """At most 7 characters, three or more digits that mean something; "-" for none.

    >>> [kvmpy.report.table.number(n) for n in (0.4123, 98.76, 1234.0, 123456789.0, None)]
    ['0.412', '98.8', '1234', '123.5M', '-']
    """
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if size >= 1e15:
        return f"{value:.1e}"
    for limit, unit, scale in ((1e12, "T", 1e12), (1e9, "G", 1e9), (1e6, "M", 1e6)):
        if size >= limit:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def share(value: float, digits: int = 1) -> str:
    """A share of 1 in percent.

    >>> kvmpy.report.table.share(0.0314)
    '3.1%'
    """
    return f"{100 * value:.{digits}f}%" if math.isfinite(value) else DASH
