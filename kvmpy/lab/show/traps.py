"""What the three ways into the kernel have done, in words: see :mod:`kvmpy.lab.traps`.

Nothing of it is written down beforehand: where a value came from, or where the old one went, is
found by comparing it with the guest's registers, stacks and MSRs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ...bench.cells import MODE_NAMES, MODES
from ...report.blocks import Block
from ...report.table import DASH, Table
from ..traps import NAMES, NOT_CANONICAL, PATHS, STAND_IN, Result, State, Sysret, Trip

#: What each vendor's manuals say runs: SDM vol. 2 and APM vol. 3, the instructions' pages.
BY_MANUAL: Final = {
    "GenuineIntel": {
        (mode, path) for mode in MODES for path in PATHS
        if path != "syscall" or mode == "long64"
    },
    "AuthenticAMD": {
        (mode, path) for mode in MODES for path in PATHS
        if path != "sysenter" or mode == "legacy32"
    },
}  # fmt: skip

_FLAGS: Final = {9: "IF", 10: "DF", 18: "AC", 8: "TF", 14: "NT"}
_IF: Final = 1 << 9
_SEEN_FLAGS: Final = sum(1 << bit for bit in _FLAGS)
_LOST: Final = "lost"
#: Which of ``Trip.sources`` a path can take selectors from: on the way in, and back.
_SELECTORS_IN: Final = {
    "int80": ("gate.CS", "TSS.SS0"),
    "sysenter": ("SYSENTER_CS",),
    "syscall": ("STAR[47:32]",),
}
_SELECTORS_BACK: Final = {"sysenter": ("SYSENTER_CS",), "syscall": ("STAR[63:48]",)}
_TARGETS: Final = {
    "int80": ("gate.offset",),
    "sysenter": ("SYSENTER_EIP",),
    "syscall": ("LSTAR", "CSTAR", "STAR[31:0]"),
}
_RETURNS: Final = {
    "int80": ("IRET", "IRETQ"), "sysenter": ("SYSEXIT", "SYSEXIT"), "syscall": ("SYSRET", "SYSRET")
}  # fmt: skip


def blocks(result: Result) -> Iterator[Block]:
    """Tables and what they say.

    >>> from kvmpy.lab import show, traps
    >>> hole = traps.Sysret(0, 0, 0, False, failure="not tried")
    >>> result = traps.Result("kvm_intel", "", None, "", "", False, True, (), hole)
    >>> list(show.traps.blocks(result))[3].partition(").")[2].strip()
    'Here it ends otherwise: not tried.'
    """
    yield (
        "INT is the 8086's, its gates that change the ring are the 286's: general, and slow, since "
        "the CPU reads gate, segments and TSS from memory. SYSENTER (Intel's Pentium II, 1997) and "
        "SYSCALL (AMD's K6, soon after) take everything from MSRs, and save as little as a kernel "
        "can do with; AMD64 made SYSCALL the way of 64-bit code. The tables are read out of a "
        "guest that was stopped before the instruction, at the handler's first one, and back in "
        "ring 3."
    )
    shown = list(_modes(result))
    for mode in shown:
        yield from _tables(result, mode)
    if shown:
        yield _reading(result)
    else:
        yield "No call of these comes to ring 0 here, so there is nothing to read out."
    yield _matrix(result)
    yield from _sysret(result.sysret, result)
    yield from _limits(result)


def _modes(result: Result) -> Iterator[str]:
    """The modes worth a table: 64-bit, and legacy mode where it has what 64-bit mode lacks."""
    arrived = {
        mode: {trip.path for trip in result.trips if trip.mode == mode and trip.inside}
        for mode in MODES
    }
    if arrived["long64"]:
        yield "long64"
    if arrived["legacy32"] - arrived["long64"]:
        yield "legacy32"


def _tables(result: Result, mode: str) -> Iterator[Table]:
    trips = [trip for trip in result.trips if trip.mode == mode and trip.inside]
    names = tuple(NAMES[trip.path] for trip in trips)
    there = [dict(_way_in(trip)) for trip in trips]
    yield Table(
        f"{MODE_NAMES[mode]}, on the way in: what the CPU does with what",
        ("", *names),
        tuple((item, *(cells[item] for cells in there)) for item in there[0]),
        left=1 + len(trips),
        notes=("gate: the vector's entry in the IDT; SYSENTER_*, STAR, LSTAR and FMASK are MSRs",),
    )
    back = [dict(_way_back(trip)) for trip in trips]
    if any(trip.after for trip in trips):
        yield Table(
            f"{MODE_NAMES[mode]}, on the way back",
            ("", *names),
            tuple((item, *(cells[item] for cells in back)) for item in back[0]),
            left=1 + len(trips),
        )


# -- one column


def _kind(trip: Trip) -> str:
    """The path of ``PATHS`` that it is, or stands in for."""
    return next((path for path, other in STAND_IN.items() if other == trip.path), trip.path)


def _way_in(trip: Trip) -> Iterator[tuple[str, str]]:
    before, inside, sources = trip.before, trip.inside, trip.sources
    assert before is not None
    assert inside is not None
    wide = trip.mode == "long64"
    width = 4 if trip.mode == "legacy32" else 8
    stack = sources.get("TSS.RSP0", sources.get("TSS.ESP0"))
    kind = _kind(trip)
    yield "new RIP" if wide else "new EIP", _named(inside.rip, sources, _TARGETS[kind])
    yield "new CS", _selector(inside.cs, sources, _SELECTORS_IN[kind])
    yield "new SS", _selector(inside.ss, sources, _SELECTORS_IN[kind])
    if inside.rsp == before.rsp:
        new_stack = "unchanged: user's"
    elif trip.pushed and inside.rsp + len(trip.pushed) * width == stack:
        new_stack = "TSS.RSP0" if "TSS.RSP0" in sources else "TSS.ESP0"
    else:
        new_stack = _named(inside.rsp, sources, ("SYSENTER_ESP",))
    yield "new RSP" if wide else "new ESP", new_stack
    yield "old RIP" if wide else "old EIP", _kept(trip, trip.back, width)
    yield "old CS, SS", _kept_selectors(trip, width)
    yield "old RSP" if wide else "old ESP", _kept(trip, before.rsp, width)
    yield "old RFLAGS" if wide else "old EFLAGS", _kept(trip, before.rflags, width)
    yield "flags cleared", _cleared(before.rflags & ~inside.rflags, before.rflags, sources, kind)
    size = len(trip.pushed) * width
    yield "on the stack", f"{size} bytes pushed" if size else "nothing"
    changed = [
        name for name in before.general if before.general[name] != inside.general[name]
    ]  # fmt: skip
    yield "registers lost", ", ".join(changed).upper() or "none"
    yield "GS base", "unchanged" if inside.gs_base == before.gs_base else f"{inside.gs_base:#x}"


def _way_back(trip: Trip) -> Iterator[tuple[str, str]]:
    inside, after, sources = trip.inside, trip.after, trip.sources
    wide, kind = trip.mode == "long64", _kind(trip)
    yield "by", _RETURNS[kind][wide]
    items = ("RIP", "CS", "SS", "RSP", "RFLAGS")
    if after is None or inside is None:
        for item in items:
            yield item, DASH
        return
    yield items[0], _source(trip, after.rip)
    names = _SELECTORS_BACK.get(kind, ())
    for item, value in (("CS", after.cs), ("SS", after.ss)):
        popped = not names and value in trip.pushed
        yield item, "popped" if popped else _selector(value, sources, names)
    yield items[3], _source(trip, after.rsp)
    yield items[4], _flags_back(trip, inside, after)


def _flags_back(trip: Trip, inside: State, after: State) -> str:
    now, then = after.rflags & _SEEN_FLAGS, inside.rflags & _SEEN_FLAGS
    users = trip.before.rflags & _SEEN_FLAGS if trip.before else None
    if trip.pushed and now == trip.pushed[2] & _SEEN_FLAGS:
        return "popped"
    if now == users == inside.general.get("r11", -1) & _SEEN_FLAGS:
        return "R11"
    if now == then:
        return f"handler's: IF={now >> 9 & 1}"
    if now == then | _IF:
        return "handler's, IF set"
    return f"set to {after.rflags:#x}"


def _source(trip: Trip, value: int) -> str:
    """Where the way back has a value from."""
    inside = trip.inside
    assert inside is not None
    if value in trip.pushed:
        return "popped"
    if value == inside.rsp:
        return "unchanged"
    for name in ("rcx", "rdx"):
        if inside.general.get(name) == value:
            return name.upper()
    return f"{value:#x}"


def _named(value: int, sources: Mapping[str, int], names: Iterable[str]) -> str:
    return next((name for name in names if sources.get(name) == value), f"{value:#x}")


def _selector(value: int, sources: Mapping[str, int], names: Iterable[str]) -> str:
    """A selector as what it was made of; RPL aside, which the CPU sets to the ring."""
    if value == 0:
        return "null"
    exact = _named(value, sources, names)
    if exact in sources:
        return exact
    for name in names:
        base = sources.get(name, 0) & ~3
        if base and base <= value & ~3 <= base + 40:
            offset = (value & ~3) - base
            return f"{name} + {offset}" if offset else name
    return f"{value:#x}"


def _kept(trip: Trip, value: int, width: int) -> str:
    """Where the handler finds a value of the program."""
    before, inside = trip.before, trip.inside
    assert before is not None
    assert inside is not None
    if value in trip.pushed:
        return f"pushed, at +{trip.pushed.index(value) * width}"
    for name, content in inside.general.items():
        if content == value and before.general[name] != value:
            return f"in {name.upper()}"
    if value == inside.rsp:
        return "in ESP" if width == 4 else "in RSP"
    return _LOST


def _kept_selectors(trip: Trip, width: int) -> str:
    before = trip.before
    assert before is not None
    if before.cs in trip.pushed and before.ss in trip.pushed:
        at = [trip.pushed.index(value) * width for value in (before.cs, before.ss)]
        return f"pushed, +{at[0]}, +{at[1]}"
    return _LOST


def _flags(value: int) -> str:
    return " ".join(name for bit, name in _FLAGS.items() if value >> bit & 1)


def _cleared(flags: int, before: int, sources: Mapping[str, int], kind: str) -> str:
    names = _flags(flags)
    by_mask = kind == "syscall" and flags == before & sources.get("FMASK", 0)
    return f"{names}: FMASK" if by_mask else names or "none"


def _reading(result: Result) -> str:
    parts = []
    arrived = {_kind(trip) for trip in result.trips if trip.inside}
    if "int80" in arrived:
        parts.append(
            "A gate leaves nothing to software but the general registers: five words on a stack "
            "of the kernel's own, and one IRET undoes it all."
        )
    if "sysenter" in arrived:
        parts.append(
            "SYSENTER saves nothing at all: before it the program has to put its RSP into RCX and "
            "its return address into RDX, where SYSEXIT takes them, and the handler gives flags "
            "back as it likes, IF with STI."
        )
    if "syscall" in arrived:
        parts.append(
            "SYSCALL saves two things in registers and leaves RSP alone: a 64-bit handler starts "
            "on the program's stack, with interrupts off by FMASK, until it has found its own, "
            "which is what SWAPGS is for: GS base is the program's still."
        )
    return " ".join(parts)


# -- where it works


def _matrix(result: Result) -> Table:
    rows, notes = [], []
    for trip in result.trips:
        if trip.path not in PATHS:
            continue
        key = trip.mode, trip.path
        runs = not trip.failure
        here = "runs" if runs else trip.failure.split()[0] if trip.vector is not None else "fails"
        manual = BY_MANUAL.get(result.vendor)
        if manual is not None and here != ("runs" if key in manual else "#UD"):
            here += " *"
        cells = ("runs" if key in BY_MANUAL[vendor] else "#UD" for vendor in BY_MANUAL)
        rows.append((MODE_NAMES[trip.mode], NAMES[trip.path], here, *cells))
        if not runs and not trip.failure.endswith(f"at {NAMES[trip.path].lower()}"):
            notes.append(f"{MODE_NAMES[trip.mode]} {NAMES[trip.path]}: {trip.failure}")
    if any(row[2].endswith("*") for row in rows):
        who = (
            f"{result.module}'s emulator" if result.interpreted
            else f"{result.emulator}'s CPU" if result.emulator
            else "this CPU, or KVM,"
        )  # fmt: skip
        notes.insert(0, f"* not as by the vendor's manual: {who} has it so")
    return Table(
        "What runs, found by running it; where not, the exception",
        ("ring 3 is", "call", "here", "Intel's manual", "AMD's"),
        tuple(rows),
        left=5,
        notes=tuple(notes),
    )


# -- the hole of 2012


def _sysret(found: Sysret, result: Result) -> Iterator[Block]:
    start = (
        "A SYSCALL in the last two bytes below the hole in the address space has that for its "
        "return address, and the handler, as handlers do, has"
        if found.entered
        else "SYSCALL does not come to ring 0 here, so ring 0 is started at SYSRET, with that in "
        "RCX and, as it would be in a handler,"
    )
    begun = (
        f"SYSRET to {NOT_CANONICAL:#x}, which is not canonical. {start} the program's RSP in place "
        "already "
        f"({found.user_rsp:#x}; ring 0's own stack in the TSS: {found.ring0_rsp:#x}). "
    )
    if found.failure:
        yield begun + f"Here it ends otherwise: {found.failure}."
        return
    if found.ring == 0:
        yield begun + (
            "Here SYSRET checks the address first: #GP at SYSRET itself, still in ring 0. A fault "
            "within ring 0 does not change stacks, so the CPU, in ring 0, has pushed the frame "
            f"below onto the program's stack, at {found.frame_at:#x}. With that RSP a program "
            "chooses which kernel memory is overwritten: CVE-2012-0217, in 2012 a hole in "
            "FreeBSD, NetBSD, Windows and Xen. The CPU does as Intel's manual says; they were "
            "built to AMD's. Linux had met it in 2006 (CVE-2006-0744): it maps nothing at the last "
            "page below the hole, and returns by IRET when RCX is not canonical."
        )
    else:
        yield begun + (
            "Here SYSRET loads the address unseen and changes the ring; the fetch that follows "
            "fails: #GP in ring 3, and the CPU changes to ring 0's own stack as for any fault of a "
            f"program, at {found.frame_at:#x}. That is AMD's way. On Intel's CPUs SYSRET itself "
            "raises #GP, still in ring 0 but on the program's stack: CVE-2012-0217, in 2012 a hole "
            "in FreeBSD, NetBSD, Windows and Xen, which were built to AMD's manual."
        )
    yield _frame(found)
    if result.interpreted:
        yield f"That SYSRET was {result.module}'s emulator's, not the CPU's."


def _frame(found: Sysret) -> Table:
    meanings = (
        "",
        "at SYSRET" if found.rip == found.sysret_at else "the address SYSRET was given",
        f"ring {found.ring}",
        "",
        "the program's" if found.frame[4] == found.user_rsp else "",
        "",
    )
    names = ("error code", "RIP", "CS", "RFLAGS", "RSP", "SS")
    return Table(
        f"The frame of #GP, at {found.frame_at:#x}",
        ("", "value", ""),
        tuple(
            (name, f"{value:#x}", meaning)
            for name, value, meaning in zip(names, found.frame, meanings, strict=True)
        ),
        left=3,
    )


def _limits(result: Result) -> Iterator[str]:
    if result.interpreted:
        yield (
            f"{result.module} runs 64-bit ring 3 on the CPU and everything else in KVM's "
            "instruction emulator, 32-bit code whole. The emulator knows no INT n from ring 3 but "
            "vectors 3 and 4, so int 3 stands in above for int 0x80, the same gate with another "
            "number; 64-bit SYSCALL jumps to LSTAR, but stays in ring 3. What SYSENTER and SYSCALL "
            "do in 32-bit code is what the emulator makes of them."
        )
    elif result.emulator:
        yield (
            f"{result.module} runs here on a CPU that {result.emulator} emulates: what it saves "
            f"and loads is {result.emulator}'s reading of the manuals."
        )
    else:
        yield f"{result.module} on {result.cpu_model}: all rings ran on the CPU itself."
    yield (
        "KVM has no part in any of it where ring 0 is native: the instructions run in non-root "
        "mode as they do outside, with the guest's own MSRs, gates and TSS. Left out: FRED, the "
        "event delivery of 2024 that is to replace all three, and Linux's 32-bit vDSO, which hid "
        "from programs which of them a CPU has."
    )
