"""The result as a Chrome trace ("Trace Event Format"), which ui.perfetto.dev opens: one process for
the pCPUs, with a thread for each; one for each vCPU, with its guest threads, its kernel and gaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from .lanes import lanes
from .result import Result, Vcpu

_PCPUS: Final = 1  # the process of pCPUs; a vCPU's is 100 and its number
_VCPUS: Final = 100
#: Threads of a vCPU's process behind its guest threads.
_KERNEL, _GAPS = 100, 101

Event = dict[str, Any]


def events(result: Result) -> list[Event]:
    """Names first, then what ran, in the order of time; times are us since the run's begin.

    >>> found = kvmpy.sched.trace.events(sched_result)
    >>> [event["name"] for event in found if event["ph"] == "X"][:2]
    ['vCPU 0', 'runs']
    """
    return [*_names(result), *sorted(_slices(result), key=lambda event: float(event["ts"]))]


def to_json(result: Result) -> str:
    """The trace as the text of a file.

    >>> kvmpy.sched.trace.to_json(sched_result)[:16]
    '{"traceEvents":['
    """
    whole = {
        "traceEvents": events(result),
        "displayTimeUnit": "ms",
        "otherData": {"module": result.module, "verdict": result.verdict},
    }
    return json.dumps(whole, separators=(",", ":"))


def _named(kind: str, process: int, thread: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _ordered(kind: str, process: int, thread: int, index: int) -> Event:
    args = {"sort_index": index}
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": args}


def _names(result: Result) -> Iterator[Event]:
    yield _named("process_name", _PCPUS, 0, "pCPUs")
    yield _ordered("process_sort_index", _PCPUS, 0, 0)
    for pcpu in sorted(set(result.pcpus)):
        yield _named("thread_name", _PCPUS, pcpu, f"pCPU {pcpu}")
        yield _ordered("thread_sort_index", _PCPUS, pcpu, pcpu)
    for vcpu in result.vcpus:
        process = _VCPUS + vcpu.id
        yield _named("process_name", process, 0, f"vCPU {vcpu.id}")
        yield _ordered("process_sort_index", process, 0, 1 + vcpu.id)
        for thread in vcpu.threads:
            yield _named("thread_name", process, thread.id, f"thread {thread.id}")
        yield _named("thread_name", process, _KERNEL, "ring 0")
        yield _named("thread_name", process, _GAPS, "gaps")


def _slices(result: Result) -> Iterator[Event]:
    for lane in lanes(result):
        if lane.level == 1:
            continue  # what the pCPUs' lanes and the gaps say already
        for part in lane.parts:
            if lane.level == 0:
                yield _event(f"vCPU {part.vcpu}", _PCPUS, lane.number, part.start, part.end)
            else:
                process = _VCPUS + part.vcpu
                yield _event(part.mark, process, lane.number, part.start, part.end)
    for vcpu in result.vcpus:
        yield from _kernel(vcpu)


def _kernel(vcpu: Vcpu) -> Iterator[Event]:
    process = _VCPUS + vcpu.id
    for switch in vcpu.switches:
        args = {"from": switch.source, "to": switch.target}
        yield _event(switch.reason, process, _KERNEL, switch.entered, switch.left, args)
    for gap in vcpu.gaps:
        args = {"steal_us": None if gap.steal is None else int(gap.steal / 1e3)}
        yield _event(gap.kind, process, _GAPS, gap.start, gap.end, args)


def _event(
    name: str, process: int, thread: int, start: int, end: int, args: dict[str, Any] | None = None
) -> Event:
    event: Event = {
        "name": name, "ph": "X", "pid": process, "tid": thread,
        "ts": start / 1e3, "dur": (end - start) / 1e3,
    }  # fmt: skip
    if args is not None:
        event["args"] = args
    return event
