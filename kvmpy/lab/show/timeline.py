"""How the timeline is drawn and explained: see :mod:`kvmpy.lab.timeline`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ...report import svg
from ...report.blocks import Block, Picture
from ...report.table import Table, number
from ..timeline import HOST, KERNEL, KVM, PROGRAM, ROOMS, STEPS, Result

_WHO: Final = {
    HOST: "this process",
    KVM: "Linux with KVM",
    KERNEL: "guest's kernel",
    PROGRAM: "guest's program",
}
_KIND: Final = {HOST: "lane0", KVM: "lane5", KERNEL: "lane2", PROGRAM: "lane3"}
_CALL: Final = {"syscall": ("SYSCALL", "SYSRET"), "int3": ("INT 3", "IRETQ")}


def _arrivals(result: Result) -> tuple[str, ...]:
    """What leads to each of ``STEPS``, "" where nothing but time passes."""
    there, back = _CALL[result.call]
    return ("", "KVM_RUN, VM entry", "IRETQ", there, "", back, there, "", "VM exit, return")


def _explanations(result: Result) -> tuple[str, ...]:
    return tuple(
        f"{arrival}: {what}" if arrival else what
        for arrival, (_, what) in zip(_arrivals(result), STEPS, strict=True)
    )


def _whole(ns: float) -> str:
    """Nanoseconds with a comma at each thousand."""
    return f"{ns:,.0f}"


# -- blocks


def blocks(result: Result) -> Iterator[Block]:
    """The figure, the table, and what they say.

    >>> from kvmpy.lab import show, timeline
    >>> isinstance(next(show.timeline.blocks(timeline.run())), str)
    True
    """
    yield (
        "VT-x and AMD-V give the CPU a second set of rings: root mode, where the host lives, and "
        "non-root mode, where a guest has a ring 0 and a ring 3 of its own. Below is one way "
        f"through four of them. {_clock(result)}"
    )
    yield _diagram(result)
    yield _scale(result)
    yield _table(result)
    yield _finding(result)
    yield from _limits(result)


def _clock(result: Result) -> str:
    if result.shared:
        zero = "is set to 0" if result.offset_set else "is 0 always"
        return (
            f"All times are of one clock: the guest's TSC offset {zero}, so that its RDTSC and "
            f"this process's give the same number (measured: at {result.rate:.4f} times the rate)."
        )
    return (
        "The clock is not one here: KVM keeps the guest's TSC going by other means than the "
        f"host's, as where that is unstable (measured: {result.rate:.3f} times its rate). Steps in "
        "the guest are by the guest's clock, the whole turn by the host's; what is left of it is "
        "KVM's way in and way out, drawn half and half since no clock tells them apart."
    )


def _finding(result: Result) -> str:
    there = _CALL[result.call][0]
    exits = result.exits_a_call
    trip = result.medians[2] + result.medians[3] + result.medians[4]
    stamps = 2 * result.stamp_kernel + result.stamp_program
    begun = (
        f"The guest's call is the three steps from {there} to back in ring 3: "
        f"{_whole(result.ns(trip))} ns, of which the stamps are about "
        f"{_whole(result.ns(stamps))} ns. "
    )
    if exits is None:
        proof = "This KVM does not count exits, so nothing here proves that it stays in the guest."
    elif exits < 0.05:
        proof = (
            f"It never leaves non-root mode: a turn of {result.many} calls has "
            f"{_exits(result.exits_of_many)}, and a turn of one call {_exits(result.exits_of_one)}."
            " Hypervisor and host do not see it; that is what a second ring 0 is for."
        )
    else:
        proof = (
            f"It leaves the guest {exits:.1f} times a call: a turn of {result.many} calls has "
            f"{_exits(result.exits_of_many)}, one of a single call {_exits(result.exits_of_one)}. "
            "There is no second ring 0 here for it to go to; see below."
        )
    host = (
        f" This process's own getppid, root ring 3 to root ring 0 and back, takes "
        f"{_whole(result.ns(result.host_call))} ns, Linux's handler and mitigations included, "
        "without a stamp in it."
    )
    return begun + proof + host


def _exits(count: int | None) -> str:
    return f"{count} exit" if count == 1 else f"{count} exits"


def _limits(result: Result) -> Iterator[str]:
    yield (
        "What is not stamped: KVM's own code in root ring 0, between this process and the guest. "
        "Only root could have it say the time (tracepoints kvm_entry and kvm_exit), so each way "
        "through it is one span, with the system call and the CPU's VM entry or VM exit in it"
        + (", and what this host's own hypervisor takes of it" if result.nested else "")
        + ". A stamp, and every step has one in it, takes "
        f"{number(result.ns(result.stamp_kernel))} ns in the guest's ring 0, "
        f"{number(result.ns(result.stamp_program))} ns in its ring 3."
    )
    if result.emulator:
        yield (
            f"On {result.module} under {result.emulator} time is virtual: an emulated CPU counts "
            "its own ticks. The order of the steps and the exits are real, the times are not those "
            "of any hardware."
        )
    if result.ring0_interpreted:
        yield (
            f"{result.module} has neither VT-x nor AMD-V beneath it. Guest ring 3 runs natively, "
            "but in the host's ring 3; guest ring 0 is KVM's instruction emulator in root ring 0, "
            "and so every crossing between the two is an exit, and every time in the guest's ring "
            "0 is the emulator's."
            + (f" SYSCALL cannot do here: {result.failure}." if result.failure else "")
            + " What the figure shows on hardware: the guest's call within non-root mode."
        )
    elif result.failure:
        yield f"SYSCALL cannot do here, so the call is INT 3: {result.failure}."


def _table(result: Result) -> Table:
    rows = []
    at = [result.ns(ticks) for ticks in result.turn]
    for i, what in enumerate(_explanations(result)):
        since = _whole(at[i] - at[i - 1]) if i else "-"
        middle = _whole(result.ns(result.medians[i - 1])) if i else "-"
        rows.append((what, since, middle))
    return Table(
        "What each step took, ns",
        ("step", "this turn", "median"),
        tuple(rows),
        notes=(f"medians of {result.turns} turns",),
    )


# -- the sequence diagram


def _diagram(result: Result) -> Picture:
    return Picture(
        _diagram_svg(result),
        "\n".join(_diagram_text(result)),
        f"One turn as it was, the most typical of {result.turns}. Time goes down, not to scale.",
    )


_LANE: Final = 5  # characters


def _diagram_text(result: Result) -> Iterator[str]:
    yield f"{'':18}root      non-root"
    yield f"{'at ns':>9}{'since':>8} R3   R0   R0   R3"
    before = 0
    for i, what in enumerate(_explanations(result)):
        now = result.ns(result.turn[i])
        lane = ROOMS.index(STEPS[i][0])
        cells = [":"] * len(ROOMS)
        lanes = list("".join(f"{cell:<{_LANE}}" for cell in cells))
        lanes[lane * _LANE] = "*"
        start = ROOMS.index(STEPS[i - 1][0]) if i else lane
        if start != lane:
            _arrow(lanes, start * _LANE, lane * _LANE)
        since = _whole(now - before) if i else ""
        yield f"{_whole(now):>9}{since:>8} {''.join(lanes).rstrip():<{3 * _LANE + 1}}  {what}"
        before = int(now)


def _arrow(lanes: list[str], start: int, end: int) -> None:
    """From column to column; what it crosses is KVM's lane, which has no stamp."""
    first, last = sorted((start, end))
    for column in range(first + 1, last):
        lanes[column] = "+" if lanes[column] == ":" else "-"
    lanes[start] = "'"
    lanes[end - 1 if end > start else end + 1] = ">" if end > start else "<"


