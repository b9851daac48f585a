"""Measure system calls in guests and VM exits, with what the figures were taken on; compare two
such measurements."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import KvmpyError
from ..report import terminal
from .files import check_writable, write

if TYPE_CHECKING:
    from ..bench.document import Report
    from ..probe.disturbance import Disturbance

#: Subcommand -> module in kvmpy.bench with run(), and a line of help.
ENGINES = {
    "syscall": ("syscall", "int 0x80, SYSENTER, SYSCALL and call gates, ring 3 -> 0 -> 3"),
    "exit": ("exits", "what leaves a guest, and what that costs"),
}
_LARGEST = 1 << 30  # bytes of a record: a full run has some tens of MB


class RecordFileError(KvmpyError):
    """A record that cannot be read or written."""


def _cpu(text: str) -> int:
    from ..host.topology import check_pin

    try:
        return check_pin(int(text))
    except KvmpyError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a CPU") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands of ``bench`` and their options."""
    commands = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, (_, text) in ENGINES.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--quick", action="store_true", help="about 10 s, not minutes")
        command.add_argument(
            "--cpu", type=_cpu, metavar="N", help="pin the vCPU's thread to pCPU N"
        )
        _add_outputs(command)
        command.add_argument("--save", metavar="FILE", help="the full record in a file as well")
        command.set_defaults(call=_measure)
    text = "print a saved record"
    command = commands.add_parser("show", help=text, description=text)
    command.add_argument("record", metavar="A.json")
    _add_outputs(command)
    command.set_defaults(call=_show_saved, save=None)
    text = "by how much, and how surely, two saved records differ, row by row"
    command = commands.add_parser("compare", help=text, description=text)
    command.add_argument("first", metavar="A.json")
    command.add_argument("second", metavar="B.json")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(call=_compare)


def _add_outputs(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--json", action="store_true", help="the full record with all samples, on stdout")
    add("--html", metavar="FILE", help="one page with every distribution, matrix and disclosure")
    add("--pyperf", metavar="FILE", help="pyperf's JSON; each class of rows in its own file")


def run(args: argparse.Namespace) -> int:
    """Run the subcommand."""
    call: Callable[[argparse.Namespace], int] = args.call
    return call(args)


# -- measure


def _measure(args: argparse.Namespace) -> int:
    from .bench_progress import Progress

    for path in (args.html, args.pyperf, args.save):
        check_writable(path)  # now, not after minutes
    engine = importlib.import_module(f"..bench.{ENGINES[args.benchmark][0]}", __package__)
    with Progress(args.benchmark, sys.stderr) as progress:
        report: Report = engine.run(
            quick=args.quick, cpu=args.cpu, progress=progress, warned=_say_what_disturbs
        )
    return _output(report, args)


def _say_what_disturbs(found: Sequence[Disturbance]) -> None:
    names = ", ".join(item.name for item in found)
    print(f"kvmpy: figures may be disturbed by: {names}; the report says more", file=sys.stderr)


def _show_saved(args: argparse.Namespace) -> int:
    return _output(_load(args.record), args)


# -- print


def _output(report: Report, args: argparse.Namespace) -> int:
    if args.save:
        write(args.save, report.to_json())
    if args.html:
        from ..bench.html import to_html

        write(args.html, to_html(report))
    if args.pyperf:
        _write_pyperf(report, args.pyperf)
    if args.json:
        print(report.to_json())
    else:
        _print(report)
    return 0


def _print(report: Report) -> None:
    from ..bench import tables
    from ..bench.figures import figures

    terminal.note(tables.headline(report), sys.stdout)
    for warning in report.warnings:
        terminal.note(f"! {warning}", sys.stdout)
    print()
    found = figures(report)
    shown = tables.tables(report, found)
    references = tables.reference_table(report.references)
    terminal.show([*shown, *([references] if references else [])], sys.stdout)
    terminal.note(tables.legend(found), sys.stdout)


def _write_pyperf(report: Report, path: str) -> None:
    from ..bench.figures import CLASSES
    from ..bench.pyperf import to_pyperf

    stem, suffix = os.path.splitext(path)
    written = []
    for kind in CLASSES:
        text = to_pyperf(report, kind)
        if text is not None:
            name = path if kind == "native" else f"{stem}.{kind}{suffix}"
            write(name, text)
            written.append(name)
    what = f"wrote {', '.join(written)}" if written else "no row has times in ns for pyperf"
    print(f"kvmpy: {what}", file=sys.stderr)


# -- compare


def _compare(args: argparse.Namespace) -> int:
    from ..bench import tables
    from ..bench.compare import compare

    first, second = _load(args.first), _load(args.second)
    found = compare(first, second)
    if args.json:
        record = dataclasses.asdict(found)
        for delta, entry in zip(found.deltas, record["deltas"], strict=True):
            entry["finding"] = delta.finding
        print(json.dumps(record, indent=2))
        return 0
    for name, report in (("A", first), ("B", second)):
        terminal.note(f"{name}: {tables.headline(report)}", sys.stdout)
    print()
    terminal.show(tables.comparison_tables(found), sys.stdout)
    for text in tables.comparison_notes(found):
        terminal.note(text, sys.stdout)
    return 0


# -- files


def _load(path: str) -> Report:
    from ..bench.document import RecordError, Report

    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecordFileError(f"{path}: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise RecordFileError(
            f"{path}: more than {_LARGEST >> 20} MiB, so it is not a record of 'bench'"
        )
    try:
        return Report.from_json(content)
    except RecordError as error:
        raise RecordFileError(f"{path}: {error}") from None
