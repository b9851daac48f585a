"""What int 0x80, SYSENTER, SYSCALL and a call gate cost inside a guest, in every CPU mode.

Ring 3 to ring 0 and back, without leaving the guest. Every cell is proved before it is timed
(``proof``); what cannot run is in the report too, with how it fails, found by running it.

The protocol: batches of at most 50 us, times stored in guest memory, one exit at a batch's end;
cells, alignments and chunks of batches in random order, the host's own system call among them;
fresh VMs. A sample is the sum over a batch of (t(2N) - t(N)), for N trips each.

Core cycles are counted by the host, where it has a counter, in batches of their own: those of N and
2N trips, less those of twice N.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Final

from ..errors import KvmIoctlError
from ..host.cpu import identify
from ..host.topology import allowed_cpus
from ..probe import verdict as backend
from . import disclosure, hostcall, references
from .cells import LEVELS, MODES, PATHS, Cell, every_cell
from .counters import GuestCycles, add
from .document import Report
from .failures import GuestFailed
from .judgement import VIRTUAL_LABEL, judge
from .lab import ALIGNMENT_STEP, ALIGNMENTS, Batches, Lab
from .proof import prove
from .record import Canary, Measure, Row

#: ``progress(fraction, what)``: how much is done, 0 to 1, and what is under way.
Progress = Callable[[float, str], None]

BATCH_SECONDS: Final = 50e-6
_BLOCK: Final = 16
_MOST_REPEATS: Final = 16
_SHOTS: Final = 8  # single shots in a batch: each is a sample
_TUNING_BATCHES: Final = 3
_PATIENCE: Final = 30.0  # seconds for some batches of what has run before: the host may be busy
_SINGLE: Final[tuple[tuple[Measure, int, int], ...]] = (
    ("single-shot", 0, 3),
    ("entry", 0, 1),
    ("handler", 1, 2),
    ("return", 2, 3),
)


@dataclass(frozen=True)
class Plan:
    """How much is measured: in each of ``vms`` fresh VMs, for each alignment, ``chunks`` times
    ``batches``. Single shots are taken in one chunk. The host's own call has no alignments."""

    vms: int
    chunks: int
    batches: int


QUICK: Final = Plan(vms=5, chunks=1, batches=40)
FULL: Final = Plan(vms=10, chunks=4, batches=50)


@dataclass
class _Series:
    """What is known and collected of a cell that runs."""

    cell: Cell
    block: int
    repeats: int
    samples: dict[Measure, list[int]] = field(default_factory=dict)
    vms: list[int] = field(default_factory=list)
    alignments: list[int] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    cycles: list[float] = field(default_factory=list)  # core cycles a call, one for each VM


@dataclass(frozen=True)
class _Mode:
    """What was found out of a mode: ``trouble`` if even its ring 3 cannot run."""

    canaries: dict[int, Canary]
    paging: bool = True
    trouble: GuestFailed | None = None

    @property
    def plain(self) -> tuple[bool, bool]:
        """Whether ring 3 and ring 0 take plain stamps, see ``Lab``."""
        user, kernel = (
            ring in self.canaries and self.canaries[ring].interpreted for ring in (3, 0)
        )
        return user, kernel


