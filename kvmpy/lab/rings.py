"""Rings 0 to 3 in non-root mode, and ring 3 in root mode: what each may do.

Sources: SDM vol. 3, "Privileged Instructions" and "Privilege Levels" in "Protection"; vol. 1,
"I/O Privilege Level" and "I/O Permission Bit Map"; vol. 2, the instructions' pages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from ..host.cpu import identify
from ..probe.verdict import verdict as find_verdict
from ..report.blocks import Block
from ..report.table import HEADING, Table
from ..x86.descriptors import KERNEL_CODE
from .show import rings_figure as _rings_figure
from .tries import IF, LEGACY, LONG, MODES, PORT, RINGS, Guest, Outcome, Try, here

_TSD: Final = 1 << 2  # CR4: RDTSC is for ring 0
_MSW: Final = 0x33  # low half of CR0 as it is: NE ET MP PE
_ANY: Final = ""


@dataclass(frozen=True)
class _Row:
    """An instruction, and who may run it by the manuals: "0", ring 0; "iopl" and "port", as IOPL
    and the I/O bitmap allow; "popf", all, but IF only as IOPL allows; "all"; "" for what depends
    on more than the ring."""

    title: str
    rule: str
    what: Try


_GROUPS: Final = {
    "The ring": (_Row("MOV EAX, CS", "all", Try("cpl")),),
    "Interrupt flag": (
        _Row("CLI", "iopl", Try("cli")),
        _Row("STI", "iopl", Try("sti", flags=0)),
        _Row("POPF, IF = 0", "popf", Try("popf")),
        _Row("HLT", "0", Try("hlt")),
    ),
    "System registers": (
        _Row("MOV EAX, CR0", "0", Try("mov_from_cr0")),
        _Row("MOV CR0, EAX", "0", Try("mov_to_cr0", operand="cr0")),
        _Row("MOV CR3, EAX", "0", Try("mov_to_cr3", operand="cr3")),
        _Row("MOV EAX, DR7", "0", Try("mov_from_dr7")),
        _Row("CLTS", "0", Try("clts")),
        _Row("LMSW", "0", Try("lmsw", operand=_MSW)),
        _Row("LGDT", "0", Try("lgdt", table="gdt")),
        _Row("LIDT", "0", Try("lidt", table="idt")),
        _Row("LLDT", "0", Try("lldt")),
        _Row("RDMSR", "0", Try("rdmsr")),
        _Row("WRMSR", "0", Try("wrmsr", operand=KERNEL_CODE)),
        _Row("SWAPGS", "0", Try("swapgs")),
        _Row("SYSRET", "sysret", Try("sysret")),
    ),
    "TLB and caches": (
        _Row("INVLPG", "0", Try("invlpg")),
        _Row("INVD", "0", Try("invd")),
        _Row("WBINVD", "0", Try("wbinvd")),
    ),
    "Ports": (
        _Row("IN", "port", Try("in")),
        _Row("OUT", "port", Try("out")),
    ),
    "As ring 0 allows": (
        _Row("RDTSC", "all", Try("rdtsc")),
        _Row("RDTSC, TSD = 1", "0", Try("rdtsc", cr4=_TSD)),
        _Row("RDPMC", _ANY, Try("rdpmc")),
        _Row("CPUID", "all", Try("cpuid")),
    ),
}
_IO: Final = (_Row("OUT", "port", Try("out")), _Row("CLI", "iopl", Try("cli")),
              _Row("POPF, IF = 0", "popf", Try("popf")))  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """An instruction in rings 0 to 3 of a mode, and in this process (``here``, if it was tried).

    ``odd``: the rings in which the manuals say otherwise. ``rule``: who may run it by them.
    """

    mode: str
    group: str
    instruction: str
    rule: str
    rings: tuple[Outcome, ...]
    odd: tuple[int, ...]
    here: Outcome | None = None


@dataclass(frozen=True)
class Io:
    """An instruction in rings 0 to 3 with an ``iopl``; ``allowed``: its port, by the bitmap."""

    mode: str
    instruction: str
    iopl: int
    allowed: bool
    rings: tuple[Outcome, ...]
    odd: tuple[int, ...]


@dataclass(frozen=True)
class Result:
    """What was seen. ``counted``: whether exits to KVM itself could be counted. ``no_here``: why
    nothing was tried in this process, "" if it was."""

    module: str
    verdict: str
    counted: bool
    seen: tuple[Seen, ...]
    io: tuple[Io, ...]
    no_here: str = ""


def run(pin: int | None = None) -> Result:
    """Try the instructions in both modes and all rings; takes a second.

    >>> result = kvmpy.lab.experiment("rings").run()
    >>> [outcome.value & 3 for outcome in result.seen[0].rings]
    [0, 1, 2, 3]
    """
    found = find_verdict()
    seen: list[Seen] = []
    io: list[Io] = []
    amd = identify().vendor in ("AuthenticAMD", "HygonGenuine")
    counted = False
    for mode in MODES:
        with Guest(mode, found, pin) as guest:
            counted = guest.counted
            for group, rows in _GROUPS.items():
                seen += (
                    _instruction(guest, mode, group, row, amd)
                    for row in rows
                    if guest.has(row.what.name)
                )
            io += _input_output(guest, mode)
    seen, no_here = _with_here(seen)
    return Result(found.module, found.summary, counted, tuple(seen), tuple(io), no_here)


def _instruction(guest: Guest, mode: str, group: str, row: _Row, amd: bool) -> Seen:
    rings = tuple(guest.attempt(row.what, ring) for ring in RINGS)
    rule = row.rule
    if rule == "sysret":  # outside of long mode AMD's CPUs have it, Intel's do not
        rule = "0" if amd or mode == LONG else "none"
    odd = tuple(ring for ring in RINGS if _is_odd(rings[ring], rule, ring))
    return Seen(mode, group, row.title, rule, rings, odd)


def _input_output(guest: Guest, mode: str) -> Iterable[Io]:
    for row in _IO:
        for iopl in (0, 3):
            for allowed in (False, True) if row.rule == "port" else (False,):
                ports = (PORT,) if allowed else ()
                rings = tuple(
                    guest.attempt(row.what, ring, iopl=iopl, ports=ports) for ring in RINGS
                )
                odd = tuple(
                    ring for ring in RINGS if _is_odd(rings[ring], row.rule, ring, iopl, allowed)
                )
                yield Io(mode, row.title, iopl, allowed, rings, odd)


def _is_odd(outcome: Outcome, rule: str, ring: int, iopl: int = 0, allowed: bool = False) -> bool:
    """Whether the manuals say otherwise."""
    if rule == _ANY:
        return False
    if rule == "none":
        return outcome.name != "#UD"
    if rule == "popf":
        kept = ring > iopl
        return outcome.kind != "runs" or bool(outcome.value & IF) is not kept
    may = {
        "0": ring == 0,
        "iopl": ring <= iopl,
        "port": ring <= iopl or allowed,
        "all": True,
    }[rule]
    if may:
        return outcome.kind not in ("runs", "exit")
    return (outcome.name, outcome.error_code) != ("#GP", 0)


def _with_here(seen: list[Seen]) -> tuple[list[Seen], str]:
    """With what root ring 3 does beside the 64-bit guest's rings, or why not."""
    tries = {row.title: row.what for rows in _GROUPS.values() for row in rows}
    done = []
    for each in seen:
        what = tries[each.instruction]
        if each.mode != LONG or what.cr4:
            done.append(each)
            continue
        try:
            outcome = here(what)
        except OSError as error:
            return seen, f"No instruction could be tried in a child of this process: {error}."
        values = {**vars(each), "here": outcome}
        done.append(Seen(**values))
    return done, ""


