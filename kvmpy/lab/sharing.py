"""Two schedulers, one above the other: two vCPUs on one pCPU, guest threads inside each.

A small run of :mod:`kvmpy.sched`, whose guests see for themselves, by the TSC, when they were there
and when not: every thread looks at the clock all the time, and what is missing in between somebody
else had. ``kvmpy sched`` has more of it.

Sources: Linux's Documentation/scheduler/sched-eevdf.rst and sched-design-CFS.rst for the host's
part; KVM's Documentation/virt/kvm/x86/msr.rst, "MSR_KVM_STEAL_TIME", for what a guest can be told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from .. import sched
from ..host import topology
from ..probe import verdict as backend
from ..sched import metrics
from ..sched.lanes import window
from ..sched.result import HostView, Vcpu

_VCPUS: Final = 2
_THREADS: Final = 2
_SLICE_MS: Final = 3.0  # of the guest; the host's are about as long
#: Where the CPU is emulated a second may take a minute.
_SECONDS, _SECONDS_EMULATED = 1.0, 0.3
_WORTH_SAYING: Final = 0.05  # of the time, neither running nor waiting
_WINDOW: Final = 30_000_000  # ns that the picture shows


@dataclass(frozen=True)
class Level:
    """What one vCPU had of its pCPU, and its guest's threads had of it.

    ``share``: of its time, on its pCPU, as the host's scheduler has it, or the guest where the host
    does not say; ``neither``: not on it, and not waiting for it, None where the host does not say.
    ``turns``: how often it was given the pCPU, by its own clock; ``away_ns``: how long it then had
    to wait, at the median. ``switches``: of threads, by its guest's kernel. ``charged_ns``: what
    that kernel takes its threads to have had; ``had_ns``: what they had; ``thread_shares``: each
    thread's of the latter.
    ``steal_ns``: waiting as KVM tells the guest, None where it does not.
    """

    vcpu: int
    share: float
    neither: float | None
    turns: int
    away_ns: float | None
    switches: int
    charged_ns: int
    had_ns: int
    thread_shares: tuple[float, ...]
    steal_ns: int | None


@dataclass(frozen=True)
class Result:
    """``levels``: one for each vCPU, over the whole time, on ``pcpu``. ``run``: the part of it that
    the picture shows, from ``start`` to ``end`` in ns."""

    module: str
    emulator: str | None
    nested: bool
    ring0_interpreted: bool
    pcpu: int
    levels: tuple[Level, ...]
    start: int
    end: int
    run: sched.Result


def run(pin: int | None = None) -> Result:
    """Have two vCPUs share pCPU ``pin``, or the last one that this process may use, for a second.

    Raises PinError for a pCPU that it may not use, a KvmUnavailableError without usable KVM.

    >>> result = kvmpy.lab.experiment("sharing").run()
    >>> [level.vcpu for level in result.levels]
    [0, 1]
    """
    verdict = backend.verdict()
    pcpu = max(topology.allowed_cpus()) if pin is None else topology.check_pin(pin)
    found = sched.run(
        _VCPUS,
        (pcpu,),
        _THREADS,
        _SECONDS_EMULATED if verdict.emulator else _SECONDS,
        slice_ms=_SLICE_MS,
    )
    start = window(found)[0]
    end = min(found.wall, start + _WINDOW)
    return Result(
        module=verdict.module,
        emulator=verdict.emulator,
        nested=verdict.nested,
        ring0_interpreted=verdict.ring0 == "emulated",
        pcpu=pcpu,
        levels=tuple(map(_level, found.vcpus)),
        start=start,
        end=end,
        run=replace(found, vcpus=tuple(_part(vcpu, start, end) for vcpu in found.vcpus)),
    )


def _by_host(seen: HostView) -> tuple[float | None, float | None]:
    """Shares of running, and of neither running nor waiting: /proc/PID/schedstat."""
    if seen.run is None or seen.delay is None:
        return None, None
    whole = max(1, seen.end - seen.begin)
    return seen.run / whole, max(0.0, 1 - (seen.run + seen.delay) / whole)


def _part(vcpu: Vcpu, start: int, end: int) -> Vcpu:
    return replace(
        vcpu,
        slices=tuple(part for part in vcpu.slices if part.start < end and part.end > start),
        gaps=tuple(gap for gap in vcpu.gaps if gap.start < end and gap.end > start),
        thread_slices=tuple(
            part for part in vcpu.thread_slices if part.start < end and part.end > start
        ),
        switches=tuple(switch for switch in vcpu.switches if start < switch.entered < end),
    )


def _level(vcpu: Vcpu) -> Level:
    there, away = metrics.on_pcpu(vcpu), metrics.gaps(vcpu, "descheduled")
    had = sum(thread.cpu_ns for thread in vcpu.threads)
    on, neither = _by_host(vcpu.host)
    return Level(
        vcpu=vcpu.id,
        share=there.total / max(1, metrics.seen(vcpu)) if on is None else on,
        neither=neither,
        turns=there.count,
        away_ns=away.median if away.count else None,
        switches=sum(switch.reason == "timer" for switch in vcpu.switches),
        charged_ns=sum(part.end - part.start for part in vcpu.thread_slices),
        had_ns=had,
        thread_shares=tuple(thread.cpu_ns / max(1, had) for thread in vcpu.threads),
        steal_ns=vcpu.steal,
    )
