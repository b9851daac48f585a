"""`kvmpy lab popek-goldberg`: which sensitive instructions trap outside of ring 0, and which do
not, is as the manuals say."""

import dataclasses
import json

import pytest

from kvmpy.host.cpu import identify
from kvmpy.lab import popek_goldberg, tries as _tries
from kvmpy.lab.show import popek_goldberg as words

LONG, LEGACY = _tries.LONG, _tries.LEGACY
#: SDM vol. 2, the instructions' pages: for every CPL unless CR4.UMIP says otherwise.
TABLES = ("SGDT", "SIDT", "SLDT", "STR", "SMSW")
#: ZF tells whether the CPL may use the segment; no exception.
QUESTIONS = ("LAR", "LSL", "VERR", "VERW")
#: The CS or SS that they show has the CPL in it.
SHOW_RING = ("MOV EAX, SS", "CALL far")
#: SDM vol. 3, "Privilege Checking ...": a segment of DPL 0 is refused with #GP(selector).
LOADS = ("POP GS", "MOV GS, EAX", "JMP far", "RET far")
INTERPRETER = "its interpreter does not know the instruction"


@pytest.fixture(scope="module")
def result():
    return popek_goldberg.run()


def seen(result, mode, instruction, umip=False):
    (found,) = [
        each for each in result.seen
        if (each.mode, each.instruction, each.umip) == (mode, instruction, umip)
    ]  # fmt: skip
    return found


@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", [*TABLES, "PUSHF"])
def test_leaks(result, mode, instruction):
    """CPL 1 and 3 read what CPL 0 reads."""
    each = seen(result, mode, instruction)
    assert len({outcome.value for outcome in each.outcomes}) == 1
    assert each.verdicts == ("leaks", "leaks")


@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", ["POPF, IF = 0", *SHOW_RING])
def test_differs_silently(result, mode, instruction):
    """It runs at each CPL, and does or shows another thing."""
    each = seen(result, mode, instruction)
    assert [outcome.kind for outcome in each.outcomes] == ["runs"] * 3
    assert each.verdicts == ("differs", "differs")
    if instruction in SHOW_RING:
        assert [outcome.value & 3 for outcome in each.outcomes] == [0, 1, 3]


@pytest.mark.not_on("kvm_pvm", reason=INTERPRETER)
@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", QUESTIONS)
def test_questions_about_a_segment(result, mode, instruction):
    """SDM vol. 2, "LAR", "LSL", "VERR/VERW": yes at CPL 0, no elsewhere, for a DPL of 0."""
    each = seen(result, mode, instruction)
    assert [outcome.second for outcome in each.outcomes] == [1, 0, 0]
    assert each.verdicts == ("differs", "differs")


@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", LOADS)
def test_loading_ring_0s_segment_traps(result, module, mode, instruction):
    """Done at CPL 0, #GP(selector) at CPL 1."""
    each = seen(result, mode, instruction)
    assert each.outcomes[0].kind == "runs"
    for outcome in each.outcomes[1 : 2 if module == "kvm_pvm" else 3]:
        assert (outcome.name, outcome.error_code) in (("#GP", 0x10), ("#GP", 0x18))


@pytest.mark.not_on("kvm_pvm", reason=INTERPRETER)
@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_int_n_through_a_gate_of_dpl_0(result, mode):
    """SDM vol. 3, "Protection of Exception- and Interrupt-Handler Procedures": #GP, the vector in
    its error code, IDT flag set."""
    each = seen(result, mode, "INT n")
    assert each.outcomes[0].value & 3 == 0
    # QEMU 7.2's TCG counts gates of 16 bytes where the manual counts entries.
    shift = 4 if identify().emulator == "QEMU TCG" and mode == LONG else 3
    assert [outcome.error_code for outcome in each.outcomes[1:]] == [0x40 << shift | 2] * 2
    assert each.verdicts == ("traps", "traps")


@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", TABLES)
def test_umip(result, mode, instruction):
    """SDM vol. 3, "Control Registers", UMIP: #GP(0) where the CPL is not 0."""
    if result.no_umip:
        assert "UMIP" in result.no_umip
        return
    kernel, *others = seen(result, mode, instruction, umip=True).outcomes
    assert kernel.kind == "runs"
    if result.made_up and instruction == "SMSW":
        assert [outcome.kind for outcome in others] == ["runs"] * 2  # no control has it exit
        return
    assert [(outcome.name, outcome.error_code) for outcome in others] == [("#GP", 0)] * 2


@pytest.mark.not_on("kvm_pvm", reason="interprets ring 0: its exits say nothing of instructions")
def test_none_of_them_exits_from_non_root_ring_0(result):
    """VT-x does not make them trap: no control of KVM's has them exit ("VM-Execution Control
    Fields")."""
    assert result.counted
    handled = [each.outcomes[0].handled for each in result.seen if not each.umip]
    assert handled == [0] * len(handled)


def test_two_worlds(result):
    """This process's SS is not the guest's kernel's, and its tables are the host's."""
    worlds = {each.instruction: each for each in result.worlds}
    assert worlds["MOV EAX, SS"].root.value & 3 == 3
    assert worlds["MOV EAX, SS"].kernel.value & 3 == 0
    root, guest = worlds["SGDT"].root, worlds["SGDT"].guest
    assert root.kind != "runs" or root.value != guest.value


def test_record_and_report(result):
    """Plain values, and text for 80 columns."""
    json.dumps(dataclasses.asdict(result))
    picture = next(block for block in words.blocks(result) if hasattr(block, "svg"))
    assert max(map(len, picture.text.splitlines())) <= 79
