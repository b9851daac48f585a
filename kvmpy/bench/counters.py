"""What a run added to the counters that prove it undisturbed: KVM's statistics, and waiting; and
the CPU's counter of core cycles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from .._measure import lib
from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ..vcpu import VCPU

#: Of KVM's binary statistics of a vCPU: all exits; of these, what a host's interrupts caused; and
#: instructions that KVM has interpreted.
STATISTICS: Final = ("exits", "irq_exits", "insn_emulation", "halt_exits", "hypercalls")
_SCHEDSTAT: Final = "/proc/thread-self/schedstat"
_HARDWARE, _CPU_CYCLES = 0, 0  # PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES


class GuestCycles:
    """Core cycles that this thread spends in guests: perf_event_open(2), hosts' share excluded.

    ``trouble``: why there is no counter, "" if there is one. Many have none: a host that is a VM
    without a PMU, or whose /proc/sys/kernel/perf_event_paranoid keeps it to root.

    >>> with kvmpy.bench.counters.GuestCycles() as cycles:
    ...     (cycles.read() is None) == bool(cycles.trouble)
    True
    """

    def __init__(self, type: int = _HARDWARE, config: int = _CPU_CYCLES):
        self._fd: int = lib.measure_count_guest(type, config)
        self.trouble = os.strerror(-self._fd) if self._fd < 0 else ""

    def read(self) -> int | None:
        """The count so far, None if there is none.

        >>> with kvmpy.bench.counters.GuestCycles() as cycles:
        ...     cycles.read() is None or cycles.read() >= 0
        True
        """
        if self._fd < 0:
            return None
        count = os.read(self._fd, 8)
        if len(count) < 8:
            self.trouble = "the CPU had no counter free"
            return None
        return int.from_bytes(count, "little")

    def __enter__(self) -> GuestCycles:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _statistics(cpu: VCPU) -> dict[str, int]:
    try:
        now = cpu.stats.snapshot()
    except UnsupportedError:
        return {}
    return {name: int(now[name]) for name in STATISTICS if name in now}


def _cycles(cycles: GuestCycles | None) -> dict[str, int]:
    count = cycles.read() if cycles else None
    return {} if count is None else {"guest_cycles": count}


def run_delay() -> dict[str, int]:
    """ns that this thread waited for the CPU (Documentation/scheduler/sched-stats.rst), by the
    name "run_delay_ns"; empty where the kernel does not say.

    >>> all(value >= 0 for value in kvmpy.bench.counters.run_delay().values())
    True
    """
    try:
        with open(_SCHEDSTAT, "rb") as file:
            return {"run_delay_ns": int(file.read().split()[1])}
    except (OSError, ValueError, IndexError):
        return {}


@contextmanager
def counting(cpu: VCPU, cycles: GuestCycles | None = None) -> Iterator[dict[str, int]]:
    """A dict that has, after the block, what the block has added, by name; of ``cycles`` as
    "guest_cycles".

    Names that the host does not offer are absent.

    >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> with kvmpy.bench.counters.counting(cpu) as added:
    ...     exit = cpu.run(timeout=5)
    >>> added["exits"] >= 1
    True
    """
    added: dict[str, int] = {}
    before = run_delay() | _statistics(cpu) | _cycles(cycles)
    yield added
    after = _cycles(cycles) | _statistics(cpu) | run_delay()
    added.update({name: after[name] - before[name] for name in after if name in before})


def add(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``total``, name by name.

    >>> total = {"exits": 1}
    >>> kvmpy.bench.counters.add(total, {"exits": 2, "calls": 3})
    >>> total
    {'exits': 3, 'calls': 3}
    """
    for name, value in more.items():
        total[name] = total.get(name, 0) + value
