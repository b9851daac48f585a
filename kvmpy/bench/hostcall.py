"""The host's own null system call: root ring 3 to root ring 0, no guest in it (native/hostcall.c).

The estimator is that of the guests: the slope between blocks of 16 and 32 calls.
"""

from __future__ import annotations

from typing import Final

from .. import _native
from .counters import run_delay
from .record import Row

_lib, _ffi = _native.lib, _native.ffi

_TRIPS: Final = 16
_GETPPID: Final = 110  # x86-64; like glibc's getpid it takes no argument, and nobody caches it
_NO_SUCH_CALL: Final = -1  # ENOSYS at once: entry and exit of the kernel, and a comparison
_CALLS: Final = (("getppid", _GETPPID), ("no such call", _NO_SUCH_CALL))


def rows(batches: int, repeats: int = 4) -> list[Row]:
    """SYSCALL on the host, with its mitigations, for getppid and for a number that is none.

    >>> [row.path for row in kvmpy.bench.hostcall.rows(batches=2)]
    ['getppid', 'no such call']
    """
    return [_row(name, number, batches, repeats) for name, number in _CALLS]


def _row(name: str, number: int, batches: int, repeats: int) -> Row:
    ticks = _ffi.new("uint32_t[]", 2 * repeats)
    samples = []
    before = run_delay()
    for batch in range(batches + 1):
        _lib.shim_host_calls(number, repeats, ticks)
        if batch:  # the first one warms up
            words = _ffi.unpack(ticks, 2 * repeats)
            samples.append(sum(words[1::2]) - sum(words[::2]))
    after = run_delay()
    counters = {key: after[key] - before[key] for key in before if key in after}
    counters["calls"] = 3 * _TRIPS * repeats * (batches + 1)
    return Row(
        name=f"host SYSCALL, {name}",
        kind="host",
        mode="host",
        path=name,
        samples=tuple(samples),
        calls=_TRIPS * repeats,
        counters=counters,
        labels=("root ring 3 to root ring 0",),
    )


def canary_limit() -> float:
    """TSC ticks for an addition above which a ring counts as interpreted on this CPU.

    A CPU takes about one, KVM's emulator 500 and more; where the CPU itself is emulated, and an
    addition may be slow, 25 times what it takes outside of any guest.

    >>> kvmpy.bench.hostcall.canary_limit() >= 50
    True
    """
    rounds, instructions = 1000, 18
    quickest: int = min(_lib.shim_spin_ticks(rounds) for _ in range(5))
    return max(50.0, 25.0 * quickest / (rounds * instructions))
