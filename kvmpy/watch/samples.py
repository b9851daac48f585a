"""Samples: what vCPUs did between two readings, as shares of the time and as rates per second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..exits.names import REASONS
from ..shim import lib
from .find import MachineInfo
from .proc import ThreadTimes

#: Seconds: over less, rates would be noise.
_SHORTEST = 0.001
_PARKED: int = lib.SHIM_PARKED
_NS = 10**9


@dataclass(frozen=True, slots=True)
class VcpuSample:
    """One vCPU over one interval. What the host's kernel does not tell is None.

    ``state``: "running"; "paused" now; "stopped" when no run was under way; "ended" when its thread
    is gone.
    ``thread``: the id of the thread that runs it, or did last; ``pcpu``: where that is now;
    ``allowed``: where it may be, as a CPU list ("0-3,7").

    Shares of the interval, 0 to 1: ``guest`` (in the guest), ``host`` (KVM and kvmpy on its
    behalf), ``steal`` (ready, and another thread had the pCPU: what KVM reports to a guest as steal
    time), ``wait`` (halted, or waiting for something); they add up to 1. ``halt_poll`` is the part
    of ``host`` in which KVM waited for an interrupt without giving up the pCPU; ``halt_wait`` is
    KVM's own count of halts that have ended, with the wait for a pCPU after each.

    Per second: ``exits``, all VM exits by KVM's count; ``reasons``, those that reached user space,
    by KVM's names without KVM_EXIT_; ``kvm``, what else KVM counted, by its names. ``handling_us``:
    by reason, microseconds from an exit to the next entry, if the vCPU is measured
    (:meth:`kvmpy.VCPU.measure`).
    """

    id: int
    state: Literal["running", "paused", "stopped", "ended"]
    thread: int | None = None
    pcpu: int | None = None
    allowed: str | None = None
    guest: float | None = None
    host: float | None = None
    steal: float | None = None
    wait: float | None = None
    halt_poll: float | None = None
    halt_wait: float | None = None
    exits: float | None = None
    reasons: Mapping[str, float] = field(default_factory=dict)
    kvm: Mapping[str, float] = field(default_factory=dict)
    handling_us: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineSample:
    """One machine's vCPUs, by id. ``seconds``: the interval that rates and shares are of; 0 for a
    machine found just now, which has none yet. ``notes``: what cannot be told here, and why."""

    info: MachineInfo
    seconds: float
    vcpus: tuple[VcpuSample, ...]
    notes: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        """The process that runs it.

        >>> info = kvmpy.watch.MachineInfo(77, "vmlinuz", 1 << 28, 1, "kvmpy.machine/77/0a0b0c0d")
        >>> kvmpy.watch.MachineSample(info, 0, ()).pid
        77
        """
        return self.info.pid

    def total(self, name: str) -> float | None:
        """The sum of a share or rate over the vCPUs that have one; None if none has.

        >>> info = kvmpy.watch.MachineInfo(77, "vmlinuz", 1 << 28, 2, "kvmpy.machine/77/0a0b0c0d")
        >>> cpus = [kvmpy.watch.VcpuSample(n, "running", guest=0.5) for n in (0, 1)]
        >>> kvmpy.watch.MachineSample(info, 1.0, tuple(cpus)).total("guest")
        1.0
        """
        found = [x for vcpu in self.vcpus if (x := getattr(vcpu, name)) is not None]
        return sum(found) if found else None

    def totals(self, name: str) -> dict[str, float]:
        """``reasons`` or ``kvm`` of all vCPUs together, the most frequent first.

        >>> info = kvmpy.watch.MachineInfo(77, "vmlinuz", 1 << 28, 2, "kvmpy.machine/77/0a0b0c0d")
        >>> cpus = [kvmpy.watch.VcpuSample(n, "running", reasons={"IO": 4.0}) for n in (0, 1)]
        >>> kvmpy.watch.MachineSample(info, 1.0, tuple(cpus)).totals("reasons")
        {'IO': 8.0}
        """
        sums: dict[str, float] = {}
        for vcpu in self.vcpus:
            for key, rate in getattr(vcpu, name).items():
                sums[key] = sums.get(key, 0) + rate
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True)
class Sample:
    """All machines watched, by process, at ``time`` (seconds since the epoch).

    ``ended``: those that were there at the last sample, and are no more. ``refused``: processes
    that say they run a machine and do not tell of it, with the reason.
    """

    time: float
    machines: tuple[MachineSample, ...]
    ended: tuple[MachineInfo, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``: field names as here, each machine's ``info`` among its fields.

        >>> kvmpy.watch.Sample(0.0, ()).as_json()
        {'time': 0.0, 'machines': [], 'ended': [], 'refused': {}}
        """
        return {
            "time": self.time,
            "machines": [
                dataclasses.asdict(machine.info)
                | {"seconds": machine.seconds, "vcpus": [_plain(cpu) for cpu in machine.vcpus]}
                | {"notes": list(machine.notes)}
                for machine in self.machines
            ],
            "ended": [dataclasses.asdict(info) for info in self.ended],
            "refused": {str(pid): reason for pid, reason in self.refused.items()},
        }


