"""A report as pyperf's JSON (its file format 1.0): for ``pyperf stats``, ``hist``, ``compare_to``.

Source: pyperf's documentation, "pyperf JSON format" and "Metadata".
"""

from __future__ import annotations

import json
from typing import Any, Final

from .document import Report
from .figures import VIRTUAL, Class, by_vm, classify, figure
from .record import Row

FORMAT: Final = "1.0"


def to_pyperf(report: Report, kind: Class = "native") -> str | None:
    """JSON text with a benchmark for each row of a class that has times, a run for each VM; None
    if there is no such row. ``pyperf compare_to`` forms a mean over all benchmarks of a file, so
    a file has one class alone (see :mod:`kvmpy.bench.figures`).

    pyperf's values are seconds above 0 for one call. So ticks of a TSC whose rate is not known are
    left out, and slopes that noise made 0 or less: the metadata ``dropped_values`` counts them.

    >>> '"version": "1.0"' in kvmpy.bench.pyperf.to_pyperf(report)
    True
    >>> kvmpy.bench.pyperf.to_pyperf(report, "emulated-by-kvm") is None
    True
    """
    rows = [row for row in report.rows if classify(row) == kind]
    benchmarks = [found for row in rows if (found := _benchmark(row, report))]
    if not benchmarks:
        return None
    facts = report.disclosure
    metadata = {
        "kvmpy_version": facts.versions.get("kvmpy", ""),
        "python_version": facts.versions.get("python", ""),
        "cpu_model_name": facts.cpu_model,
        "platform": facts.kernel,
        "kvm_module": facts.module,
        "kvm_verdict": f"{VIRTUAL} {facts.verdict}" if facts.virtual_time else facts.verdict,
    }
    # pyperf refuses a metadata text that is empty, or has spaces around it.
    metadata = {name: clean for name, text in metadata.items() if (clean := _line(text))}
    return json.dumps(
        {"version": FORMAT, "metadata": metadata, "benchmarks": benchmarks}, allow_nan=False
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _benchmark(row: Row, report: Report) -> dict[str, Any] | None:
    measured = figure(row, report.disclosure)
    if measured.ns is None or measured.summary is None:
        return None
    seconds = measured.ns / 1e9
    runs, dropped = [], 0
    for group in by_vm(row):
        values = [value * seconds for value in group if value > 0]
        dropped += len(group) - len(values)
        if values:
            runs.append({"values": values})
    if not runs:
        return None
    words = [report.benchmark, measured.mode, measured.label]
    if row.outcome != "native":
        words.append(f"[{row.outcome}]")
    metadata: dict[str, Any] = {
        "name": _line(" ".join(words)),
        "unit": "second",
        "loops": 1,
        "inner_loops": row.calls,
        "outcome": row.outcome,
    }
    if dropped:
        metadata["dropped_values"] = dropped
    return {"metadata": metadata, "runs": runs}
