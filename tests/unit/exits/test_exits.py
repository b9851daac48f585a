"""Exits as values: decoding of what the shim lays flat, hostile words included."""

import dataclasses
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy.exits import reasons as exits
from kvmpy.run import decode as exit_decode
from kvmpy.stats import run as stats

PAGE = memoryview(bytearray(b"ABCDEFGH" * 512)).toreadonly()
WORD = st.integers(0, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([0, 0x31], exits.Unknown(0x31)),
        ([1, 6, 2], exits.Exception_(6, 2)),
        ([2, 1, 0x3F8, 1, 1, 8], exits.IoOut(0x3F8, 1, b"A", 1)),
        ([2, 1, 0x3F8, 2, 3, 8], exits.IoOut(0x3F8, 2, b"ABCDEF", 3)),
        ([2, 0, 0x60, 4, 2, 8], exits.IoIn(0x60, 4, 2)),
        ([3, 7, 1, 2, 3, 4, 5, 6, 0], exits.Hypercall(7, (1, 2, 3, 4, 5, 6), False)),
        ([3, 12, 1, 2, 3, 4, 5, 6, 1], exits.Hypercall(12, (1, 2, 3, 4, 5, 6), True)),
        ([4, 1, 0x1000, 0x4000, 0x400], exits.Debug(1, 0x1000, 0x4000, 0x400)),
        ([5], exits.Hlt()),
        ([6, 1, 0xD000_0000, 4, 0x8877_6655_4433_2211],
         exits.MmioWrite(0xD000_0000, b"\x11\x22\x33\x44")),
        ([6, 0, 0xD000_0000, 8, 0], exits.MmioRead(0xD000_0000, 8)),
        ([7], exits.IrqWindowOpen()),
        ([8], exits.Shutdown()),
        ([9, 0x8000_0021, 3], exits.FailEntry(0x8000_0021, 3)),
        ([10], exits.Intr()),
        ([11], exits.SetTpr()),
        ([12, 0x1000, 1], exits.TprAccess(0x1000, True)),
        ([16], exits.Nmi()),
        ([17, 1], exits.InternalError(1, ())),
        ([17, 3, 8, 9], exits.InternalError(3, (8, 9))),
        ([24, 2, 5], exits.SystemEvent(2, (5,))),
        ([26, 0x31], exits.IoapicEoi(0x31)),
        ([27, 1, 0x4000_0080, 1, 0x2001, 0x3001],
         exits.HypervSynic(0x4000_0080, 1, 0x2001, 0x3001)),
        ([27, 2, 0x5C, 8, 9], exits.HypervHypercall(0x5C, (8, 9))),
        ([27, 3, 0x4000_00F1, 1, 2, 3, 4, 5], exits.HypervSyndbg(0x4000_00F1, 1, 2, 3, 4, 5)),
        ([27, 9], exits.HypervOther(9)),
        ([29, 0xC000_0080, 0, 1], exits.Rdmsr(0xC000_0080, 1)),
        ([30, 0xC000_0080, 5, 1], exits.Wrmsr(0xC000_0080, 5, 1)),
        ([31], exits.DirtyRingFull()),
        ([32], exits.ApResetHold()),
        ([33], exits.BusLock()),
        ([34, 1, 1, 3, 17, 1, 2, 3, 4, 5, 6], exits.Xen(17, (1, 2, 3, 4, 5, 6), True, 3)),
        ([34, 2], exits.Xen(type=2)),
        ([37, 1], exits.Notify(1)),
        ([39, 8, 0x1000, 0x2000], exits.MemoryFault(8, 0x1000, 0x2000)),
        ([40, 0, 0x10002, 3, 1, 2, 3, 4, 5], exits.Tdx(0, 0x10002, 3, (1, 2, 3, 4, 5))),
        ([63], exits.OtherExit(63)),
        ([12345], exits.OtherExit(12345)),
    ],
)  # fmt: skip
def test_decode(words, expected):
    """Each reason in its class."""
    exit = exit_decode.decode(words, PAGE)
    assert exit == expected
    assert type(exit) is type(expected)


@given(st.integers(0, 64), st.lists(WORD, min_size=23, max_size=23))
def test_decode_takes_anything(reason, words):
    """Whatever KVM, and a guest behind it, puts there: an Exit, and nothing raised."""
    if reason == 2:
        words = [words[0], words[1] & 0xFFFF, words[2] & 0xFF, words[3] & 0xFFFF, words[4]]
    elif reason == 6:
        words = [words[0], words[1], words[2] & 0xFFFF_FFFF, words[3]]
    exit = exit_decode.decode([reason, *words], PAGE)
    assert isinstance(exit, exits.Exit)
    assert repr(exit)
    if isinstance(exit, exits.IoOut):
        assert len(exit.data) <= len(PAGE)
    if isinstance(exit, exits.MmioWrite):
        assert exit.size <= 8


def test_values():
    """The first element of a string; a write's bytes as a number."""
    assert exits.IoOut(0x10, 2, b"\x34\x12\x78\x56", 2).value == 0x1234
    assert exits.MmioWrite(0, b"\x01\x02").value == 0x201


def test_instruction_bytes_of_an_internal_error():
    """Suberror 1 carries the bytes when flags bit 0 says so, and never more than fifteen."""
    raw = struct.pack("<B15s", 3, b"\x0f\x01\xd9" + bytes(12))
    data = (1, *struct.unpack("<2Q", raw))
    assert exits.InternalError(1, data).instruction == b"\x0f\x01\xd9"
    assert exits.InternalError(1, (0, *data[1:])).instruction == b""
    assert exits.InternalError(2, data).instruction == b""
    assert exits.InternalError(1, data[:2]).instruction == b""


