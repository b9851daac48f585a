"""What a row's figures are figures of: hardware, KVM's emulator, or neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .record import Row

if TYPE_CHECKING:
    from ..probe.verdict import Verdict

#: Exits a call, beyond those expected, from which a row is no longer proved native; and from which
#: the calls themselves must have caused them.
DISTURBED: Final = 1e-4
CAUSED: Final = 0.5
#: The label of every row where time is virtual.
VIRTUAL_LABEL: Final = "virtual time"


def unexpected(counters: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Exits that nothing explains, and instructions interpreted: None where no counter says.

    Expected are one exit and one interpreted instruction (the write that makes the exit) a batch;
    the host's own interrupts explain theirs.

    >>> kvmpy.bench.judgement.unexpected({"exits": 12, "irq_exits": 1, "expected_exits": 10})
    (1, None)
    """
    expected = counters.get("expected_exits", 0)
    exits, interpreted = counters.get("exits"), counters.get("insn_emulation")
    if exits is not None:
        exits = max(0, exits - counters.get("irq_exits", 0) - expected)
    if interpreted is not None:
        interpreted = max(0, interpreted - expected)
    return exits, interpreted


def judge(row: Row, verdict: Verdict, vendor_differs: bool) -> Row:
    """The row with its outcome and labels, by its canaries and counters.

    >>> row = kvmpy.bench.record.Row("x", "path", "long64", "int80", counters={
    ...     "calls": 100, "expected_exits": 1, "exits": 101, "insn_emulation": 101})
    >>> verdict = kvmpy.probe.verdict.verdict()
    >>> kvmpy.bench.judgement.judge(row, verdict, False).outcome
    'emulated-by-kvm'
    """
    labels = list(row.labels)
    calls = max(1, row.counters.get("calls", 1))
    exits, interpreted = unexpected(row.counters)
    slow = sorted(canary.ring for canary in row.canaries if canary.interpreted)
    outcome = row.outcome
    if slow:
        outcome = "interpreted"
        verb = "is" if len(slow) == 1 else "are"
        rings = " and ".join(map(str, slow))
        labels.append(f"ring{'s' if len(slow) > 1 else ''} {rings} {verb} interpreted")
    elif max(exits or 0, interpreted or 0) >= CAUSED * calls:
        outcome = "emulated-by-kvm"
        labels.append(f"{max(exits or 0, interpreted or 0) / calls:.1f} exits a call")
    elif exits is None:
        labels.append("no counter proves that it ran without exits")
    elif exits >= DISTURBED * calls:
        labels.append(f"not proved native: unexpected exits in over {DISTURBED:.2%} of the calls")
    if vendor_differs:
        labels.append("the guest's CPUID vendor is not the host's")
    if verdict.emulator:
        labels.append(VIRTUAL_LABEL)
    return replace(row, outcome=outcome, labels=tuple(labels))
