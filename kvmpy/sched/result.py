"""What an experiment in scheduling has found: plain values, JSON and back to tables and pictures.

All times are ns since the run's begin, on one clock: the TSC, which the guests read as it is.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Final, Literal

Reason = Literal["timer", "yield", "exit", "write", "start"]
#: How ring 0 of the guest came to run; by the number that the guest writes.
REASONS: Final[tuple[Reason, ...]] = ("timer", "yield", "exit", "write", "start")

GapKind = Literal["descheduled", "exit", "stall"]
#: A gap that the host's scheduler has no part in is an exit below this many ns, else a stall.
STALL_NS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Slice:
    """The vCPU was on ``pcpu`` from ``start`` to ``end``."""

    start: int
    end: int
    pcpu: int


@dataclass(frozen=True, slots=True)
class ThreadSlice:
    """The guest ran a thread from ``start`` to ``end``, which says nothing of the vCPU: the host
    may have taken it away meanwhile. ``ended``: what brought ring 0 back."""

    thread: int
    start: int
    end: int
    ended: Reason


@dataclass(frozen=True, slots=True)
class Gap:
    """Time in which no instruction of the guest's threads ran.

    ``kind``: "descheduled", the vCPU's thread waited for the pCPU while others had it; "exit", KVM
    or an interrupt of the host had the pCPU, briefly; "stall", no other thread of this host had it,
    and yet it was long: a long exit, or this host is a guest itself and its own host was busy.
    ``steal``: ns of waiting that KVM's steal time gained in it, None where KVM has no steal time.
    """

    start: int
    end: int
    kind: GapKind
    steal: int | None


@dataclass(frozen=True, slots=True)
class Switch:
    """The guest's ring 0 ran from ``entered`` to ``left``: it left thread ``source`` and went on
    with ``target``, None if there is none. ``alive``: when ``source`` looked at the clock last."""

    alive: int
    entered: int
    left: int
    source: int | None
    target: int | None
    reason: Reason


@dataclass(frozen=True, slots=True)
class Thread:
    """A guest thread. ``cpu_ns``: its slices less what the host took from them; ``loops``: how
    often it looked at the clock, ``turns`` how often it was given the vCPU: the guest's counts."""

    id: int
    cpu_ns: int
    loops: int
    turns: int


@dataclass(frozen=True, slots=True)
class HostView:
    """What the host says of the vCPU's thread, from ``begin``, before it first entered the guest,
    to ``end``, after it last left it: ns of ``run`` on a pCPU and of ``delay`` waiting for one,
    None without schedstat; ``turns`` it was given one. ``stats``: what KVM's statistics of the
    vCPU gained, by name."""

    begin: int
    end: int
    run: int | None
    delay: int | None
    turns: int | None
    stats: dict[str, int]


@dataclass(frozen=True, slots=True)
class Vcpu:
    """One vCPU, seen from ``start`` to ``end``. ``pcpus``: where its thread may run; ``nice``: what
    it was given, None if nothing.

    ``steal``: what KVM's steal time gained between the two, in ns, or None. ``lost``: records that
    were overwritten before they were read; ``damaged``: those that make no sense.
    """

    id: int
    pcpus: tuple[int, ...]
    start: int
    end: int
    slices: tuple[Slice, ...]
    gaps: tuple[Gap, ...]
    thread_slices: tuple[ThreadSlice, ...]
    switches: tuple[Switch, ...]
    threads: tuple[Thread, ...]
    steal: int | None
    host: HostView
    lost: int = 0
    damaged: int = 0
    nice: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """An experiment: ``vcpus`` with ``threads`` guest threads each, on ``pcpus``.

    ``seconds``: asked for; ``wall``: ns it took. ``slice_us``: the guest's time slice; ``gap_us``:
    anything shorter is not a gap. ``system_call``: the instruction by which guest threads enter
    ring 0.
    ``tsc_khz``: measured against the host's clock. ``ring0``: "native" or "emulated", as
    :func:`kvmpy.probe.verdict.verdict` has it, and ``verdict`` its sentence. ``written``: what the
    guests wrote. ``interrupted``: by Ctrl-C, before the time was up. ``notes``: what figures here
    do not mean.
    """

    module: str
    verdict: str
    ring0: str
    tsc_khz: float
    pcpus: tuple[int, ...]
    threads: int
    seconds: float
    wall: int
    slice_us: float
    gap_us: float
    program: str
    system_call: str
    vcpus: tuple[Vcpu, ...]
    written: str = ""
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """All of it as one JSON object.

        >>> sched_result.to_json()[:12]
        '{"module": "'
        """
        return json.dumps(dataclasses.asdict(self))
