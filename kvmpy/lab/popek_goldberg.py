"""The instructions of x86 that Popek and Goldberg's theorem stumbles over.

Their condition for a monitor that traps and emulates: what is sensitive (shows or changes the
machine's real state, or does another thing in another ring) traps outside of ring 0.

Sources: Popek and Goldberg, "Formal Requirements for Virtualizable Third Generation Architectures"
(CACM, 1974); the list of instructions: Robin and Irvine, "Analysis of the Intel Pentium's Ability
to Support a Secure Virtual Machine Monitor" (USENIX Security, 2000); SDM vol. 2, the instructions'
pages, and vol. 3, "Protection"; UMIP: SDM vol. 3, "Control Registers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ..host.cpuid import cpuid
from ..probe.verdict import verdict as find_verdict
from ..x86.descriptors import KERNEL_CODE, KERNEL_DATA
from .tries import LONG, MODES, Guest, Tried, Try, here

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
    outcomes: tuple[Tried, ...]
    verdicts: tuple[Verdict, Verdict]


@dataclass(frozen=True)
class World:
    """An instruction in root ring 3, in this process; and in a 64-bit guest's rings 3 and 0."""

    instruction: str
    root: Tried
    guest: Tried
    kernel: Tried


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


def _judged(row: _Row, kernel: Tried, outcome: Tried) -> Verdict:
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
