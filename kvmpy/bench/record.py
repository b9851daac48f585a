"""What a benchmark hands over: typed records, and their JSON, which comes back as it was.

A `Report` is complete: it can be compared, rendered and judged without the host it was made on.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from ..errors import KvmpyError

#: Of the JSON; raised when an older reader would misread it.
FORMAT: Final = 1

Outcome = Literal["native", "interpreted", "emulated-by-kvm", "fails"]
OUTCOMES: Final[tuple[Outcome, ...]] = typing.get_args(Outcome)
Unit = Literal["ticks", "ns"]
Kind = Literal["path", "baseline", "calibration", "host", "exit"]
Measure = Literal["round-trip", "entry", "handler", "return", "single-shot"]

_LARGEST: Final = (1 << 63) - 1
_T = TypeVar("_T")


class RecordError(KvmpyError, ValueError):
    """JSON that is not a record of this version; the text says where and why."""


@dataclass(frozen=True)
class Canary:
    """A chain of dependent additions timed in one ring: ``cost`` of one addition.

    In TSC ticks; in ns where the clock is the host's. About one core cycle where the ring runs
    natively, hundreds where it is interpreted: above ``limit`` it counts as that.
    """

    ring: int
    cost: float
    limit: float
    interpreted: bool


@dataclass(frozen=True)
class Row:
    """One measured quantity: a cell of the matrix on one rung, a baseline, an exit.

    ``kind``: "path" (ring 3 -> ring 0 -> ring 3 in a guest), "baseline" (the empty loop, or the
    handler reached by a near call), "calibration" (ring 3 alone), "host" (the host's own system
    call) or "exit".
    ``mode``: "long64", "compat32", "legacy32"; "host"; for exits the mode the guest was in.
    ``path``: "int80", "sysenter", "syscall", "callgate"; "nearcall", "empty", "adds";
    "getppid" ...; for exits what makes one: "cpuid", "pio-kernel" ...
    ``level``: the rung "H0" .. "H3"; "" where there is none.
    ``measure``: "round-trip" is the slope between N and 2N calls in a block; "single-shot" the
    whole way of one call with the stamps' own cost in it, of which "entry", "handler" and "return"
    are the parts.

    ``samples``: one integer per batch, in ``unit``, for ``calls`` calls: a call costs
    ``sample / calls``. A slope can be negative where noise exceeds it. ``block``: its N; None for
    what is no slope. ``vms`` and ``alignments`` are parallel to ``samples``: number of the VM, and
    bytes by which the entry point was shifted.

    ``outcome``: "native"; "interpreted" (a ring on the way runs in KVM's emulator);
    "emulated-by-kvm" (the CPU has no such instruction in this mode, KVM stands in); "fails".
    Only native rows tell of hardware, and only they may be summarised together.
    ``failure``: how it fails, e.g. "#UD at syscall"; "" unless it does.
    ``vector``: of the exception it failed with, None if it was none.
    ``canaries``: of the rings crossed. ``counters``: differences over all batches by name, of KVM's
    binary statistics ("exits", "insn_emulation") and our own ("calls", "expected_exits",
    "run_delay_ns"); names that the host does not offer are absent.
    ``cycles``: core cycles a call takes, by the CPU's counter; None where the host has none.
    ``split``: ns a call spends in each part ("kernel", "shim", "python"), exits only.
    ``labels``: what holds for this row and belongs beside its figure, in a few words each.
    """

    name: str
    kind: Kind
    mode: str
    path: str
    level: str = ""
    measure: Measure = "round-trip"
    unit: Unit = "ticks"
    samples: tuple[int, ...] = ()
    calls: int = 1
    block: int | None = None
    vms: tuple[int, ...] = ()
    alignments: tuple[int, ...] = ()
    outcome: Outcome = "native"
    failure: str = ""
    vector: int | None = None
    canaries: tuple[Canary, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    cycles: float | None = None
    split: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.samples)
        if self.calls < 1:
            raise ValueError(f"row {self.name}: calls is {self.calls}, it must be above 0")
        if any(len(other) not in (0, count) for other in (self.vms, self.alignments)):
            raise ValueError(f"row {self.name}: vms and alignments are not parallel to samples")
        if any(abs(number) > _LARGEST for number in (self.calls, *self.samples)):
            raise ValueError(f"row {self.name}: a number does not fit in 64 bits")

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What identifies the same quantity in another report.

        >>> kvmpy.bench.record.Row("SYSCALL", "path", "long64", "syscall", "H0").key
        ('path', 'long64', 'syscall', 'H0', 'round-trip')
        """
        return self.kind, self.mode, self.path, self.level, self.measure

    @property
    def per_call(self) -> tuple[float, ...]:
        """The samples, each divided by the calls of its batch.

        >>> Row = kvmpy.bench.record.Row
        >>> Row("CPUID", "exit", "long64", "cpuid", samples=(10, 14), calls=4).per_call
        (2.5, 3.5)
        """
        return tuple(sample / self.calls for sample in self.samples)


@dataclass(frozen=True)
class Reference:
    """A published figure, to be printed apart from ours: it was measured elsewhere, otherwise."""

    platform: str
    path: str
    value: float
    unit: str
    conditions: str
    source: str


@dataclass(frozen=True)
class Disclosure:
    """What the figures were taken on, complete enough to judge them by.

    ``verdict``: :attr:`kvmpy.probe.verdict.Verdict.summary`. ``parameters``: of the KVM modules, as
    "kvm_intel.ept" -> "Y". ``tsc_khz``: rate of the guest's TSC, None if the host does not say.
    ``invariant_tsc``, ``tsc_scaling``: None if unknown. ``mitigations``: files of
    /sys/devices/system/cpu/vulnerabilities. ``governor``: "" if there is none to be seen.
    ``smt``: pCPUs that share the pinned one's core, itself left out. ``pinned_cpu``: None where
    pinning was not allowed. ``emulator``: the program that emulates this host's CPU: time is then
    virtual. ``date``: ISO 8601 with offset. ``versions``: of kvmpy, python and kernel.
    """

    module: str
    parameters: Mapping[str, str]
    verdict: str
    ring0: str
    ring3: str
    cpu_model: str
    vendor: str
    microcode: str
    kernel: str
    command_line: str
    tsc_khz: int | None
    invariant_tsc: bool | None
    tsc_scaling: bool | None
    paging: str | None
    mitigations: Mapping[str, str]
    governor: str
    smt: tuple[int, ...]
    pinned_cpu: int | None
    hypervisor: str | None
    nested: bool
    emulator: str | None
    virtual_time: bool
    load_average: tuple[float, ...]
    date: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Report:
    """One run of a benchmark. ``benchmark``: "syscall" or "exit". ``seconds``: how long it took.
    ``warnings``: what disturbs figures on this host, a sentence each. ``steal``: the share of the
    pCPU's time, 0 to 1, that a hypervisor below took during the run; None if unknown."""

    benchmark: str
    rows: tuple[Row, ...]
    references: tuple[Reference, ...]
    disclosure: Disclosure
    quick: bool
    seconds: float
    warnings: tuple[str, ...] = ()
    steal: float | None = None

    def to_json(self, indent: int | None = None) -> str:
        """The whole report as JSON text; floats and integers come back exactly.

        Each row that has samples also gets its "statistics" (:attr:`Figure.statistics` of
        :mod:`kvmpy.bench.figures`), for readers that are not kvmpy: it computes them anew.

        >>> with kvmpy.KVM():
        ...     report = kvmpy.bench.exits.run(["cpuid"], quick=True)
        >>> kvmpy.bench.record.Report.from_json(report.to_json()) == report
        True
        """
        from .figures import figures  # which is built on this module

        document = {"format": FORMAT} | _plain(self)
        for row, found in zip(document["rows"], figures(self), strict=True):
            if found.statistics:
                row["statistics"] = found.statistics
        return json.dumps(document, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that :meth:`to_json` has written.

        Raises RecordError for anything else.

        >>> kvmpy.bench.record.Report.from_json("[]")
        Traceback (most recent call last):
        kvmpy.bench.record.RecordError: this is no kvmpy benchmark record of format 1
        """
        try:
            document = json.loads(text, parse_constant=_no_number)
        except ValueError as error:
            raise RecordError(f"this is no JSON: {error}") from None
        except RecursionError:
            raise RecordError("this JSON is nested too deeply") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise RecordError(f"this is no kvmpy benchmark record of format {FORMAT}")
        rows = document.get("rows")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                row.pop("statistics", None)
        return _build(cls, document, "report")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):  # of samples there are millions: json takes a tuple as it is
        return value if _all_integers(value) else [_plain(item) for item in value]
    return value


def _all_integers(values: Sequence[Any]) -> bool:
    """Whether there are only integers, all in 64 bits."""
    if not set(map(type, values)) <= {int}:
        return False
    return not values or -_LARGEST <= min(values) <= max(values) <= _LARGEST


def _build(kind: type[_T], value: Any, where: str) -> _T:
    """A dataclass from what JSON gives for it, every field checked against its type."""
    if not isinstance(value, dict):
        raise RecordError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = {
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - value.keys()):
        raise RecordError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise RecordError(f"{where} has {', '.join(unknown)}, which this version does not know")
    arguments = {key: _typed(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value``, if it is of the type ``hint``, of those that the records use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, where)
    if hint == tuple[int, ...] and isinstance(value, list) and _all_integers(value):
        return tuple(value)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(inner, value, where)
    if hint is float and type(value) in (int, float) and abs(value) <= _LARGEST:
        return float(value)
    if hint is int and type(value) is int and abs(value) > _LARGEST:
        raise RecordError(f"{where} does not fit in 64 bits")
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise RecordError(f"{where} is {value!r:.60}, not {getattr(hint, '__name__', hint)}")


__all__ = [
    "FORMAT",
    "OUTCOMES",
    "Canary",
    "Disclosure",
    "Kind",
    "Measure",
    "Outcome",
    "RecordError",
    "Reference",
    "Report",
    "Row",
    "Unit",
]
