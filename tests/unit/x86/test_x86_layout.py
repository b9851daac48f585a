"""Addresses: where the supervisor area is, and that nothing in it overlaps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest

from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import descriptors, layout
from kvmpy.x86.layout import GIB, KIB, MIB, PAGE_SIZE


@dataclass(frozen=True)
class Range:
    gpa: int
    end: int


class Shape:
    """RAM that is only described: sizes no test can allocate."""

    def __init__(self, *regions: tuple[int, int]) -> None:
        self.regions = tuple(Range(*region) for region in regions)

    def read(self, gpa: int, size: int) -> bytes:
        raise AssertionError("layout must not read memory")

    def write(self, gpa: int, data: bytes) -> None:
        raise AssertionError("layout must not write memory")


def test_area_is_the_top_of_the_first_region() -> None:
    with GuestMemory("2M") as memory:
        assert layout.supervisor_area(memory).base == 2 * MIB - 64 * KIB
        assert layout.supervisor_area(memory).end == 2 * MIB


@pytest.mark.parametrize(
    ("regions", "base", "size"),
    [
        ([(0, 128 * KIB)], 64 * KIB, 64 * KIB),
        ([(0, 1 * MIB + 123)], 1 * MIB - 64 * KIB, 64 * KIB),
        ([(0, 3 * GIB)], 3 * GIB - 64 * KIB, 64 * KIB),
        ([(0, 3 * GIB), (4 * GIB, 4 * GIB + 1)], 3 * GIB - 68 * KIB, 68 * KIB),
        ([(0, 3 * GIB), (4 * GIB, 33 * GIB)], 3 * GIB - (64 + 29 * 4) * KIB, (64 + 29 * 4) * KIB),
    ],
)
def test_area_grows_by_a_page_per_gib_above_4_gib(
    regions: list[tuple[int, int]], base: int, size: int
) -> None:
    area = layout.supervisor_area(Shape(*regions))
    assert (area.base, area.size) == (base, size)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "need RAM at guest-physical address 0"),
        ([(0x1000, MIB)], "need RAM at guest-physical address 0"),
        ([(0, 128 * KIB - 1)], "need at least 128 KiB of RAM at address 0, this guest has 124 KiB"),
        ([(0, GIB), (4 * GIB, 496 * GIB + 1)], "RAM ends at 0x7c00000001, the limit is"),
    ],
)
def test_unsuitable_memory_is_refused(regions: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout.supervisor_area(Shape(*regions))


def test_pieces_of_the_area_do_not_overlap() -> None:
    area = layout.supervisor_area(Shape((0, 3 * GIB), (4 * GIB, 8 * GIB)))
    pieces = [(page, PAGE_SIZE) for page in area.page_tables]
    pieces += [
        (area.gdt, descriptors.GDT_SIZE),
        (area.stubs, layout.STUB_SLOTS * layout.STUB_SIZE),
        (area.idt, 256 * 16),
        (area.tss, descriptors.TSS_SIZE + descriptors.IO_BITMAP_SIZE),
        (area.ist_stack_top - PAGE_SIZE, PAGE_SIZE),
        (area.ring0_stack_top - PAGE_SIZE, PAGE_SIZE),
        (area.entry_stack_top - PAGE_SIZE, PAGE_SIZE),
    ]
    pieces.sort()
    assert pieces[0][0] == area.base
    assert pieces[-1][0] + pieces[-1][1] == area.end
    for (start, size), (following, _) in pairwise(pieces):
        assert start + size <= following
    assert len(area.page_tables) == layout.PAGE_TABLE_PAGES + 4


def test_platform_ranges_lie_in_the_hole_and_apart() -> None:
    ranges = sorted(
        [
            (layout.IOAPIC_BASE, PAGE_SIZE),
            (layout.LAPIC_BASE, PAGE_SIZE),
            (layout.IDENTITY_MAP, PAGE_SIZE),
            (layout.TSS_ADDR, 3 * PAGE_SIZE),
        ]
    )
    assert ranges[0][0] >= layout.HOLE_START
    assert ranges[-1][0] + ranges[-1][1] <= layout.HOLE_END
    for (start, size), (following, _) in pairwise(ranges):
        assert start + size <= following


def test_every_real_mode_vector_has_its_own_far_pointer() -> None:
    pointers = [layout.real_vector_pointer(vector) for vector in range(256)]
    assert len(set(pointers)) == 256
    for vector, (segment, offset) in enumerate(pointers):
        linear = 16 * segment + offset
        assert 0 <= offset <= 0xFFFF
        assert layout.REAL_SHARED_STUBS <= linear < layout.REAL_RESERVED_END
        for step in (0, 2, 3, 4):  # at the OUT, after it, after the HLT, in the jump
            assert layout.real_vector_at(linear + step, segment) == vector


@pytest.mark.parametrize("linear", [0x4EF, 0x4FF, 0x600])
def test_no_vector_outside_the_real_mode_stubs(linear: int) -> None:
    assert layout.real_vector_at(linear, 0) is None


def test_unused_alias_of_a_shared_stub_is_no_vector() -> None:
    last_stub = layout.REAL_SHARED_STUBS + 2 * layout.REAL_SHARED_STUB_SIZE
    assert layout.real_vector_at(last_stub, 73) == 255
    assert layout.real_vector_at(last_stub, 74) is None
    assert layout.real_vector_at(last_stub, 75) is None


def test_stub_bytes() -> None:
    assert bytes.fromhex("e6f5 f4 ebfd 909090") == layout.STUB
