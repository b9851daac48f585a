"""What a report is made of, in order."""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table


@dataclass(frozen=True)
class Picture:
    """A drawing: ``svg``, an element for pages (see :mod:`kvmpy.report.svg`), and ``text``, lines
    that say the same on a terminal, at most 79 characters wide."""

    svg: str
    text: str
    caption: str = ""


#: A sentence or more, a table, or a picture.
Block = str | Table | Picture


@dataclass(frozen=True)
class Section:
    """Blocks under a heading; ``anchor`` is what a link in the page names it by."""

    title: str
    blocks: tuple[Block, ...]
    anchor: str = ""
