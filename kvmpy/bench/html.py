"""A report as one HTML page that needs nothing else: no script, no style or picture from outside.

What a report says of itself is text to be shown: everything is escaped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from ..report import page
from ..report.page import escaped
from ..report.table import Table
from .figures import TITLES, VIRTUAL, Class, Figure, by_class, figures
from .record import Disclosure, Report
from .svg import distributions
from .tables import (
    failure_table,
    figure_table,
    headline,
    legend,
    matrix,
    reference_table,
    split_table,
)

_STYLE = """
svg .mark { fill: var(--dim); font-size: 10px } svg .violin, svg .histogram { fill: var(--lane0) }
svg .tail { fill: var(--lane1) } svg .median { fill: var(--bad) } svg .grid { stroke: var(--grid) }
"""
_LEGEND = (
    "Below: a violin for each row, all rows of a class on one logarithmic axis. Blue: "
    "undisturbed batches, orange: disturbed ones. Red: the median. At the right the undisturbed "
    "batches, closer."
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
    body += [*_disclosure(report.disclosure), *_references(report)]
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
    for unit, drawn in (
        ("ns", [item for item in items if item.ns is not None]),
        ("ticks", [item for item in items if item.ns is None]),
    ):
        picture = distributions(drawn, unit)
        if picture:
            yield f"<figure>{picture}</figure>"
    yield from _table(figure_table(kind, items), titled=False)
    yield from _table(split_table(kind, items), virtual)


def _table(table: Table | None, suffix: str = "", *, titled: bool = True) -> Iterable[str]:
    if table is not None:
        titled_table = dataclasses.replace(table, title=table.title + suffix)
        yield from page.table(titled_table, heading="h2" if titled else "")


def _disclosure(facts: Disclosure) -> Iterable[str]:
    """Every field, as it is: what is missing from a disclosure is what one misses later."""
    yield "<h2>What the figures were taken on</h2>\n<table><tbody>"
    for field in dataclasses.fields(facts):
        name = escaped(field.name.replace("_", " "))
        yield f'<tr><td class="words dim">{name}</td>'
        yield f'<td class="long">{_value(getattr(facts, field.name))}</td></tr>'
    yield "</tbody></table>"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(escaped(f"{key}: {text}") for key, text in value.items()) or "-"
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
