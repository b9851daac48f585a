"""A report as one HTML page that needs nothing else: no script, no style or picture from outside.

What a report says of itself is text to be shown: everything is escaped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from html import escape as _escape

from .figures import TITLES, VIRTUAL, Class, Figure, by_class, figures
from .record import Disclosure, Report
from .svg import distributions
from .tables import (
    HEADING,
    Table,
    failure_table,
    figure_table,
    headline,
    legend,
    matrix,
    printable,
    reference_table,
    split_table,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #667; --line: #d8dbe0; --paper: #fff;
  --violin: #2f6fb3; --tail: #d9822b; --median: #b3261e; --warn: #fff3d6; --warn-ink: #5b4300 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea; --dim: #9aa3ad; --line: #3a4048;
  --paper: #16191d; --violin: #6ea8e6; --tail: #e6a25a; --median: #ff8a80; --warn: #3c3216;
  --warn-ink: #f2dfa8 } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p.dim, td.dim, li.dim { color: var(--dim) }
.warnings { background: var(--warn); color: var(--warn-ink); padding: .6rem 1rem .6rem 2rem;
  border-radius: .3rem }
.virtual { background: var(--warn); color: var(--warn-ink); padding: .6rem 1rem;
  border-radius: .3rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 }
th, td { padding: .18rem .7rem .18rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line) }
th { color: var(--dim); font-weight: 500 } th.words, td.words { text-align: left }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left }
tr.heading td { text-align: left; font-weight: 600; padding-top: .6rem }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: currentColor }
svg .grid { stroke: var(--line) } svg .mark { fill: var(--dim); font-size: 10px }
svg .violin, svg .histogram { fill: var(--violin) } svg .tail { fill: var(--tail) }
svg .median { fill: var(--median) } figure { margin: .6rem 0 }
.references { border-left: 4px solid var(--line); padding-left: 1rem; margin-top: 2.2rem }
"""
_LEGEND = (
    "Below: a violin for each row, all rows of a class on one logarithmic axis. Blue: "
    "undisturbed batches, orange: disturbed ones. Red: the median. At the right the undisturbed "
    "batches, closer."
)
#: Nothing may be loaded, whatever a report's text might say.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def _text(text: str) -> str:
    return _escape(printable(text))


def to_html(report: Report) -> str:
    """The page: what disturbs, the matrix, each class of rows with its distributions, what the
    figures were taken on, and published figures apart.

    >>> kvmpy.bench.html.to_html(report).startswith("<!DOCTYPE html>")
    True
    """
    found = figures(report)
    title = _text(f"kvmpy bench {report.benchmark}: {report.disclosure.cpu_model}")
    virtual = " (virtual time)" if report.disclosure.virtual_time else ""
    body = [f"<h1>{title}</h1>", *_opening(report), *_table(matrix(found), virtual)]
    body += [f'<p class="dim">{text}</p>' for text in (_LEGEND, legend(found))]
    for kind, items in by_class(found):
        body += _class(kind, items, virtual)
    body += [*_disclosure(report.disclosure), *_references(report)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _opening(report: Report) -> Iterable[str]:
    if report.disclosure.virtual_time:
        yield f'<p class="virtual">{_text(VIRTUAL)}</p>'
    yield f"<p>{_text(headline(report).removeprefix(VIRTUAL).strip())}</p>"
    if report.warnings:
        items = "".join(f"<li>{_text(text)}</li>" for text in report.warnings)
        yield f'<ul class="warnings">{items}</ul>'


def _class(kind: Class, items: Sequence[Figure], virtual: str) -> Iterable[str]:
    if kind == "fails":
        yield from _table(failure_table(items))
        return
    yield f"<h2>{_text(TITLES[kind] + virtual)}</h2>"
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
    if table is None:
        return
    if titled:
        yield f"<h2>{_text(table.title + suffix)}</h2>"
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(
        f"<th{_words(table, i)}>{_text(name)}</th>" for i, name in enumerate(table.header)
    )
    yield "</tr></thead><tbody>"
    for row in table.rows:
        if row[0] == HEADING:
            span = len(table.header)
            yield f'<tr class="heading"><td colspan="{span}">{_text(row[1])}</td></tr>'
        else:
            cells = (f"<td{_words(table, i)}>{_text(cell)}</td>" for i, cell in enumerate(row))
            yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    for text in table.notes:
        yield f'<p class="dim">{_text(text)}</p>'


def _words(table: Table, column: int) -> str:
    return ' class="words"' if column < table.left else ""


def _disclosure(facts: Disclosure) -> Iterable[str]:
    """Every field, as it is: what is missing from a disclosure is what one misses later."""
    yield "<h2>What the figures were taken on</h2>\n<table><tbody>"
    for field in dataclasses.fields(facts):
        name = _text(field.name.replace("_", " "))
        yield f'<tr><td class="words dim">{name}</td>'
        yield f'<td class="long">{_value(getattr(facts, field.name))}</td></tr>'
    yield "</tbody></table>"


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(_text(f"{key}: {text}") for key, text in value.items()) or "-"
    if isinstance(value, tuple):
        return _text(", ".join(map(str, value))) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "not known" if value is None else _text(str(value)) or "-"


def _references(report: Report) -> Iterable[str]:
    table = reference_table(report.references)
    if table:
        yield '<section class="references">'
        yield from _table(table)
        yield "</section>"
