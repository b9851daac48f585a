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
from ..x86.descriptors import KERNEL_CODE
from .tries import IF, LONG, MODES, PORT, RINGS, Guest, Tried, Try, here

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
    rings: tuple[Tried, ...]
    odd: tuple[int, ...]
    here: Tried | None = None


@dataclass(frozen=True)
class Io:
    """An instruction in rings 0 to 3 with an ``iopl``; ``allowed``: its port, by the bitmap."""

    mode: str
    instruction: str
    iopl: int
    allowed: bool
    rings: tuple[Tried, ...]
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


def _is_odd(outcome: Tried, rule: str, ring: int, iopl: int = 0, allowed: bool = False) -> bool:
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
