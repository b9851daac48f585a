"""What disturbs measurements on this host: found before a run, and during it.

Sources: proc(5) /proc/stat and /proc/loadavg; Documentation/accounting/psi.rst; cgroup-v2.rst
cpu.max; Documentation/admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..host.topology import SYSFS, format_cpu_list, smt_siblings
from .system import System

if TYPE_CHECKING:
    from .verdict import Verdict

#: Shares of a CPU's time, above which something is worth a warning.
BUSY: Final = 0.05
STEAL: Final = 0.001
LOAD: Final = 0.5
_WINDOW = 0.2  # seconds


@dataclass(frozen=True, slots=True)
class Disturbance:
    """One thing that disturbs: ``name`` in a word or two, ``finding`` with its figure, and what it
    does to times; ``remedy``: what to do about it, "" if there is nothing.

    ``str()`` is the whole in a line.
    """

    name: str
    finding: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.finding}" + (f" {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """What one pCPU has done since boot, in clock ticks of the kernel (10 ms)."""

    total: int
    busy: int
    steal: int


def cpu_times(text: str) -> dict[int, CpuTime]:
    """The pCPUs' times, by number, of the text of /proc/stat. Lines that are odd are passed over.

    >>> kvmpy.probe.disturbance.cpu_times("cpu0 5 0 2 90 1 0 0 2 4 0")[0]
    CpuTime(total=100, busy=7, steal=2)
    """
    times: dict[int, CpuTime] = {}
    for line in text.splitlines():
        name, *fields = line.split()[:9] or [""]
        if not (name.startswith("cpu") and name[3:].isdecimal() and len(fields) >= 8):
            continue
        if all(field.isdecimal() for field in fields):
            # user nice system idle iowait irq softirq steal; guest time is in user already
            values = [int(field) for field in fields]
            total, steal = sum(values), values[7]
            times[int(name[3:])] = CpuTime(total, total - values[3] - values[4] - steal, steal)
    return times


def examine(
    verdict: Verdict,
    cpu: int | None = None,
    system: System | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> tuple[Disturbance, ...]:
    """Everything about this host that disturbs measurements on pCPU ``cpu`` (None: not pinned):
    what KVM and the machine are, then what :func:`look_around` finds.

    >>> found = kvmpy.probe.disturbance.examine(kvmpy.probe.verdict.verdict(), cpu=0)
    >>> all(item.name and item.finding for item in found)
    True
    """
    return *_rings(verdict), *_surroundings(verdict), *look_around(cpu, system, wait)


def look_around(
    cpu: int | None = None,
    system: System | None = None,
    wait: Callable[[float], object] = time.sleep,
) -> tuple[Disturbance, ...]:
    """What of this host's setting and load disturbs measurements on pCPU ``cpu`` (None: not
    pinned). Looks for 0.2 s at how busy the pCPUs are, so call it before the run, not in it.

    >>> isinstance(kvmpy.probe.disturbance.look_around(0), tuple)
    True
    """
    system = system or System()
    return (
        *_pinning(system, cpu),
        *_frequency(system, cpu),
        *_quota(system),
        *_load(system, cpu, wait),
    )


def _rings(verdict: Verdict) -> Iterator[Disturbance]:
    rings = [
        str(ring)
        for ring, outcome in ((0, verdict.ring0), (3, verdict.ring3))
        if outcome == "emulated"
    ]
    if rings:
        yield Disturbance(
            "interpreted rings",
            f"{verdict.module} interprets 64-bit ring {' and '.join(rings)}: times that include it "
            "measure KVM's emulator.",
        )


def _surroundings(verdict: Verdict) -> Iterator[Disturbance]:
    if verdict.emulator:
        yield Disturbance(
            "emulated CPU",
            f"{verdict.emulator} emulates this host's CPU: time is virtual.",
            "Measure elsewhere.",
        )
    elif verdict.nested:
        where = f" under {verdict.hypervisor}" if verdict.hypervisor else ""
        yield Disturbance(
            "nested",
            f"this host is a virtual machine{where}: it can lose the CPU unseen, and what leaves "
            "a guest here may leave this host's too.",
        )
    if verdict.paging == "shadow":
        yield Disturbance(
            "shadow paging", "changes of page tables and of CR3 cost more than with EPT or NPT."
        )


def _pinning(system: System, cpu: int | None) -> Iterator[Disturbance]:
    allowed = system.allowed_cpus()
    if cpu is None and len(allowed) > 1:
        yield Disturbance(
            "not pinned",
            f"the vCPU's thread may move among pCPUs {format_cpu_list(allowed)}.",
            "Use --cpu.",
        )
    elif len(allowed) == 1:
        yield Disturbance(
            "one pCPU",
            f"this process has pCPU {format_cpu_list(allowed)} alone: all that it does shares it "
            "with the guest.",
        )


def _frequency(system: System, cpu: int | None) -> Iterator[Disturbance]:
    number = min(system.allowed_cpus(), default=0) if cpu is None else cpu
    governor = (system.text(f"{SYSFS}/cpu{number}/cpufreq/scaling_governor") or "").strip()
    if governor and governor != "performance":
        yield Disturbance(
            "governor",
            f"pCPU {number} has {governor!r}: the core's clock follows the load, the TSC does not.",
            "'sudo cpupower frequency-set -g performance'.",
        )
    turbo = (system.text(f"{SYSFS}/intel_pstate/no_turbo") or "").strip() == "0"
    boost = (system.text(f"{SYSFS}/cpufreq/boost") or "").strip() == "1"
    if turbo or boost:
        yield Disturbance(
            "turbo", "the core's clock depends on temperature and on what the other cores do."
        )


def _quota(system: System) -> Iterator[Disturbance]:
    limit = (system.text("/sys/fs/cgroup/cpu.max") or "").split()
    if len(limit) == 2 and all(part.isdecimal() for part in limit) and int(limit[1]):
        yield Disturbance(
            "CPU quota",
            f"this cgroup gets {int(limit[0]) / int(limit[1]):.1f} CPUs, and is stopped for the "
            "rest of each period.",
        )


def _load(
    system: System, cpu: int | None, wait: Callable[[float], object]
) -> Iterator[Disturbance]:
    before = cpu_times(system.text("/proc/stat") or "")
    wait(_WINDOW)
    after = cpu_times(system.text("/proc/stat") or "")
    busy = {number: share for number, (share, _) in shares(before, after).items()}
    if cpu is not None:
        yield from _busy_core(busy, cpu)
    allowed = system.allowed_cpus()
    load = (system.text("/proc/loadavg") or "").split()[:1]
    if load and _is_number(load[0]) and float(load[0]) > LOAD * len(allowed):
        yield Disturbance(
            "load",
            f"the load average is {load[0]} on {len(allowed)} pCPU{'s' * (len(allowed) != 1)}.",
            "Stop what else runs.",
        )


def _busy_core(busy: Mapping[int, float], cpu: int) -> Iterator[Disturbance]:
    if busy.get(cpu, 0) > BUSY:
        yield Disturbance(
            "busy pCPU",
            f"something else took {busy[cpu]:.0%} of pCPU {cpu} just now.",
            "Choose another with --cpu, or stop it.",
        )
    for sibling in sorted(smt_siblings(cpu) - {cpu}):
        if busy.get(sibling, 0) > BUSY:
            yield Disturbance(
                "SMT sibling busy",
                f"pCPU {sibling} shares the core of pCPU {cpu} and was {busy[sibling]:.0%} busy "
                "just now.",
                f"Take it offline: 'echo 0 | sudo tee {SYSFS}/cpu{sibling}/online'.",
            )


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def shares(
    before: Mapping[int, CpuTime], after: Mapping[int, CpuTime]
) -> dict[int, tuple[float, float]]:
    """For each pCPU the shares of time it was busy, and stolen by the hypervisor below.

    Without those that no tick has passed for, or that came or went.

    >>> times = kvmpy.probe.disturbance.cpu_times
    >>> before, after = times("cpu0 0 0 0 0 0 0 0 0"), times("cpu0 5 0 0 14 0 0 0 1")
    >>> kvmpy.probe.disturbance.shares(before, after)
    {0: (0.25, 0.05)}
    """
    found = {}
    for cpu in before.keys() & after.keys():
        total = after[cpu].total - before[cpu].total
        if total > 0:
            busy = max(0, after[cpu].busy - before[cpu].busy) / total
            found[cpu] = busy, max(0, after[cpu].steal - before[cpu].steal) / total
    return found


class DisturbanceWatch:
    """What disturbs while a run is under way: made before it, asked after it.

    >>> watch = kvmpy.probe.disturbance.DisturbanceWatch(cpu=0)
    >>> isinstance(watch.seen(), tuple)
    True
    """

    def __init__(self, cpu: int | None = None, system: System | None = None):
        self._system = system or System()
        self._cpu = cpu
        self._before = self._times()

    def _times(self) -> dict[int, CpuTime]:
        return cpu_times(self._system.text("/proc/stat") or "")

    def steal(self) -> float | None:
        """The share of the pCPU's time, 0 to 1, that the hypervisor below took since the watch was
        made (of the worst one's, if not pinned); None where no tick has passed.

        >>> (kvmpy.probe.disturbance.DisturbanceWatch(cpu=0).steal() or 0.0) < 1
        True
        """
        found = shares(self._before, self._times())
        watched = found.keys() if self._cpu is None else {self._cpu} & found.keys()
        return max((found[cpu][1] for cpu in watched), default=None)

    def seen(self) -> tuple[Disturbance, ...]:
        """Time stolen from the pCPU (or from any, if not pinned), and a busy SMT sibling, since
        the watch was made.

        >>> all(item.finding for item in kvmpy.probe.disturbance.DisturbanceWatch().seen())
        True
        """
        found = shares(self._before, self._times())
        watched = found if self._cpu is None else {self._cpu} & found.keys()
        seen = []
        for cpu in sorted(watched):
            if found[cpu][1] > STEAL:
                seen.append(
                    Disturbance(
                        "steal",
                        f"the hypervisor below took {found[cpu][1]:.1%} of pCPU {cpu}'s time "
                        "during the run.",
                    )
                )
        if self._cpu is not None:
            for sibling in sorted((smt_siblings(self._cpu) - {self._cpu}) & found.keys()):
                if found[sibling][0] > BUSY:
                    seen.append(
                        Disturbance(
                            "SMT sibling busy",
                            f"pCPU {sibling} shares the core and was {found[sibling][0]:.0%} busy "
                            "during the run.",
                        )
                    )
        return tuple(seen)
