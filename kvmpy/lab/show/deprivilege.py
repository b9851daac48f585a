"""What the experiment ``deprivilege`` has found, as tables, pictures and a few sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ...report import svg
from ...report.blocks import Block, Picture
from ...report.table import DASH, Table, number
from ..deprivilege import OPERATIONS, WAYS

if TYPE_CHECKING:
    from ..deprivilege import Cost, Result, Sight, Way
    from ..deprivilege_store import Store

_NAMES: Final[dict[Way, str]] = {"ring1": "ring 1", "patched": "patched", "ring0": "ring 0"}
_KINDS: Final[dict[Way, str]] = {"ring1": "lane1", "patched": "lane5", "ring0": "lane0"}


def blocks(result: Result) -> Iterator[Block]:
    """The blocks of ``kvmpy.lab.deprivilege.show``.

    >>> from kvmpy.lab.show import deprivilege
    >>> len(list(deprivilege.blocks(kvmpy.lab.experiment("deprivilege").run()))) > 3
    True
    """
    yield (
        "A kernel expects ring 0. Before VT-x and AMD-V a monitor that wanted to run it safely had "
        "to take ring 0 itself and move the kernel to ring 1 (VMware, 1999) or have it rewritten "
        "for ring 1 (Xen, 2003). Here the same kernel, the same bytes, runs both ways."
    )
    yield _who_sits_where()
    for text in result.caveats:
        yield f"Not shown here: {text}"
    if "ring1" in result.sights:
        yield _costs(result)
        yield _bars(result)
        yield _costs_explained(result)
        yield _sights(result)
        yield _sights_explained()
        if result.limit_stops:
            yield (
                "What keeps the monitor safe is the segment limit: ring 1's segments end before "
                "the monitor's memory. The kernel has tried to store there: #GP, and nothing "
                "stored. Paging could not have stopped it, as follows."
            )
    yield _stores(result)
    yield (
        "Paging knows two kinds of code, user (ring 3) and supervisor (rings 0, 1 and 2): a page "
        "with U/S = 0 is open to ring 1. With 32-bit segments a limit could keep ring 1 out. "
        "64-bit code has no limits: a 64-bit kernel in ring 1 overwrites its monitor. So Xen put "
        "64-bit kernels into ring 3 beside their applications, a CR3 load at each system call; "
        "VMware required VT-x or, on AMD, limits that a later EFER bit (LMSLE) gave back; and "
        "hardware for virtualization gave the kernel a ring 0 of its own."
    )


# -- who sits where


_SEATS: Final = (
    ("ring 3", "applications", "applications", "applications"),
    ("ring 2", "", "", ""),
    ("ring 1", "", "guest kernel", ""),
    ("ring 0", "kernel", "monitor", "guest kernel"),
    ("root mode", "", "", "KVM, and you"),
)
_COLUMNS: Final = ("no guest", "the old way", "the new way")


def _who_sits_where() -> Picture:
    return Picture(
        _seats_svg(),
        _seats_text(),
        "Root mode is a second set of four rings; what it holds, no instruction of the guest's "
        "ring 0 can reach. The old way is staged here inside a VM: its monitor has non-root ring "
        "0, in place of the machine's.",
    )


def _seats_text() -> str:
    lines = [f"{'':10} " + " ".join(f"{name:^16}" for name in _COLUMNS)]
    edge = "+" + "-" * 14 + "+"
    for ring, *people in _SEATS:
        lines.append(f"{'':10} " + " ".join(edge for _ in people))
        boxes = (f"|{who:^14}|" if who or ring != "root mode" else " " * 16 for who in people)
        lines.append(f"{ring:10} " + " ".join(boxes))
    lines.append(f"{'':10} " + " " * 34 + edge)
    return "\n".join(line.rstrip() for line in lines)


def _seats_svg() -> str:
    parts: list[str] = []
    for column, name in enumerate(_COLUMNS):
        parts.append(svg.text(130 + 120 * column, 14, name, anchor="middle"))
    for row, (ring, *people) in enumerate(_SEATS):
        y = 22.0 + 32 * row + (8 if ring == "root mode" else 0)
        parts.append(svg.text(0, y + 18, ring, kind="dim"))
        for column, who in enumerate(people):
            x = 74.0 + 120 * column
            if ring == "root mode" and not who:
                continue
            parts.append(svg.box(x, y, 112, 26, kind="grid", outline=True))
            if who:
                kind = {"monitor": "lane5", "guest kernel": "lane0"}.get(who, "dim")
                parts.append(svg.box(x, y, 5, 26, kind=kind))
                parts.append(svg.text(x + 58, y + 17, who, anchor="middle"))
    return svg.drawing(430, 196, "Who sits in which ring, without a guest and in both ways", parts)


# -- what operations cost


def _cell(cost: Cost | None) -> str:
    return DASH if cost is None else number(round(cost.total, 2))


def _exits(cost: Cost | None) -> str:
    return DASH if cost is None or cost.exits is None else number(abs(round(cost.exits, 1)))


def _costs(result: Result) -> Table:
    rows = [
        (
            OPERATIONS[name],
            *(_cell(ways.get(way)) for way in WAYS),
            _exits(ways.get("ring0")),
        )
        for name, ways in result.costs.items()
    ]
    return Table(
        "Traps to the monitor, for one of each",
        ("", *(_NAMES[way] for way in WAYS), "exits"),
        tuple(rows),
        notes=(
            "patched: in ring 1, PUSHF, POPF, IRET and their like replaced by INT3",
            f"ring 0: non-root, no monitor; exits: from there to KVM, over {result.repeats} times",
        ),
    )


def _costs_explained(result: Result) -> str:
    text = (
        "In ring 1 each privileged instruction is #GP: an entry to the monitor, which does what "
        "the kernel meant to its idea of the machine, and an IRET back. MOV to SS is not "
        "privileged, but selector 0x10 asks for ring 0. A system call goes to the monitor first, "
        "which sends it on to the kernel; the handler's STI and CLI trap, its IRET, patched, too. "
        "In non-root ring 0 the same bytes run as on a "
        "machine of their own."
    )
    quiet = [
        name
        for name, ways in result.costs.items()
        if "ring0" in ways and ways["ring0"].exits is not None and abs(ways["ring0"].exits) < 0.5
    ]
    if quiet:
        text += (
            f" {len(quiet)} of these {len(result.costs)} operations never leave the guest: KVM has "
            "counted no exit. Only devices and idling do, IN and HLT, because KVM has chosen so."
            if {"in", "hlt"}.isdisjoint(quiet) and len(quiet) == len(result.costs) - 2
            else f" {len(quiet)} of these {len(result.costs)} operations never leave the guest."
        )
    if result.paging == "shadow":
        text += " CR3 loads do here, because KVM's own shadow page tables have to follow them."
    return text


def _bars(result: Result) -> Picture:
    most = max((cost.total for ways in result.costs.values() for cost in ways.values()), default=1)
    return Picture(
        _bars_svg(result, most),
        _bars_text(result, most),
        "Traps to a monitor for one operation: ring 1, ring 1 patched, non-root ring 0.",
    )


def _bars_text(result: Result, most: float) -> str:
    """A character a trap, as long as that fits."""
    scale = min(1.0, 12 / max(most, 1))
    lines = [f"{'':20}" + "".join(f"{_NAMES[way]:14}" for way in WAYS)]
    for name, ways in result.costs.items():
        bars = (
            "#" * round(scale * cost.total) or "." if (cost := ways.get(way)) else DASH
            for way in WAYS
        )
        lines.append(f"{OPERATIONS[name]:20}" + "".join(f"{bar:14}" for bar in bars))
    return "\n".join(line.rstrip() for line in lines)


def _bars_svg(result: Result, most: float) -> str:
    parts: list[str] = []
    left, y = 124.0, 12.0
    for i, way in enumerate(WAYS):
        x = left + 74.0 * i
        parts.append(svg.box(x, y - 10, 10, 10, kind=_KINDS[way]))
        parts.append(svg.text(x + 14, y, _NAMES[way], kind="dim"))
    y += 12
    for name, ways in result.costs.items():
        parts.append(svg.text(left - 6, y + 19, OPERATIONS[name], anchor="end"))
        for i, way in enumerate(WAYS):
            cost = ways.get(way)
            width = 280 * cost.total / max(most, 1) if cost is not None else 0
            if width:
                parts.append(svg.box(left, y + 10 * i, width, 9, kind=_KINDS[way]))
            parts.append(svg.text(left + 4 + width, y + 8 + 10 * i, _cell(cost), size=10))
        y += 38
    parts.append(svg.line(left, 22, left, y - 6, kind="grid"))
    return svg.drawing(430, y, "Traps to a monitor for one operation", parts)


# -- what the kernel sees


def _sights(result: Result) -> Table:
    ways: list[Way] = [way for way in ("ring0", "ring1", "patched") if way in result.sights]
    seen = [result.sights[way] for way in ways]

    def row(title: str, *cells: str) -> tuple[str, ...]:
        """A value that differs from ring 0's is marked."""
        return (title, *(cell if cell == cells[0] else f"{cell} !" for cell in cells))

    def due(sight: Sight) -> str:
        return "comes" if sight.late_ticks else "is lost"

    def held(sight: Sight) -> str:
        return "comes" if sight.early_ticks else "waits"

    rows = (
        row("PUSH CS", *(f"{sight.cs:#x}" for sight in seen)),
        row("SGDT: base", *(f"{sight.gdt:#x}" for sight in seen)),
        row("SIDT: base", *(f"{sight.idt:#x}" for sight in seen)),
        row("STR", *(f"{sight.tr:#x}" for sight in seen)),
        row("SMSW: TS, set", *(str(int(sight.ts)) for sight in seen)),
        row("PUSHF: IF, off", *(str(int(sight.interrupts)) for sight in seen)),
        row("POPF on: timer", *map(due, seen)),
        row("POPF off: timer", *map(held, seen)),
    )
    return Table("What the kernel sees", ("", *(_NAMES[way] for way in ways)), rows)


