"""`kvmpy lab timeline`: one clock, every step after the one before, and no exit in a call."""

import dataclasses
import json
import sys
from itertools import pairwise
from xml.etree import ElementTree

import pytest

import kvmpy
from kvmpy import lab
from kvmpy.host import topology
from kvmpy.lab import timeline
from kvmpy.report import terminal
from kvmpy.report.blocks import Picture


@pytest.fixture(scope="module")
def result():
    allowed = topology.allowed_cpus()
    found = timeline.run(min(allowed))
    assert topology.allowed_cpus() == allowed  # pinned for the while alone
    return found


def test_each_step_follows_the_one_before(result):
    assert result.turn[0] == 0
    assert len(result.turn) == len(timeline.STEPS)
    assert all(a < b for a, b in pairwise(result.turn))
    assert len(result.medians) == len(timeline.STEPS) - 1
    assert min(result.medians) > 0
    assert result.turns > 0
    assert result.host_call > 0
    assert result.stamp_kernel > 0
    assert result.stamp_program > 0


def test_one_clock(result):
    """KVM API, "KVM_VCPU_TSC_CTRL": with offset 0 the guest's TSC is the host's."""
    assert result.shared
    assert abs(result.rate - 1) < 0.02


def test_a_call_does_not_leave_the_guest(result, module):
    """SDM vol. 3, "Instructions That Cause VM Exits": neither SYSCALL nor SYSRET nor IRET is among
    them; APM vol. 2, "Instruction Intercepts": KVM asks for none of theirs. OUT is, and does."""
    if module == "kvm_pvm":
        assert result.call == "int3"
        assert "ring 3" in result.failure
        assert result.exits_a_call >= 1  # each way between the rings is one
        return
    assert (result.call, result.failure) == ("syscall", "")
    assert result.exits_of_one >= 1
    assert result.exits_a_call < 1 / result.many


@pytest.mark.parametrize("calls", [1, 7])
def test_the_guest_makes_as_many_calls_as_asked(calls, module):
    """Counted by the handler, which is patched to count instead of taking stamps."""
    call = "int3" if module == "kvm_pvm" else "syscall"
    counter = 0x20_0200
    with timeline._Guest(call, None, module == "kvm_pvm") as guest:
        returning = "iretq" if call == "int3" else "sysretq"
        entry = guest.image[f"entry.{call}"]
        turn = guest.image[f"turn.{call}"]
        port = guest.image["PORT_LEAVE"]
        code = (
            f"inc dword ptr [{counter:#x}]; test edi, edi; jz 1f; out {port}, al; "
            f"mov eax, {turn:#x}; jmp rax; 1: {returning}"
        )
        guest.vm.load(kvmpy.asm(code), at=entry)
        guest.turn(calls)
        assert int.from_bytes(guest.vm.memory.read(counter, 4), "little") == calls + 1


def test_what_it_shows(result, module, capsys):
    section = lab.section("timeline", result)
    terminal.section(section, sys.stdout)
    text = capsys.readouterr().out
    pictures = [block for block in section.blocks if isinstance(block, Picture)]
    assert len(pictures) == 2
    for picture in pictures:
        assert all(len(line) <= 79 for line in picture.text.splitlines())
        ElementTree.fromstring(picture.svg)
    assert pictures[0].text.count("*") == len(timeline.STEPS)
    assert module in json.dumps(dataclasses.asdict(result))
    proof = {
        True: "leaves the guest",
        False: "It never leaves non-root mode",
    }[module == "kvm_pvm"]
    assert proof in text
    assert "is not stamped" in text
    assert bool(result.emulator) == ("time is virtual" in text)
