"""Rows become figures: samples per call by VM, summarised, in ns, sorted by what may stand
together.

A figure that was interpreted, or that KVM's emulator stood in for, tells of an emulator. It has a
class of its own, and everything that prints figures prints one class at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from .judgement import unexpected
from .record import Disclosure, Row
from .stats import Summary, summarize

#: What may stand together in a table, in this order. "host" runs in no guest.
Class = Literal["native", "calibration", "host", "interpreted", "emulated-by-kvm", "fails"]
CLASSES: Final[tuple[Class, ...]] = (
    "native", "host", "calibration", "interpreted", "emulated-by-kvm", "fails",
)  # fmt: skip
TITLES: Final[dict[Class, str]] = {
    "native": "Native",
    "host": "The host's own system calls, root ring 3 -> root ring 0",
    "calibration": "Calibration: ring 3 alone",
    "interpreted": "Interpreted: a ring on the way runs in KVM's emulator",
    "emulated-by-kvm": "Emulated: each call leaves the guest, and KVM does it",
    "fails": "Fails",
}
MODES: Final = {
    "long64": "64-bit",
    "compat32": "compat 32",
    "legacy32": "legacy 32",
    "host": "host",
}
PATHS: Final = {
    "int80": "int 0x80",
    "sysenter": "SYSENTER",
    "syscall": "SYSCALL",
    "callgate": "call gate",
}
#: What else is measured; a path without a name here is its own.
_NAMES: Final = PATHS | {
    "nearcall": "near call",
    "empty": "nothing",
    "adds": "64 adds",
    "cpuid": "CPUID",
    "rdmsr": "RDMSR",
    "vmcall": "VMCALL",
    "vmmcall": "VMMCALL",
    "pio-kernel": "PIO to KVM",
    "mmio-kernel": "MMIO to KVM",
    "doorbell-pio": "PIO doorbell",
    "doorbell-mmio": "MMIO doorbell",
    "pio-shim": "PIO to C shim",
    "mmio-shim": "MMIO to C shim",
    "pio-python": "PIO to Python",
    "mmio-python": "MMIO to Python",
    "hlt-python": "HLT to Python",
    "hlt-wake": "HLT and wake",
}
#: Rows of these kinds are measured as t(2N) - t(N).
_SLOPES: Final = ("path", "baseline", "calibration", "host")
_LARGEST_STEP: Final = 64  # of a TSC, in ticks: at 100 MHz it would be one of 6.4 GHz
_ENOUGH_TO_TELL: Final = 200  # samples
_FASTEST_KHZ = 1e9  # a thousand GHz: no TSC
VIRTUAL: Final = (
    "Time is virtual: the CPU under this KVM is emulated. No figure here tells of hardware."
)


def classify(row: Row) -> Class:
    """The class of a row.

    >>> Row = kvmpy.bench.record.Row
    >>> kvmpy.bench.figures.classify(Row("SYSCALL", "path", "long64", "syscall"))
    'native'
    """
    if row.outcome != "native":
        return row.outcome
    if row.kind == "host" or row.kind == "calibration":
        return row.kind
    return "native"


def by_vm(row: Row) -> tuple[tuple[float, ...], ...]:
    """A row's samples per call, in its unit, one tuple for each VM; one in all where it is not
    told which VM they are of.

    >>> row = kvmpy.bench.record.Row(
    ...     "CPUID", "exit", "long64", "cpuid", samples=(10, 14, 20), calls=10, vms=(0, 1, 0))
    >>> kvmpy.bench.figures.by_vm(row)
    ((1.0, 2.0), (1.4,))
    """
    if not row.vms:
        return (row.per_call,) if row.samples else ()
    groups: dict[int, list[float]] = {}
    for vm, value in zip(row.vms, row.per_call, strict=True):
        groups.setdefault(vm, []).append(value)
    return tuple(tuple(groups[vm]) for vm in sorted(groups))


@dataclass(frozen=True)
class Figure:
    """A row and what its samples say. ``summary`` is in the row's unit, None without samples.

    ``ns``: nanoseconds in a unit, None where the rate of the TSC is not known. ``resolution``: the
    smallest difference that its clock can show, in its unit.
    """

    row: Row
    summary: Summary | None
    ns: float | None
    resolution: float = 0.0

    @property
    def kind(self) -> Class:
        """Its class: what it may stand beside.

        >>> row = kvmpy.bench.record.Row("SYSCALL", "path", "long64", "syscall", outcome="fails")
        >>> kvmpy.bench.figures.Figure(row, None, None).kind
        'fails'
        """
        return classify(self.row)

    @property
    def mode(self) -> str:
        """The CPU mode, for people.

        >>> row = kvmpy.bench.record.Row("SYSCALL", "path", "compat32", "syscall")
        >>> kvmpy.bench.figures.Figure(row, None, None).mode
        'compat 32'
        """
        return MODES.get(self.row.mode, self.row.mode)

    @property
    def label(self) -> str:
        """What was measured, the mode aside.

        >>> row = kvmpy.bench.record.Row("", "path", "long64", "syscall", "H1", "entry")
        >>> kvmpy.bench.figures.Figure(row, None, None).label
        'SYSCALL H1 entry'
        """
        path = name(self.row.path)
        measure = "" if self.row.measure == "round-trip" else self.row.measure
        return " ".join(filter(None, (path, self.row.level, measure)))

    @property
    def resolved(self) -> bool:
        """Whether it can be told apart from nothing: the interval of its median lies above 0 and is
        narrower than the median, which is two steps of the clock or more.

        >>> kvmpy.bench.figures.figures(report)[0].resolved
        True
        """
        if self.summary is None or self.summary.interval.low <= 0:
            return False
        if self.summary.interval.half_width > 0.5:
            return False
        return self.summary.median >= 2 * self.resolution

    @property
    def statistics(self) -> dict[str, float | int | None]:
        """What is reported of the row, by name, in its unit; empty without samples.

        >>> kvmpy.bench.figures.figures(report)[0].statistics["vms"]
        10
        """
        summary, counters = self.summary, self.row.counters
        if summary is None:
            return {}
        exits, interpreted = unexpected(counters)
        calls = counters.get("calls") or 0
        return {
            "batches": summary.count,
            "vms": summary.groups,
            "min": summary.minimum,
            "median": summary.median,
            "ci95_low": summary.interval.low,
            "ci95_high": summary.interval.high,
            "mad": summary.mad,
            "p99": summary.p99,
            "max": summary.maximum,
            "disturbed": summary.disturbed,
            "median_ns": None if self.ns is None else summary.median * self.ns,
            "exits_per_call": exits / calls if calls and exits is not None else None,
            "interpreted_per_call": (
                interpreted / calls if calls and interpreted is not None else None
            ),
        }


def name(path: str) -> str:
    """A path's name for people.

    >>> kvmpy.bench.figures.name("int80")
    'int 0x80'
    """
    return _NAMES.get(path, path)


def rate(row: Row, disclosure: Disclosure) -> float | None:
    """Nanoseconds in a unit of the row; None for ticks of a rate that is not known.

    >>> row = kvmpy.bench.record.Row("getppid", "host", "host", "getppid", unit="ns")
    >>> kvmpy.bench.figures.rate(row, report.disclosure)
    1.0
    """
    if row.unit == "ns":
        return 1.0
    khz = disclosure.tsc_khz
    return 1e6 / khz if khz and 0 < khz <= _FASTEST_KHZ else None


def figure(row: Row, disclosure: Disclosure) -> Figure:
    """A row with its statistics. One step of its clock is the smallest difference it can show.

    >>> kvmpy.bench.figures.figure(report.rows[0], report.disclosure).summary.groups
    10
    """
    groups = by_vm(row)
    slopes = row.measure == "round-trip" and row.kind in _SLOPES
    step = resolution(row)
    summary = summarize(groups, resolution=step, slopes=slopes) if groups else None
    return Figure(row, summary, rate(row, disclosure), step)


def resolution(row: Row) -> float:
    """The smallest difference a call that the clock can show, in the row's unit.

    The TSC of many CPUs advances in steps of some tens of ticks (AMD's at 2.6 GHz: 26, a step every
    10 ns): nearly all times are then multiples of one.

    >>> Row = kvmpy.bench.record.Row
    >>> row = Row("SYSCALL", "path", "long64", "syscall", samples=(520, 546, 572), calls=10)
    >>> kvmpy.bench.figures.resolution(row)
    2.6
    """
    some = row.samples[:_ENOUGH_TO_TELL]
    odd = len(some) // 20
    for step in range(_LARGEST_STEP, 1, -1) if len(set(some)) > 1 else ():
        others = (n for n in some if n % step)
        if next(itertools.islice(others, odd, None), None) is None:
            return step / row.calls
    return 1 / row.calls


class Measured(Protocol):
    """What figures are made of: a report's rows, and what they were measured on."""

    @property
    def rows(self) -> tuple[Row, ...]: ...
    @property
    def disclosure(self) -> Disclosure: ...


def figures(report: Measured) -> tuple[Figure, ...]:
    """All rows of a report with their statistics, in the report's order.

    >>> len(kvmpy.bench.figures.figures(report)) > 5
    True
    """
    return tuple(figure(row, report.disclosure) for row in report.rows)


def by_class(found: Iterable[Figure]) -> list[tuple[Class, list[Figure]]]:
    """Figures that may stand together, class by class; without those that are empty.

    >>> found = kvmpy.bench.figures.figures(report)
    >>> [name for name, _ in kvmpy.bench.figures.by_class(found)]
    ['native', 'host', 'calibration', 'interpreted', 'fails']
    """
    found = list(found)
    groups = ((name, [item for item in found if item.kind == name]) for name in CLASSES)
    return [(name, items) for name, items in groups if items]
