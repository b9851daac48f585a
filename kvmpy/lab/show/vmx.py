"""What the experiment ``vmx`` has found, as tables, pictures and a few sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from ...report import svg
from ...report.blocks import Block, Picture
from ...report.table import DASH, HEADING, Table, number
from ..vmx_codes import PARTS

if TYPE_CHECKING:
    from ..vmx import Result

_WORDS: Final = {
    "VT-x": (
        "EPT: paging in two steps, without exits; VPID: tags for a guest's TLB entries; "
        "unrestricted guest: real mode too; APICv and posted interrupts: interrupts without exits"
    ),
    "AMD-V": (
        "NPT: paging in two steps, without exits; ASIDs: tags for a guest's TLB entries; "
        "AVIC: interrupts without exits; virtual GIF, VMLOAD and VMSAVE: for nested hypervisors"
    ),
}
_YES: Final = {True: "yes", False: "no", None: "?"}
_ON: Final = {True: "on", False: "off", None: DASH}


def blocks(result: Result) -> Iterator[Block]:
    """The blocks of ``kvmpy.lab.vmx.show``.

    >>> from kvmpy.lab.show import vmx
    >>> bool(list(vmx.blocks(kvmpy.lab.experiment("vmx").run())))
    True
    """
    yield (
        "Each of the two extensions adds a mode: root for the hypervisor, non-root for the guest, "
        "both with rings 0 to 3 (AMD's manuals say host and guest). A guest's whole state is in a "
        "page of memory, VMCS or VMCB; VMLAUNCH or VMRUN enters it, and what the hypervisor has "
        "chosen to see brings the CPU back: an exit."
    )
    yield from _offer(result)
    if result.remedy:
        yield _absent(result)
    else:
        yield (
            f"This host's KVM hands {result.extension} on. So a guest can be a hypervisor: L1, "
            "below in non-root ring 0, turns it on, and runs a guest of a few instructions, L2. "
            "Each right step comes after wrong ones that the CPU must refuse."
        )
    yield _steps(result)
    if result.failure:
        yield f"The guest did not come to its end: {result.failure}."
    if result.l2_saw:
        yield _what_l2_saw(result)
        yield _picture(result)
        yield _trips(result)
        yield _refusals(result)


# -- what is offered


def _offer(result: Result) -> Iterator[Block]:
    title = f"What {result.vendor or 'this CPU'} and {result.module} offer"
    if not result.features:
        yield f"{title}: neither VT-x nor AMD-V is to be seen on this host's CPU."
        return
    rows = [
        (feature.name, _YES[feature.cpu], _ON[feature.module], _YES[feature.guests])
        for feature in result.features
    ]
    notes = [f"{name}: {value}" for name, value in result.facts]
    notes.append(_WORDS["VT-x" if rows[0][0] == "EPT" else "AMD-V"])
    notes.append(
        "module: how its parameter is set, - for none; guests: what a guest's own hypervisor is "
        "offered, some of it emulated by KVM where the CPU lacks it"
    )
    yield Table(title, ("", "CPU", "module", "guests"), tuple(rows), notes=tuple(notes))


def _absent(result: Result) -> str:
    first = (
        "CR4.VMXE is a reserved bit, so setting it is #GP, and VMXON is an unknown instruction, #UD"
        if result.extension == "VT-x"
        else "EFER.SVME is a reserved bit, so setting it is #GP, and VMRUN is an unknown "
        "instruction, #UD"
    )
    return (
        f"Guests here do not get {result.extension}. What they see instead: CPUID does not show "
        f"it; {first}. {result.remedy}"
    )


# -- the steps


def _steps(result: Result) -> Table:
    counted = any(step.exits is not None for step in result.steps)
    rows: list[tuple[str, ...]] = []
    for step in result.steps:
        if step.name in PARTS:
            rows.append((HEADING, PARTS[step.name]))
        exits = (DASH if step.exits is None else str(step.exits),) if counted else ()
        rows.append((step.title, step.outcome, *exits))
    header = ("L1 tries", "and gets", *(("exits",) if counted else ()))
    notes = (
        ("exits: to L0, for the whole step; page faults and the host's interrupts left out",)
        if counted
        else ()
    )
    return Table(
        f"A hypervisor in a guest: {result.extension}, step by step", header, tuple(rows),
        left=2, notes=notes,
    )  # fmt: skip


def _what_l2_saw(result: Result) -> str:
    return (
        f'CPUID told L2 "{result.l2_saw}": L1 had put that into EBX, ECX and EDX, and moved L2\'s '
        "RIP on. This is all there is to emulating an instruction."
    )


def _trips(result: Result) -> str:
    text = (
        "The CPU knows two levels only. L0 runs L1 and L2 by turns, with a VMCS (VMCB) of its own "
        "for L2 that merges what L1 wants with what L0 wants of L1; each exit of L2 comes to L0, "
        "which hands it to L1 if L1 had asked for it."
    )
    if result.exits_per_trip is None:
        return text
    per = number(result.exits_per_trip)
    text += (
        f" An exit of L2 to L1 and back was {per} exits to L0 here, over {result.trips} of them: "
    )
    if result.extension == "AMD-V":
        return text + "L2's own and L1's VMRUN. The VMCB is memory, which L1 reads without exits."
    if result.exits_per_trip < 3:
        return text + (
            "L2's own and L1's VMRESUME. L1's VMREADs and VMWRITEs do not exit, because the CPU "
            "has VMCS shadowing and KVM uses it."
        )
    return text + (
        "L2's own, L1's VMRESUME, and each of its VMREADs and VMWRITEs, for want of VMCS shadowing."
    )


def _refusals(result: Result) -> str:
    if result.extension == "AMD-V":
        return (
            "VMRUN has one word for all that its consistency checks find wrong, exit code -1 "
            "(VMEXIT_INVALID), and a fault, #GP, for an "
            "address that cannot be a VMCB. After an exit the global interrupt flag is 0: nothing "
            "interrupts L1, not even an NMI, until STGI."
        )
    return (
        "VT-x refuses in three ways. Not on, or not allowed by IA32_FEATURE_CONTROL: a fault. "
        "A wrong operand, control or host field: the instruction ends with ZF set and an error "
        "number in the current VMCS (VMfailValid), or without a VMCS with CF (VMfailInvalid). A "
        "wrong guest field: the entry begins, fails, and comes back as an exit with bit 31 of the "
        "reason set, and a qualification that may say which check it was."
    )


# -- an exit of L2, as a sequence


_ENTER: Final = {"VT-x": "VMRESUME", "AMD-V": "VMRUN"}
_STATE: Final = {"VT-x": "VMCS", "AMD-V": "VMCB"}


def _messages(result: Result) -> tuple[tuple[int, int, str], ...]:
    """From lane, to lane (0: L0, 1: L1, 2: L2), words."""
    enter, state = _ENTER[result.extension], _STATE[result.extension]
    return (
        (2, 0, "CPUID: exit"),
        (0, 1, f"entry, {state} filled in"),
        (1, 0, f"{enter}: exit"),
        (0, 2, f"entry: merged {state}"),
    )


def _picture(result: Result) -> Picture:
    return Picture(
        _sequence_svg(result),
        _sequence_text(result),
        "An exit of L2, seen by L1: two entries and two exits of the hardware.",
    )


_LANES: Final = (
    ("L0: KVM", "root ring 0"),
    ("L1: our hypervisor", "non-root ring 0"),
    ("L2: its guest", "non-root ring 0"),
)


def _sequence_svg(result: Result) -> str:
    centres = (63.0, 215.0, 367.0)
    parts: list[str] = []
    bottom = 208.0
    for lane, ((name, ring), x) in enumerate(zip(_LANES, centres, strict=True)):
        kind = ("lane5", "lane0", "lane2")[lane]
        parts.append(svg.box(x - 61, 4, 122, 40, kind=kind, outline=True))
        parts.append(svg.text(x, 21, name, anchor="middle"))
        parts.append(svg.text(x, 37, ring, anchor="middle", kind="dim", size=11))
        parts.append(svg.line(x, 44, x, bottom, kind="grid", width=2))
    for i, (start, end, words) in enumerate(_messages(result)):
        y = 80.0 + 36 * i
        kind = "bad" if end == 0 else "good"
        parts.append(svg.arrow(centres[start], y, centres[end], y, kind=kind))
        # Left of L1's line, not across it.
        parts.append(svg.text(sum(centres[:2]) / 2, y - 6, words, anchor="middle", size=11))
    return svg.drawing(430, bottom + 4, "An exit of a nested guest", parts)


def _sequence_text(result: Result) -> str:
    columns = (6, 36, 66)
    lines = [
        "  L0: KVM                L1: our hypervisor              L2: its guest",
        "  root ring 0             non-root ring 0               non-root ring 0",
    ]
    for start, end, words in _messages(result):
        row = [" "] * 67
        for column in columns:
            row[column] = "|"
        low, high = sorted((columns[start], columns[end]))
        for at in range(low + 1, high):
            row[at] = "-"
        if start < end:
            row[high - 1] = ">"
        else:
            row[low + 1] = "<"
        label = f" {words} "
        at = columns[0] + 3
        row[at : at + len(label)] = label
        lines.append("".join(row))
    return "\n".join(lines)
