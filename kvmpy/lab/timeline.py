"""One system call and one VM exit on one clock, stamped wherever software can stamp.

The guest's TSC is the host's here (offset 0), so the stamps of this process in C, right before
KVM_RUN and right after it, stand on one axis with those of the guest's two rings. What KVM itself
does in between, in root ring 0, only root could stamp (with tracepoints): it shows as one span on
the way in and one on the way out, the CPU's own VM entry and VM exit in them.

Sources: KVM API, "4.10 KVM_RUN", "KVM_VCPU_TSC_CTRL"; SDM vol. 3, "Time-Stamp Counter", "VM
Entries", "VM Exits"; APM vol. 2, "VMRUN Instruction", "#VMEXIT"; for OUT, which leaves the guest,
"Instructions That Cause VM Exits Conditionally" and "Instruction Intercepts".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from ..bench import counters, disclosure, hostcall
from ..bench.failures import GuestFailed, describe
from ..errors import UnsupportedError
from ..exits.reasons import ExitLimit
from ..guests import image
from ..probe import verdict as backend
from ..vm import VM
from ..x86 import descriptors as d
from ..x86.modes import Mode

#: The rooms that the way leads through.
HOST, KVM, KERNEL, PROGRAM = ROOMS = (
    "root ring 3", "root ring 0", "non-root ring 0", "non-root ring 3",
)  # fmt: skip

#: Where and what each stamp of a turn is, in order; the guest's in between as it stores them.
STEPS: Final = (
    (HOST, "before KVM_RUN"),
    (KERNEL, "first instruction"),
    (PROGRAM, "before the call"),
    (KERNEL, "handler's first instruction"),
    (KERNEL, "handler's last instruction"),
    (PROGRAM, "back from the call"),
    (KERNEL, "handler of a second call"),
    (KERNEL, "at OUT: leaves the guest"),
    (HOST, "after KVM_RUN"),
)
_WITHIN_HANDLER: Final = 3  # of the steps: a stamp and one comparison
_GUEST_STAMPS: Final = len(STEPS) - 2
#: The call that the guest makes, by its instruction; the second where the first cannot do.
_CALLS: Final = ("syscall", "int3")

_MEMORY: Final = 4 << 20
_TIMEOUT: Final = 5.0
_TURNS: Final = 60
_WARM_UP: Final = 5
_MANY_CALLS: Final = 200
_COUNTED_TURNS: Final = 5
_HOST_BATCHES: Final = 60
_SAME_RATE: Final = 0.02


@dataclass(frozen=True)
class Result:
    """``turn``: TSC ticks of each of ``STEPS`` from the first on, of one real turn, the nearest of
    ``turns`` to their medians. ``medians``: of each step since the one before. ``tsc_khz``: ticks a
    millisecond.

    ``call``: "syscall", or "int3" where SYSCALL fails as ``failure`` says. ``stamp_kernel``,
    ``stamp_program``: ticks that a stamp takes in ring 0, in ring 3; each step has one in it.
    ``offset_set``: whether KVM took the guest's TSC offset of 0; if not, its guests read the
    host's TSC anyway. ``rate``: of the guest's TSC to the host's, as measured; ``shared``: whether
    they are one clock. If not, the guest's stamps stand in the middle between the host's.
    ``exits_of_one``, ``exits_of_many``: the vCPU's exits in a turn of 1 and of ``many`` calls,
    without those of the host's interrupts; None where KVM does not count.
    ``host_call``: ticks of this process's own getppid.
    """

    module: str
    verdict: str
    emulator: str | None
    nested: bool
    ring0_interpreted: bool
    call: str
    failure: str
    tsc_khz: int
    offset_set: bool
    shared: bool
    rate: float
    turns: int
    turn: tuple[int, ...]
    medians: tuple[float, ...]
    stamp_kernel: float
    stamp_program: float
    many: int
    exits_of_one: int | None
    exits_of_many: int | None
    host_call: float

    def ns(self, ticks: float) -> float:
        """TSC ticks in nanoseconds.

        >>> result = kvmpy.lab.experiment("timeline").run()
        >>> result.ns(result.tsc_khz)
        1000000.0
        """
        return ticks * 1e6 / self.tsc_khz

    @property
    def exits_a_call(self) -> float | None:
        """How often one call leaves the guest.

        >>> result = kvmpy.lab.experiment("timeline").run()
        >>> result.exits_a_call is None or result.exits_a_call >= 0
        True
        """
        if self.exits_of_one is None or self.exits_of_many is None:
            return None
        return max(0, self.exits_of_many - self.exits_of_one) / (self.many - 1)


class _Guest:
    """A VM with the guest in it, at the beginning of a turn."""

    def __init__(self, call: str, pin: int | None, interpreted: bool):
        self.image = image.load("lab-timeline")
        self.vm = VM(_MEMORY)
        try:
            self.vm.load(self.image.variant(False, interpreted), at=image.ORIGIN)
            self.cpu = self.vm.vcpu(pin=pin)
            self.vm.bus.count(self.image["PORT_LEAVE"], 1)
            self.cpu.enter(
                Mode.LONG_64,
                rip=self.image[f"turn.{call}"],
                handlers={3: d.Gate(self.image["entry.int3"], dpl=3)},
                syscall=self.image["entry.syscall"],
            )
            self.offset_set = self._share_clock()
            self.cpu.measure()
        except BaseException:
            self.vm.close()
            raise

    def _share_clock(self) -> bool:
        try:
            self.cpu.tsc_offset = 0
        except UnsupportedError:
            if self.cpu.tsc_offset:
                raise
            return False
        return True

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vm.close()

    def turn(self, calls: int = 1) -> tuple[int, ...]:
        """One turn's stamps: the host's first, the guest's, the host's last; then the one more
        that tells what a stamp costs."""
        self.vm.load(calls.to_bytes(4, "little"), at=self.image["CALLS"])
        exit = self.cpu.run(timeout=_TIMEOUT, max_exits=1)
        before, after = self.cpu.run_tsc
        if not isinstance(exit, ExitLimit):
            raise describe(self.cpu, self.image, exit, _TIMEOUT)
        count = self.image["STAMP_COUNT"]
        raw = self.vm.memory.read(self.image["STAMPS"], 8 * count)
        stamps = struct.unpack(f"<{count}Q", raw)
        return before, *stamps[:_GUEST_STAMPS], after, *stamps[_GUEST_STAMPS:]

    def exits(self, calls: int) -> int | None:
        """Exits in a turn of so many calls, those of the host's interrupts left out; the fewest of
        some turns, None if KVM does not count."""
        found = []
        for _ in range(_COUNTED_TURNS):
            with counters.counting(self.cpu) as added:
                self.turn(calls)
            if "exits" not in added:
                return None
            found.append(added["exits"] - added.get("irq_exits", 0))
        return min(found)


def run(pin: int | None = None) -> Result:
    """Take some turns, and choose the one to show.

    The vCPU's thread is pinned to pCPU ``pin``, or to the last that it may use.

    Raises UnsupportedError where guest and host have no clock of any kind in common, a
    KvmUnavailableError without usable KVM, PinError for a pCPU that is not available.

    >>> result = kvmpy.lab.experiment("timeline").run()
    >>> len(result.turn) == len(result.medians) + 1 == len(kvmpy.lab.timeline.STEPS)
    True
    """
    verdict = backend.verdict()
    with disclosure.pinned(pin) as cpu:
        return _measured(verdict, cpu)


def _measured(verdict: backend.Verdict, pin: int | None) -> Result:
    interpreted = verdict.ring0 == "emulated"
    call, failure = _working_call(pin, interpreted)
    with _Guest(call, pin, interpreted) as guest:
        for _ in range(_WARM_UP):
            guest.turn()
        turns = [guest.turn() for _ in range(_TURNS)]
        one, many = guest.exits(1), guest.exits(_MANY_CALLS)
        khz = disclosure.tsc_khz(guest.cpu)
        offset_set = guest.offset_set
    if khz is None:
        raise UnsupportedError("KVM does not say how fast the guest's TSC runs (KVM_GET_TSC_KHZ)")
    rate, shared = _shared(turns)
    if not shared:
        turns = [_centred(turn) for turn in turns]
    turns = [turn for turn in turns if min(_steps(turn)) > 0]  # no signal, and so a second entry
    if not turns:
        raise UnsupportedError(
            "the guest's TSC counts more between its first stamp and its last than the host's does "
            "around the whole turn: their clocks have nothing in common"
        )
    steps = [_steps(turn) for turn in turns]
    medians = tuple(median(column) for column in zip(*steps, strict=True))
    shown = turns[_typical(steps, medians)][: len(STEPS)]
    host_calls = hostcall.HostCalls()
    host_calls.take(0, _HOST_BATCHES)
    host = host_calls.rows()[0]
    return Result(
        module=verdict.module,
        verdict=verdict.summary,
        emulator=verdict.emulator,
        nested=verdict.nested,
        ring0_interpreted=interpreted,
        call=call,
        failure=failure,
        tsc_khz=khz,
        offset_set=offset_set,
        shared=shared,
        rate=rate,
        turns=len(turns),
        turn=tuple(stamp - shown[0] for stamp in shown),
        medians=medians,
        stamp_kernel=medians[_WITHIN_HANDLER],
        stamp_program=median(turn[2] - turn[-1] for turn in turns),
        many=_MANY_CALLS,
        exits_of_one=one,
        exits_of_many=many,
        host_call=median(host.samples) / host.calls,
    )


def _working_call(pin: int | None, interpreted: bool) -> tuple[str, str]:
    """The first of ``_CALLS`` that comes to ring 0 and back, and how the one before it fails."""
    failure = ""
    for call in _CALLS:
        with _Guest(call, pin, interpreted) as guest:
            try:
                guest.turn()
            except GuestFailed as error:
                failure = failure or str(error)
            else:
                return call, failure
    raise UnsupportedError(f"no call of 64-bit ring 3 comes to ring 0 here: {failure}")


def _shared(turns: Sequence[Sequence[int]]) -> tuple[float, bool]:
    """How much faster the guest's TSC runs than the host's, and whether they are one clock: at one
    rate, and the stamps of a turn follow one another."""
    middle = len(turns) // 2
    first, last = (min(part, key=_length) for part in (turns[:middle], turns[middle:]))
    rate = (last[1] - first[1]) / (last[0] - first[0])
    ordered = sum(min(_steps(turn)) > 0 for turn in turns)
    return rate, abs(rate - 1) <= _SAME_RATE and ordered > len(turns) / 2


def _length(turn: Sequence[int]) -> int:
    """By the host's clock: in a long one this machine had something else to do."""
    return turn[len(STEPS) - 1] - turn[0]


def _centred(turn: tuple[int, ...]) -> tuple[int, ...]:
    """The turn with the guest's stamps in the middle between the host's."""
    before, *guest, after = turn[: len(STEPS)]
    shift = before - guest[0] + (after - before - (guest[-1] - guest[0])) // 2
    extra = turn[len(STEPS) :]
    return before, *(stamp + shift for stamp in guest), after, *(stamp + shift for stamp in extra)


def _steps(turn: Sequence[int]) -> tuple[int, ...]:
    return tuple(b - a for a, b in pairwise(turn[: len(STEPS)]))


def _typical(steps: Sequence[Sequence[int]], medians: Sequence[float]) -> int:
    """Number of the turn that is nearest to the medians, step by step."""
    away = [
        sum(abs(step - middle) / middle for step, middle in zip(turn, medians, strict=True))
        for turn in steps
    ]
    return away.index(min(away))
