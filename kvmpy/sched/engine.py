"""Runs vCPUs that share pCPUs, with threads that share vCPUs, and gathers who ran when.

The guest does the watching; the host waits, empties the logs before they are full, and asks the
kernel for its own account once before and once after.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Final

from .._measure import lib
from ..errors import KvmpyError, UnsupportedError
from ..exits.reasons import Exit, Kicked
from ..host import topology
from ..host.scheduling import Scheduling, schedule
from ..machine.threads import VcpuThreads
from ..probe import verdict as backend
from ..vcpu import VCPU
from . import guest as guests, timeline
from .metrics import SwitchCost, switch_cost
from .result import HostView, Result, Thread, Vcpu

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"
_EMPTY_EVERY: Final = 0.5  # seconds; the logs have room for tens of thousands of records
_STOP_WITHIN: Final = 10.0
_CALIBRATE: Final = 0.02  # seconds that are enough for 50 ppm
LONGEST: Final = 600.0  # seconds: all records are kept


class GuestError(KvmpyError):
    """A guest that came to an end it does not have."""


@dataclass
class _Account:
    """What the host says of one vCPU's thread, before and after its run."""

    tsc: list[int] = field(default_factory=list)
    schedstat: list[tuple[int, ...]] = field(default_factory=list)
    stats: list[dict[str, int]] = field(default_factory=list)

    def read(self, cpu: VCPU) -> None:
        self.stats.append(_statistics(cpu))
        self.schedstat.append(_schedstat())
        self.tsc.append(lib.measure_tsc())

    def view(self, clock: timeline.TscClock) -> HostView:
        before, after = self.stats
        run, delay, turns = (
            (b - a for a, b in zip(*self.schedstat, strict=True))
            if all(self.schedstat)
            else (None, None, None)
        )
        gained = {name: after[name] - before[name] for name in after if name in before}
        return HostView(
            clock.ns(self.tsc[0]),
            clock.ns(self.tsc[1]), run, delay, turns,
            {name: value for name, value in sorted(gained.items()) if value > 0},
        )  # fmt: skip


def _schedstat() -> tuple[int, ...]:
    """ns on a pCPU, ns waiting for one, turns (Documentation/scheduler/sched-stats.rst); empty
    where the kernel does not say."""
    try:
        with open(_SCHEDSTAT, "rb") as file:
            numbers = tuple(map(int, file.read().split()))
    except (OSError, ValueError):
        return ()
    return numbers if len(numbers) == 3 else ()


def _statistics(cpu: VCPU) -> dict[str, int]:
    try:
        now = cpu.stats.snapshot()
    except UnsupportedError:
        return {}
    return {
        name: stat.values[0]
        for name, stat in now.items()
        if stat.kind == "cumulative" and len(stat.values) == 1
    }


def _pair() -> tuple[int, int]:
    """TSC and monotonic clock at one moment."""
    before = lib.measure_tsc()
    now = time.monotonic_ns()
    return (before + lib.measure_tsc()) // 2, now


def _khz(first: tuple[int, int], second: tuple[int, int]) -> float:
    return (second[0] - first[0]) * 1e6 / (second[1] - first[1])


