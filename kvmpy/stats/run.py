"""Counts and times of a vCPU's exits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..exits.reasons import REASONS
from ..values import dataclass


@dataclass(frozen=True, slots=True)
class ExitStats:
    """One exit reason: its name without KVM_EXIT_, how often, and the ns spent between KVM_RUN's
    return and the next entry (None unless measured)."""

    reason: str
    count: int
    handling_ns: int | None


@dataclass(frozen=True, slots=True)
class RunStats:
    """All exits of a vCPU that KVM handed to user space. ``guest_ns``: time inside KVM_RUN;
    ``python_ns``: what of the handling was outside the C shim, in Python."""

    exits: tuple[ExitStats, ...]
    guest_ns: int | None
    python_ns: int | None = None

    @staticmethod
    def of(
        counts: Sequence[int],
        times: Sequence[int],
        guest_ns: int | None,
        python_ns: int | None = None,
    ) -> RunStats:
        """From the shim's arrays, indexed by exit reason.

        >>> kvmpy.stats.run.RunStats.of([0, 0, 3], [0, 0, 0], None)["IO"]
        3
        """
        rows = [
            ExitStats(REASONS.get(i, str(i)), count, None if guest_ns is None else times[i])
            for i, count in enumerate(counts)
            if count
        ]
        return RunStats(tuple(sorted(rows, key=lambda row: -row.count)), guest_ns, python_ns)

    @property
    def total(self) -> int:
        """Exits of all reasons.

        >>> cpu.run_stats.total
        0
        """
        return sum(row.count for row in self.exits)

    def __add__(self, other: RunStats) -> RunStats:
        """Both together, as of two vCPUs; times only if both have them."""
        measured = self.guest_ns is not None and other.guest_ns is not None
        rows: dict[str, ExitStats] = {}
        for row in (*self.exits, *other.exits):
            before = rows.get(row.reason, ExitStats(row.reason, 0, 0))
            ns = (before.handling_ns or 0) + (row.handling_ns or 0) if measured else None
            rows[row.reason] = ExitStats(row.reason, before.count + row.count, ns)
        guest = (self.guest_ns or 0) + (other.guest_ns or 0) if measured else None
        python = (self.python_ns or 0) + (other.python_ns or 0) if measured else None
        return RunStats(tuple(sorted(rows.values(), key=lambda row: -row.count)), guest, python)

    def __getitem__(self, reason: str) -> int:
        """How many exits had this reason ("IO", "HLT"); 0 for none."""
        return sum(row.count for row in self.exits if row.reason == reason)

    def __iter__(self) -> Iterator[ExitStats]:
        return iter(self.exits)
