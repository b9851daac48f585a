"""The MP configuration table, read back from guest memory as a kernel would."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings, strategies as st

from kvmpy.boot.mptable import build_mp_table
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout

MIB = 1 << 20
SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def find_floating_pointer(memory: GuestMemory) -> int:
    """In the last of the places that the specification names: 0xF0000 to 0xFFFFF."""
    for gpa in range(0xF0000, 0x100000, 16):
        pointer = memory.read(gpa, 16)
        if pointer[:4] == b"_MP_" and sum(pointer) % 256 == 0:
            return gpa
    raise AssertionError("no floating pointer")


def read_entries(memory: GuestMemory) -> dict[int, list[bytes]]:
    gpa = find_floating_pointer(memory)
    table, length, revision, _, feature1 = struct.unpack_from("<IBBBB", memory.read(gpa, 16), 4)
    assert (length, revision, feature1) == (1, 4, 0)
    assert table >= gpa + 16 or table + 0x1000 <= gpa
    signature, size, revision = struct.unpack("<4sHB", memory.read(table, 7))
    content = memory.read(table, size)
    assert (signature, revision) == (b"PCMP", 4)
    assert sum(content) % 256 == 0
    count, lapic, extended = struct.unpack_from("<HIH", content, 34)
    assert (lapic, extended) == (0xFEE0_0000, 0)
    entries: dict[int, list[bytes]] = {kind: [] for kind in SIZES}
    kinds, rest = [], content[44:]
    for _ in range(count):
        kind = rest[0]
        kinds.append(kind)
        entries[kind].append(rest[: SIZES[kind]])
        rest = rest[SIZES[kind] :]
    assert not rest
    assert kinds == sorted(kinds)  # the order that the specification asks for
    return entries


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 254), min_size=1, max_size=255, unique=True))
def test_any_processors(apic_ids: list[int]) -> None:
    with GuestMemory("2M") as memory:
        memory[0 : 2 * MIB] = b"\xa5" * (2 * MIB)
        gpa = build_mp_table(memory, apic_ids)
        assert gpa == find_floating_pointer(memory)
        entries = read_entries(memory)
        assert memory.read(0, layout.MP_TABLE) == b"\xa5" * layout.MP_TABLE
        assert memory.read(MIB, MIB) == b"\xa5" * MIB
    processors = [(entry[1], entry[3]) for entry in entries[0]]
    assert processors == [(apic_ids[0], 3)] + [(apic_id, 1) for apic_id in apic_ids[1:]]
    ((_, io_apic, _, flags, address),) = (struct.unpack("<BBBBI", entry) for entry in entries[2])
    assert (flags, address) == (1, 0xFEC0_0000)
    assert io_apic not in apic_ids


def test_interrupts() -> None:
    with GuestMemory("2M") as memory:
        build_mp_table(memory, range(2))
        entries = read_entries(memory)
    ((_, bus, name),) = (struct.unpack("<BB6s", entry) for entry in entries[1])
    assert name == b"ISA   "
    io_apic = entries[2][0][1]
    sources = [struct.unpack("<BBHBBBB", entry) for entry in entries[3]]
    assert [(source[4], source[6]) for source in sources] == [
        (irq, irq) for irq in range(16) if irq != 2
    ]
    assert {(kind, flags, on, to) for _, kind, flags, on, _, to, _ in sources} == {
        (0, 0, bus, io_apic)
    }
    local = [struct.unpack("<BBHBBBB", entry) for entry in entries[4]]
    assert [(kind, to, pin) for _, kind, _, _, _, to, pin in local] == [(3, 0, 0), (1, 0xFF, 1)]


def test_without_8259s() -> None:
    """No timer at pin 0, nothing at LINT0, and an I/O APIC that has an EOI register."""
    with GuestMemory("2M") as memory:
        build_mp_table(memory, range(2), pic=False)
        entries = read_entries(memory)
    assert entries[2][0][2] == 0x20
    assert [entry[7] for entry in entries[3]] == [1, *range(3, 16)]
    assert [entry[1] for entry in entries[4]] == [1]


@pytest.mark.parametrize(
    ("apic_ids", "message"),
    [([], "at least one"), ([3, 3], "each id once"), ([255], "0..0xfe"), ([-1], "0..0xfe")],
)
def test_refused(apic_ids: list[int], message: str) -> None:
    with GuestMemory("2M") as memory:
        with pytest.raises(ValueError, match=message):
            build_mp_table(memory, apic_ids)
        assert memory.read(0xF0000, 0x10000) == bytes(0x10000)
