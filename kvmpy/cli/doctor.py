"""Check whether this host can run guests; say what is wrong and what to do about it.

Exit status 0 if a guest ran, 69 if not."""

from __future__ import annotations

import argparse
import dataclasses
import json

from ..probe.doctor import Check, Diagnosis, examine
from . import report

_OK, _NO_KVM = 0, 69


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``doctor``."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object: runs, module, headline, checks (name, status, finding, remedy)",
    )


def run(args: argparse.Namespace) -> int:
    """Examine and print; the exit status says whether guests run."""
    diagnosis = examine()
    if args.json:
        print(json.dumps(as_json(diagnosis), indent=2))
    else:
        _print(diagnosis)
    return _OK if diagnosis.runs else _NO_KVM


def as_json(diagnosis: Diagnosis) -> dict[str, object]:
    """The diagnosis as a JSON object."""
    return {
        "runs": diagnosis.runs,
        "module": diagnosis.module,
        "headline": diagnosis.headline,
        "checks": [dataclasses.asdict(check) for check in diagnosis.checks],
    }


def _print(diagnosis: Diagnosis) -> None:
    report.table([row for check in diagnosis.checks for row in _rows(check)], indent=0)
    report.heading(diagnosis.headline)


def _rows(check: Check) -> list[report.Row]:
    rows: list[report.Row] = []
    for i, line in enumerate(check.finding.splitlines() or [""]):
        rows.append((check.name, check.status, line) if i == 0 else ("", "", line))
    if check.remedy:
        rows.append(("", "", f"-> {check.remedy}"))
    return rows
