"""From a guest's records to a vCPU's timeline: what is believed of them, and what it means.

A record is believed if its times lie within the run, as the host has it, and go forward; it is
counted as damaged otherwise. Everything after that is ns since the run's begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .result import REASONS, STALL_NS, Gap, GapKind, Slice, Switch, ThreadSlice

_NOBODY: Final = 0xFF
#: A gap is the scheduler's if so much of it was waiting, as KVM's steal time has it.
_STOLEN: Final = 0.5
_SWITCH_WORDS: Final = 7
_GAP_WORDS: Final = 4


@dataclass(frozen=True, slots=True)
class TscClock:
    """The run in TSC ticks: from ``begin`` to ``end``; ``khz`` ticks are a ms."""

    begin: int
    end: int
    khz: float

    def ns(self, tsc: int) -> int:
        """ns since the begin.

        >>> kvmpy.sched.timeline.TscClock(1000, 9000, khz=2e6).ns(3000)
        1000
        """
        return round((tsc - self.begin) * 1e6 / self.khz)

    def __contains__(self, tsc: int) -> bool:
        return self.begin <= tsc <= self.end


@dataclass(frozen=True, slots=True)
class Raw:
    """What the guest has written, as words: ``started``, its records, in order, and ``alive``: the
    last sign of life that a thread's register has, when the host stopped it."""

    started: int
    switches: Sequence[tuple[int, ...]]
    gaps: Sequence[tuple[int, ...]]
    alive: int = 0


