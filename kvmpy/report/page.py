"""HTML pages that need nothing else: no script, no style, font or picture from outside.

What they show comes from guests and files: text is escaped, and the page's policy lets it load
nothing. Legible on a phone, in the dark, and printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

from .blocks import Block, Picture, Section
from .svg import CLASSES
from .table import HEADING, Table, printable, tone

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
#: The classes of kvmpy.report.svg that a dark page needs in another colour.
_DARK: Final = {
    "ink": "#e4e6ea",
    "dim": "#9aa3ad",
    "grid": "#3a4048",
    "paper": "#16191d",
    "good": "#5fd38d",
    "warn": "#f2cc60",
    "bad": "#ff8a80",
    "lane0": "#4da6e0",
}


def _colours(colours: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"--{name}: {colour}" for name, colour in colours)


_STYLE = "\n".join(
    [
        f":root {{ color-scheme: light dark; {_colours(CLASSES.items())} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_colours(_DARK.items())} }} }}",
        """\
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem }
p.dim, td.dim, li.dim, figcaption { color: var(--dim) }
td.good { color: var(--good) } td.warn { color: var(--warn) } td.bad { color: var(--bad) }
.warnings { border-left: 4px solid var(--warn); padding: .2rem 1rem .2rem 2rem }
.virtual { border: 2px solid var(--warn); padding: .6rem 1rem; font-weight: 600 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 }
th, td { padding: .18rem .7rem .18rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid) }
th { color: var(--dim); font-weight: 500 } th.words, td.words { text-align: left }
td.long { white-space: normal; overflow-wrap: anywhere; text-align: left }
tr.heading td { text-align: left; font-weight: 600; padding-top: .6rem }
svg { width: 100%; height: auto; font-family: system-ui, sans-serif } figure { margin: .6rem 0 }
figcaption { font-size: .9em }
.references { border-left: 4px solid var(--grid); padding-left: 1rem; margin-top: 2.2rem }
@media print { @page { margin: 15mm } body { font-size: 10pt; max-width: none; margin: 0 }
  .scroll { overflow: visible } table { font-size: 8pt } figure, tr { break-inside: avoid }
  h2 { break-after: avoid } th, td { white-space: normal } }""",
        *(f"svg .{name} {{ fill: var(--{name}) }}" for name in CLASSES),
        *(f"svg .{name}.outline {{ fill: none; stroke: var(--{name}) }}" for name in CLASSES),
    ]
)


def escaped(text: str) -> str:
    """Text as it may stand in a page.

    >>> kvmpy.report.page.escaped("a<b")
    'a&lt;b'
    """
    return escape(printable(text))


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page of elements that are HTML already, under a title that is not.

    ``style``: CSS after the page's own.

    >>> kvmpy.report.page.document("a page", ["<p>x</p>"]).startswith("<!DOCTYPE html>")
    True
    """
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title)}</title>\n<style>{_STYLE}\n{style}</style>\n</head>\n<body>",
            f"<h1>{escaped(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def section(part: Section) -> Iterable[str]:
    """A heading, and what stands under it.

    >>> from kvmpy.report.blocks import Section
    >>> "".join(kvmpy.report.page.section(Section("Rings", ("There are four.",))))
    '<h2>Rings</h2><p>There are four.</p>'
    """
    anchor = f' id="{escape(part.anchor)}"' if part.anchor else ""
    yield f"<h2{anchor}>{escaped(part.title)}</h2>"
    for each in part.blocks:
        yield from block(each)


def block(each: Block) -> Iterable[str]:
    """A paragraph, a table under its title, or a picture.

    >>> list(kvmpy.report.page.block("a < b"))
    ['<p>a &lt; b</p>']
    """
    if isinstance(each, Table):
        yield from table(each)
    elif isinstance(each, Picture):
        yield f"<figure>{each.svg}"
        if each.caption:
            yield f"<figcaption>{escaped(each.caption)}</figcaption>"
        yield "</figure>"
    else:
        yield f"<p>{escaped(each)}</p>"


def table(shown: Table, *, heading: str = "h3") -> Iterable[str]:
    """A table and its notes; its title as an element ``heading``, or not at all if that is "".

    >>> from kvmpy.report.table import Table
    >>> print("".join(kvmpy.report.page.table(Table("T", ("",), (("x",),))))[:11])
    <h3>T</h3><
    """
    if heading and shown.title:
        yield f"<{heading}>{escaped(shown.title)}</{heading}>"
    yield '<div class="scroll"><table><thead><tr>'
    yield "".join(
        f"<th{_words(shown, i)}>{escaped(name)}</th>" for i, name in enumerate(shown.header)
    )
    yield "</tr></thead><tbody>"
    for row in shown.rows:
        if row[0] == HEADING:
            span = len(shown.header)
            yield f'<tr class="heading"><td colspan="{span}">{escaped(row[1])}</td></tr>'
        else:
            cells = (
                f"<td{_words(shown, i, tone(cell))}>{escaped(cell)}</td>"
                for i, cell in enumerate(row)
            )
            yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    for text in shown.notes:
        yield f'<p class="dim">{escaped(text)}</p>'


def _words(shown: Table, column: int, kind: str = "") -> str:
    kinds = [*(["words"] if column < shown.left else []), *([kind] if kind else [])]
    return f' class="{" ".join(kinds)}"' if kinds else ""
