"""What the pictures are drawn from: lanes of pCPUs, of vCPUs on them, of threads on those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from . import metrics, timeline
from .result import Result, Vcpu
from .timeline import Span

#: "runs", or "waits": the guest thread has its vCPU, which waits for the pCPU.
Mark = Literal["runs", "waits"]


@dataclass(frozen=True, slots=True)
class Part:
    """A time in a lane, in ns, and the vCPU it belongs to."""

    start: int
    end: int
    vcpu: int
    mark: Mark = "runs"


@dataclass(frozen=True, slots=True)
class Lane:
    """A line of the picture: ``level`` 0 is a pCPU's, 1 a vCPU's, 2 a guest thread's. ``number``:
    of what it shows."""

    label: str
    level: int
    number: int
    parts: tuple[Part, ...]


def lanes(result: Result, *, threads: bool = True) -> list[Lane]:
    """All lanes, the pCPUs' in the order of their numbers, each followed by its vCPUs'.

    >>> [lane.label for lane in kvmpy.sched.lanes.lanes(sched_result, threads=False)]
    ['pCPU 0', 'vCPU 0', 'vCPU 1']
    """
    return list(_lanes(result, threads))


def _lanes(result: Result, threads: bool) -> Iterator[Lane]:
    for pcpu in sorted(set(result.pcpus)):
        here = [vcpu for vcpu in result.vcpus if pcpu in vcpu.pcpus]
        parts = sorted(
            (part for vcpu in here for part in _slices(vcpu, pcpu)), key=lambda part: part.start
        )
        yield Lane(f"pCPU {pcpu}", 0, pcpu, tuple(parts))
        for vcpu in here:
            yield Lane(f"vCPU {vcpu.id}", 1, vcpu.id, tuple(_slices(vcpu)))
            for thread in vcpu.threads if threads else ():
                yield Lane(f"thread {thread.id}", 2, thread.id, tuple(_thread(vcpu, thread.id)))


def _slices(vcpu: Vcpu, pcpu: int | None = None) -> Iterator[Part]:
    for part in vcpu.slices:
        if pcpu is None or part.pcpu == pcpu:
            yield Part(part.start, part.end, vcpu.id)


def _thread(vcpu: Vcpu, thread: int) -> Iterable[Part]:
    own = [(part.start, part.end) for part in vcpu.thread_slices if part.thread == thread]
    on = [(part.start, part.end) for part in vcpu.slices]
    off = [(gap.start, gap.end) for gap in vcpu.gaps if gap.kind == "descheduled"]
    found = [Part(start, end, vcpu.id) for start, end in timeline.common(own, on)]
    found += [Part(start, end, vcpu.id, "waits") for start, end in timeline.common(own, off)]
    return sorted(found, key=lambda part: part.start)


def window(result: Result) -> Span:
    """A part of the run, from its middle, short enough to tell slices apart: each vCPU has its pCPU
    twice or more, and each guest thread its vCPU once.

    >>> kvmpy.sched.lanes.window(sched_result)
    (4000000, 28000000)
    """
    first = min((vcpu.start for vcpu in result.vcpus), default=0)
    last = max((vcpu.end for vcpu in result.vcpus), default=0)
    usual = [
        metrics.on_pcpu(vcpu).median + metrics.gaps(vcpu, "descheduled").median
        for vcpu in result.vcpus
        if len(vcpu.slices) > 1
    ]
    turns = 1.2 * result.threads * result.slice_us * 1e3
    rounds = 2.2 * metrics.quantile(usual, 0.5) if usual else 0
    length = max(round(rounds), round(turns), 1000)
    if length >= last - first:
        return first, max(last, first + 1)
    start = (first + last - length) // 2
    return start, start + length


def within(parts: Iterable[Part], start: int, end: int) -> Iterator[Part]:
    """The parts, cut to ``start`` to ``end``.

    >>> from kvmpy.sched.lanes import Part, within
    >>> list(within([Part(0, 10, 0)], 5, 20))
    [Part(start=5, end=10, vcpu=0, mark='runs')]
    """
    for part in parts:
        if part.end > start and part.start < end:
            yield Part(max(part.start, start), min(part.end, end), part.vcpu, part.mark)
