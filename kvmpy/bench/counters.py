"""What a run added to the counters that prove it undisturbed: KVM's statistics, and waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from ..vcpu import VCPU

#: Of KVM's binary statistics of a vCPU: all exits; of these, what a host's interrupts caused; and
#: instructions that KVM has interpreted.
STATISTICS: Final = ("exits", "irq_exits", "insn_emulation", "halt_exits", "hypercalls")
_SCHEDSTAT: Final = "/proc/thread-self/schedstat"


def _statistics(cpu: VCPU) -> dict[str, int]:
    try:
        now = cpu.stats.snapshot()
    except UnsupportedError:
        return {}
    return {name: int(now[name]) for name in STATISTICS if name in now}


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
def counting(cpu: VCPU) -> Iterator[dict[str, int]]:
    """A dict that has, after the block, what the block has added, by name.

    Names that the host does not offer are absent.

    >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> with kvmpy.bench.counters.counting(cpu) as added:
    ...     exit = cpu.run(timeout=5)
    >>> added["exits"] >= 1
    True
    """
    added: dict[str, int] = {}
    before = run_delay() | _statistics(cpu)
    yield added
    after = _statistics(cpu) | run_delay()
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