def _plain(vcpu: VcpuSample) -> dict[str, Any]:
    values = {name: getattr(vcpu, name) for name in VcpuSample.__match_args__}
    return {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """A vCPU at one moment: ``at`` in ns of CLOCK_MONOTONIC; ``running`` as the shim's enum
    shim_running has it; ``exits`` and ``handling`` (ns) by
    exit reason; ``kvm``: KVM's statistics that only grow, by name, times in ns."""

    at: int
    id: int
    thread: int
    runs: int
    running: int
    exits: tuple[int, ...]
    handling: tuple[int, ...]
    times: ThreadTimes | None
    allowed: str | None
    kvm: Mapping[str, int] | None


def difference(before: Reading, now: Reading) -> VcpuSample:
    """What a vCPU did between two readings.

    >>> from kvmpy.watch.proc import ThreadTimes
    >>> from kvmpy.watch.samples import Reading, difference
    >>> times = ThreadTimes(pcpu=1, run=0, guest=0, delay=0)
    >>> before = Reading(0, 0, 77, 1, 1, (0, 0, 0), (), times, "0-1", None)
    >>> times = ThreadTimes(pcpu=1, run=500_000_000, guest=400_000_000, delay=200_000_000)
    >>> now = Reading(10**9, 0, 77, 1, 1, (0, 0, 8), (), times, "0-1", None)
    >>> sample = difference(before, now)
    >>> sample.guest, sample.host, sample.steal, round(sample.wait, 3), dict(sample.reasons)
    (0.4, 0.09999999999999998, 0.2, 0.3, {'IO': 8.0})
    """
    seconds = (now.at - before.at) / _NS
    ran = before.running or now.running or before.runs != now.runs
    if now.times is None and now.thread:
        return VcpuSample(now.id, "ended", now.thread)
    if not ran or now.times is None:
        return VcpuSample(now.id, "stopped", now.thread or None, allowed=now.allowed)
    shares: dict[str, Any] = {}
    if seconds >= _SHORTEST:
        shares = _rates(before, now, seconds) | _kvm(before, now, seconds)
        if before.thread == now.thread and before.times is not None:
            shares |= _shares(before.times, now.times, seconds)
    state: Literal["running", "paused"] = "paused" if now.running == _PARKED else "running"
    return VcpuSample(now.id, state, now.thread, now.times.pcpu, now.allowed, **shares)


def _shares(before: ThreadTimes, now: ThreadTimes, seconds: float) -> dict[str, float | None]:
    """The four shares. The kernel counts ``guest`` in ticks, all else in ns: it gives way. Of a
    thread that never slept, what is neither on a pCPU nor accounted for yet is steal as well."""
    whole = seconds * _NS
    run = _share(now.run - before.run, whole)
    guest = min(_share(now.guest - before.guest, whole), run)
    steal = None
    if now.sleeps is not None and now.sleeps == before.sleeps:
        steal = 1 - run
    elif now.delay is not None and before.delay is not None:
        steal = min(_share(now.delay - before.delay, whole), 1 - run)
    wait = max(1 - run - (steal or 0), 0.0)
    return {"guest": guest, "host": run - guest, "steal": steal, "wait": wait}


def _share(part: int, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0)


def _rates(before: Reading, now: Reading, seconds: float) -> dict[str, Any]:
    reasons: dict[str, float] = {}
    handling: dict[str, float] = {}
    pairs = enumerate(zip(before.exits, now.exits, strict=True))
    added = {i: new - old for i, (old, new) in pairs if new > old}
    for i, count in sorted(added.items(), key=lambda item: -item[1]):
        name = REASONS.get(i, str(i))
        reasons[name] = count / seconds
        if now.handling and now.handling[i] > before.handling[i]:
            handling[name] = (now.handling[i] - before.handling[i]) / count / 1e3
    return {"reasons": reasons, "handling_us": handling}


def _kvm(before: Reading, now: Reading, seconds: float) -> dict[str, Any]:
    if before.kvm is None or now.kvm is None:
        return {}
    added = {name: value - before.kvm.get(name, 0) for name, value in now.kvm.items()}
    whole = seconds * _NS
    polls = [added.pop(name, None) for name in ("halt_poll_success_ns", "halt_poll_fail_ns")]
    known = [ns for ns in polls if ns is not None]
    waited, exits = added.pop("halt_wait_ns", None), added.pop("exits", None)
    rates = {
        name: count / seconds
        for name, count in sorted(added.items(), key=lambda item: -item[1])
        if count > 0 and not name.endswith("_ns")
    }
    return {
        "halt_poll": _share(sum(known), whole) if known else None,
        "halt_wait": None if waited is None else _share(waited, whole),
        "exits": None if exits is None else max(exits, 0) / seconds,
        "kvm": rates,
    }