@given(st.integers(0, 10), st.lists(WORD, max_size=16))
def test_internal_error_takes_anything(suberror, data):
    """Any data."""
    exit = exits.InternalError(suberror, tuple(data))
    assert len(exit.instruction) <= 15
    assert exit.kind


def test_what_numbers_mean():
    """Reasons, types and flags by name, an unknown one included."""
    assert exits.Rdmsr(0x10, 0b110).reasons == {"unknown", "filter"}
    assert exits.Wrmsr(0x10, 1, 0b1001).reasons == {"inval", "bit 3"}
    assert exits.SystemEvent(2).name == "reset"
    assert exits.SystemEvent(99).name == "system event 99"
    assert exits.Hypercall(12, ()).name == "MAP_GPA_RANGE"
    assert exits.Hypercall(99, ()).name == "hypercall 99"
    assert exits.Tdx(0, 1, 0, ()).name == "TDVMCALL 0x1"
    assert exits.Notify(1).context_invalid
    assert not exits.Notify(2).context_invalid
    assert exits.MemoryFault(8, 0, 0).private
    assert not exits.MemoryFault(1, 0, 0).private
    assert exits.OtherExit(41).name == "ARM_SEA"
    assert exits.HypervHypercall(0x1_0000_005D, ()).code == 0x5D


@given(WORD, WORD)
def test_debug_takes_any_dr6(exception, dr6):
    """A step, or the slots whose condition was met; never both meanings for INT3."""
    exit = exits.Debug(exception, 0, dr6, 0)
    assert exit.slots == (tuple(i for i in range(4) if dr6 >> i & 1) if exception == 1 else ())
    assert exit.single_step == (exception == 1 and bool(dr6 & 0x4000))
    assert exit.software == (exception == 3)


def test_flags_are_shown_by_name():
    """A person reads the repr: addresses in hex, flags decoded."""
    assert repr(exits.Debug(1, 0x1000, 0xFFFF4FF1, 0x400)).startswith(
        "Debug(exception=1, pc=0x1000"
    )
    assert "B0 BS" in repr(exits.Debug(1, 0x1000, 0x4001, 0x400))
    assert repr(exits.Rdmsr(0x174, 4)) == "Rdmsr(index=0x174, why=0x4[filter])"
    assert repr(exits.MemoryFault(8, 0x1000, 0x1000)) == (
        "MemoryFault(flags=0x8[PRIVATE], gpa=0x1000, size=0x1000)"
    )
    assert repr(exits.IoOut(0xE9, 1, b"A")) == "IoOut(port=0xe9, size=1, data=b'A', count=1)"


def test_reasons_are_those_of_the_header():
    """Every KVM_EXIT_ number of the installed <linux/kvm.h>, and under its name."""
    header = Path("/usr/include/linux/kvm.h")
    if not header.exists():
        pytest.skip("<linux/kvm.h> is not installed here (apt install linux-libc-dev)")
    found = re.findall(r"^#define KVM_EXIT_(\w+)\s+(\d+)\b", header.read_text(), re.MULTILINE)
    parts = re.compile("IO_(IN|OUT)$|HYPERV_|XEN_")  # of an exit, not reasons
    reasons = {int(number): name for name, number in found if not parts.match(name)}
    assert len(reasons) > 30
    assert {number: exits.REASONS.get(number) for number in reasons} == reasons


def test_exits_are_values():
    """Frozen, hashable, comparable, usable with match."""
    exit = exits.IoOut(0xE9, 1, b"A")
    with pytest.raises(dataclasses.FrozenInstanceError):
        exit.port = 1
    assert exit in {exits.IoOut(0xE9, 1, b"A", 1)}
    match exit:
        case kvmpy.IoOut(port=0xE9, data=data):
            assert data == b"A"
        case _:
            pytest.fail("does not match")


def test_resumable():
    """Those after which running again cannot help say so."""
    over = {
        kind.__name__
        for kind in vars(exits).values()
        if isinstance(kind, type) and issubclass(kind, exits.Exit) and not kind.resumable
    }
    assert {"Shutdown", "InternalError", "FailEntry", "DebugExit", "GuestException"} <= over
    assert not {"IoOut", "IoIn", "Hlt", "Timeout", "Kicked", "ExitLimit", "MmioRead"} & over


def test_reasons_are_the_classes():
    """Each class with a KVM number has a name in REASONS."""
    for kind in vars(exits).values():
        if isinstance(kind, type) and issubclass(kind, exits.Exit) and kind.reason >= 0:
            assert kind.reason in exits.REASONS, kind


@given(st.lists(st.integers(0, 1 << 63), min_size=64, max_size=64))
def test_stats(counts):
    """Only reasons that occurred, the most frequent first; the total is the sum."""
    result = stats.RunStats.of(counts, [5] * 64, None)
    assert result.total == sum(counts)
    listed = [row.count for row in result]
    assert listed == sorted((count for count in counts if count), reverse=True)
    assert result["HLT"] == counts[5]
    assert result["NO SUCH"] == 0
    timed = stats.RunStats.of(counts, [5] * 64, 100)
    assert all(row.handling_ns == 5 for row in timed)