_WIDTH, _TIMES, _STEP, _ROW, _TOP = 420, 58, 52, 36, 52


def _x(room: str) -> float:
    return _TIMES + 24 + _STEP * ROOMS.index(room)


def _diagram_svg(result: Result) -> str:
    bottom = _TOP + _ROW * (len(STEPS) - 1)
    parts = []
    for room in ROOMS:
        ring = room.partition(" ring ")[2]
        parts += [
            svg.text(_x(room), 30, f"ring {ring}", anchor="middle"),
            svg.line(_x(room), 38, _x(room), bottom + 12, kind="grid", width=2),
        ]
    for i in range(len(STEPS)):
        parts += _diagram_step(result, i)
    for mode, left in (("root mode", HOST), ("non-root mode", KERNEL)):
        middle = _x(left) + _STEP / 2
        parts.append(svg.text(middle, 14, mode, kind="dim", anchor="middle"))
    who = "; ".join(f"{room}: {_WHO[room]}" for room in ROOMS)
    label = f"A system call and a VM exit through four rings. {who}"
    parts += [
        svg.text(_TIMES - 10, 30, "ns", kind="dim", anchor="end"),
        *_legend(bottom + 34),
    ]
    return svg.drawing(_WIDTH, bottom + 58, label, parts)


def _legend(y: float) -> Iterator[str]:
    for i, room in enumerate(ROOMS):
        x = 4 + _WIDTH / 2 * (i % 2)
        yield svg.box(x, y - 9 + 18 * (i // 2), 10, 10, kind=_KIND[room])
        yield svg.text(x + 16, y + 18 * (i // 2), f"{room}: {_WHO[room]}", size=11)


def _diagram_step(result: Result, i: int) -> Iterator[str]:
    room, what = STEPS[i]
    y = _TOP + _ROW * i
    if i:
        yield from _diagram_way(STEPS[i - 1][0], room, y)
        since = result.ns(result.turn[i] - result.turn[i - 1])
        yield svg.text(
            _TIMES - 6, y - _ROW / 2 + 4, f"+{_whole(since)}", kind="dim", anchor="end", size=10
        )
    yield svg.text(_TIMES, y + 4, _whole(result.ns(result.turn[i])), anchor="end", size=11)
    kind, half = (_KIND[HOST], 4) if room == HOST else ("ink", 1.5)
    yield svg.box(_x(room) - 5, y - half, 10, 2 * half, kind=kind, title=what)
    arrival, x = _arrivals(result)[i], _x(PROGRAM) + 14
    if arrival:
        yield svg.text(x, y - 2, f"{arrival}:", size=11)
    yield svg.text(x, y + (11 if arrival else 4), what, size=11)


def _diagram_way(before: str, room: str, y: float) -> Iterator[str]:
    """What leads to a stamp at ``y`` from the one above it."""
    top = y - _ROW
    if HOST in (before, room):  # through a room without a stamp
        side = 5 if _x(room) > _x(before) else -5
        yield svg.box(_x(KVM) - 5, top + 8, 10, _ROW - 16, kind=_KIND[KVM])
        yield svg.arrow(_x(before) + side, top, _x(KVM) - side, top + 10, kind="dim")
        yield svg.arrow(_x(KVM) + side, y - 10, _x(room) - side, y, kind="dim")
        return
    yield svg.box(_x(before) - 5, top, 10, _ROW, kind=_KIND[before])
    if before != room:
        side = 5 if _x(room) > _x(before) else -5
        yield svg.arrow(_x(before) + side, y, _x(room) - side, y)


# -- to scale


@dataclass(frozen=True)
class _Span:
    name: str
    start: float  # ns
    end: float
    room: str


def _spans(result: Result) -> list[_Span]:
    at = [result.ns(ticks) for ticks in result.turn]
    host = result.ns(result.host_call)
    there = _CALL[result.call][0]
    return [
        _Span("KVM, way in", at[0], at[1], KVM),
        _Span("guest's kernel", at[1], at[2], KERNEL),
        _Span(f"its {there} and back", at[2], at[5], PROGRAM),
        _Span("call that leaves", at[5], at[7], KERNEL),
        _Span("KVM, way out", at[7], at[8], KVM),
        _Span("host's getppid", 0, host, HOST),
    ]


def _scale(result: Result) -> Picture:
    spans = _spans(result)
    whole = max(span.end for span in spans)
    return Picture(
        _scale_svg(spans, whole),
        "\n".join(_scale_text(spans, whole)),
        "The same turn to scale; below it a system call of the host, for comparison.",
    )


_BAR: Final = 46  # characters


def _scale_text(spans: list[_Span], whole: float) -> Iterator[str]:
    for span in spans:
        first = min(_BAR - 1, int(span.start / whole * _BAR))
        last = max(first + 1, round(span.end / whole * _BAR))
        bar = " " * first + "#" * (last - first)
        yield f"{span.name:>20} |{bar:<{_BAR}}|{_whole(span.end - span.start):>8}"


def _scale_svg(spans: list[_Span], whole: float) -> str:
    left, right, row = 122, _WIDTH - 66, 20
    parts = []
    for i, span in enumerate(spans):
        y = 4 + row * i
        x = left + span.start / whole * (right - left)
        width = max(1.5, (span.end - span.start) / whole * (right - left))
        parts += [
            svg.text(left - 8, y + 12, span.name, anchor="end", size=11),
            svg.box(x, y, width, row - 6, kind=_KIND[span.room], title=span.name),
            svg.text(_WIDTH - 2, y + 12, f"{_whole(span.end - span.start)} ns", anchor="end",
                     kind="dim", size=11),
        ]  # fmt: skip
    bottom = 4 + row * len(spans)
    parts += [svg.line(x, 0, x, bottom, kind="grid") for x in (left, right)]
    return svg.drawing(_WIDTH, bottom + 4, "The steps of the turn, to scale", parts)