@dataclass(frozen=True, slots=True)
class Timeline:
    """A vCPU's times, in ns, from ``start`` to ``end``. ``steal``: gained between them, or None."""

    start: int
    end: int
    slices: tuple[Slice, ...]
    gaps: tuple[Gap, ...]
    thread_slices: tuple[ThreadSlice, ...]
    switches: tuple[Switch, ...]
    steal: int | None
    damaged: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A believed switch, in ticks, with the steal time at its begin and end."""

    alive: int
    entered: int
    left: int
    steal_in: int
    steal_out: int
    switch: Switch


@dataclass(frozen=True, slots=True)
class _Hole:
    """Time without a sign of life, in ticks; ``steal``: KVM's steal time behind it. ``sure``: a gap
    even if nothing was stolen in it."""

    start: int
    end: int
    steal: int
    sure: bool = True


def build(
    raw: Raw, clock: TscClock, *, threads: int, pcpu: int, gap_ns: int, has_steal: bool
) -> Timeline:
    """A vCPU's timeline. ``gap_ns``: anything shorter is not a gap; ``pcpu``: see ``Slice``.

    >>> from kvmpy.sched.timeline import TscClock, Raw, build
    >>> start = (0, 1000, 1100, 0, 0, 4 << 16 | 0xff, 1)
    >>> raw = Raw(1000, [start], [(3000, 5000, 1900, 1)], alive=9000)
    >>> line = build(raw, TscClock(0, 10_000, 1e6), threads=1, pcpu=0, gap_ns=100, has_steal=True)
    >>> [(gap.start, gap.end, gap.kind) for gap in line.gaps]
    [(3000, 5000, 'descheduled')]
    >>> [(part.start, part.end) for part in line.slices]
    [(1000, 3000), (5000, 9000)]
    """
    entries, bad_entries = _believed(raw, clock, threads)
    start = raw.started if raw.started in clock else clock.begin
    holes, bad_gaps = _recorded(raw.gaps, clock)
    end = _last_sign(raw, clock, entries, holes, start)
    limit = gap_ns * clock.khz / 1e6
    holes += [hole for entry in entries for hole in _around(entry, limit)]
    gaps, steal = _judged(holes, entries, clock, has_steal)
    switches = tuple(entry.switch for entry in entries)
    first, last = clock.ns(start), clock.ns(end)
    return Timeline(
        first, last,
        slices=tuple(_between([gap for gap in gaps if gap.kind == "descheduled"],
                              first, last, pcpu)),
        gaps=tuple(gaps),
        thread_slices=tuple(_thread_slices(switches, last)),
        switches=switches,
        steal=steal,
        damaged=bad_entries + bad_gaps,
    )  # fmt: skip


def _believed(raw: Raw, clock: TscClock, threads: int) -> tuple[list[_Entry], int]:
    """The switches that make sense, and how many do not."""
    found: list[_Entry] = []
    damaged, last = 0, clock.begin
    for words in raw.switches:
        entry = _entry(words, clock, threads, last)
        if entry is None:
            damaged += 1
        else:
            found.append(entry)
            last = entry.left
    return found, damaged


def _entry(words: tuple[int, ...], clock: TscClock, threads: int, last: int) -> _Entry | None:
    if len(words) < _SWITCH_WORDS:
        return None
    alive, entered, left, steal_in, steal_out, info = words[:6]
    source, target, reason = info & 0xFF, info >> 8 & 0xFF, info >> 16
    known = all(thread < threads or thread == _NOBODY for thread in (source, target))
    if not (known and reason < len(REASONS) and last <= entered <= left <= clock.end):
        return None
    # A thread that was taken away before it looked at the clock has an older sign of life.
    alive = min(max(alive, last), entered) if source != _NOBODY else entered
    switch = Switch(
        clock.ns(alive), clock.ns(entered), clock.ns(left), _thread(source), _thread(target),
        REASONS[reason],
    )  # fmt: skip
    return _Entry(alive, entered, left, steal_in, steal_out, switch)


def _thread(number: int) -> int | None:
    return None if number == _NOBODY else number


def _recorded(gaps: Sequence[tuple[int, ...]], clock: TscClock) -> tuple[list[_Hole], int]:
    """The gaps that make sense, and how many do not."""
    found = [
        _Hole(words[0], words[1], words[2])
        for words in gaps
        if len(words) >= _GAP_WORDS and words[0] < words[1]
        and words[0] in clock and words[1] in clock
    ]  # fmt: skip
    return found, len(gaps) - len(found)


def _last_sign(
    raw: Raw, clock: TscClock, entries: Sequence[_Entry], holes: Sequence[_Hole], start: int
) -> int:
    signs = [start, *(entry.left for entry in entries[-1:]), *(hole.end for hole in holes)]
    if raw.alive in clock:
        signs.append(raw.alive)
    return max(signs)


def _around(entry: _Entry, limit: float) -> Iterator[_Hole]:
    """Before ring 0 came to run, an interrupt may have waited for the vCPU to be back; in ring 0
    only what was stolen is a gap, since interpreting it takes long."""
    if entry.entered - entry.alive > limit:
        yield _Hole(entry.alive, entry.entered, entry.steal_in)
    if entry.left - entry.entered > limit and entry.steal_out > entry.steal_in:
        yield _Hole(entry.entered, entry.left, entry.steal_out, sure=False)


def _judged(
    holes: list[_Hole], entries: Sequence[_Entry], clock: TscClock, has_steal: bool
) -> tuple[list[Gap], int | None]:
    """The gaps in order, none over another, each with its kind; and the steal time in all."""
    readings = [(entry.entered, entry.steal_in) for entry in entries]
    readings += [(entry.left, entry.steal_out) for entry in entries]
    readings += [(hole.end, hole.steal) for hole in holes]
    readings.sort()
    base = known = readings[0][1] if readings else 0
    gaps: list[Gap] = []
    reading, last = 0, clock.begin
    for hole in sorted(holes, key=lambda hole: (hole.start, hole.end)):
        while reading < len(readings) and readings[reading][0] <= hole.start:
            known = max(known, readings[reading][1])
            reading += 1
        start = max(hole.start, last)
        if start >= hole.end:
            continue
        length = (hole.end - start) * 1e6 / clock.khz
        stolen = min(max(0, hole.steal - known), round(length)) if has_steal else None
        known, last = max(known, hole.steal), hole.end
        found = _gaps(clock.ns(start), clock.ns(hole.end), stolen)
        gaps += [gap for gap in found if hole.sure or gap.kind == "descheduled"]
    for _, steal in readings[reading:]:
        known = max(known, steal)
    window = (clock.end - clock.begin) * 1e6 / clock.khz
    return gaps, min(known - base, round(window)) if has_steal else None


def _gaps(start: int, end: int, stolen: int | None) -> list[Gap]:
    """What a hole of so many ns was. One that was waiting in part is two gaps, the waiting first:
    the guest does not know the order."""
    length = end - start
    if stolen is None:  # by its length: nothing else is said
        return [Gap(start, end, "exit" if length < STALL_NS else "descheduled", None)]
    rest = length - stolen
    if rest >= STALL_NS and stolen >= STALL_NS:
        middle = start + stolen
        return [
            Gap(start, middle, "descheduled", stolen),
            Gap(middle, end, "stall", 0),
        ]
    kind: GapKind = "exit" if length < STALL_NS else "stall"
    if stolen >= _STOLEN * length:
        kind = "descheduled"
    return [Gap(start, end, kind, stolen)]


def _between(gaps: Sequence[Gap], first: int, last: int, pcpu: int) -> Iterator[Slice]:
    """The time between gaps."""
    start = first
    for gap in gaps:
        if start < gap.start <= last:
            yield Slice(start, gap.start, pcpu)
        start = max(start, gap.end)
    if start < last:
        yield Slice(start, last, pcpu)


def _thread_slices(switches: Sequence[Switch], last: int) -> Iterator[ThreadSlice]:
    """From ring 0's end to its next begin, the parts that a thread returned to put together."""
    running: ThreadSlice | None = None
    for switch in switches:
        if running is not None:
            running = replace(running, end=switch.entered, ended=switch.reason)
            if switch.source == switch.target and switch.reason == "write":
                continue
            if running.thread == switch.source:  # else records between them were lost
                yield running
        running = (
            None if switch.target is None
            else ThreadSlice(switch.target, switch.left, switch.left, "start")
        )  # fmt: skip
    if running is not None and last > running.start:
        yield replace(running, end=last)


Span = tuple[int, int]


def common(first: Sequence[Span], second: Sequence[Span]) -> Iterator[Span]:
    """The times that are in both; each in order, none over another.

    >>> list(kvmpy.sched.timeline.common([(0, 10), (20, 30)], [(5, 25)]))
    [(5, 10), (20, 25)]
    """
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            yield start, end
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