def run(
    vcpus: int = 2,
    pcpus: Sequence[int] = (0,),
    threads: int = 3,
    seconds: float = 5.0,
    *,
    slice_ms: float = 10.0,
    gap_us: float = 20.0,
    program: str = "spin",
    work: int = 0,
    system_call: str | None = None,
    nice: Sequence[int] = (),
) -> Result:
    """Run ``vcpus`` on ``pcpus``, in turn, each with ``threads`` guest threads, for ``seconds``, or
    until all threads have ended; Ctrl-C ends it with what was seen.

    ``vcpus``: 1..64. The first is bound to the first of ``pcpus``, and so on, and round again.
    ``pcpus``: pCPUs that this process may use. ``threads``: of each vCPU, 1..16. ``seconds``:
    0..600. ``slice_ms``: the guest's time slice, 0.01..1000. ``gap_us``: time without a sign of
    life that is noted as a gap, 1..10000. ``program``: what the threads do, one of
    ``kvmpy.sched.guest.PROGRAMS``. ``work``: bytes that each thread uses at a turn, 0..16384;
    "yield" only. ``system_call``: how threads call their kernel: "syscall", "int80" or "int3".
    None: SYSCALL, or INT 3 where ring 0 is interpreted, since SYSCALL stays in ring 3 there.
    ``nice``: the vCPUs' threads get these values, -20..19, in turn; none: as this thread has it.

    Raises ValueError: an argument is out of range; PinError: this process may not use a pCPU;
    SchedulingError: it may not have a nice value; GuestError: the guest failed.

    >>> with kvmpy.KVM():
    ...     pcpu = min(kvmpy.host.topology.allowed_cpus())
    ...     result = kvmpy.sched.run(1, (pcpu,), threads=2, seconds=0.1)
    >>> [len(vcpu.threads) for vcpu in result.vcpus]
    [2]
    """
    _check(vcpus, pcpus, threads, seconds, slice_ms, gap_us, program, work)
    verdict = backend.verdict()
    if system_call is None:
        system_call = "int3" if verdict.ring0 == "emulated" else "syscall"
    if system_call not in guests.SYSTEM_CALLS:
        raise ValueError(
            f"system_call {system_call!r}: not one of {', '.join(guests.SYSTEM_CALLS)}"
        )
    pins = [pcpus[i % len(pcpus)] for i in range(vcpus)]
    with _Experiment(pins, threads, system_call, _dealt(nice, vcpus)) as experiment:
        experiment.prepare(program, round(slice_ms * 1e6), round(gap_us * 1e3), work)
        interrupted = experiment.run(seconds)
        return Result(
            module=verdict.module,
            verdict=verdict.summary,
            ring0=verdict.ring0,
            tsc_khz=experiment.clock.khz,
            pcpus=tuple(pcpus),
            threads=threads,
            seconds=seconds,
            wall=experiment.clock.ns(experiment.clock.end),
            slice_us=slice_ms * 1e3,
            gap_us=gap_us,
            program=program,
            system_call=system_call,
            vcpus=tuple(experiment.vcpus()),
            written=experiment.guest.console.output.decode("ascii", "backslashreplace"),
            interrupted=interrupted,
            notes=tuple(_notes(verdict, experiment.has_steal)),
        )


def switch_costs(
    pcpu: int, counts: Sequence[int] = (1, 2, 4, 8, 16), *, seconds: float = 0.1, work: int = 4096
) -> tuple[SwitchCost, ...]:
    """What going from one guest thread to the next costs, for each number of threads in ``counts``:
    on one vCPU on ``pcpu``, for ``seconds`` each; every thread writes to ``work`` bytes of its own
    between two yields, so that more threads need more of the caches. Ctrl-C ends it with those that
    are done.

    Raises what :func:`run` does.

    >>> with kvmpy.KVM():
    ...     pcpu = min(kvmpy.host.topology.allowed_cpus())
    ...     [cost.threads for cost in kvmpy.sched.switch_costs(pcpu, (1, 2), seconds=0.02)]
    [1, 2]
    """
    found = []
    for count in counts:
        result = run(1, (pcpu,), count, seconds, program="yield", work=work, gap_us=1000.0)
        if result.interrupted:
            break
        found.append(switch_cost(result, work))
    return tuple(found)


def _dealt(nice: Sequence[int], vcpus: int) -> list[Scheduling | None]:
    if not nice:
        return [None] * vcpus
    return [Scheduling("other", nice=nice[i % len(nice)]) for i in range(vcpus)]


def _check(
    vcpus: int, pcpus: Sequence[int], threads: int, seconds: float, slice_ms: float, gap_us: float,
    program: str, work: int,
) -> None:  # fmt: skip
    ranges = (
        ("vcpus", vcpus, 1, guests.MOST_VCPUS),
        ("threads", threads, 1, guests.MOST_THREADS),
        ("seconds", seconds, 0, LONGEST),
        ("slice_ms", slice_ms, 0.01, 1000),
        ("gap_us", gap_us, 1, 10_000),
        ("work", work, 0, guests.MOST_WORK),
    )
    for name, value, low, high in ranges:
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name} {value!r} is not in {low}..{high}")
    if program not in guests.PROGRAMS:
        raise ValueError(f"program {program!r}: not one of {', '.join(guests.PROGRAMS)}")
    if not pcpus:
        raise ValueError("no pCPU to run on")
    for pcpu in pcpus:
        topology.check_pin(pcpu)


def _notes(verdict: backend.Verdict, has_steal: bool) -> list[str]:
    notes = []
    if verdict.ring0 == "emulated":
        notes.append(
            f"{verdict.module} interprets ring 0: guest threads run natively, switches between "
            "them measure KVM's instruction emulator."
        )
    if verdict.emulator:
        notes.append(
            f"This host's CPU is emulated by {verdict.emulator}: time is virtual, and no figure "
            "here is one of hardware."
        )
    elif verdict.nested:
        notes.append(
            "This host is a virtual machine itself: when its own host takes a pCPU away, that is "
            "a stall here."
        )
    if not has_steal:
        notes.append(
            "KVM offers no steal time here: gaps of 0.1 ms and more are taken for the scheduler's."
        )
    return notes


