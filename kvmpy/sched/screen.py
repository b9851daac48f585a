"""The result on a terminal, in colour there, or in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TextIO

from ..report import terminal
from ..report.blocks import Picture
from ..report.svg import CLASSES
from ..report.table import printable
from . import gantt, lanes, summary
from .metrics import SwitchCost
from .result import Result

if TYPE_CHECKING:
    from rich.text import Text

#: As in pictures, but for the blue, which is hard to read on black.
_COLOURS: Final = CLASSES | {"lane0": "#4da6e0"}


def show(result: Result, series: Sequence[SwitchCost], stream: TextIO) -> None:
    """Print the picture and the tables to ``stream``.

    >>> import sys
    >>> kvmpy.sched.screen.show(sched_result, [], sys.stdout)
    2 vCPUs on pCPU 0, ...
    """
    terminal.note(summary.headline(result), stream)
    for note in result.notes:
        terminal.note(f"! {note}", stream)
    if result.written:
        stream.write("\n".join(map(printable, result.written.splitlines())) + "\n")
    stream.write("\n")
    picture = gantt.picture(result)
    if stream.isatty():
        _in_colour(result, picture, stream)
    else:
        terminal.show([picture], stream)
    stream.write("\n")
    terminal.show([gantt.shares(result)], stream)
    stream.write("\n")
    terminal.show(summary.tables(result, series), stream)


def _in_colour(result: Result, picture: Picture, stream: TextIO) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    shown = gantt.visible(result)
    vcpu = 0
    for i, line in enumerate(picture.text.splitlines()):
        lane = shown[i] if i < len(shown) else None
        if lane is not None and lane.level == 1:
            vcpu = lane.number
        console.print(_painted(line, lane, vcpu) if lane else Text(line, style="dim"), end="\n")
    terminal.note(picture.caption, stream)


def _painted(line: str, lane: lanes.Lane, vcpu: int) -> Text:
    from rich.text import Text

    text = Text(line[: gantt.LABEL], style="bold" if lane.level == 0 else "")
    for mark in line[gantt.LABEL :]:
        text.append(mark, style=_style(mark, lane, vcpu))
    return text


def _style(mark: str, lane: lanes.Lane, vcpu: int) -> str:
    if mark in (" ", gantt.NOBODY):
        return "dim"
    owner = gantt.NAMES.index(mark) if lane.level == 0 else vcpu
    colour = _COLOURS[gantt.colour(owner)]
    return f"on {colour} black" if lane.level == 0 else colour
