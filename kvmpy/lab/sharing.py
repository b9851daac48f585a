"""Two schedulers, one above the other: two vCPUs on one pCPU, guest threads inside each.

A small run of :mod:`kvmpy.sched`, whose guests see for themselves, by the TSC, when they were there
and when not: every thread looks at the clock all the time, and what is missing in between somebody
else had. ``kvmpy sched`` has more of it.

Sources: Linux's Documentation/scheduler/sched-eevdf.rst and sched-design-CFS.rst for the host's
part; KVM's Documentation/virt/kvm/x86/msr.rst, "MSR_KVM_STEAL_TIME", for what a guest can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from .. import sched
from ..host import topology
from ..probe import verdict as backend
from ..report.blocks import Block
from ..report.table import DASH, Table, share
from ..sched import gantt, metrics
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


def show(result: Result) -> Iterable[Block]:
    """Who ran when, and what neither scheduler knows of the other.

    >>> from kvmpy.lab import sharing
    >>> result = sharing.Result(
    ...     "kvm_amd", None, False, False, 0, (), 0, 30_000_000, sched_result
    ... )
    >>> print(list(sharing.show(result))[1].text.splitlines()[0][:40])
    pCPU 0       ...
    """
    yield (
        "A vCPU is a thread of the host: Linux gives it a pCPU and takes it away, as any other. "
        "Inside, the guest's kernel does the same with its threads, on a CPU that it takes to be "
        f"there always. Here two vCPUs that never rest share pCPU {result.pcpu}, and the kernel in "
        f"each changes between {_THREADS} threads with every tick of its timer, {_SLICE_MS:g} ms."
    )
    yield gantt.picture(result.run, (result.start, result.end))
    yield _table(result)
    yield from _finding(result)
    yield from _limits(result)


def _table(result: Result) -> Table:
    rows = tuple(
        (
            f"vCPU {level.vcpu}",
            share(level.share),
            str(level.turns),
            _ms(level.away_ns),
            str(level.switches),
            " ".join(share(part, 0) for part in level.thread_shares),
            _ms(level.charged_ns),
            _ms(level.had_ns),
            _ms(level.steal_ns),
        )
        for level in result.levels
    )
    return Table(
        "What each level gave",
        ("", "of pCPU", "turns", "away", "ticks", "threads", "charged", "had", "steal"),
        rows,
        notes=(
            "away: ms until the next turn, the median; ticks: switches by the guest's timer",
            "charged, had: ms of its threads, as the guest's kernel counts, and really",
            "steal: ms of waiting, as KVM tells the guest",
        ),
    )


def _ms(ns: float | None) -> str:
    return DASH if ns is None else f"{ns / 1e6:.1f}"


def _finding(result: Result) -> Iterator[str]:
    charged = sum(level.charged_ns for level in result.levels)
    had = sum(level.had_ns for level in result.levels)
    if not charged:
        yield "No guest thread came to run in the time there was."
        return
    yield (
        f"Of the time that the two kernels charge to their threads, {share(1 - had / charged, 0)} "
        "was not theirs: the thread had its vCPU, and the vCPU was waiting for the pCPU (a dash, "
        "or a thin line, in the picture). The guest's timer goes on meanwhile, so a thread may "
        "lose its whole slice without having run, and one that is away with a lock keeps those "
        "waiting that do run. Steal time, paravirtual spinlocks and pause-loop exits are there "
        "for that."
    )


def _limits(result: Result) -> Iterator[str]:
    if result.emulator:
        yield (
            f"On {result.module} under {result.emulator} time is virtual: who ran when is real, "
            "how long is not that of any hardware."
        )
    neither = max((level.neither or 0.0 for level in result.levels), default=0.0)
    if neither > _WORTH_SAYING:
        yield (
            f"For {share(neither, 0)} of the time a vCPU's thread neither ran nor waited for the "
            "pCPU: it had work outside the guest, or waited for Python's lock. No guest can tell "
            "that from a long exit, and the picture shows it as running, so that both may seem to "
            "be on the pCPU at once."
        )
    if any(level.steal_ns is None for level in result.levels):
        yield f"{result.module} has no steal time here, so the guest is not told."
    if result.ring0_interpreted:
        yield (
            f"{result.module} interprets ring 0: the guest's threads run natively, the kernel that "
            "changes between them does not, and takes far longer at it."
        )
    if result.nested and not result.emulator:
        yield (
            "This host is a virtual machine itself, so there is a third scheduler below, and "
            "what it takes shows as time that nobody here had."
        )
