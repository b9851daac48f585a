"""The host's own null system call: root ring 3 to root ring 0, no guest in it (native/hostcall.c).

The estimator is that of the guests: the slope between blocks of 16 and 32 calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .._measure import ffi, lib
from .counters import add, run_delay
from .record import Row

_TRIPS: Final = 16
_REPEATS: Final = 4  # so that a batch takes some 10 us
_GETPPID: Final = 110  # x86-64; like glibc's getpid it takes no argument, and nobody caches it
_NO_SUCH_CALL: Final = -1  # ENOSYS at once: entry and exit of the kernel, and a comparison
_CALLS: Final = (("getppid", _GETPPID), ("no such call", _NO_SUCH_CALL))


@dataclass
class _Series:
    samples: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)


class HostCalls:
    """SYSCALL on the host for getppid, and for a number that no call has, measured in rounds:
    between
    the guests of a VM, under the same load and clock.

    >>> calls = kvmpy.bench.hostcall.HostCalls()
    >>> calls.take(0, batches=2)
    >>> [(row.path, len(row.samples)) for row in calls.rows()]
    [('getppid', 2), ('no such call', 2)]
    """

    def __init__(self) -> None:
        self._series = {name: _Series() for name, _ in _CALLS}

    def take(self, number: int, batches: int) -> None:
        """Measure ``batches`` more in round ``number``. One before them warms up, and is thrown
        away.

        >>> kvmpy.bench.hostcall.HostCalls().take(0, batches=1)
        """
        for name, call in _CALLS:
            series = self._series[name]
            before = run_delay()
            series.samples += _batches(call, batches + 1)[1:]
            after = run_delay()
            series.rounds += [number] * batches
            added = {key: after[key] - before[key] for key in before if key in after}
            add(series.counters, added | {"calls": 3 * _TRIPS * _REPEATS * (batches + 1)})

    def rows(self) -> list[Row]:
        """A row for each call; ``vms`` are the rounds.

        >>> kvmpy.bench.hostcall.HostCalls().rows()[0].kind
        'host'
        """
        return [
            Row(
                name=f"host SYSCALL, {name}",
                kind="host",
                mode="host",
                path=name,
                samples=tuple(series.samples),
                calls=_TRIPS * _REPEATS,
                block=_TRIPS,
                vms=tuple(series.rounds),
                counters=series.counters,
                labels=("root ring 3 to root ring 0",),
            )
            for name, series in self._series.items()
        ]


def _batches(call: int, count: int) -> list[int]:
    ticks = ffi.new("uint32_t[]", 2 * _REPEATS)
    found = []
    for _ in range(count):
        lib.measure_host_calls(call, _REPEATS, ticks)
        words = ffi.unpack(ticks, 2 * _REPEATS)
        found.append(sum(words[1::2]) - sum(words[::2]))
    return found


def canary_limit() -> float:
    """TSC ticks for an addition above which a ring counts as interpreted on this CPU.

    A CPU takes about one, KVM's emulator 500 and more; where the CPU itself is emulated, and an
    addition may be slow, 25 times what it takes outside of any guest.

    >>> kvmpy.bench.hostcall.canary_limit() >= 50
    True
    """
    rounds, instructions = 1000, 18
    quickest: int = min(lib.measure_spin_ticks(rounds) for _ in range(5))
    return max(50.0, 25.0 * quickest / (rounds * instructions))
