"""What the experiment with rings says."""

from __future__ import annotations

from collections.abc import Iterable

from ...report.blocks import Block
from ...report.table import HEADING, Table
from ..rings import _IO, Result, Seen
from ..tries import IF, LEGACY, LONG, RINGS, Tried
from . import rings_figure


def blocks(result: Result) -> Iterable[Block]:
    """The matrix of modes and rings, the tables, and what they mean.

    >>> lab = kvmpy.lab.experiment("rings")
    >>> next(iter(lab.blocks(lab.run())))[:9]
    'A ring is'
    """
    yield (
        "A ring is two bits, the CPL: the low bits of CS. VT-x and AMD-V gave the CPU a second "
        "set of four rings. In root mode (AMD: host mode) live the host's kernel, KVM in it, and "
        "its processes; in non-root mode (guest mode) a guest has rings 0 to 3 of its own."
    )
    if result.module == "kvm_pvm":
        yield (
            "kvm_pvm needs neither VT-x nor AMD-V: under it there is no non-root mode; it is "
            "played. 64-bit ring 3 runs on the CPU, in the host's ring 3, where neither IOPL nor "
            "CR4.TSD is the guest's. Everything else is interpreted, by an interpreter that does "
            "not look at the CPL for SYSRET and SWAPGS."
        )
    yield rings_figure.picture(_allowed(result))
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


def _allowed(result: Result) -> tuple[rings_figure.Count | None, ...]:
    """Of each non-root ring in long mode, and of root ring 3: how many instructions it may run, of
    how many, and how many of them exit. Of those tried in both, if any were in root ring 3."""
    rows = [each for each in result.seen if each.mode == LONG]
    rows = [each for each in rows if each.here is not None] or rows
    counts: list[rings_figure.Count | None] = []
    for ring in RINGS:
        done = [each.rings[ring] for each in rows if _does(each, each.rings[ring])]
        exits = sum(outcome.kind == "exit" or bool(outcome.handled) for outcome in done)
        counts.append((len(done), len(rows), exits if result.counted else None))
    tried = [(each, each.here) for each in rows if each.here is not None]
    here_too = sum(_does(each, outcome) for each, outcome in tried)
    return (*counts, (here_too, len(tried), None) if tried else None)


def _does(each: Seen, outcome: Tried) -> bool:
    """Whether the instruction has its effect."""
    if each.rule == "popf":
        return outcome.kind == "runs" and not outcome.value & IF
    return outcome.kind in ("runs", "exit")


def _cell(rule: str, outcome: Tried, odd: bool) -> str:
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
