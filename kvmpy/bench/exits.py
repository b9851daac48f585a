"""What leaving the guest costs, rung by rung: from CPUID, which KVM answers itself, to Python.

The guest times itself (native/guests/exit-ladder.S), in batches of at most 50 us where an exit is
that quick. Where the time goes is told by the shim's clocks, in batches of their own, since clocks
cost time: "kernel" is what KVM_RUN took, hardware's share and the guest's own instructions in it;
"shim" and "python" what passed until the next entry. They are differences of a batch and one twice
as long, so that the exit that ends a batch is in none.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Final

from ..errors import KvmIoctlError, UnsupportedError
from ..exits.reasons import ExitLimit, Hlt
from ..guests import image
from ..host.cpu import identify
from ..host.topology import allowed_cpus
from ..probe import verdict as backend
from ..stats.run import RunStats
from ..vm import VM
from ..x86.modes import Mode
from . import counters, disclosure, hostcall, references
from .document import Report
from .failures import GuestFailed, describe
from .judgement import VIRTUAL_LABEL
from .record import Canary, Kind, Row
from .syscall import Progress

BATCH_SECONDS: Final = 50e-6
_MOST_REPEATS: Final = 32
_MEMORY: Final = 4 << 20
_AHEAD_SECONDS: Final = 200e-6
_TIMEOUT: Final = 2.0
_SPLIT_REPEATS: Final = 16
_WHOLE: Final = ("empty", "hlt-wake")  # what is not made of parts


@dataclass(frozen=True)
class Way:
    """A way out of the guest. ``loop``: the guest's name for it; ``user``: whether it ends in user
    space, and not in KVM; ``irqchip``: whether it needs KVM's interrupt controllers."""

    path: str
    name: str
    loop: str
    user: bool = False
    irqchip: bool = False


def ways() -> tuple[Way, ...]:
    """The ladder. The hypercall is the one of the host's vendor.

    >>> [way.path for way in kvmpy.bench.exits.ways()][:3]
    ['empty', 'cpuid', 'rdmsr']
    """
    call = "vmcall" if identify().vendor == "GenuineIntel" else "vmmcall"
    return (
        Way("empty", "NOP, no exit", "empty"),
        Way("cpuid", "CPUID", "cpuid"),
        Way("rdmsr", "RDMSR of IA32_APIC_BASE", "rdmsr"),
        Way(call, f"{call.upper()}, a hypercall", call),
        Way("pio-kernel", "IN from KVM's PIC", "pio_kernel", irqchip=True),
        Way("mmio-kernel", "load from KVM's I/O APIC", "mmio_kernel", irqchip=True),
        Way("doorbell-pio", "OUT to an ioeventfd", "pio_doorbell"),
        Way("doorbell-mmio", "store to an ioeventfd", "mmio_doorbell"),
        Way("pio-shim", "OUT to the C shim", "pio_shim", user=True),
        Way("mmio-shim", "store to the C shim", "mmio_shim", user=True),
        Way("pio-python", "OUT to a Python handler", "pio_python", user=True),
        Way("mmio-python", "store to a Python handler", "mmio_python", user=True),
        Way("hlt-python", "HLT to Python and back", "hlt", user=True),
        Way("hlt-wake", "HLT, deadline to its handler", "wake", irqchip=True),
    )


@dataclass(frozen=True)
class _Plan:
    vms: int
    batches: int
    splits: int


_QUICK: Final = _Plan(vms=5, batches=50, splits=5)
_FULL: Final = _Plan(vms=10, batches=200, splits=10)


_Split = dict[str, float]  # ns a call, by part


