"""`kvmpy lab rings`: what the manuals say of each ring is what was seen."""

import dataclasses
import json
import signal

import pytest

from kvmpy.lab import rings, tries as _tries
from kvmpy.lab.show import rings as words

LONG, LEGACY = _tries.LONG, _tries.LEGACY
#: SDM vol. 3, "Privileged Instructions": #GP(0) unless the CPL is 0.
PRIVILEGED = (
    *("HLT", "MOV EAX, CR0", "MOV CR0, EAX", "MOV CR3, EAX", "MOV EAX, DR7", "CLTS", "LMSW"),
    *("LGDT", "LIDT", "LLDT", "RDMSR", "WRMSR", "INVLPG", "INVD", "WBINVD"),
)
#: What kvm_pvm is known to do otherwise: its interpreter, and ring 3 in the host's own.
KNOWN_ODD = {
    *((mode, "SYSRET", ring) for mode in (LONG, LEGACY) for ring in (0, 1, 2, 3)),
    *((LONG, "SWAPGS", ring) for ring in (1, 2)),
    (LONG, "RDTSC, TSD = 1", 3),
}
NATIVE_RING_3 = "its 64-bit ring 3 is the host's, where IOPL is not the guest's"


@pytest.fixture(scope="module")
def result():
    return rings.run()


def seen(result, mode, instruction):
    (found,) = [
        each for each in result.seen if (each.mode, each.instruction) == (mode, instruction)
    ]
    return found


def io(result, mode, instruction, iopl, allowed=False):
    (found,) = [
        each for each in result.io
        if (each.mode, each.instruction, each.iopl, each.allowed)
        == (mode, instruction, iopl, allowed)
    ]  # fmt: skip
    return found.rings


def refused(outcome):
    return (outcome.kind, outcome.name, outcome.error_code) == ("exception", "#GP", 0)


@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_cpl(result, mode):
    """SDM vol. 3, "Privilege Levels": the CPL is in the low bits of CS."""
    rings_seen = seen(result, mode, "MOV EAX, CS").rings
    assert [outcome.value & 3 for outcome in rings_seen] == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", [LONG, LEGACY])
@pytest.mark.parametrize("instruction", PRIVILEGED)
def test_privileged_instructions(result, mode, instruction):
    """They run in ring 0, and rings 1 to 3 get #GP(0)."""
    kernel, *others = seen(result, mode, instruction).rings
    assert kernel.kind in ("runs", "exit")
    assert all(map(refused, others))


@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_what_asks_user_space(result, mode):
    """HLT without an interrupt controller, and ports nobody claimed (KVM API, "kvm_run")."""
    for instruction, name in (("HLT", "HLT"), ("IN", "IN"), ("OUT", "OUT")):
        assert seen(result, mode, instruction).rings[0].name == name


def test_nothing_else_is_odd(result, module):
    """What contradicts the manuals is known of the module, and kvm_intel and kvm_amd do not."""
    odd = {(each.mode, each.instruction, ring) for each in result.seen for ring in each.odd}
    assert odd <= (KNOWN_ODD if module == "kvm_pvm" else set())


@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_the_interrupt_flag(result, mode):
    """SDM vol. 2, "CLI", "STI", "POPF": with IOPL 0 for ring 0; POPF drops it silently."""
    flag = [outcome.value & _tries.IF for outcome in seen(result, mode, "POPF, IF = 0").rings]
    assert flag == [0, *[_tries.IF] * 3]
    for instruction, after in (("CLI", 0), ("STI", _tries.IF)):
        kernel, *others = seen(result, mode, instruction).rings
        assert kernel.value & _tries.IF == after
        assert all(map(refused, others))


def _rings_to_ask(module, mode):
    return (0, 1, 2) if module == "kvm_pvm" and mode == LONG else (0, 1, 2, 3)


@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_iopl(result, module, mode):
    """SDM vol. 1, "I/O Privilege Level": CPL <= IOPL may use ports and IF."""
    for ring in _rings_to_ask(module, mode):
        assert io(result, mode, "OUT", 3)[ring].name == "OUT"
        assert io(result, mode, "CLI", 3)[ring].value & _tries.IF == 0
        assert io(result, mode, "CLI", 3)[ring].kind == "runs"
        assert io(result, mode, "POPF, IF = 0", 3)[ring].value & _tries.IF == 0
        assert refused(io(result, mode, "OUT", 0)[ring]) is (ring > 0)
        assert refused(io(result, mode, "CLI", 0)[ring]) is (ring > 0)


@pytest.mark.not_on("kvm_pvm", reason=NATIVE_RING_3)
def test_iopl_in_64_bit_ring_3(result):
    """As in the other rings."""
    assert io(result, LONG, "OUT", 3)[3].name == "OUT"
    assert io(result, LONG, "CLI", 3)[3].kind == "runs"


@pytest.mark.parametrize("mode", [LONG, LEGACY])
def test_io_bitmap(result, mode):
    """SDM vol. 1, "I/O Permission Bit Map": a clear bit gives the port to every ring."""
    assert [outcome.name for outcome in io(result, mode, "OUT", 0, True)] == ["OUT"] * 4


@pytest.mark.not_on("kvm_pvm", reason="interprets ring 0: its exits say nothing of instructions")
def test_what_exits_and_what_does_not(result):
    """SDM vol. 3, "Instructions That Cause VM Exits Unconditionally"; KVM intercepts the same on
    AMD. What is the guest's own, with EPT or NPT, does not exit: that is the point of VT-x."""
    assert result.counted
    for mode in (LONG, LEGACY):
        assert all(outcome.handled for outcome in seen(result, mode, "CPUID").rings)
        assert seen(result, mode, "INVD").rings[0].handled
        for instruction in ("CLI", "STI", "POPF, IF = 0", "LGDT", "LIDT", "LLDT", "RDTSC"):
            assert seen(result, mode, instruction).rings[0].handled == 0, instruction


def test_sysret_leads_to_ring_3(result):
    """SDM vol. 2, "SYSRET": the CPL is 3 afterwards."""
    assert seen(result, LONG, "SYSRET").rings[0].value & 3 == 3


def test_this_process_is_in_ring_3(result):
    """Root ring 3: as the guest's ring 3, and Linux makes SIGSEGV of #GP."""
    here = {each.instruction: each.here for each in result.seen if each.here is not None}
    assert here["MOV EAX, CS"].value & 3 == 3
    for instruction in (*PRIVILEGED, "SWAPGS", "SYSRET", "CLI", "STI", "IN", "OUT"):
        assert refused(here[instruction]), instruction
        assert here[instruction].signal == "SIGSEGV"
    assert here["POPF, IF = 0"].value & _tries.IF
    assert here["CPUID"].kind == "runs"


def test_trying_here_leaves_no_trace():
    """The handlers of this process, and its children, are as before."""
    before = [signal.getsignal(number) for number in (signal.SIGSEGV, signal.SIGILL)]
    outcome = _tries.here(_tries.Try("hlt"))
    assert outcome.name == "#GP"
    assert [signal.getsignal(number) for number in (signal.SIGSEGV, signal.SIGILL)] == before


def test_record_and_report(result):
    """Plain values, and text for 80 columns."""
    record = json.loads(json.dumps(dataclasses.asdict(result)))
    assert record["module"] == result.module
    picture = next(block for block in words.blocks(result) if hasattr(block, "svg"))
    assert max(map(len, picture.text.splitlines())) <= 79
