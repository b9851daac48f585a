"""What the experiment with shared pCPUs and vCPUs says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ...report.blocks import Block
from ...report.table import DASH, Table, share
from ...sched import gantt
from ..sharing import _SLICE_MS, _THREADS, _WORTH_SAYING, Result


def blocks(result: Result) -> Iterable[Block]:
    """Who ran when, and what neither scheduler knows of the other.

    >>> from kvmpy.lab import sharing, show
    >>> result = sharing.Result(
    ...     "kvm_amd", None, False, False, 0, (), 0, 30_000_000, sched_result
    ... )
    >>> print(list(show.sharing.blocks(result))[1].text.splitlines()[0][:40])
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
