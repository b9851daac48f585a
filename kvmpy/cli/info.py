"""Tell what this host's KVM offers: module, what runs natively, limits, capabilities, modes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ..host import topology
from ..ioctls.capabilities import PREFIX
from ..probe.capabilities import GROUPS, value_text
from . import report

_MODES = {
    "real": "real, 16-bit",
    "protected": "protected, 32-bit",
    "paged": "paged, 32-bit",
    "long": "long, 64-bit",
}
_LIMITS = {
    "recommended_vcpus": "vCPUs recommended",
    "max_vcpus": "vCPUs at most",
    "max_vcpu_id": "vCPU ids below",
    "memslots": "memory slots",
    "kvm_run_bytes": "bytes of kvm_run mapping",
    "xsave_bytes": "bytes of XSAVE area",
    "gsi_routes": "GSI routes",
    "mce_banks": "MCE banks",
    "dirty_ring_bytes": "bytes of dirty ring at most",
    "msrs": "MSRs",
    "feature_msrs": "feature MSRs",
    "cpuid_leaves": "CPUID leaves",
}
_PARAMETERS = (
    "ept", "npt", "unrestricted_guest", "nested", "vpid", "pml", "avic", "enable_apicv", "sev",
    "emulate_invalid_guest_state", "pvm_native",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``info``."""
    parser.add_argument("--all", action="store_true", help="absent capabilities too")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object, described in kvmpy.probe.info"
    )


def run(args: argparse.Namespace) -> int:
    """Collect and print. Raises a KvmUnavailableError when there is no usable KVM."""
    from ..probe.info import collect

    info = collect()
    if args.json:
        print(json.dumps(info, indent=2))
        return 0
    _print_host(info)
    _print_modes(info)
    report.heading("Limits")
    report.table([(f"{info['limits'][key]:>9}", text) for key, text in _LIMITS.items()])
    _print_capabilities(info["capabilities"], absent=args.all)
    return 0


def _print_host(info: dict[str, Any]) -> None:
    cpu, verdict = info["cpu"], info["verdict"]
    shown = [f"{key}={info['parameters'][key]}" for key in _PARAMETERS if key in info["parameters"]]
    paging = {None: "unknown paging", "shadow": "shadow paging"}.get(verdict["paging"])
    report.table(
        [
            ("verdict", verdict["summary"]),
            ("module", ", ".join([info["module"], paging or verdict["paging"], *shown])),
            ("kernel", f"{info['kernel']}, KVM API version {info['api_version']}"),
            ("CPU", f"{cpu['model']} ({cpu['vendor']}), {cpu['extension'] or 'no VT-x or AMD-V'}"),
            ("host", cpu["surroundings"]),
            ("pCPUs", topology.format_cpu_list(info["pcpus"])),
        ],
        indent=0,
    )


def _print_modes(info: dict[str, Any]) -> None:
    report.heading("Modes and rings")
    cells = {(result["mode"], result["ring"]): result for result in info["modes"]}
    rows: list[report.Row] = [("", *(f"ring {ring}" for ring in range(4)))]
    for mode, title in _MODES.items():
        found = (cells.get((mode, ring)) for ring in range(4))
        rows.append((title, *(result["outcome"] if result else "-" for result in found)))
    report.table(rows)
    for note in _notes(info["modes"]):
        report.table([(note,)])
    report.heading("From 64-bit ring 3 into ring 0")
    report.table(
        [
            (way["instruction"], "works" if way["ring"] == 0 else "fails", way["detail"])
            for way in info["ways_in"]
        ]
    )


def _notes(results: list[dict[str, Any]]) -> Iterator[str]:
    """Times by outcome, and how the rings of a mode fail."""
    for outcome in ("native", "emulated"):
        times = [result["nanoseconds"] for result in results if result["outcome"] == outcome]
        if times:
            digits = 1 if outcome == "native" else 0
            low, high = (f"{value:.{digits}f}" for value in (min(times), max(times)))
            span = low if low == high else f"{low} to {high}"
            yield f"{outcome}: {span} ns for an instruction"
    failures: dict[tuple[str, str], list[int]] = {}
    for result in results:
        if result["outcome"] == "fails":
            failures.setdefault((result["mode"], result["detail"]), []).append(result["ring"])
    for (mode, detail), rings in failures.items():
        plural = "" if len(rings) == 1 else "s"
        yield f"{_MODES[mode]}, ring{plural} {topology.format_cpu_list(rings)}: {detail}"


def _print_capabilities(values: dict[str, int], *, absent: bool) -> None:
    present = sum(value > 0 for value in values.values())
    hint = "" if absent else "; --all lists the others too"
    report.heading(f"Capabilities: {present} of {len(values)}{hint}")
    short = report.on_terminal()
    for group, names in GROUPS.items():
        cells = []
        for name in names:
            value = values[PREFIX + name]
            if value > 0 or absent:
                text = (
                    "absent"
                    if value <= 0
                    else ""
                    if short and value == 1
                    else value_text(name, value)
                )
                cells.append(f"{name if short else PREFIX + name} {text}".strip())
        if cells:
            report.heading(group)
            report.columns(cells)