class _Guest:
    """A VM for one way: everything it writes to is there, and nothing else."""

    def __init__(self, way: Way, pin: int | None, plain: bool):
        self.way = way
        self.image = image.load("exit-ladder")
        self._eventfd = -1
        self.vm = VM(_MEMORY, irqchip=way.irqchip)
        try:
            self.vm.load(self.image.variant(plain, plain), at=image.ORIGIN)
            self.cpu = self.vm.vcpu(pin=pin)
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        symbols, bus = self.image, self.vm.bus
        bus.count(symbols["DONE"], 4, mmio=True)
        bus.count(symbols["MMIO_SHIM"], 4, mmio=True)
        bus.count(symbols["PORT_SHIM"], 1)
        bus.handle(symbols["MMIO_PYTHON"], 4, _take, mmio=True)
        bus.handle(symbols["PORT_PYTHON"], 1, _take)
        if self.way.path.startswith("doorbell"):
            self._eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            pio = self.way.path == "doorbell-pio"
            address = symbols["PORT_DOORBELL" if pio else "MMIO_DOORBELL"]
            self.vm.ioeventfd(self._eventfd, address, length=1 if pio else 4, pio=pio)

    def close(self) -> None:
        self.vm.close()
        if self._eventfd >= 0:
            os.close(self._eventfd)
            self._eventfd = -1

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def calls(self) -> int:
        """Ways out in one repeat."""
        return 1 if self.way.loop == "wake" else self.image["UNROLLED"]

    def batches(self, count: int, repeats: int) -> tuple[tuple[int, ...], dict[str, int]]:
        """``count`` batches, and one before that is thrown away: the guest's times, signed, and
        what the counters have gained."""
        words = repeats if self.way.loop == "wake" else 1
        size = 4 * words
        self._start(repeats, size * (count + 1))
        before = self.cpu.run_stats.total
        with counters.counting(self.cpu) as counted:
            self._run(count, repeats)
        user_exits = self.cpu.run_stats.total - before
        calls = count * repeats * self.calls
        counted.update(calls=calls, expected_exits=count, user_exits=user_exits)
        raw = self.vm.memory.read(self.image["RECORDS"] + size, size * count)
        return struct.unpack(f"<{words * count}i", raw), counted

    def split(self, count: int) -> _Split:
        """Where the time goes, by ``count`` pairs of batches that the shim times, one twice as long
        as the other. Of each kind the quickest counts, which is the least disturbed."""
        self._start(_SPLIT_REPEATS, 4 * (2 * count + 1))
        pairs = [
            (self._timed(_SPLIT_REPEATS), self._timed(2 * _SPLIT_REPEATS)) for _ in range(count)
        ]
        self.cpu.measure(False)
        short, long = (min(some, key=_total) for some in zip(*pairs, strict=True))
        calls = _SPLIT_REPEATS * self.calls
        return {part: (long[part] - short[part]) / calls for part in short}

    def _timed(self, repeats: int) -> _Split:
        self._poke("REPEATS", repeats)
        self.cpu.measure()
        before = self.cpu.run_stats
        self._run(1, repeats)
        after = self.cpu.run_stats
        python = (after.python_ns or 0) - (before.python_ns or 0)
        return {
            "kernel": (after.guest_ns or 0) - (before.guest_ns or 0),
            "shim": _handling(after) - _handling(before) - python,
            "python": python,
        }

    def _start(self, repeats: int, size: int) -> None:
        """Enter the guest, its memory for ``size`` bytes of times touched; the first batch is run
        and forgotten."""
        timer = {self.image["VECTOR_TIMER"]: self.image["timer"]}
        self.cpu.enter(Mode.LONG_64, rip=self.image[f"loop.{self.way.loop}"], handlers=timer)
        ahead = int((disclosure.tsc_khz(self.cpu) or 1_000_000) * 1e3 * _AHEAD_SECONDS)
        self._poke("REPEATS", repeats)
        self._poke("AHEAD", ahead)
        self.vm.load(bytes(size), at=self.image["RECORDS"])
        self._run(1, repeats, timeout=_TIMEOUT)

    def _poke(self, name: str, value: int) -> None:
        self.vm.load(value.to_bytes(4, "little"), at=self.image[name])

    def _run(self, count: int, repeats: int, timeout: float | None = None) -> None:
        """``timeout``: of each HLT. Later ones, of a guest that has halted before, do without: to
        arm a timer would cost more than the exit."""
        if self.way.loop != "hlt":
            served = repeats * self.calls if self.way.user else 0
            self._expect(ExitLimit, count * (served + 1))
            return
        for _ in range(count):
            for _ in range(repeats * self.calls):
                self._expect(Hlt, 1, timeout)
            self._expect(ExitLimit, 1)

    def _expect(self, kind: type[object], exits: int, timeout: float | None = _TIMEOUT) -> None:
        exit = self.cpu.run(timeout=timeout, max_exits=exits)
        if not isinstance(exit, kind):
            raise describe(self.cpu, self.image, exit, _TIMEOUT)


def _take(address: int, size: int, value: int | None) -> int | None:
    """The Python handler: as little as one can do."""
    return 0 if value is None else None


def _total(split: _Split) -> float:
    return sum(split.values())


def _handling(stats: RunStats) -> int:
    """ns between KVM_RUN's return and the next entry, all reasons together."""
    return sum(row.handling_ns or 0 for row in stats)