class _Run:
    """One run of the benchmark."""

    def __init__(self, cells: Sequence[Cell], plan: Plan, progress: Progress, pin: int | None):
        self.cells, self.plan, self.progress, self.pin = cells, plan, progress, pin
        self.host = hostcall.HostCalls()
        self.verdict = backend.verdict()
        self.limit = hostcall.canary_limit()
        self.vendor_differs = False
        self.modes: dict[str, _Mode] = {}
        self.failed: dict[Cell, GuestFailed] = {}
        self.series: dict[Cell, _Series] = {}

    # -- finding out

    def explore(self) -> None:
        """Canaries of all modes, proof and tuning of every cell."""
        for mode in MODES:
            if any(cell.mode == mode for cell in self.cells):
                self.modes[mode] = self._explore_mode(mode)
        paths = list(dict.fromkeys((cell.mode, cell.path) for cell in self.cells))
        for number, (mode, path) in enumerate(paths):
            self.progress(0.2 * number / len(paths), f"proving {mode} {path}")
            self._explore_path(
                mode, [cell for cell in self.cells if (cell.mode, cell.path) == (mode, path)]
            )

    def _explore_mode(self, mode: str) -> _Mode:
        trouble: GuestFailed | None = None
        for paging in (True, False) if mode == "legacy32" else (True,):
            try:
                canaries = {3: self._canary(mode, 3, paging)}
            except GuestFailed as error:
                trouble = trouble or error
                continue
            # Compatibility mode exists in ring 3 alone: its ring 0 is long mode's.
            kernel = "long64" if mode == "compat32" else mode
            with contextlib.suppress(GuestFailed):
                canaries[0] = self._canary(kernel, 0, paging)
            return _Mode(canaries, paging, trouble)
        return _Mode({}, trouble=trouble)

    def _canary(self, mode: str, ring: int, paging: bool) -> Canary:
        with self._lab(mode, paging) as lab:
            self.vendor_differs |= lab.cpu.cpuid.vendor != identify().vendor
            return lab.canary(ring, self.limit)

    def _lab(self, mode: str, paging: bool | None = None) -> Lab:
        known = self.modes.get(mode, _Mode({}))
        lab = Lab(mode, pin=self.pin, paging=known.paging if paging is None else paging)
        lab.plain = known.plain
        return lab

    def _explore_path(self, mode: str, cells: Sequence[Cell]) -> None:
        """Each cell in a VM of its own: one that fails may leave anything behind."""
        path = cells[0].path
        trouble = self._path_trouble(mode, path)
        for cell in cells:
            try:
                if trouble:
                    raise trouble
                self._check_rung(cell)
                with self._lab(mode) as lab:
                    if cell.kind == "path" and not cell.single:
                        _insist(prove(lab, cell).trouble)
                    self.series[cell] = self._tune(lab, cell)
            except GuestFailed as error:
                self.failed[cell] = error
            except KvmIoctlError as error:
                self.failed[cell] = GuestFailed(str(error))

    def _path_trouble(self, mode: str, path: str) -> GuestFailed | None:
        """How the path fails whatever the rung, None if it does not."""
        known = self.modes[mode]
        if not known.canaries:
            return known.trouble
        if path not in PATHS:
            return None
        try:
            with self._lab(mode) as lab:
                _insist(prove(lab, Cell(mode, path, "H0"), handler="proof").trouble)
        except GuestFailed as error:
            return error
        return None

    def _check_rung(self, cell: Cell) -> None:
        known = self.modes[cell.mode]
        if cell.handler == "H3" and not known.paging:
            raise GuestFailed(f"needs paging, and with it {known.trouble}")
        if cell.level == LEVELS[4]:
            with self._lab(cell.mode) as lab:
                if not lab.has_pcid:
                    raise GuestFailed("no PCID (CPUID 1, ECX bit 17)")

    def _tune(self, lab: Lab, cell: Cell) -> _Series:
        """How many trips and records make a batch of at most BATCH_SECONDS."""
        limit = (disclosure.tsc_khz(lab.cpu) or 1_000_000) * 1e3 * BATCH_SECONDS
        block, shots = (1, 1) if cell.single else (_BLOCK, _MOST_REPEATS)
        ticks = _longest(cell, lab.batches(cell, _TUNING_BATCHES, block=block, repeats=1))
        if not cell.single and ticks > limit:
            block = 1
            ticks = _longest(cell, lab.batches(cell, _TUNING_BATCHES, block=block, repeats=1))
        most = _SHOTS if cell.single else shots
        return _Series(cell, block, max(1, min(most, int(limit // max(ticks, 1)))))

    # -- measuring

    def measure(self) -> None:
        """All batches of all cells that run, in random order; one set of VMs after the other."""
        order = random.Random(1)  # the same in every run: two runs differ by what they measure
        with GuestCycles() as cycles:
            for vm in range(self.plan.vms):
                with contextlib.ExitStack() as stack:
                    labs = {
                        mode: stack.enter_context(self._lab(mode))
                        for mode, known in self.modes.items()
                        if known.canaries
                    }
                    for lab in labs.values():
                        lab.timeout = _PATIENCE
                        lab.cycles = None if cycles.trouble else cycles
                    self._measure_vm(labs, vm, order)

    def _measure_vm(self, labs: dict[str, Lab], vm: int, order: random.Random) -> None:
        jobs = list(self._jobs())
        order.shuffle(jobs)
        for number, (series, alignment) in enumerate(jobs):
            share = (vm + number / len(jobs)) / self.plan.vms
            self.progress(0.2 + 0.8 * share, f"VM {vm + 1} of {self.plan.vms}")
            if series is None:
                self.host.take(vm, self.plan.batches)
            else:
                self._take(labs[series.cell.mode], series, vm, alignment)
        for series in self.series.values():
            if series.cell not in self.failed:
                found = _cycles_per_call(labs[series.cell.mode], series, self.plan.batches)
                series.cycles += [] if found is None else [found]

    def _jobs(self) -> Iterator[tuple[_Series | None, int]]:
        """What there is to measure in a VM; None is the host's own system call."""
        for _ in range(self.plan.chunks):
            yield None, 0
        for series in self.series.values():
            for alignment in range(ALIGNMENTS) if series.cell.level else (0,):
                for _ in range(1 if series.cell.single else self.plan.chunks):
                    yield series, alignment

    def _take(self, lab: Lab, series: _Series, vm: int, alignment: int) -> None:
        cell = series.cell
        if cell in self.failed:
            return
        try:
            batches = lab.batches(
                cell, self.plan.batches, block=series.block, repeats=series.repeats, copy=alignment
            )
        except GuestFailed as error:
            self.failed[cell] = error
            return
        add(series.counters, batches.counters)
        count = 0
        for measure, samples in _samples(cell, batches):
            series.samples.setdefault(measure, []).extend(samples)
            count = len(samples)
        series.vms += [vm] * count
        series.alignments += [alignment * ALIGNMENT_STEP] * count

    # -- reporting

    def rows(self) -> list[Row]:
        """One row a cell; four for single shots; the host's own."""
        hosts = self.host.rows()
        if self.verdict.emulator:
            hosts = [replace(row, labels=(*row.labels, VIRTUAL_LABEL)) for row in hosts]
        return [row for cell in self.cells for row in self._rows(cell)] + hosts

    def _rows(self, cell: Cell) -> Iterator[Row]:
        known = self.modes[cell.mode]
        row = Row(
            name=cell.name, kind=cell.kind, mode=cell.mode, path=cell.path, level=cell.level,
            measure="single-shot" if cell.single else "round-trip",
            canaries=tuple(known.canaries[ring] for ring in cell.rings if ring in known.canaries),
        )  # fmt: skip
        error = self.failed.get(cell)
        if error is not None:
            yield replace(row, outcome="fails", failure=str(error), vector=error.vector)
            return
        series = self.series[cell]
        row = replace(
            row,
            calls=1 if cell.single else series.block * series.repeats,
            block=None if cell.single else series.block,
            counters=dict(series.counters),
            cycles=median(series.cycles) if series.cycles else None,
        )
        row = judge(row, self.verdict, self.vendor_differs)
        if not known.paging:
            row = replace(row, labels=(*row.labels, "without paging"))
        for measure, samples in series.samples.items():
            name = f"{row.name} {measure}" if cell.single else row.name
            yield replace(
                row, name=name, measure=measure, samples=tuple(samples),
                vms=tuple(series.vms), alignments=tuple(series.alignments),
            )  # fmt: skip


def _insist(trouble: str) -> None:
    if trouble:
        raise GuestFailed(trouble)


def _samples(cell: Cell, batches: Batches) -> Iterator[tuple[Measure, list[int]]]:
    words = batches.words
    if cell.single:
        for measure, first, last in _SINGLE:
            pairs = zip(words[first::4], words[last::4], strict=True)
            yield measure, [b - a & 0xFFFF_FFFF for a, b in pairs]
        return
    step = 2 * batches.repeats
    yield (
        "round-trip",
        [
            sum(words[at + 1 : at + step : 2]) - sum(words[at : at + step : 2])
            for at in range(0, len(words), step)
        ],
    )


def _cycles_per_call(lab: Lab, series: _Series, count: int) -> float | None:
    """Core cycles of a trip, from two times ``count`` batches: what they do beside the trips, and
    the exits at their ends, cancel out. None without a counter."""
    if lab.cycles is None or series.cell.single:
        return None
    long, short = (
        lab.batches(
            series.cell, count, block=series.block, repeats=series.repeats, second=second
        ).counters.get("guest_cycles")
        for second in (2 * series.block, series.block)
    )
    if long is None or short is None:
        return None
    return (long - short) / (count * (series.repeats + 1) * series.block)


def _longest(cell: Cell, batches: Batches) -> int:
    """Ticks of one record, stamps and all: the shortest seen, which is the least disturbed."""
    if cell.single:
        return min(samples[0] for _, samples in _samples(cell, batches))
    return min(a + b for a, b in zip(batches.words[::2], batches.words[1::2], strict=True))


def run(
    cells: Iterable[Cell] | None = None,
    quick: bool = False,
    cpu: int | None = None,
    progress: Progress | None = None,
    warned: disclosure.Warned = None,
) -> Report:
    """Measure ``cells`` (``cells.every_cell``: all by default) and the host's own system call.

    ``quick``: a tenth of the batches, some seconds instead of minutes. ``cpu``: the pCPU to
    run on, by default the last one this process may use. ``warned``: called before anything is
    measured with what disturbs measurements here, if there is anything.

    Raises a KvmUnavailableError without usable KVM, PinError for a ``cpu`` that is not available,
    ValueError for cells that are not in the table.

    >>> Cell = kvmpy.bench.cells.Cell
    >>> with kvmpy.KVM():
    ...     report = kvmpy.bench.syscall.run([Cell("long64", "adds")], quick=True)
    >>> report.rows[0].outcome
    'native'
    """
    chosen = tuple(dict.fromkeys(every_cell() if cells is None else cells))
    unknown = [cell for cell in chosen if cell not in every_cell()]
    if unknown:
        raise ValueError(f"{unknown[0]} is not in the table: see kvmpy.bench.cells.every_cell()")
    started = time.monotonic()
    plan = QUICK if quick else FULL
    allowed = allowed_cpus()
    with disclosure.pinned(cpu) as pin:
        job = _Run(chosen, plan, progress or (lambda fraction, what: None), pin)
        around = disclosure.Surroundings(job.verdict, pin, allowed, warned)
        job.explore()
        job.measure()
        with Lab("long64", pin=pin) as lab:
            found = disclosure.collect(lab.cpu, job.verdict, pin)
        return Report(
            benchmark="syscall",
            rows=tuple(job.rows()),
            references=references.SYSCALL,
            disclosure=found,
            quick=quick,
            seconds=time.monotonic() - started,
            warnings=around.warnings(),
            steal=around.steal(),
        )
