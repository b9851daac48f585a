"""A report as one HTML page that needs nothing else: no script, no style or picture from outside.

What a report says of itself is text to be shown: everything is escaped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from ..report import page
from ..report.page import escaped
from ..report.table import Table, share
from .document import Report
from .figures import TITLES, VIRTUAL, Class, Figure, by_class, figures
from .record import Disclosure
from .svg import distributions
from .tables import (
    failure_table,
    figure_table,
    headline,
    legend,
    matrix,
    mitigations,
    reference_table,
    split_table,
)

_STYLE = """
svg text { fill: var(--ink) }
svg .mark { fill: var(--dim); font-size: 10px } svg .violin, svg .histogram { fill: var(--lane0) }
svg .tail { fill: var(--lane1) } svg .median { fill: var(--bad) } svg .grid { stroke: var(--grid) }
@media screen { figure { overflow-x: auto } figure svg { min-width: 50rem } }
"""
_LEGEND = (
    "Below: a violin for each row, on one logarithmic axis for all of a class. Blue: "
    "undisturbed batches, orange: disturbed ones. Red: the median. At the right the undisturbed "
    "batches, closer. Rows that cannot be told apart from nothing are not drawn."
)


def to_html(report: Report) -> str:
    """The page: what disturbs, the matrix, each class of rows with its distributions, what the
    figures were taken on, and published figures apart.

    >>> kvmpy.bench.html.to_html(report).startswith("<!DOCTYPE html>")
    True
    """
    found = figures(report)
    title = f"kvmpy bench {report.benchmark}: {report.disclosure.cpu_model}"
    virtual = " (virtual time)" if report.disclosure.virtual_time else ""
    body = [*_opening(report), *_table(matrix(found), virtual)]
    body += [f'<p class="dim">{text}</p>' for text in (_LEGEND, legend(found))]
    for kind, items in by_class(found):
        body += _class(kind, items, virtual)
        if kind == "host":
            body.append(f'<p class="dim">{escaped(mitigations(report.disclosure))}</p>')
    body += [*_disclosure(report), *_references(report)]
    return page.document(title, body, _STYLE)


def _opening(report: Report) -> Iterable[str]:
    if report.disclosure.virtual_time:
        yield f'<p class="virtual">{escaped(VIRTUAL)}</p>'
    yield f"<p>{escaped(headline(report).removeprefix(VIRTUAL).strip())}</p>"
    if report.warnings:
        items = "".join(f"<li>{escaped(text)}</li>" for text in report.warnings)
        yield f'<ul class="warnings">{items}</ul>'


def _class(kind: Class, items: Sequence[Figure], virtual: str) -> Iterable[str]:
    if kind == "fails":
        yield from _table(failure_table(items))
        return
    yield f"<h2>{escaped(TITLES[kind] + virtual)}</h2>"
    by_mode = [(mode, list(some)) for mode, some in groupby(items, key=lambda item: item.mode)]
    for mode, some in by_mode:
        if len(by_mode) > 1:
            yield f"<h3>{escaped(mode)}</h3>"
        yield from _pictures(some, items)
        yield from _table(figure_table(kind, some), titled=False)
    yield from _table(split_table(kind, items), virtual)


def _pictures(some: Iterable[Figure], items: Sequence[Figure]) -> Iterable[str]:
    """The distributions of a mode, on the axis of its class."""
    for unit, known in (("ns", True), ("ticks", False)):
        drawn, among = (
            [item for item in figures if item.resolved and (item.ns is not None) == known]
            for figures in (some, items)
        )
        picture = distributions(drawn, unit, among)
        if picture:
            yield f"<figure>{picture}</figure>"


def _table(table: Table | None, suffix: str = "", *, titled: bool = True) -> Iterable[str]:
    if table is not None:
        titled_table = dataclasses.replace(table, title=table.title + suffix)
        yield from page.table(titled_table, heading="h2" if titled else "")


def _disclosure(report: Report) -> Iterable[str]:
    """Every field, as it is: what is missing from a disclosure is what one misses later."""
    yield "<h2>What the figures were taken on</h2>\n<table><tbody>"
    facts = {
        field.name.replace("_", " "): getattr(report.disclosure, field.name)
        for field in dataclasses.fields(Disclosure)
    }
    stolen = None if report.steal is None else share(report.steal)
    for name, value in {**facts, "stolen during the run": stolen}.items():
        yield f'<tr><td class="words dim">{escaped(name)}</td>'
        yield f'<td class="long">{_value(value)}</td></tr>'
    yield "</tbody></table>"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        short = not any(" " in str(text) for text in value.values())
        between = ", " if short else "<br>"
        return between.join(escaped(f"{key}: {text}") for key, text in value.items()) or "-"
    if isinstance(value, tuple):
        return escaped(", ".join(map(str, value))) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not known" if value is None else escaped(str(value)) or "-"


def _references(report: Report) -> Iterable[str]:
    table = reference_table(report.references)
    if table:
        yield '<section class="references">'
        yield from _table(table)
        yield "</section>"