class _Run:
    """One run of the benchmark."""

    def __init__(self, chosen: tuple[Way, ...], plan: _Plan, progress: Progress, pin: int | None):
        self.ways, self.plan, self.progress, self.pin = chosen, plan, progress, pin
        self.verdict = backend.verdict()
        self.repeats: dict[Way, int] = {}
        self.failed: dict[Way, GuestFailed] = {}
        self.rows: dict[Way, Row] = {}
        self.splits: dict[Way, list[_Split]] = {}
        self.canary = _canary(pin)

    def measure(self) -> None:
        """Fresh VMs, the ways in random order in each round."""
        order = random.Random(1)
        for vm in range(self.plan.vms):
            jobs = list(self.ways)
            order.shuffle(jobs)
            for number, way in enumerate(jobs):
                share = (vm + number / len(jobs)) / self.plan.vms
                self.progress(share, f"VM {vm + 1} of {self.plan.vms}: {way.name}")
                self._measure(way, vm)

    def _measure(self, way: Way, vm: int) -> None:
        if way in self.failed:
            return
        try:
            with _Guest(way, self.pin, self.canary.interpreted) as guest:
                repeats = self.repeats.get(way) or self._tune(guest)
                self.repeats[way] = repeats
                words, counted = guest.batches(self.plan.batches, repeats)
                split = None if way.path in _WHOLE else guest.split(self.plan.splits)
        except GuestFailed as error:
            self.failed[way] = error
        except (KvmIoctlError, UnsupportedError) as error:
            self.failed[way] = GuestFailed(str(error))
        else:
            self._add(way, vm, repeats, words, counted)
            self.splits.setdefault(way, []).extend([split] if split else [])

    def _tune(self, guest: _Guest) -> int:
        """Repeats that make a batch of about BATCH_SECONDS."""
        if guest.way.loop == "wake":
            return 4
        limit = (disclosure.tsc_khz(guest.cpu) or 1_000_000) * 1e3 * BATCH_SECONDS
        words, _ = guest.batches(3, 1)
        ticks = min(words)
        return max(1, min(_MOST_REPEATS, int(limit // max(1, ticks))))

    def _add(
        self, way: Way, vm: int, repeats: int, words: tuple[int, ...], counted: dict[str, int]
    ) -> None:
        calls = 1 if way.loop == "wake" else repeats * self._unrolled
        row = self.rows.get(way) or Row(way.name, "exit", "long64", way.path, calls=calls)
        total = dict(row.counters)
        counters.add(total, counted)
        self.rows[way] = replace(
            row,
            samples=row.samples + words,
            vms=row.vms + (vm,) * len(words),
            counters=total,
        )

    _unrolled: Final = image.load("exit-ladder")["UNROLLED"]

    def finished(self) -> Iterator[Row]:
        """One row a way, in the ladder's order."""
        for way in self.ways:
            kind: Kind = "baseline" if way.path == "empty" else "exit"
            if way in self.failed:
                error = self.failed[way]
                yield Row(
                    way.name, kind, "long64", way.path, outcome="fails", failure=str(error),
                    vector=error.vector, canaries=(self.canary,),
                )  # fmt: skip
                continue
            row = replace(self.rows[way], kind=kind, canaries=(self.canary,))
            splits = self.splits[way]
            if splits:
                middle = {part: median(split[part] for split in splits) for part in splits[0]}
                row = replace(row, split=middle)
            yield self._labelled(way, row)

    def _labelled(self, way: Way, row: Row) -> Row:
        labels = list(row.labels)
        calls = row.counters["calls"]
        exits = row.counters.get("exits")
        if self.canary.interpreted:
            row = replace(row, outcome="interpreted")
            labels.append("ring 0 is interpreted")
        elif way.path != "empty" and exits is not None and exits < 0.5 * calls:
            labels.append(f"does not leave the guest here: {exits / calls:.2f} exits a call")
        user = row.counters["user_exits"] - row.counters["expected_exits"]
        if way.user != (user >= 0.5 * calls):
            labels.append("answered " + ("in the kernel" if way.user else "in user space"))
        if self.verdict.emulator:
            labels.append(VIRTUAL_LABEL)
        return replace(row, labels=tuple(labels))


def _canary(pin: int | None) -> Canary:
    from .lab import Lab

    with Lab("long64", pin=pin) as lab:
        return lab.canary(0, hostcall.canary_limit())


def run(
    paths: Iterable[str] | None = None,
    quick: bool = False,
    cpu: int | None = None,
    progress: Progress | None = None,
    warned: disclosure.Warned = None,
) -> Report:
    """Measure the ladder of exits; ``paths``: only these of ``ways``.

    ``quick``: an eighth of the batches. ``cpu``: the pCPU to run on, by default the last one
    this process may use. ``warned``: called before anything is measured with what disturbs
    measurements here, if there is anything.

    Raises a KvmUnavailableError without usable KVM, PinError for a ``cpu`` that is not available,
    ValueError for an unknown path.

    >>> with kvmpy.KVM():
    ...     report = kvmpy.bench.exits.run(["pio-shim"], quick=True)
    >>> sorted(report.rows[0].split)
    ['kernel', 'python', 'shim']
    """
    known = {way.path: way for way in ways()}
    wanted = list(known) if paths is None else list(dict.fromkeys(paths))
    for path in wanted:
        if path not in known:
            raise ValueError(f"{path!r} is not one of {', '.join(known)}")
    started = time.monotonic()
    silent: Callable[[float, str], None] = lambda fraction, what: None  # noqa: E731
    allowed = allowed_cpus()
    with disclosure.pinned(cpu) as pin:
        chosen = tuple(known[path] for path in wanted)
        job = _Run(chosen, _QUICK if quick else _FULL, progress or silent, pin)
        around = disclosure.Surroundings(job.verdict, pin, allowed, warned)
        job.measure()
        with VM("1M") as vm:
            found = disclosure.collect(vm.vcpu(), job.verdict, pin)
        return Report(
            benchmark="exit",
            rows=tuple(job.finished()),
            references=references.EXIT,
            disclosure=found,
            quick=quick,
            seconds=time.monotonic() - started,
            warnings=around.warnings(),
            steal=around.steal(),
        )
