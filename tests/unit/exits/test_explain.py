"""What an exit means, in words, and what usually causes it on each module."""

import pytest

from kvmpy.exits import reasons as exits
from kvmpy.exits.explain import headline, likely_cause


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd", "kvm_pvm", "kvm"])
def test_triple_fault(module):
    """On AMD the state is INIT's, maybe: said (correctness 16). On the others it is not."""
    text = likely_cause(exits.Shutdown(), module)
    assert ("INIT" in text) == (module == "kvm_amd")
    assert "handler could not be reached" in text


def test_emulation_failure():
    """On kvm_pvm the emulator is the reason; elsewhere memory that must be emulated."""
    exit = exits.InternalError(1, ())
    assert "emulator lacks" in likely_cause(exit, "kvm_pvm")
    assert "MMIO" in likely_cause(exit, "kvm_intel")


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (exits.IoOut(0x70, 1, b"\x0f"), ("wrote 0f", "port 0x70")),
        (exits.IoIn(0x71, 2), ("read 2 bytes", "port 0x71")),
        (exits.MmioWrite(0xD000_0000, b"\x01\x02"), ("01 02", "0xd0000000")),
        (exits.MmioRead(0xD000_0000, 4), ("read 4 bytes", "0xd0000000")),
        (exits.Hlt(), ("HLT",)),
        (exits.Shutdown(), ("triple fault",)),
        (exits.InternalError(1, ()), ("suberror 1", "emulation")),
        (exits.FailEntry(0x8000_0021, 3), ("0x80000021", "pCPU 3")),
        (exits.MemoryFault(0, 0x1000, 4096), ("0x1000",)),
        (exits.Timeout(), ("time",)),
        (exits.ExitLimit(), ("exits",)),
        (exits.Kicked(0), ("kick",)),
        (exits.Kicked(2), ("signal",)),
        (exits.DebugExit(3), ("status 3",)),
        (exits.OtherExit(77), ("77",)),
    ],
)
def test_headline(exit, words):
    """One line with the exit's data."""
    text = headline(exit)
    assert "\n" not in text
    for word in words:
        assert word in text
