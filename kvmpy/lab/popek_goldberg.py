"""The instructions of x86 that Popek and Goldberg's theorem stumbles over.

Their condition for a monitor that traps and emulates: what is sensitive (shows or changes the
machine's real state, or does another thing in another ring) traps outside of ring 0.

Sources: Popek and Goldberg, "Formal Requirements for Virtualizable Third Generation Architectures"
(CACM, 1974); the list of instructions: Robin and Irvine, "Analysis of the Intel Pentium's Ability
to Support a Secure Virtual Machine Monitor" (USENIX Security, 2000); SDM vol. 2, the instructions'
pages, and vol. 3, "Protection"; UMIP: SDM vol. 3, "Control Registers".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from ..host.cpu import cpuid
from ..probe.verdict import verdict as find_verdict
from ..report.blocks import Block
from ..report.table import Table
from ..x86.descriptors import KERNEL_CODE, KERNEL_DATA
from .show import sensitive_figure as _sensitive_figure
from .tries import IF, LEGACY, LONG, MODES, Guest, Outcome, Try, here

#: Where a guest's kernel believes to be, where a monitor would put it, and where its programs are.
CPLS: Final = (0, 1, 3)
_UMIP: Final = 1 << 11  # CR4
#: What Linux gives a process that UMIP has trapped ("arch/x86/kernel/umip.c").
_LINUX_DUMMIES: Final = {"SGDT": 0xFFFF_FFFF_FFFE_0000, "SIDT": 0xFFFF_FFFF_FFFF_0000}

#: "traps": an exception; "leaks": the machine's own state, as ring 0 sees it; "differs": another
#: answer or effect than in ring 0, and nobody is told; "": KVM cannot show it here.
Verdict = Literal["traps", "leaks", "differs", ""]


@dataclass(frozen=True)
class _Row:
    """An instruction; ``finds``: how what it found is written."""

    title: str
    finds: Literal["base", "number", "flags", "yes", "ring", "done"]
    what: Try
    umip: bool = False


_ROWS: Final = (
    _Row("SGDT", "base", Try("sgdt"), umip=True),
    _Row("SIDT", "base", Try("sidt"), umip=True),
    _Row("SLDT", "number", Try("sldt"), umip=True),
    _Row("STR", "number", Try("str"), umip=True),
    _Row("SMSW", "number", Try("smsw"), umip=True),
    _Row("PUSHF", "flags", Try("pushf")),
    _Row("POPF, IF = 0", "flags", Try("popf")),
    _Row("LAR", "yes", Try("lar", operand=KERNEL_CODE)),
    _Row("LSL", "yes", Try("lsl", operand=KERNEL_CODE)),
    _Row("VERR", "yes", Try("verr", operand=KERNEL_DATA)),
    _Row("VERW", "yes", Try("verw", operand=KERNEL_DATA)),
    _Row("PUSH GS", "ring", Try("push_segment")),
    _Row("MOV EAX, SS", "ring", Try("mov_from_segment")),
    _Row("CALL far", "ring", Try("call_far")),
    _Row("POP GS", "done", Try("pop_segment", operand=KERNEL_DATA)),
    _Row("MOV GS, EAX", "done", Try("mov_to_segment", operand=KERNEL_DATA)),
    _Row("JMP far", "done", Try("jmp_far", operand=KERNEL_CODE)),
    _Row("RET far", "done", Try("ret_far", operand=KERNEL_CODE)),
    _Row("INT n", "done", Try("int_n")),
)
_NO_NON_ROOT: Final = "kvm_pvm"  # it needs no VT-x and no AMD-V
_WORLDS: Final = ("SGDT", "SIDT", "STR", "SMSW", "PUSHF", "MOV EAX, SS")


@dataclass(frozen=True)
class Seen:
    """An instruction at CPL 0, 1 and 3 (``outcomes``), and what came of it at 1 and 3
    (``verdicts``). ``umip``: whether CR4.UMIP was set."""

    mode: str
    instruction: str
    umip: bool
    outcomes: tuple[Outcome, ...]
    verdicts: tuple[Verdict, Verdict]


@dataclass(frozen=True)
class World:
    """An instruction in root ring 3, in this process; and in a 64-bit guest's rings 3 and 0."""

    instruction: str
    root: Outcome
    guest: Outcome
    kernel: Outcome