# ---- what it says


def show(result: Result) -> Iterable[Block]:
    """The matrix of modes and rings, the tables, and what they mean.

    >>> lab = kvmpy.lab.experiment("rings")
    >>> next(iter(lab.show(lab.run())))[:9]
    'A ring is'
    """
    yield (
        "A ring is two bits, the CPL: the low bits of CS. VT-x and AMD-V gave the CPU a second "
        "set of four rings. In root mode (AMD: host mode) live the host's kernel, KVM in it, and "
        "its processes; in non-root mode (guest mode) a guest has rings 0 to 3 of its own."
    )
    if result.module == "kvm_pvm":
        yield (
            "kvm_pvm needs neither VT-x nor AMD-V: under it there is no non-root mode, it is "
            "played. 64-bit ring 3 runs on the CPU, in the host's ring 3, where neither IOPL nor "
            "CR4.TSD is the guest's. Everything else is interpreted, by an interpreter that does "
            "not look at the CPL for SYSRET and SWAPGS."
        )
    yield _rings_figure.picture(_allowed(result))
    yield (
        "Rings 1 and 2 came with the 80286, after Multics. OS/2 ran code with I/O privilege in "
        "ring 2. Before VT-x, VMware (its translated code) and VirtualBox ran guest kernels in "
        "ring 1, and 32-bit Xen its paravirtual ones. 64-bit mode ended that: it has no segment "
        "limits, and paging tells only ring 3 from the others, so a kernel in ring 1 could write "
        "to its monitor in ring 0. 64-bit Xen runs paravirtual kernels in ring 3."
    )
    yield _instructions(result, LONG)
    yield from _legacy(result, _instructions(result, LEGACY, differing=True))
    yield (
        "Non-root ring 0 runs almost all of it at full speed: the guest's CR3, GDT and flags are "
        "the guest's own. What would reach past them (CPUID, some MSRs, caches, ports, HLT) exits "
        "to KVM instead. Non-root ring 3 gets what root ring 3 gets: the guest's kernel is as safe "
        "from its programs as the host's is from this one."
    )
    yield _ports(result, LONG)
    yield from _legacy(result, _ports(result, LEGACY, differing=True))
    yield (
        "IOPL is two bits of the flags: with CPL <= IOPL a ring may use all ports, and CLI, STI "
        "and POPF reach IF. Else a bit for each port in the TSS decides, and POPF drops IF without "
        "a word: the next experiment is about such silence."
    )
    yield from _limits(result)


