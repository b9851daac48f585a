"""Tables of a report, as text cells: what the terminal and the HTML page print.

Every table holds figures of one class (see :mod:`kvmpy.bench.figures`), and says which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from ..report.table import DASH, HEADING, Table, number, share
from .compare import ALPHA, Comparison, Delta
from .document import Report
from .figures import (
    MODES,
    PATHS,
    TITLES,
    VIRTUAL,
    Class,
    Figure,
    by_class,
    name,
)
from .judgement import VIRTUAL_LABEL
from .record import Disclosure, Reference
from .stats import ENOUGH_GROUPS, Interval

_PARTS: Final = {"kernel": "hardware + kernel", "shim": "C shim", "python": "Python"}
#: A single shot is four rows; its name stands for all.
_WHOLE: Final = " single-shot"
_PARTS_OF_IT: Final = (" entry", " handler", " return")
_CELL: Final = 12  # characters of how a cell of the matrix fails


#: In the place of a figure that cannot be told apart from nothing.
NOTHING: Final = "~0"


def _figure_cells(figure: Figure, cycles: bool) -> tuple[str, ...]:
    summary, ns = figure.summary, figure.ns
    if summary is None:
        return (figure.label, *[DASH] * (7 + cycles))
    scale = 1.0 if ns is None else ns
    middle: tuple[str, ...] = (
        number(None if ns is None else summary.median * ns),
        number(summary.median if figure.row.unit == "ticks" else None),
        number(figure.row.cycles),
    )
    if not figure.resolved:
        middle = tuple(DASH if text == DASH else NOTHING for text in middle)
    return (
        figure.label,
        *middle[: 2 + cycles],
        "\N{PLUS-MINUS SIGN}" + share(summary.interval.half_width) if figure.resolved else DASH,
        number(summary.floor * scale) if figure.resolved else NOTHING,
        number(summary.mad * scale),
        number(summary.p99 * scale),
        share(summary.disturbed, 0),
    )


LEGEND: Final = (
    "ns, ticks: the median of one call, and 95% CI its confidence interval. min, MAD, p99: in ns "
    "(in ticks where the rate of the TSC is not known). dist.: disturbed batches, more than 5 "
    "sigmas above the median, or below it where the figure is the difference of two times. They "
    "stay in all figures but min."
)
_FEW_VMS = (
    "Rows of fewer than 5 VMs: the interval takes batches as independent, which those of one VM "
    "are not. It is narrower than it should be."
)
_NOTHING = f"{NOTHING}: not told apart from nothing, or less than two steps of the clock."
_CYCLES = "cycles: core cycles in the guest, by the CPU's counter."
_HEADER = ("", "ns", "ticks", "95% CI", "min", "MAD", "p99", "dist.")


def legend(found: Iterable[Figure]) -> str:
    """How to read the figures.

    >>> kvmpy.bench.tables.legend(kvmpy.bench.figures.figures(report))[:10]
    'ns, ticks:'
    """
    found = list(found)
    guests = (item.summary for item in found if item.summary and item.row.kind != "host")
    parts = [
        (LEGEND, True),
        (_NOTHING, any(item.summary and not item.resolved for item in found)),
        (_CYCLES, any(item.row.cycles is not None for item in found)),
        (_FEW_VMS, any(summary.groups < ENOUGH_GROUPS for summary in guests)),
    ]
    return " ".join(text for text, applies in parts if applies)


def figure_table(kind: Class, found: Sequence[Figure]) -> Table:
    """One class's figures, under a heading for each mode. In ns a call, or in ticks where the rate
    of the TSC is not known; "dist." is the share of disturbed batches.

    >>> found = kvmpy.bench.figures.figures(report)[:1]
    >>> kvmpy.bench.tables.figure_table("native", found).rows[0]
    ('#', '64-bit')
    """
    cycles = any(item.row.cycles is not None for item in found)
    rows: list[tuple[str, ...]] = []
    for mode, items in groupby(sorted(found, key=_mode_order), key=lambda item: item.mode):
        if kind in ("native", "interpreted", "emulated-by-kvm", "calibration"):
            rows.append((HEADING, mode))
        rows += (_figure_cells(item, cycles) for item in items)
    header = (*_HEADER[:3], "cycles", *_HEADER[3:]) if cycles else _HEADER
    return Table(TITLES[kind], header, tuple(rows), notes=_labels(found))


def _path(figure: Figure) -> str:
    return name(figure.row.path)


def _mode_order(figure: Figure) -> int:
    known = list(MODES)
    return known.index(figure.row.mode) if figure.row.mode in known else len(known)


def _labels(found: Sequence[Figure]) -> tuple[str, ...]:
    """What holds for rows, once, with the rows it holds for, unless that is all of them. That time
    is virtual the title says."""
    holders: dict[str, list[Figure]] = {}
    for figure in found:
        for label in figure.row.labels:
            if label == VIRTUAL_LABEL:
                continue
            holders.setdefault(label, []).append(figure)
    return tuple(
        label if len(held) == len(found) else f"{label}: {', '.join(_names(held, found))}"
        for label, held in holders.items()
    )


def _names(held: Sequence[Figure], found: Sequence[Figure]) -> list[str]:
    """Names for some figures of a table: a mode, or a path of one, that is among them whole."""
    names: dict[str, None] = {}
    absent = [figure for figure in found if figure not in held]
    modes = {figure.mode for figure in absent}
    paths = {(figure.mode, _path(figure)) for figure in absent}
    for figure in held:
        if figure.mode not in modes:
            names[figure.mode] = None
        elif (figure.mode, _path(figure)) not in paths:
            names[f"{figure.mode} {_path(figure)}"] = None
        else:
            names[f"{figure.mode} {figure.label}"] = None
    for whole in [text for text in names if text.endswith(_WHOLE)]:
        for part in _PARTS_OF_IT:
            names.pop(whole.removesuffix(_WHOLE) + part, None)
    return list(names)


def failure_table(found: Sequence[Figure]) -> Table:
    """The cells that do not run, and how each fails.

    >>> failed = [f for f in kvmpy.bench.figures.figures(report) if f.kind == "fails"]
    >>> kvmpy.bench.tables.failure_table(failed).rows[0]
    ('compat 32', 'SYSCALL', 'H0', '#UD at syscall')
    """
    cells: dict[tuple[str, str, str], list[Figure]] = {}
    for item in found:
        cells.setdefault((item.mode, _path(item), item.row.failure or "?"), []).append(item)
    rows = tuple(
        (mode, path, _span(list(dict.fromkeys(item.row.level for item in items))), how)
        for (mode, path, how), items in cells.items()
    )
    header = ("mode", "path", "rungs", "how")
    return Table(TITLES["fails"], header, rows, left=4, notes=_labels(found))


def _cell(figures: Sequence[Figure]) -> str:
    """Of one cell of the matrix: the figure if it is native, else what it is instead."""
    if not figures:
        return DASH
    figure = figures[0]
    if figure.kind == "fails":
        why = re.split(r" at |,| \(", figure.row.failure)[0]
        return why if 0 < len(why) <= _CELL else "fails"
    if figure.kind != "native":
        return {"interpreted": "interpreted", "emulated-by-kvm": "emulated"}.get(figure.kind, "?")
    if figure.summary is None:
        return DASH
    scale, unit = (1.0, "ticks") if figure.ns is None else (figure.ns, "ns")
    return f"{number(figure.summary.median * scale)} {unit}" if figure.resolved else NOTHING


def matrix(found: Iterable[Figure]) -> Table | None:
    """Modes x paths, round trips only; None if there are no paths. A cell has a figure only if
    it is native; the others say what they are. Rungs that read the same share a line.

    >>> kvmpy.bench.tables.matrix(kvmpy.bench.figures.figures(report)).rows[0]
    ('64-bit', 'H0', '246 ns', '47.6 ns', '39.9 ns', '191 ns')
    """
    cells: dict[tuple[str, str], dict[str, list[Figure]]] = {}
    paths = dict.fromkeys(PATHS)
    for figure in found:
        row = figure.row
        if row.kind == "path" and row.measure == "round-trip":
            cells.setdefault((row.mode, row.level), {}).setdefault(row.path, []).append(figure)
            paths.setdefault(row.path)
    if not cells:
        return None
    lines: list[tuple[str, list[str], tuple[str, ...]]] = []
    for mode in sorted({mode for mode, _ in cells}, key=[*MODES, *(m for m, _ in cells)].index):
        for level in sorted(level for m, level in cells if m == mode):
            texts = tuple(_cell(cells[mode, level].get(path, [])) for path in paths)
            if lines and lines[-1][0] == mode and lines[-1][2] == texts:
                lines[-1][1].append(level)
            else:
                lines.append((mode, [level], texts))
    header = ("mode", "rung", *(PATHS.get(path, path) for path in paths))
    rows = tuple((MODES.get(mode, mode), _span(levels), *texts) for mode, levels, texts in lines)
    notes = ("medians of native cells; the others are below, apart",)
    return Table("Ring 3 -> ring 0 -> ring 3", header, rows, left=2, notes=notes)


def _span(levels: Sequence[str]) -> str:
    return levels[0] if len(levels) == 1 else f"{levels[0]}..{levels[-1]}"


def split_table(kind: Class, found: Iterable[Figure]) -> Table | None:
    """Where the time of one class's exits goes, in ns a call; None if no row tells.

    >>> kvmpy.bench.tables.split_table("native", kvmpy.bench.figures.figures(report)) is None
    True
    """
    found = [figure for figure in found if figure.row.split]
    if not found:
        return None
    parts = list(dict.fromkeys(part for figure in found for part in figure.row.split))
    rows = tuple(
        (figure.label, *(number(figure.row.split.get(part)) for part in parts)) for figure in found
    )
    header = ("", *(_PARTS.get(part, part) for part in parts))
    return Table(f"Where the time goes, ns: {kind}", header, rows)


def reference_table(references: Sequence[Reference]) -> Table | None:
    """Published figures, which are not ours and were taken elsewhere; None without any.

    >>> kvmpy.bench.tables.reference_table(report.references).rows[0][:2]
    ('int 0x80', '610 ticks')
    """
    if not references:
        return None
    rows = tuple(
        (
            name(item.path),
            f"{number(item.value)} {item.unit}",
            f"{item.platform}, {item.conditions}",
        )
        for item in references
    )
    sources = tuple(dict.fromkeys(item.source for item in references))
    title = "Published elsewhere, for reference; not measured here"
    return Table(title, ("path", "figure", "where"), rows, left=3, notes=sources)


def tables(report: Report, found: Sequence[Figure]) -> list[Table]:
    """All of a report's tables, in order: the matrix, then class by class figures and split.

    >>> found = kvmpy.bench.figures.figures(report)
    >>> [table.title for table in kvmpy.bench.tables.tables(report, found)][:2]
    ['Ring 3 -> ring 0 -> ring 3', 'Native']
    """
    result = [matrix(found)]
    for kind, items in by_class(found):
        table = failure_table(items) if kind == "fails" else figure_table(kind, items)
        if kind == "host":
            table = replace(table, notes=(*table.notes, mitigations(report.disclosure)))
        result += [table, split_table(kind, items)]
    return [_in_time_of(report, table) for table in result if table]


def mitigations(facts: Disclosure) -> str:
    """What slows the host's own system calls down, in a line: flaws it has mitigations on for.

    >>> kvmpy.bench.tables.mitigations(report.disclosure)
    "the host's mitigations: retbleed"
    """
    if not facts.mitigations:
        return "the host's mitigations are not known"
    active = [flaw for flaw, text in facts.mitigations.items() if text.startswith("Mitigation")]
    return f"the host's mitigations: {', '.join(active) or 'none'}"


def _in_time_of(report: Report, table: Table) -> Table:
    """Every table that has times says so where time is virtual."""
    if not report.disclosure.virtual_time:
        return table
    return replace(table, title=f"{table.title} (virtual time)")


def headline(report: Report) -> str:
    """What was measured where, in a sentence or two.

    >>> kvmpy.bench.tables.headline(report).startswith("bench syscall")
    True
    """
    facts = report.disclosure
    pinned = "not pinned" if facts.pinned_cpu is None else f"pinned to pCPU {facts.pinned_cpu}"
    quick = ", quick" if report.quick else ""
    text = (
        f"bench {report.benchmark}{quick}: {facts.cpu_model}, {facts.verdict.rstrip('.')}; "
        f"{pinned}; {report.seconds:.0f} s; {facts.date}."
    )
    return f"{VIRTUAL} {text}" if facts.virtual_time else text


def _delta_cells(delta: Delta) -> tuple[str, ...]:
    if delta.shift is None or delta.p is None:
        return (delta.label, DASH, DASH, DASH, DASH, DASH, delta.reason)
    return (
        delta.label,
        number(delta.before),
        number(delta.after),
        *_shift_cells(delta.shift, delta.before),
        f"{delta.p:.3f}" if delta.p >= 0.001 else "<.001",
        delta.finding,
    )


def _shift_cells(shift: Interval, before: float | None) -> tuple[str, str]:
    """The shift and its bounds, as shares of what was; in the unit if that was about nothing."""
    if not before or before <= abs(shift.value):
        return number(shift.value), f"{number(shift.low)} .. {number(shift.high)}"
    value, low, high = (
        f"{100 * x / abs(before):+.1f}" for x in (shift.value, shift.low, shift.high)
    )
    return f"{value}%", f"{low} .. {high}%"


def comparison_tables(comparison: Comparison) -> list[Table]:
    """What differs between two reports: a table for each class, then the hosts' differences.
    Cells that fail alike in both are left out.

    >>> found = kvmpy.bench.compare.compare(report, report)
    >>> kvmpy.bench.tables.comparison_tables(found)[0].rows[1][-1]
    'no difference shown'
    """
    result = []
    for kind, title in TITLES.items():
        items = [item for item in comparison.deltas if item.kind == kind and not item.alike]
        rows: list[tuple[str, ...]] = []
        for (mode, unit), deltas in groupby(items, key=lambda item: (item.mode, item.unit)):
            rows.append((HEADING, mode if unit == "ns" else f"{mode}, {unit}"))
            rows += map(_delta_cells, deltas)
        if rows:
            header = ("", "A", "B", "shift", "95% CI", "p", "")
            result.append(Table(title, header, tuple(rows)))
    if comparison.differences:
        rows = [tuple(part or "-" for part in item) for item in comparison.differences]
        result.append(Table("What differs around them", ("", "A", "B"), tuple(rows), left=3))
    return result


def comparison_notes(comparison: Comparison) -> list[str]:
    """How to read the comparison.

    >>> notes = kvmpy.bench.tables.comparison_notes(kvmpy.bench.compare.compare(report, report))
    >>> notes[-1]
    '2 cells fail in both, in the same way.'
    """
    compared = [delta for delta in comparison.deltas if delta.test]
    notes = [
        "A and B: medians, ns a call. shift: Hodges-Lehmann, B minus A. p: Mann-Whitney, adjusted "
        f"for {len(compared)} rows (Holm); a difference is shown below {ALPHA}."
    ]
    few = [delta for delta in compared if delta.units == "batches"]
    if few:
        which = "" if len(few) == len(compared) else f" ({', '.join(_labels_of(few))})"
        notes.append(
            f"Too few VMs to compare their medians{which}: batches were compared. Those of one VM "
            "are not independent, so p is smaller than it should be. Take full runs."
        )
    for delta in compared:
        if delta.kind == "calibration" and delta.finding != "no difference shown":
            relative = "" if delta.relative is None else f" by {100 * delta.relative:+.1f}%"
            notes.append(
                f"The calibration loop {delta.label!r} ({delta.mode}), which enters no ring 0, "
                f"differs{relative}: the core's clock or the load was another. Differences of that "
                "size tell of the host."
            )
    alike = sum(delta.alike for delta in comparison.deltas)
    if alike:
        notes.append(f"{alike} cell{'s fail' if alike > 1 else ' fails'} in both, in the same way.")
    if comparison.virtual_time:
        notes.append(VIRTUAL)
    return notes


def _labels_of(deltas: Iterable[Delta]) -> list[str]:
    return list(dict.fromkeys(f"{delta.mode} {delta.label}" for delta in deltas))
