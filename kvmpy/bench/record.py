"""What a benchmark measured, as typed records: rows, and what they were measured on."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

RowOutcome = Literal["native", "interpreted", "emulated-by-kvm", "fails"]
OUTCOMES: Final[tuple[RowOutcome, ...]] = typing.get_args(RowOutcome)
Unit = Literal["ticks", "ns"]
Kind = Literal["path", "baseline", "calibration", "host", "exit"]
Measure = Literal["round-trip", "entry", "handler", "return", "single-shot"]

#: Of the integers in a record.
LARGEST: Final = (1 << 63) - 1


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
    outcome: RowOutcome = "native"
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
        if any(abs(number) > LARGEST for number in (self.calls, *self.samples)):
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
    /sys/devices/system/cpu/vulnerabilities. ``governor``: "" if none can be seen.
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


__all__ = [
    "OUTCOMES",
    "Canary",
    "Disclosure",
    "Kind",
    "Measure",
    "Reference",
    "Row",
    "RowOutcome",
    "Unit",
]
