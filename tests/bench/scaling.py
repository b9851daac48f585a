"""vCPUs beside Python: exits that C handles never take the GIL, so that a busy Python thread costs
them nothing; exits that a Python handler answers wait for it.

The vCPUs' threads are pinned to pCPUs of their own and run all the time, the busy thread to the one
that is left; it works in every other window. With one pCPU there is none left, and no figure.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import kvmpy
from kvmpy import guests
from kvmpy.machine import VcpuThreads

from .exits import ENTRY, MEMORY, PORT, _enter
from .rows import Row

#: At least this much of the throughput is to stay, so a time may grow to its reciprocal.
KEPT = 0.95
WINDOW = 0.1  # seconds: twenty of Python's switch intervals
_PYTHON_WINDOW = 0.25  # an exit may wait a whole switch interval (5 ms)
_SETTLE = 0.02
_READ = 50e-6  # seconds that reading clock and counts may take, or they are read again


class _BusyThread:
    """A Python thread that does nothing but run bytecode while it is told to."""

    def __init__(self, pcpu: int):
        self._pcpu, self._on, self._ends = pcpu, threading.Event(), False
        self._spins = False
        self._thread = threading.Thread(target=self._main, name="busy", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        os.sched_setaffinity(0, {self._pcpu})
        while not self._ends:
            self._on.wait()
            number = 0
            while self._spins:
                number += 1

    def work(self, on: bool) -> None:
        self._spins = on
        if on:
            self._on.set()
        else:
            self._on.clear()

    def close(self) -> None:
        self._ends, self._spins = True, False
        self._on.set()
        self._thread.join()


@contextmanager
def _running(
    pcpus: Sequence[int], claim: Callable[[kvmpy.VM], object]
) -> Iterator[tuple[Sequence[kvmpy.VCPU], VcpuThreads[kvmpy.Exit]]]:
    """A vCPU pinned to each of ``pcpus``, each in a VM of its own, that exits all the time."""
    vms = [kvmpy.VM(memory=MEMORY) for _ in pcpus]
    try:
        cpus = []
        for vm, pcpu in zip(vms, pcpus, strict=True):
            vm.load(guests.load("exits.bin"), at=ENTRY)
            claim(vm)
            cpu = vm.vcpu(pin=pcpu, cpuid=None)
            _enter(cpu)
            cpus.append(cpu)
        threads = VcpuThreads(cpus, kvmpy.VCPU.run)
        threads.start(together=True)
        try:
            yield cpus, threads
        finally:
            threads.stop()
    finally:
        for vm in vms:
            vm.close()


@dataclass
class _Samples:
    """Of windows: microseconds of one vCPU's time per exit, all and on its pCPU; and how often in
    a thousand exits its thread has slept, which is what waiting for the GIL looks like."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    sleeps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Look:
    time: float
    exits: int
    cpu: float  # seconds that the threads have run
    sleeps: int


def _look(cpus: Sequence[kvmpy.VCPU], ids: Sequence[int]) -> _Look:
    while True:
        now = time.perf_counter()
        exits = sum(cpu.run_stats.total for cpu in cpus)
        if time.perf_counter() - now < _READ:  # else another Python thread ran in between
            break
    ran = sum(time.clock_gettime(_cpu_clock(thread)) for thread in ids)
    return _Look(now, exits, ran, sum(map(_sleeps, ids)))


def _cpu_clock(thread: int) -> int:
    """The clock of a thread's CPU time, by its kernel id (clock_getcpuclockid(3))."""
    return ~thread << 3 | 6


def _sleeps(thread: int) -> int:
    """How often it gave its pCPU away by itself."""
    for line in Path(f"/proc/self/task/{thread}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.partition(":")[2])
    return 0


def _window(
    cpus: Sequence[kvmpy.VCPU], threads: VcpuThreads[kvmpy.Exit], seconds: float, samples: _Samples
) -> None:
    ids = list(threads.thread_ids().values())
    begun = _look(cpus, ids)
    time.sleep(seconds)
    ended = _look(cpus, ids)
    exits = max(ended.exits - begun.exits, 1)
    samples.wall.append((ended.time - begun.time) * len(cpus) / exits * 1e6)
    samples.cpu.append(max(ended.cpu - begun.cpu, 1e-6) / exits * 1e6)
    samples.sleeps.append((ended.sleeps - begun.sleeps) / exits * 1e3)


def _beside(
    busy: _BusyThread, pcpus: Sequence[int], claim: Callable[[kvmpy.VM], object], rounds: int,
    seconds: float,
) -> tuple[_Samples, _Samples]:  # fmt: skip
    """Samples alone, and beside the busy thread; who begins changes from round to round."""
    samples = {False: _Samples(), True: _Samples()}
    with _running(pcpus, claim) as (cpus, threads):
        for number in range(-1, rounds):
            for on in (False, True) if number % 2 else (True, False):
                busy.work(on)
                time.sleep(_SETTLE)
                _window(cpus, threads, seconds, samples[on] if number >= 0 else _Samples())
        busy.work(False)
    return samples[False], samples[True]


def _count(vm: kvmpy.VM) -> object:
    return vm.count_io(PORT)


def _handle(vm: kvmpy.VM) -> object:
    return vm.on_io(PORT)(lambda port, size, value: None)


def scaling_rows(rounds: int) -> list[Row]:
    """Needs two pCPUs; [] with one."""
    *pcpus, left = sorted(os.sched_getaffinity(0), reverse=True)
    if not pcpus:
        return []
    busy = _BusyThread(left)
    try:
        alone, beside = _beside(busy, pcpus, _count, rounds, WINDOW)
        slow, slowed = _beside(busy, pcpus[:1], _handle, max(rounds // 4, 2), _PYTHON_WINDOW)
    finally:
        busy.close()
    one, each = _spread([*pcpus, left], max(rounds // 4, 2))
    many, limit = f"{len(pcpus)} vCPU{'s' * (len(pcpus) > 1)}", 1 / KEPT
    return [
        Row(f"{many} beside Python (bare: alone)", "ratio", "us", limit, beside.wall, alone.wall),
        Row("  in CPU time", "ratio", "us", limit, beside.cpu, alone.cpu),
        Row("  sleeps in 1000 exits", "value", "", None, beside.sleeps),
        Row("  with a Python handler", "ratio", "us", None, slowed.wall, slow.wall),
        Row("    sleeps in 1000 exits", "value", "", None, slowed.sleeps),
        Row(f"  {len(pcpus) + 1} vCPUs (bare: 1)", "ratio", "us", None, each.cpu, one.cpu),
    ]


def _spread(pcpus: Sequence[int], rounds: int) -> tuple[_Samples, _Samples]:
    """One vCPU alone, and one on every pCPU, in turns."""
    one, each = _Samples(), _Samples()
    for _ in range(rounds):
        for samples, chosen in ((one, pcpus[:1]), (each, pcpus)):
            with _running(chosen, _count) as (cpus, threads):
                time.sleep(_SETTLE)
                _window(cpus, threads, WINDOW, samples)
                _window(cpus, threads, WINDOW, samples)
    return one, each
