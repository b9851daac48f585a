"""What the experiment with sensitive instructions says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ...report.blocks import Block
from ...report.table import Table
from ..popek_goldberg import _LINUX_DUMMIES, _NO_NON_ROOT, _ROWS, CPLS, Result, Seen, World
from ..tries import IF, LEGACY, LONG, MODES, Tried
from . import sensitive_figure


def blocks(result: Result) -> Iterable[Block]:
    """The tables, and what they mean.

    >>> lab = kvmpy.lab.experiment("popek-goldberg")
    >>> next(iter(lab.blocks(lab.run())))[:9]
    'Popek and'
    """
    yield (
        "Popek and Goldberg (1974): a monitor can run a guest's kernel outside of ring 0 and "
        "emulate what traps, if every sensitive instruction does trap there: every one that shows "
        "or changes the machine's real state, or does another thing in another ring. On x86 some "
        "do not. Here is a kernel that believes in CPL 0, moved to CPL 1 and to CPL 3."
    )
    yield from _limits(result)
    yield _table(result, LONG)
    differing = _table(result, LEGACY, differing=True)
    yield differing if differing.rows else "In 32-bit protected mode: the same, cell by cell."
    yield sensitive_figure.picture(_bars(result))
    yield (
        "leaks: it reads the real register, the monitor's, as if it were the guest's. differs: "
        "another answer than in ring 0, or no effect, and nobody is told: POPF leaves IF alone, "
        "LAR says no, PUSH shows the ring. A monitor cannot mend what it never hears of. So before "
        "VT-x monitors rewrote such code (VMware) or the kernel's source (Xen)."
    )
    yield from _umip(result)
    yield from _two_worlds(result)
    yield (
        "VT-x and AMD-V did not make these instructions trap. They made ring 0 safe to give away: "
        "what SGDT, POPF or MOV EAX, SS reach in non-root mode is the guest's own GDTR, IF and SS, "
        f"loaded on VM entry, saved on VM exit. {_exits(result)}"
    )


def _table(result: Result, mode: str, *, differing: bool = False) -> Table:
    rows = {one: _rows(result, one, umip=False) for one in MODES}
    shown = rows[mode]
    if differing:
        shown = tuple(row for row in shown if row not in rows[LONG])
    header = ("", *(f"CPL {cpl}" for cpl in CPLS), "at CPL 1", "at CPL 3")
    notes = () if differing else (
        "LAR LSL VERR VERW: may I use ring 0's segment? POP, MOV GS, JMP, RET: load it",
        "CALL: to CS itself; shown is the CS it saves. INT n: through a gate of DPL 0",
    )  # fmt: skip
    title = f"Where {mode} differs" if differing else f"Sensitive instructions, {mode}"
    return Table(title, header, shown, len(header), notes)


def _rows(result: Result, mode: str, *, umip: bool) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            each.instruction,
            *(_found(each.instruction, outcome) for outcome in each.outcomes),
            *(verdict or "-" for verdict in each.verdicts),
        )
        for each in result.seen
        if each.mode == mode and each.umip is umip
    )


def _found(instruction: str, outcome: Tried) -> str:
    """What an instruction found, in a table's cell."""
    if outcome.kind != "runs":
        code = outcome.error_code
        return f"{outcome.name}({code:#x})" if code else outcome.word
    finds = next(row.finds for row in _ROWS if row.title == instruction)
    if finds == "base":
        return f"{outcome.value:#x}"
    if finds == "number":
        return f"{outcome.value & 0xFFFF:#06x}"
    if finds == "flags":
        return f"IF = {int(bool(outcome.value & IF))}"
    if finds == "yes":
        return "yes" if outcome.second else "no"
    return f"{outcome.value:#04x}" if finds == "ring" else "done"


def _bars(result: Result) -> dict[str, dict[str, int]]:
    """Where a 64-bit kernel is -> what its instructions do there -> how many."""
    plain = {each.instruction: each for each in result.seen if each.mode == LONG and not each.umip}
    bars = {"kernel at CPL 1": _counted(plain)}
    if not result.no_umip:
        umip = {each.instruction: each for each in result.seen if each.mode == LONG and each.umip}
        bars["kernel at CPL 1, UMIP on"] = _counted(plain | umip)
    if result.module != _NO_NON_ROOT:
        own = sum(each.outcomes[0].kind == "runs" for each in plain.values())
        bars["kernel in non-root ring 0"] = {"own": own, "": len(plain) - own}
    return bars


def _counted(seen: dict[str, Seen]) -> dict[str, int]:
    return Counter(each.verdicts[0] for each in seen.values())


def _umip(result: Result) -> Iterable[Block]:
    if result.no_umip:
        yield f"UMIP, by which five of them trap outside of ring 0: {result.no_umip}"
        return
    rows = _rows(result, LONG, umip=True)
    header = ("", *(f"CPL {cpl}" for cpl in CPLS), "at CPL 1", "at CPL 3")
    same = _rows(result, LEGACY, umip=True) == rows
    notes = (f"{LEGACY}: {'the same' if same else 'not quite the same, see the record (--json)'}",)
    yield Table(f"The same five with CR4.UMIP = 1, {LONG}", header, rows, len(header), notes)
    yield (
        "UMIP (User-Mode Instruction Prevention) makes five of them trap outside of ring 0, "
        "to hide the kernel's addresses from programs. The others stay as they are."
    )
    if result.made_up:
        yield (
            "This CPU has no UMIP: KVM makes it up. While a guest has it on, SGDT, SIDT, SLDT and "
            "STR exit in every ring, and KVM does them or injects #GP. VT-x has no such exit for "
            "SMSW, which goes on leaking."
        )


def _two_worlds(result: Result) -> Iterable[Block]:
    if result.no_worlds:
        yield result.no_worlds
        return
    rows = tuple(
        (
            each.instruction,
            _root(each),
            _found(each.instruction, each.guest),
            _found(each.instruction, each.kernel),
        )
        for each in result.worlds
    )
    header = ("", "root ring 3", "non-root ring 3", "non-root ring 0")
    notes = ["root ring 3: this process"]
    if any(_is_dummy(each) for each in result.worlds):
        notes.append("dummy: UMIP is on, SGDT traps, and the host's Linux makes something up")
    yield Table("One CPU, one instruction, two worlds", header, rows, len(header), tuple(notes))


def _is_dummy(each: World) -> bool:
    return each.root.kind == "runs" and _LINUX_DUMMIES.get(each.instruction) == each.root.value


def _root(each: World) -> str:
    return "a dummy" if _is_dummy(each) else _found(each.instruction, each.root)


def _exits(result: Result) -> str:
    if not result.counted:
        return "Exits cannot be counted here; where they can, these instructions cause none."
    kernel = [each.outcomes[0] for each in result.seen if not each.umip]
    total = sum(outcome.handled or 0 for outcome in kernel)
    ran = sum(outcome.kind == "runs" for outcome in kernel)
    return f"In non-root ring 0, {ran} of {len(kernel)} tries ran, with {total} VM exits."


def _limits(result: Result) -> Iterable[Block]:
    """What this module cannot show, and why."""
    if result.module != _NO_NON_ROOT:
        return
    yield (
        "Under kvm_pvm there is no non-root mode; it is imitated: 64-bit ring 3 runs in the host's "
        "own ring 3, and the rest is interpreted. The interpreter knows no LAR, LSL, VERR, VERW "
        "and INT n (unknown); INT n in ring 3 is #UD, and GS is not the guest's there."
    )