class _Experiment:
    """One run of a guest."""

    def __init__(
        self,
        pins: Sequence[int],
        threads: int,
        system_call: str,
        scheduling: Sequence[Scheduling | None],
    ):
        self.pins, self.threads, self._scheduling = pins, threads, scheduling
        self._finished: set[int] = set()
        self._all_finished = Event()
        self.guest = guests.Guest(pins, system_call, self._on_finished)
        self.kernels = self.guest.kernels
        self.has_steal = all(kernel.has_steal for kernel in self.kernels)
        self._accounts = {kernel.cpu.id: _Account() for kernel in self.kernels}
        self._switches: list[list[tuple[int, ...]]] = [[] for _ in self.kernels]
        self._gaps: list[list[tuple[int, ...]]] = [[] for _ in self.kernels]
        self.clock = timeline.TscClock(0, 0, 1.0)

    def __enter__(self) -> _Experiment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.guest.close()

    def _on_finished(self, vcpu: int) -> None:
        self._finished.add(vcpu)
        if self._finished.issuperset(range(len(self.kernels))):
            self._all_finished.set()

    def prepare(self, program: str, slice_ns: int, gap_ns: int, work: int) -> None:
        self._gap_ns = gap_ns
        first = _pair()
        time.sleep(_CALIBRATE)
        ticks = round(gap_ns * _khz(first, _pair()) / 1e6)
        for kernel in self.kernels:
            kernel.start_threads(self.threads, program, slice_ns, ticks, work)

    def run(self, seconds: float) -> bool:
        """Run the vCPUs; whether Ctrl-C ended it."""
        interrupted = False
        runner = VcpuThreads([kernel.cpu for kernel in self.kernels], self._body)
        begin = _pair()
        try:
            runner.start()
            self._wait(runner, time.monotonic() + seconds)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if not runner.stop(_STOP_WITHIN):
                raise GuestError("the vCPUs did not stop")
        end = _pair()
        self.clock = timeline.TscClock(begin[0], end[0], _khz(begin, end))
        ending = runner.wait(0)
        self._empty(final=True)
        if not isinstance(ending.value, Kicked):
            raise GuestError(f"vCPU {ending.vcpu.id} ended with {ending.value}")
        return interrupted

    def _wait(self, runner: VcpuThreads[Exit], deadline: float) -> None:
        while runner.running and (left := deadline - time.monotonic()) > 0:
            if self._all_finished.wait(min(left, _EMPTY_EVERY)):
                return
            if left > _EMPTY_EVERY:
                self._empty()

    def _body(self, cpu: VCPU) -> Exit:
        account = self._accounts[cpu.id]
        scheduling = self._scheduling[cpu.id]
        if scheduling is not None:
            schedule(scheduling)
        account.read(cpu)
        try:
            return cpu.run()
        finally:
            account.read(cpu)

    def _empty(self, final: bool = False) -> None:
        for i, kernel in enumerate(self.kernels):
            self._switches[i] += kernel.switches.take(final)
            self._gaps[i] += kernel.gaps.take(final)

    def vcpus(self) -> list[Vcpu]:
        """What was seen of each."""
        return [self._vcpu(i) for i in range(len(self.kernels))]

    def _vcpu(self, index: int) -> Vcpu:
        kernel = self.kernels[index]
        raw = timeline.Raw(
            kernel.started, self._switches[index], self._gaps[index], kernel.cpu.regs.rbx
        )
        line = timeline.build(
            raw, self.clock, threads=self.threads, pcpu=self.pins[index], gap_ns=self._gap_ns,
            has_steal=self.has_steal,
        )  # fmt: skip
        scheduling = self._scheduling[index]
        return Vcpu(
            id=kernel.cpu.id,
            pcpus=(self.pins[index],),
            start=line.start,
            end=line.end,
            slices=line.slices,
            gaps=line.gaps,
            thread_slices=line.thread_slices,
            switches=line.switches,
            threads=tuple(self._thread(kernel, thread, line) for thread in range(self.threads)),
            steal=line.steal,
            host=self._accounts[kernel.cpu.id].view(self.clock),
            lost=kernel.switches.lost + kernel.gaps.lost,
            damaged=kernel.switches.damaged + kernel.gaps.damaged + line.damaged,
            nice=scheduling.nice if scheduling is not None else None,
        )

    def _thread(self, kernel: guests.Kernel, thread: int, line: timeline.Timeline) -> Thread:
        loops, turns = kernel.counts(thread)
        own = [(part.start, part.end) for part in line.thread_slices if part.thread == thread]
        away = [(gap.start, gap.end) for gap in line.gaps if gap.kind == "descheduled"]
        taken = sum(end - start for start, end in timeline.common(own, away))
        used = sum(end - start for start, end in own) - taken
        return Thread(thread, used, loops, turns)
