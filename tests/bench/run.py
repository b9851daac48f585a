#!/usr/bin/env python3
"""kvmpy against the smallest KVM_RUN loop in C, and against the project's own limits.

    python tests/bench/run.py
    python tests/bench/run.py --quick --json bench.json

Both sides run in turns in one process on one CPU; the table gives medians. Exit status 0 whether
or not the limits are kept, 69 without a usable KVM.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kvmpy
from bench import calls, exits, processes, scaling, views
from bench.rows import Row, table
from kvmpy.probe.verdict import Verdict, verdict

NO_KVM = 69


@contextmanager
def _pinned() -> Iterator[int | None]:
    """One CPU for this thread and what it starts; None where that is not allowed."""
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)  # CPU 0 gets most interrupts
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError:
        yield None
        return
    try:
        yield cpu
    finally:
        os.sched_setaffinity(0, allowed)


def _progress(text: str) -> None:
    print(f"bench: {text} ...", file=sys.stderr, flush=True)


def _measure(quick: bool) -> tuple[list[Row], int | None]:
    scale = 1 if quick else 5
    rows: list[Row] = []
    with _pinned() as cpu:
        _progress("exits")
        rows += exits.exit_rows(sets=scale + 1, rounds=24)
        _progress("lives of VMs")
        rows += exits.life_rows(rounds=100 * scale)
        _progress("registers and memory")
        rows += views.view_rows(rounds=100 * scale)
        _progress("ioctls")
        rows += calls.call_rows(rounds=50 * scale)
        _progress("import")
        rows += processes.import_rows(rounds=8 * scale)
    _progress("vCPUs beside Python")
    rows += scaling.scaling_rows(rounds=8 * scale)
    _progress("boot")
    return rows + processes.boot_rows(rounds=4 * scale), cpu


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _provenance(backend: Verdict) -> dict[str, Any]:
    return {
        "kvm_module": backend.module,
        "ring0": backend.ring0,
        "ring3": backend.ring3,
        "performance": backend.performance,
        "verdict": backend.summary,
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kvmpy": kvmpy.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _remarks(backend: Verdict, exit_us: float) -> list[str]:
    """What the figures mean on this host."""
    if backend.performance:
        return []
    if backend.emulator:
        return [
            f"This host's own CPU is emulated ({backend.emulator}): no figure here is one of "
            "performance."
        ]
    return [
        f"{backend.module} interprets ring 0: an exit costs {exit_us:.1f} us here, about 1 us on",
        "hardware. Ratios of exits come out lower than there, where the difference in ns counts;",
        "differences come out higher, since the interpreter leaves caches and TLB cold. Rows",
        "without a guest do not depend on it.",
    ]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument("--quick", action="store_true", help="a fifth of the samples")
    args = parser.parse_args()
    try:
        backend = verdict()
    except kvmpy.KvmUnavailableError as error:
        print(f"bench: {error}", file=sys.stderr)
        return NO_KVM
    host = _provenance(backend)
    load = [os.getloadavg()[0]]
    started = time.monotonic()
    rows, cpu = _measure(args.quick)
    load.append(os.getloadavg()[0])
    host.update(pinned_to=cpu, load_average=load, seconds=time.monotonic() - started)
    print(
        f"{backend.summary}\n"
        f"{host['cpu']}, {host['cpus']} CPUs, Linux {host['kernel']}, Python {host['python']}\n"
        f"pinned to CPU {cpu}; load average {load[0]:.1f} before, {load[1]:.1f} after\n"
    )
    print(table(rows))
    remarks = _remarks(backend, min(rows[0].bare))
    if load[0] > 1:
        remarks.append(f"Other work was under way (load average {load[0]:.1f}): repeat when quiet.")
    if remarks:
        print("", *remarks, sep="\n")
    if args.json:
        record = {"host": host, "remarks": remarks, "rows": [row.record() for row in rows]}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