@dataclass(frozen=True)
class Result:
    """What was seen. ``counted``: whether exits could be counted. ``no_umip``, ``no_worlds``: why
    nothing was tried with UMIP, or in this process; "" if it was. ``made_up``: the CPU has no UMIP,
    KVM makes it up with exits: of all but SMSW, whose accesses VT-x does not let it see."""

    module: str
    verdict: str
    counted: bool
    seen: tuple[Seen, ...]
    worlds: tuple[World, ...]
    no_umip: str = ""
    no_worlds: str = ""
    made_up: bool = False


def run(pin: int | None = None) -> Result:
    """Try the instructions in both modes, without and with UMIP; takes a second.

    >>> result = kvmpy.lab.experiment("popek-goldberg").run()
    >>> {each.instruction: each.verdicts[0] for each in result.seen}["MOV EAX, SS"]
    'differs'
    """
    found = find_verdict()
    seen: list[Seen] = []
    counted, no_umip = False, ""
    for mode in MODES:
        with Guest(mode, found, pin) as guest:
            counted = guest.counted
            seen += (_instruction(guest, mode, row, 0) for row in _ROWS)
            no_umip = _no_umip(guest, found.module)
            if not no_umip:
                seen += (_instruction(guest, mode, row, _UMIP) for row in _ROWS if row.umip)
    worlds, no_worlds = _worlds(seen)
    made_up = not no_umip and not _cpu_has_umip()
    return Result(
        found.module, found.summary, counted, tuple(seen), worlds, no_umip, no_worlds, made_up
    )


def _cpu_has_umip() -> bool:
    return bool(cpuid(0)[0] >= 7 and cpuid(7)[2] >> 2 & 1)


def _no_umip(guest: Guest, module: str) -> str:
    if "umip" in guest.cpu.cpuid:
        return ""
    return f"{module} offers no UMIP to guests here (CPUID leaf 7, ECX bit 2)."


def _instruction(guest: Guest, mode: str, row: _Row, cr4: int) -> Seen:
    what = Try(row.what.name, row.what.operand, cr4=cr4)
    outcomes = tuple(guest.attempt(what, ring) for ring in CPLS)
    kernel, *others = outcomes
    first, second = (_judged(row, kernel, outcome) for outcome in others)
    return Seen(mode, row.title, bool(cr4), outcomes, (first, second))


def _judged(row: _Row, kernel: Outcome, outcome: Outcome) -> Verdict:
    if kernel.kind != "runs" or not outcome.shown:
        return ""
    if outcome.kind != "runs":  # a refusal is #GP; what else comes is not the instruction's
        return "traps" if outcome.name == "#GP" else ""
    same = (kernel.value, kernel.second) == (outcome.value, outcome.second)
    return "leaks" if same else "differs"


def _worlds(seen: list[Seen]) -> tuple[tuple[World, ...], str]:
    tries = {row.title: row.what for row in _ROWS}
    found = []
    for each in seen:
        if each.mode != LONG or each.umip or each.instruction not in _WORLDS:
            continue
        try:
            root = here(tries[each.instruction])
        except OSError as error:
            return (), f"Nothing could be tried in a child of this process: {error}."
        found.append(World(each.instruction, root, each.outcomes[2], each.outcomes[0]))
    return tuple(found), ""


# ---- what it says


def show(result: Result) -> Iterable[Block]:
    """The tables, and what they mean.

    >>> lab = kvmpy.lab.experiment("popek-goldberg")
    >>> next(iter(lab.show(lab.run())))[:9]
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
    yield _sensitive_figure.picture(_bars(result))
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


def _found(instruction: str, outcome: Outcome) -> str:
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
        "Under kvm_pvm there is no non-root mode, it is played: 64-bit ring 3 runs in the host's "
        "own ring 3, and the rest is interpreted. The interpreter knows no LAR, LSL, VERR, VERW "
        "and INT n (unknown); INT n in ring 3 is #UD, and GS is not the guest's there."
    )