def _sights_explained() -> str:
    return (
        "The kernel has set TS and cleared IF before it looks; the timer's interrupt is due when "
        "POPF has turned IF on, and must wait when POPF has turned it off. "
        "Where ring 1 differs (!), an instruction is sensitive and does not trap. PUSH CS shows "
        "the ring; SGDT, SIDT and STR show the monitor's tables; SMSW and PUSHF show the "
        "machine's flags, which are not the kernel's. POPF is the worst: at CPL 1 with IOPL 0 it "
        "leaves IF as it was and says nothing (so does IRET), so the monitor never hears that the "
        "kernel wants interrupts on, or off: one is lost, another comes into a critical section. "
        "Patching mends all of it: INT3 over each such instruction, at the price of a trap each. "
        "VMware's binary translation did so more cheaply; Xen had the source changed, to a "
        "hypercall or a store to shared memory."
    )


# -- the ring against page and segment


def _store_outcome(store: Store) -> str:
    if store.failure:
        return f"not here: {store.failure}"
    return "stored" if store.stored else store.exception


def _stores(result: Result) -> Table:
    rows = []
    for store in result.stores:
        barrier = "page, U/S = 0" if store.barrier == "page" else "beyond the limit"
        rows.append((f"{store.bits}-bit, ring {store.ring}", barrier, _store_outcome(store)))
    header = ("from", "barrier", "outcome")
    return Table("A store past the barrier", header, tuple(rows), left=len(header))
