"""The memory map: every range of guest memory, what is reserved, and RAM above 4 GiB."""

from __future__ import annotations

import pytest

from kvmpy.boot.e820 import MapEntry, RangeType, memory_map, merge, subtract
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout

RAM, RESERVED = RangeType.RAM, RangeType.RESERVED
KVM_PAGES = MapEntry(0xFFFB_C000, 0x4000, RESERVED)
MIB = 1 << 20
GIB = 1 << 30


def test_one_region() -> None:
    with GuestMemory("16M") as memory:
        assert memory_map(memory) == (
            MapEntry(0, 0xA0000, RAM),
            MapEntry(0xA0000, 0x60000, RESERVED),
            MapEntry(0x10_0000, 0xEF_0000, RAM),
            MapEntry(0xFF_0000, 0x1_0000, RESERVED),
            KVM_PAGES,
        )


def test_ram_continues_above_the_hole_below_4_gib() -> None:
    with GuestMemory("5G") as memory:
        supervisor = layout.supervisor_area(memory)
        assert supervisor.end == 3 * GIB
        assert memory_map(memory)[2:] == (
            MapEntry(MIB, supervisor.base - MIB, RAM),
            MapEntry(supervisor.base, supervisor.size, RESERVED),
            KVM_PAGES,
            MapEntry(4 * GIB, 2 * GIB, RAM),
        )


def test_read_only_region_is_reserved_and_joins_the_low_hole() -> None:
    with GuestMemory() as memory:
        memory.add(0, 0xF_0000)
        memory.add(0xF_0000, 0x1_0000, read_only=True)
        memory.add(0x10_0000, 0x2000)
        memory.add(0x20_0000, 0x1000, read_only=True)
        assert memory_map(memory) == (
            MapEntry(0, 0xA0000, RAM),
            MapEntry(0xA0000, 0x60000, RESERVED),
            MapEntry(0x10_0000, 0x2000, RAM),
            MapEntry(0x20_0000, 0x1000, RESERVED),
            KVM_PAGES,
        )


def test_adjacent_regions_are_one_range() -> None:
    with GuestMemory("2M") as memory:
        memory.add(2 * MIB, "2M")
        assert MapEntry(2 * MIB, 2 * MIB, RAM) in memory_map(memory)
        base = layout.supervisor_area(memory).base
        assert base == 2 * MIB - 0x1_0000  # the area is at the top of the first region
        assert MapEntry(MIB, base - MIB, RAM) in memory_map(memory)


def test_memory_without_room_for_the_supervisor_area() -> None:
    with GuestMemory("64K") as memory, pytest.raises(ImageError, match=r"128 KiB.*64 KiB"):
        memory_map(memory)


def test_merge_and_subtract() -> None:
    assert merge([(5, 7), (0, 2), (2, 3), (6, 9), (4, 4)]) == [(0, 3), (5, 9)]
    assert subtract([(0, 10), (20, 30)], [(3, 5), (8, 22), (40, 50)]) == [(0, 3), (5, 8), (22, 30)]
    assert subtract([(0, 10)], [(0, 10)]) == []