def _allowed(result: Result) -> tuple[_rings_figure.Count | None, ...]:
    """Of each non-root ring in long mode, and of root ring 3: how many instructions it may run, of
    how many, and how many of them exit. Of those tried in both, if any were in root ring 3."""
    rows = [each for each in result.seen if each.mode == LONG]
    rows = [each for each in rows if each.here is not None] or rows
    counts: list[_rings_figure.Count | None] = []
    for ring in RINGS:
        done = [each.rings[ring] for each in rows if _does(each, each.rings[ring])]
        exits = sum(outcome.kind == "exit" or bool(outcome.handled) for outcome in done)
        counts.append((len(done), len(rows), exits if result.counted else None))
    tried = [(each, each.here) for each in rows if each.here is not None]
    here_too = sum(_does(each, outcome) for each, outcome in tried)
    return (*counts, (here_too, len(tried), None) if tried else None)


def _does(each: Seen, outcome: Outcome) -> bool:
    """Whether the instruction has its effect."""
    if each.rule == "popf":
        return outcome.kind == "runs" and not outcome.value & IF
    return outcome.kind in ("runs", "exit")


def _cell(rule: str, outcome: Outcome, odd: bool) -> str:
    if outcome.kind == "runs" and rule == "popf":
        word = "ignored" if outcome.value & IF else "runs"
    else:
        word = outcome.word
    return f"{word} *" if odd else word


def _legacy(result: Result, differing: Table) -> Iterable[Block]:
    """32-bit mode beside long mode: what differs, or that nothing does."""
    if differing.rows:
        yield differing
    else:
        yield "In 32-bit protected mode, without paging: the same, cell by cell."


def _instructions(result: Result, mode: str, *, differing: bool = False) -> Table:
    with_here = any(each.here is not None for each in result.seen if each.mode == mode)
    rows: list[tuple[str, ...]] = []
    group = ""
    other = {each.instruction: _cells(each) for each in result.seen if each.mode != mode}
    for each in result.seen:
        cells = _cells(each)
        if each.mode != mode or (differing and cells == other.get(each.instruction)):
            continue
        if each.group != group and not differing:
            group = each.group
            rows.append((HEADING, group))
        rows.append((each.instruction, *cells, *([_here_cell(each)] if with_here else [])))
    header = ["", *(f"ring {ring}" for ring in RINGS), *(["root 3"] if with_here else [])]
    notes: tuple[str, ...] = ()
    if not differing:
        notes = tuple(_notes(result, with_here))
    title = f"Where {mode} differs" if differing else f"Non-root mode, {mode}, IOPL 0"
    return Table(title, tuple(header), tuple(rows), len(header), notes)


def _notes(result: Result, with_here: bool) -> Iterable[str]:
    if result.counted:
        yield "exits: KVM did it for the guest; exit: HLT, IN, OUT: KVM asked its user"
    else:
        yield "exit: HLT, IN, OUT: KVM asked its user. Other exits cannot be counted here"
    if with_here:
        yield "root 3: ring 3 in root mode, this process; its kernel makes SIGSEGV of #GP"
    if any(each.odd for each in result.seen):
        yield f"*: the manuals say otherwise, see what is said of {result.module}"


def _cells(each: Seen) -> list[str]:
    if each.group == "The ring":
        return [f"CPL {outcome.value & 3}" for outcome in each.rings]
    return [_cell(each.rule, outcome, ring in each.odd) for ring, outcome in enumerate(each.rings)]


def _here_cell(each: Seen) -> str:
    if each.here is None:
        return "-"
    if each.group == "The ring":
        return f"CPL {each.here.value & 3}"
    return _cell(each.rule, each.here, odd=False)


def _ports(result: Result, mode: str, *, differing: bool = False) -> Table:
    found: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {LONG: {}, LEGACY: {}}
    for each in result.io:
        rule = next(row.rule for row in _IO if row.title == each.instruction)
        bitmap = ("allows" if each.allowed else "denies") if rule == "port" else "-"
        cells = tuple(_cell(rule, each.rings[ring], ring in each.odd) for ring in RINGS)
        found[each.mode][(each.instruction, str(each.iopl), bitmap)] = cells
    other = found[LONG if mode == LEGACY else LEGACY]
    rows = tuple(
        (*what, *cells) for what, cells in found[mode].items()
        if not differing or other[what] != cells
    )  # fmt: skip
    header = ("", "IOPL", "bitmap", *(f"ring {ring}" for ring in RINGS))
    title = f"Where {mode} differs" if differing else f"I/O privilege, {mode}"
    return Table(title, header, rows, len(header))


def _limits(result: Result) -> Iterable[Block]:
    """What this module and this process cannot show, and why."""
    if result.no_here:
        yield result.no_here
    yield (
        "Not shown: root ring 0. Only the host's kernel is there, and this program is not part "
        "of it. Root ring 3 is shown in 64-bit mode alone, which this process is in."
    )
    if result.module != "kvm_pvm" and (
        any(each.odd for each in result.seen) or any(each.odd for each in result.io)
    ):
        yield f"*: {result.module}, or the CPU under it, does otherwise than the manuals say."
