"""The result as one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ..report import page
from ..report.blocks import Block, Section
from . import gantt, summary
from .metrics import SwitchCost
from .result import Result


def sections(result: Result, series: Sequence[SwitchCost] = ()) -> list[Section]:
    """Pictures and tables, under their headings.

    >>> [part.title for part in kvmpy.sched.html.sections(sched_result)]
    ['Who ran when', 'The whole run', 'Figures']
    """
    figures: tuple[Block, ...] = tuple(summary.tables(result, series))
    return [
        Section("Who ran when", (gantt.picture(result),)),
        Section("The whole run", (gantt.shares(result),)),
        Section("Figures", figures),
    ]


def to_html(result: Result, series: Sequence[SwitchCost] = ()) -> str:
    """The page.

    >>> "<svg" in kvmpy.sched.html.to_html(sched_result)
    True
    """
    body = [f"<p>{page.escaped(summary.headline(result))}</p>"]
    body.append(f'<p class="dim">{page.escaped(result.verdict)}</p>')
    if result.notes:
        items = "".join(f"<li>{page.escaped(note)}</li>" for note in result.notes)
        body.append(f'<ul class="warnings">{items}</ul>')
    for part in sections(result, series):
        body.extend(page.section(part))
    return page.document("vCPUs on pCPUs, threads on vCPUs", body)
