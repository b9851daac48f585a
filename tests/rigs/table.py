#!/usr/bin/env python3
"""Print one table from the JUnit files of several runs: test x run -> passed, failed or skipped.

    python3 tests/rigs/table.py host=host.xml kvm_amd=svm.xml kvm_intel=vmx.xml [--full]

Files under one name are the parts of one run.
A file in which every test passed is one line.  Exit status: 1 when a test failed, a run has no
tests or its file cannot be read; 0 otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

PASSED, FAILED, SKIPPED, ABSENT = "passed", "FAILED", "skipped", "-"
_LEFT_OUT = "left_out"
_MINIMUM_NAME = 30  # columns


@dataclass(frozen=True)
class Result:
    """How one test ended in one run; ``reason`` is why it was skipped or failed."""

    outcome: str
    reason: str = ""


@dataclass
class Run:
    """One JUnit file: results by (test file, test name), or the reason why there are none.

    ``left_out``: the run was not made; ``problem``: something is wrong.
    """

    name: str
    results: dict[tuple[str, str], Result] = field(default_factory=dict)
    left_out: str = ""
    problem: str = ""

    def add(self, other: Run) -> None:
        """The other part of a run that was made in two."""
        self.results |= other.results
        self.left_out = self.left_out or other.left_out
        self.problem = self.problem or other.problem


def read(name: str, path: Path) -> Run:
    """Read one JUnit file as pytest writes it; what is wrong with it ends up in ``problem``."""
    run = Run(name)
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        run.problem = f"{path} is missing: the run did not finish"
    except (OSError, ElementTree.ParseError) as error:
        run.problem = f"{path} cannot be read: {error}"
    else:
        for case in root.iter("testcase"):
            _add(run, case)
        for found in root.iter("property"):
            if found.get("name") == _LEFT_OUT:
                run.left_out = found.get("value", "")
        if not run.results and not run.left_out:
            run.problem = f"{path} has no tests"
    return run


def write_left_out(path: Path, reason: str) -> None:
    """Write a JUnit file for a run that could not be made, which is no failure."""
    root = ElementTree.Element("testsuites")
    properties = ElementTree.SubElement(
        ElementTree.SubElement(root, "testsuite", name="rig", tests="0"), "properties"
    )
    ElementTree.SubElement(properties, "property", name=_LEFT_OUT, value=reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add(run: Run, case: ElementTree.Element) -> None:
    key = (_file_of(case), _name_of(case))
    result = _result_of(case)
    before = run.results.get(key)
    # pytest writes a second testcase when a test passes and its teardown fails.
    if before is None or before.outcome != FAILED:
        run.results[key] = result


def _file_of(case: ElementTree.Element) -> str:
    """The test file: pytest gives "tests.kvm.test_vm.TestClose", a dotted path and a class."""
    parts = case.get("classname", "").split(".")
    for count, part in enumerate(parts, 1):
        if part.startswith("test_"):
            return "/".join(parts[:count]) + ".py"
    return "/".join(parts) or case.get("name", "?")


def _name_of(case: ElementTree.Element) -> str:
    parts = case.get("classname", "").split(".")
    classes = [part for part in parts if part.startswith("Test")]
    return "::".join([*classes, case.get("name", "?")])


def _result_of(case: ElementTree.Element) -> Result:
    for tag, outcome in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        if (element := case.find(tag)) is not None:
            lines = (element.get("message") or element.text or "").strip().splitlines()
            return Result(outcome, lines[0] if lines else "no reason given")
    return Result(PASSED)


def render(runs: list[Run], *, full: bool = False, width: int = 100) -> str:
    """The table as text: files with their counts, tests that differ, then reasons and totals."""
    reasons = _Reasons()
    rows = list(_rows(runs, full, reasons))
    columns = [max(12, len(run.name)) for run in runs]
    name_width = max(_MINIMUM_NAME, width - sum(columns) - 2 * len(columns))
    name_width = min(name_width, max([len(name) for name, _ in rows] + [_MINIMUM_NAME]))

    def line(name: str, cells: Iterable[str]) -> str:
        parts = (f"{cell:<{size}}" for cell, size in zip(cells, columns, strict=True))
        return "  ".join([f"{_shorten(name, name_width):<{name_width}}", *parts]).rstrip()

    head = line("test", (run.name for run in runs))
    rule = "-" * min(width, name_width + sum(columns) + 2 * len(columns))
    text = [head, rule, *(line(name, cells) for name, cells in rows), rule]
    text.append(line("all", (_counts(run.results.values()) for run in runs)))
    text += reasons.lines(width)
    text += [f"{run.name}: {run.problem}" for run in runs if run.problem]
    text += [f"{run.name}: left out: {run.left_out}" for run in runs if run.left_out]
    return "\n".join(text) + "\n"


def _rows(runs: list[Run], full: bool, reasons: _Reasons) -> Iterable[tuple[str, list[str]]]:
    names: dict[str, dict[str, None]] = {}  # test file -> its tests, in order of appearance
    for run in runs:
        for file, name in run.results:
            names.setdefault(file, {})[name] = None
    for file in sorted(names):
        keys = [(file, name) for name in names[file]]
        yield file, [_counts(run.results[k] for k in keys if k in run.results) for run in runs]
        for key in keys:
            found = [(run.name, run.results.get(key, Result(ABSENT))) for run in runs]
            if full or any(result.outcome in (FAILED, SKIPPED) for _, result in found):
                yield "  " + key[1], [reasons.cell(run, key, result) for run, result in found]


def _counts(results: Iterable[Result]) -> str:
    """ "12", "12 +3 skip" or "12 FAIL 1": tests that passed, then what else there was."""
    counts = Counter(result.outcome for result in results)
    if not counts:
        return ABSENT
    parts = [str(counts[PASSED])]
    if counts[FAILED]:
        parts.append(f"FAIL {counts[FAILED]}")
    if counts[SKIPPED]:
        parts.append(f"skip {counts[SKIPPED]}")
    return " ".join(parts)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


class _Reasons:
    """Footnotes: each reason once, skips and failures in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def cell(self, run: str, key: tuple[str, str], result: Result) -> str:
        """A table cell, with a footnote's number if the result has a reason."""
        if result.outcome not in (FAILED, SKIPPED):
            return result.outcome
        text = result.reason
        if result.outcome == FAILED:
            text = f"{run} {key[0]}::{key[1]}: {text}"
        number = self._numbers.setdefault(text, len(self._numbers) + 1)
        return f"{result.outcome} [{number}]"

    def lines(self, width: int) -> list[str]:
        """The footnotes, wrapped."""
        found = []
        for text, number in self._numbers.items():
            label = f"[{number}] "
            found += textwrap.wrap(
                text, width, initial_indent=label, subsequent_indent=" " * len(label)
            )
        return found


def failed(runs: list[Run]) -> bool:
    """Whether a run has a failure, or gave no results."""
    return any(
        run.problem or any(result.outcome == FAILED for result in run.results.values())
        for run in runs
    )


def main() -> int:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("junit", nargs="+", metavar="[NAME=]FILE", help="a run's JUnit XML")
    parser.add_argument("--full", action="store_true", help="list every test")
    parser.add_argument("--width", type=int, metavar="COLUMNS")
    arguments = parser.parse_args()
    runs: dict[str, Run] = {}
    for text in arguments.junit:
        name, separator, file = text.partition("=")
        run = read(name, Path(file)) if separator else read(Path(text).stem, Path(text))
        if run.name in runs:
            runs[run.name].add(run)
        else:
            runs[run.name] = run
    width = arguments.width or min(100, max(80, shutil.get_terminal_size().columns))
    sys.stdout.write(render([*runs.values()], full=arguments.full, width=width))
    return 1 if failed([*runs.values()]) else 0


if __name__ == "__main__":
    sys.exit(main())
