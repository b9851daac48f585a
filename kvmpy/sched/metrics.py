"""Figures of an experiment: shares and their fairness, lengths, rates, and who says what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .result import Reason, Result, Vcpu


def jain(shares: Iterable[float]) -> float:
    """Jain's fairness index: 1 for equal shares, 1/n if one has all; NaN for no shares at all
    (Jain, Chiu, Hawe: A Quantitative Measure of Fairness, 1984).

    >>> kvmpy.sched.metrics.jain([2, 2]), kvmpy.sched.metrics.jain([1, 0, 0, 0])
    (1.0, 0.25)
    """
    values = list(shares)
    most = max(values, default=0.0)
    if most <= 0:
        return math.nan
    scaled = [value / most for value in values]  # squares of large numbers must not overflow
    return sum(scaled) ** 2 / (len(scaled) * sum(value * value for value in scaled))


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed; NaN if there is none.

    >>> kvmpy.sched.metrics.quantile([4, 1, 3, 2], 0.5)
    2
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of some times in ns: how many, their sum, median and 99th percentile."""

    count: int
    total: int
    median: float
    p99: float


def lengths(parts: Iterable[tuple[int, int]]) -> Lengths:
    """Of (start, end) in ns.

    >>> kvmpy.sched.metrics.lengths([(0, 10), (20, 40), (50, 60)])
    Lengths(count=3, total=40, median=10, p99=20)
    """
    sizes = [end - start for start, end in parts]
    return Lengths(len(sizes), sum(sizes), quantile(sizes, 0.5), quantile(sizes, 0.99))


def on_pcpu(vcpu: Vcpu) -> Lengths:
    """The vCPU's slices.

    >>> kvmpy.sched.metrics.on_pcpu(sched_result.vcpus[0]).count
    4
    """
    return lengths((part.start, part.end) for part in vcpu.slices)


def gaps(vcpu: Vcpu, kind: str) -> Lengths:
    """The vCPU's gaps of a kind (``kvmpy.sched.result.Gap``).

    >>> kvmpy.sched.metrics.gaps(sched_result.vcpus[0], "descheduled").count
    3
    """
    return lengths((gap.start, gap.end) for gap in vcpu.gaps if gap.kind == kind)


def seen(vcpu: Vcpu) -> int:
    """ns from the vCPU's first sign of life to its last.

    >>> kvmpy.sched.metrics.seen(sched_result.vcpus[0])
    28000000
    """
    return vcpu.end - vcpu.start


def switches(vcpu: Vcpu, reason: Reason) -> int:
    """How often the guest's ring 0 ran for that reason.

    >>> kvmpy.sched.metrics.switches(sched_result.vcpus[0], "timer")
    2
    """
    return sum(switch.reason == reason for switch in vcpu.switches)


def switches_per_second(vcpu: Vcpu) -> float:
    """Switches from one guest thread to another; NaN if nothing was seen.

    >>> kvmpy.sched.metrics.switches_per_second(sched_result.vcpus[0])
    71.4...
    """
    changed = sum(
        switch.source != switch.target and switch.source is not None for switch in vcpu.switches
    )
    return changed * 1e9 / seen(vcpu) if seen(vcpu) else math.nan


def kernel(vcpu: Vcpu) -> Lengths:
    """Ring 0's share of a switch: from its first instruction to its last but a few.

    >>> kvmpy.sched.metrics.kernel(sched_result.vcpus[0]).median
    20000
    """
    return lengths(
        (switch.entered, switch.left) for switch in vcpu.switches if switch.source is not None
    )


def vcpu_fairness(result: Result) -> dict[int, float]:
    """For each pCPU, Jain's index of the time that its vCPUs had it, as schedstat has it, or their
    slices where the kernel keeps none.

    >>> kvmpy.sched.metrics.vcpu_fairness(sched_result)
    {0: 0.98}
    """
    found = {}
    for pcpu in dict.fromkeys(pcpu for vcpu in result.vcpus for pcpu in vcpu.pcpus):
        here = [vcpu for vcpu in result.vcpus if vcpu.pcpus == (pcpu,)]
        found[pcpu] = jain(cpu_time(vcpu) for vcpu in here)
    return found


def cpu_time(vcpu: Vcpu) -> int:
    """ns that the vCPU's thread ran: schedstat's, or its slices where the kernel keeps none.

    >>> kvmpy.sched.metrics.cpu_time(sched_result.vcpus[0])
    16000000
    """
    return on_pcpu(vcpu).total if vcpu.host.run is None else vcpu.host.run


def thread_fairness(vcpu: Vcpu) -> float:
    """Jain's index of the CPU time of the vCPU's guest threads.

    >>> kvmpy.sched.metrics.thread_fairness(sched_result.vcpus[0])
    0.9...
    """
    return jain(thread.cpu_ns for thread in vcpu.threads)


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """What going from one of ``threads`` guest threads to the next costs, in ns: ``kernel``, ring
    0's part, and ``turn``, the whole from one thread's yield to the next one's, its own work on
    ``work`` bytes in it. Medians; ``turns`` were seen."""

    threads: int
    work: int
    turns: int
    kernel: float
    turn: float


def switch_cost(result: Result, work: int) -> SwitchCost:
    """Of a result of the program "yield" on one vCPU, whose threads used ``work`` bytes.

    >>> kvmpy.sched.metrics.switch_cost(sched_result, work=0).threads
    2
    """
    vcpu = result.vcpus[0]
    alive: Sequence[int] = [switch.alive for switch in vcpu.switches if switch.reason == "yield"]
    turns = lengths(itertools.pairwise(alive))
    inside = lengths(
        (switch.entered, switch.left) for switch in vcpu.switches if switch.reason == "yield"
    )
    return SwitchCost(result.threads, work, inside.count, inside.median, turns.median)
