"""The result in tables, for a terminal and a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..report.table import DASH, Table, number, share
from . import metrics
from .metrics import SwitchCost
from .result import Result, Vcpu


def headline(result: Result) -> str:
    """What was run where, in a sentence or two.

    >>> kvmpy.sched.summary.headline(sched_result)[:57]
    '2 vCPUs on pCPU 0, 2 guest threads each, for 0.031 s (kvm'
    """
    pcpus = ", ".join(map(str, sorted(set(result.pcpus))))
    plural = "" if len(set(result.pcpus)) == 1 else "s"
    ended = " until Ctrl-C" if result.interrupted else ""
    vcpus, threads = len(result.vcpus), result.threads
    return (
        f"{vcpus} vCPU{'s' * (vcpus > 1)} on pCPU{plural} {pcpus}, {threads} guest "
        f"thread{'s' * (threads > 1)} each, for {result.wall / 1e9:.3g} s{ended} "
        f"({result.module}; guest slices of {result.slice_us / 1e3:g} ms, "
        f"TSC {result.tsc_khz:.0f} kHz)."
    )


def tables(result: Result, series: Sequence[SwitchCost] = ()) -> list[Table]:
    """All tables. ``series``: what switches cost, by number of threads.

    >>> [table.title for table in kvmpy.sched.summary.tables(sched_result)][:2]
    ['vCPUs on pCPUs', 'Three sources, in ms']
    """
    found = [vcpus(result), sources(result), threads(result), gaps(result), statistics(result)]
    return [*found, costs(result, series)] if series else found


def _us(ns: float | None) -> str:
    return number(None if ns is None else ns / 1e3)


def _count(value: int | None) -> str:
    return DASH if value is None else str(value) if value < 100_000 else number(value)


def _index(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else DASH


def _ms(ns: float | None) -> str:
    return DASH if ns is None else f"{ns / 1e6:.1f}"


def vcpus(result: Result) -> Table:
    """The host's level: what each vCPU had of its pCPU.

    >>> kvmpy.sched.summary.vcpus(sched_result).rows[0]
    ('vCPU 0', '0', '-', '57.1%', '4', '4000', '4000', '4000', '11.97')
    """
    header = ("", "pCPU", "nice", "share", "slices", "slice us", "p99 us", "away us", "steal ms")
    rows = tuple(_vcpu_row(vcpu) for vcpu in result.vcpus)
    fairness = ", ".join(
        f"pCPU {pcpu}: {_index(index)}" for pcpu, index in metrics.vcpu_fairness(result).items()
    )
    notes = (
        "slice us and away us: medians, of times with the pCPU and of waiting for it",
        f"Jain's fairness of the vCPUs on {fairness}; 1 is equal shares",
    )
    return Table("vCPUs on pCPUs", header, rows, notes=notes)


def _vcpu_row(vcpu: Vcpu) -> tuple[str, ...]:
    slices, away = metrics.on_pcpu(vcpu), metrics.gaps(vcpu, "descheduled")
    return (
        f"vCPU {vcpu.id}", ",".join(map(str, vcpu.pcpus)),
        DASH if vcpu.nice is None else str(vcpu.nice),
        share(slices.total / metrics.seen(vcpu)) if metrics.seen(vcpu) else DASH,
        _count(slices.count), _us(slices.median), _us(slices.p99), _us(away.median),
        DASH if vcpu.steal is None else f"{vcpu.steal / 1e6:.2f}",
    )  # fmt: skip


def sources(result: Result) -> Table:
    """The same times by the guest's TSC, the host's schedstat and KVM's steal time.

    >>> kvmpy.sched.summary.sources(sched_result).rows[0][:4]
    ('vCPU 0', '16.0', '16.0', '12.0')
    """
    header = (
        *("", "ran", "schedstat", "waited", "schedstat", "KVM steal"),
        *("in all", "unseen", "wall"),
    )
    rows = tuple(_source_row(vcpu) for vcpu in result.vcpus)
    notes = (
        "ran, waited, in all: by the TSC, as the guest saw it; unseen: before its first and after "
        "its last sign of life; wall: the host's time for the run",
    )
    return Table("Three sources, in ms", header, rows, notes=notes)


def _source_row(vcpu: Vcpu) -> tuple[str, ...]:
    ran, waited = metrics.on_pcpu(vcpu).total, metrics.gaps(vcpu, "descheduled").total
    wall = vcpu.host.end - vcpu.host.begin
    return (
        f"vCPU {vcpu.id}", _ms(ran), _ms(vcpu.host.run), _ms(waited), _ms(vcpu.host.delay),
        _ms(vcpu.steal), _ms(ran + waited), _ms(wall - metrics.seen(vcpu)), _ms(wall),
    )  # fmt: skip


def threads(result: Result) -> Table:
    """The guest's level: what its threads had of their vCPU.

    >>> kvmpy.sched.summary.threads(sched_result).rows[0]
    ('vCPU 0', '71.4', '2', '0', '0', '20.0', '8980', '1.0000', '50.1%', '49.9%')
    """
    header = (
        *("", "switch/s", "timer", "yield", "exit"),
        *("ring 0 us", "slice us", "Jain", "most", "least"),
    )
    rows = tuple(_thread_row(vcpu) for vcpu in result.vcpus)
    notes = ["most, least: shares of the vCPU's time"]
    if result.ring0 == "emulated":
        notes.append("ring 0 us: interpreted here")
    return Table("Guest threads on vCPUs", header, rows, notes=tuple(notes))


def _thread_row(vcpu: Vcpu) -> tuple[str, ...]:
    slices = metrics.lengths((part.start, part.end) for part in vcpu.thread_slices)
    total = sum(thread.cpu_ns for thread in vcpu.threads)
    used = [thread.cpu_ns / total for thread in vcpu.threads] if total else []
    counts = (_count(metrics.switches(vcpu, reason)) for reason in ("timer", "yield", "exit"))
    return (
        f"vCPU {vcpu.id}", number(metrics.switches_per_second(vcpu)),
        *counts, _us(metrics.kernel(vcpu).median), _us(slices.median),
        _index(metrics.thread_fairness(vcpu)),
        share(max(used)) if used else DASH,
        share(min(used)) if used else DASH,
    )  # fmt: skip


def gaps(result: Result) -> Table:
    """Time that the guest was not there, by kind.

    >>> kvmpy.sched.summary.gaps(sched_result).rows[0]
    ('vCPU 0', '3', '12.0', '0', '0.0', '-', '0', '0.0', '0')
    """
    header = (
        *("", "descheduled", "ms", "exits", "ms", "median us", "stalls", "ms", "lost"),
    )  # fmt: skip
    rows = []
    for vcpu in result.vcpus:
        away, exits, stalls = (
            metrics.gaps(vcpu, kind) for kind in ("descheduled", "exit", "stall")
        )
        rows.append(
            (
                f"vCPU {vcpu.id}", _count(away.count), _ms(away.total), _count(exits.count),
                _ms(exits.total), _us(exits.median), _count(stalls.count), _ms(stalls.total),
                _count(vcpu.lost + vcpu.damaged),
            )
        )  # fmt: skip
    notes = (
        f"gaps of {result.gap_us:g} us and more in what a guest thread sees; stalls: 0.1 ms and "
        "more that no other thread of this host had",
    )
    return Table("Gaps, by what they were", header, tuple(rows), notes=notes)


def statistics(result: Result) -> Table:
    """What KVM counted: beside the gaps, since each exit is a gap, if mostly too short a one.

    >>> kvmpy.sched.summary.statistics(sched_result).rows[0]
    ('vCPU 0', '40', '0', '0', '0', '0.0', '0.0')
    """
    header = ("", "exits", "host IRQ", "injected", "emulated", "halt ms", "halt poll ms")
    return Table("KVM's statistics", header, tuple(_statistics_row(vcpu) for vcpu in result.vcpus))


def _statistics_row(vcpu: Vcpu) -> tuple[str, ...]:
    found = vcpu.host.stats
    if not found:
        return (f"vCPU {vcpu.id}", *[DASH] * 6)
    names = ("exits", "irq_exits", "irq_injections", "insn_emulation")
    polled = found.get("halt_poll_success_ns", 0) + found.get("halt_poll_fail_ns", 0)
    return (
        f"vCPU {vcpu.id}", *(_count(found.get(name, 0)) for name in names),
        _ms(found.get("halt_wait_ns", 0)), _ms(polled),
    )  # fmt: skip


def costs(result: Result, series: Sequence[SwitchCost]) -> Table:
    """What a switch between guest threads costs as there are more of them.

    >>> from kvmpy.sched.metrics import SwitchCost
    >>> kvmpy.sched.summary.costs(sched_result, [SwitchCost(2, 4096, 100, 900.0, 1500.0)]).rows
    (('2', '100', '0.9', '1.5', '8'),)
    """
    header = ("threads", "yields", "ring 0 us", "turn us", "KiB in use")
    rows = tuple(
        (
            str(cost.threads), _count(cost.turns), _us(cost.kernel), _us(cost.turn),
            f"{cost.work * cost.threads / 1024:g}",
        )
        for cost in series
    )  # fmt: skip
    work = series[0].work / 1024 if series else 0
    notes = (
        f"turn: from one thread's yield to the next one's; each writes to {work:g} KiB of its own",
        *(("ring 0 is interpreted here",) if result.ring0 == "emulated" else ()),
    )
    return Table("What a switch between guest threads costs", header, rows, notes=notes)
