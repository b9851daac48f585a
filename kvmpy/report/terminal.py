"""Reports as text: drawn with rich on a terminal, plain in a pipe.

Readable in 80 columns: numbers have 7 characters at most, what is left goes to the last column.
"""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Sequence
from typing import TextIO

from .blocks import Block, Picture, Section
from .table import HEADING, Table, printable, tone

_STYLES = {"good": "bold green", "warn": "yellow", "bad": "bold red", "dim": "dim", "": ""}
_WIDTH = 80


def show(blocks: Sequence[Block], stream: TextIO) -> None:
    """Print blocks to ``stream``, with an empty line between them.

    >>> import sys
    >>> kvmpy.report.terminal.show(["one", "two"], sys.stdout)
    one
    <BLANKLINE>
    two
    """
    for i, block in enumerate(blocks):
        if i and not (stream.isatty() and isinstance(blocks[i - 1], Table)):  # rich writes one
            stream.write("\n")
        if isinstance(block, str):
            note(block, stream)
        elif isinstance(block, Picture):
            _picture(block, stream)
        elif stream.isatty():
            _draw(_clean(block), stream)
        else:
            stream.write(plain(_clean(block)))


def section(part: Section, stream: TextIO) -> None:
    """Print a section: its title, underlined, and its blocks.

    >>> import sys
    >>> from kvmpy.report.blocks import Section
    >>> kvmpy.report.terminal.section(Section("Rings", ("There are four.",)), sys.stdout)
    Rings
    =====
    <BLANKLINE>
    There are four.
    <BLANKLINE>
    """
    title = printable(part.title)
    stream.write(f"{title}\n{'=' * len(title)}\n\n")
    show(part.blocks, stream)
    stream.write("\n")


def _picture(picture: Picture, stream: TextIO) -> None:
    stream.write("\n".join(map(printable, picture.text.splitlines())) + "\n")
    if picture.caption:
        note(picture.caption, stream)


def _clean(table: Table) -> Table:
    return dataclasses.replace(
        table,
        header=tuple(map(printable, table.header)),
        rows=tuple(tuple(map(printable, row)) for row in table.rows),
        notes=tuple(map(printable, table.notes)),
    )


def note(text: str, stream: TextIO) -> None:
    """Print a sentence or two, wrapped on a terminal.

    >>> import sys
    >>> kvmpy.report.terminal.note("There are four.", sys.stdout)
    There are four.
    """
    text = printable(text)
    if stream.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size((_WIDTH, 24)).columns - 1)
    print(text, file=stream)


def plain(table: Table) -> str:
    """A table as text: columns aligned, one line a row, whatever the width.

    >>> from kvmpy.report.table import Table
    >>> shown = Table("Native", ("", "ns"), (("#", "64-bit"), ("SYSCALL", "99")))
    >>> print(kvmpy.report.terminal.plain(shown))
    Native
               ns
    64-bit
      SYSCALL  99
    <BLANKLINE>
    """
    body = [row for row in (table.header, *table.rows) if row[0] != HEADING]
    widths = [max(map(len, column)) for column in zip(*body, strict=True)]
    lines = [table.title]
    lines += (_plain_row(row, table, widths) for row in (table.header, *table.rows))
    lines += (f"  ({text})" for text in table.notes)
    return "\n".join(lines) + "\n"


def _plain_row(row: Sequence[str], table: Table, widths: Sequence[int]) -> str:
    if row[0] == HEADING:
        return row[1]
    cells = (
        cell.ljust(width) if _left(table, i) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return ("  " + "  ".join(cells)).rstrip()


def _left(table: Table, column: int) -> bool:
    """Whether a column is of words: the first ones, and a last one without a heading."""
    last = column == len(table.header) - 1
    return column < table.left or (last and not table.header[column])


def _draw(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    console.print(Text(table.title, style="bold"))
    grid = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(table.header):
        words = _left(table, i)
        # A number that is cut is wrong; words may wrap.
        grid.add_column(name, justify="left" if words else "right", no_wrap=not words)
    blank = [""] * (len(table.header) - 1)
    for row in table.rows:
        if row[0] == HEADING:
            grid.add_row(Text(row[1], style="bold cyan"), *blank)
        else:
            grid.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    console.print(grid)
    for text in table.notes:
        console.print(Text(f"({text})", style="dim"))
    console.print()


def _style(cell: str) -> str:
    return "red" if cell.startswith("#") else _STYLES[tone(cell)]
