"""Exits as values: decoding of what the shim lays flat, hostile words included."""

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvmpy
from kvmpy import exits, stats

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
        ([3, 7, 1, 2, 3, 4, 5, 6], exits.Hypercall(7, (1, 2, 3, 4, 5, 6))),
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
        ([29, 0xC000_0080, 0, 1], exits.Rdmsr(0xC000_0080, 1)),
        ([30, 0xC000_0080, 5, 1], exits.Wrmsr(0xC000_0080, 5, 1)),
        ([31], exits.DirtyRingFull()),
        ([33], exits.BusLock()),
        ([37, 1], exits.Notify(1)),
        ([39, 8, 0x1000, 0x2000], exits.MemoryFault(8, 0x1000, 0x2000)),
        ([63], exits.OtherExit(63)),
        ([12345], exits.OtherExit(12345)),
    ],
)  # fmt: skip
def test_decode(words, expected):
    """Each reason in its class."""
    exit = exits.decode(words, PAGE)
    assert exit == expected
    assert type(exit) is type(expected)


@given(st.integers(0, 64), st.lists(WORD, min_size=23, max_size=23))
def test_decode_takes_anything(reason, words):
    """Whatever KVM, and a guest behind it, puts there: an Exit, and nothing raised."""
    if reason == 2:
        words = [words[0], words[1] & 0xFFFF, words[2] & 0xFF, words[3] & 0xFFFF, words[4]]
    elif reason == 6:
        words = [words[0], words[1], words[2] & 0xFFFF_FFFF, words[3]]
    exit = exits.decode([reason, *words], PAGE)
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
