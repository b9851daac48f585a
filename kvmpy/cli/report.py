"""Tables on stdout: with colour and wrapping on a terminal, one line a row in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: A row's cells.
Row = Sequence[str]

_STYLES = {
    "ok": "green",
    "native": "green",
    "note": "cyan",
    "emulated": "yellow",
    "warning": "yellow",
    "problem": "bold red",
    "fails": "red",
    "skipped": "dim",
}


def on_terminal() -> bool:
    """Whether stdout is one."""
    return sys.stdout.isatty()


def heading(text: str) -> None:
    """A heading, with an empty line before it."""
    if on_terminal():
        from rich.console import Console

        Console(highlight=False).print(f"\n{text}", style="bold", markup=False)
    else:
        print(f"\n{text}")


def table(rows: Sequence[Row], indent: int = 2) -> None:
    """Columns, the last of which takes what room is left."""
    if not rows:
        return
    if on_terminal():
        _rich_table(rows, indent)
        return
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        print((" " * indent + "  ".join(cells)).rstrip())


def columns(cells: Sequence[str], indent: int = 2, width: int = 80) -> None:
    """Cells in as many columns as fit a terminal; one a line in a pipe."""
    if not cells:
        return
    if on_terminal():
        from rich.console import Console

        width = Console().width
    longest = max(map(len, cells)) + 2
    count = max(1, (width - indent) // longest) if on_terminal() else 1
    height = -(-len(cells) // count)
    for i in range(height):
        line = "".join(cell.ljust(longest) for cell in cells[i::height])
        print(" " * indent + line.rstrip())


def _rich_table(rows: Sequence[Row], indent: int) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for i in range(max(map(len, rows))):
        grid.add_column(no_wrap=i == 0)
    for row in rows:
        grid.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    Console(highlight=False).print(Padding(grid, (0, 0, 0, indent)))
