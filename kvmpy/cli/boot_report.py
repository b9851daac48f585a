"""What ``boot`` tells of a run: exits by reason, and the whole of it for --json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..machine.resident import measure

if TYPE_CHECKING:
    from ..machine.machine import Machine
    from ..machine.outcome import Outcome


def stats_text(machine: Machine, outcome: Outcome) -> str:
    stats = machine.stats
    lines = [
        "",
        f"{stats.total} exits in {outcome.seconds * 1e3:.1f} ms, "
        f"{(stats.guest_ns or 0) / 1e6:.1f} ms of it in KVM_RUN; {machine.loaded.description}",
        f"{'exit reason':<18} {'count':>10} {'handling, ms':>13} {'us each':>9}",
    ]
    for row in stats:
        ns = row.handling_ns or 0
        each = ns / row.count / 1e3
        lines.append(f"{row.reason:<18} {row.count:>10} {ns / 1e6:>13.2f} {each:>9.2f}")
    absent = machine.unclaimed.most_common(5)
    if absent:
        shown = ", ".join(f"{kind} {address:#x} ({n})" for (kind, address), n in absent)
        lines.append(f"accesses to absent devices, most frequent first: {shown}")
    return "\n".join(lines)


def record(machine: Machine, outcome: Outcome) -> dict[str, Any]:
    stats, loaded = machine.stats, machine.loaded
    memory = measure(machine.vm.memory)
    return {
        "ending": outcome.ending,
        "status": outcome.status,
        "text": outcome.text,
        "exit": repr(outcome.exit),
        "seconds": outcome.seconds,
        "format": loaded.format,
        "description": loaded.description,
        "segments": [{"gpa": g, "size": s, "name": n} for g, s, n in loaded.segments],
        "exits": {
            row.reason: {"count": row.count, "handling_ns": row.handling_ns} for row in stats
        },
        "guest_ns": stats.guest_ns,
        "unclaimed": [
            {"kind": kind, "address": address, "count": count}
            for (kind, address), count in machine.unclaimed.most_common()
        ],
        "post_code": machine.post.last if machine.post.writes else None,
        "resident": {"guest": memory.guest, "host": memory.host},
        "serial": machine.console.output.decode("utf-8", "replace"),
        "debug_console": machine.debug_console.output.decode("utf-8", "replace"),
    }
