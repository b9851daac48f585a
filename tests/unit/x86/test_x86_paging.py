"""Page tables: what the builders map, and the walker on theirs and on hostile tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings, strategies as some

from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout, paging
from kvmpy.x86.layout import GIB, KIB, MIB, MemoryLike, SupervisorArea
from kvmpy.x86.walk import PageWalk, Paging, walk


class Sparse:
    """Memory of any size that holds only the pages written."""

    def __init__(self, size: int) -> None:
        low = min(size, 3 * GIB)
        parts = [SupervisorArea(0, low)]
        if size > low:
            parts.append(SupervisorArea(4 * GIB, size - low))
        self.regions = tuple(_Region(part.base, part.end) for part in parts)
        self.pages: dict[int, bytearray] = {}

    def _byte(self, gpa: int) -> tuple[bytearray, int]:
        if not any(region.gpa <= gpa < region.end for region in self.regions):
            raise ValueError(f"{gpa:#x} is outside RAM")
        return self.pages.setdefault(gpa >> 12, bytearray(4096)), gpa & 0xFFF

    def read(self, gpa: int, size: int) -> bytes:
        page, offset = self._byte(gpa)
        assert offset + size <= 4096
        return bytes(page[offset : offset + size])

    def write(self, gpa: int, data: bytes) -> None:
        page, offset = self._byte(gpa)
        assert offset + len(data) <= 4096
        page[offset : offset + len(data)] = data


class _Region:
    def __init__(self, gpa: int, end: int) -> None:
        self.gpa, self.end = gpa, end


def long_tables(memory: MemoryLike) -> tuple[SupervisorArea, int]:
    area = layout.supervisor_area(memory)
    return area, paging.build_long(memory, area, layout.page_directories(memory))


@pytest.fixture
def small() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as memory:
        yield memory


def assert_identity(found: PageWalk, *, user: bool, size: int) -> None:
    assert found.fault is None
    assert found.gpa == found.gva
    assert (found.writable, found.executable) == (True, True)
    assert found.user == user
    assert found.page_size == size


def check_long_map(memory: MemoryLike) -> None:
    area, cr3 = long_tables(memory)
    end = layout.page_directories(memory) * GIB
    for gva in (0, 1, 2 * MIB - 1, 2 * MIB, 3 * GIB, 4 * GIB - 1, end - 1):
        found = walk(memory, cr3, gva, Paging.LEVEL4)
        assert found.gpa == gva
        assert found.user == (not area.contains(gva))
    for gva in range(area.base, area.end, 4 * KIB):
        assert_identity(walk(memory, cr3, gva, Paging.LEVEL4), user=False, size=4096)
    below = walk(memory, cr3, area.base - 1, Paging.LEVEL4)
    assert below.user
    assert below.gpa == area.base - 1
    beyond = walk(memory, cr3, end, Paging.LEVEL4)
    assert beyond.gpa is None
    assert beyond.fault == "PDPT entry is not present" or end == 512 * GIB


@pytest.mark.parametrize(
    "size",
    [
        128 * KIB,
        2 * MIB,
        2 * MIB + 32 * KIB,  # the area straddles two 2 MiB pages
        4 * MIB + 4 * KIB,
        GIB,
        3 * GIB,
        3 * GIB + 4 * KIB,
        32 * GIB,
        495 * GIB,
    ],
)
def test_long_mode_identity_map(size: int) -> None:
    check_long_map(Sparse(size))


@settings(max_examples=25, deadline=None)
@given(some.integers(32, 6 * GIB // 4096))
def test_long_mode_identity_map_of_any_size(pages: int) -> None:
    check_long_map(Sparse(pages * 4096))


def test_large_pages_everywhere_but_around_the_area(small: GuestMemory) -> None:
    _, cr3 = long_tables(small)
    assert walk(small, cr3, 0, Paging.LEVEL4).page_size == 4 * KIB
    for gva in (2 * MIB, GIB, 4 * GIB - 2 * MIB):
        assert_identity(walk(small, cr3, gva, Paging.LEVEL4), user=True, size=2 * MIB)


def test_walk_shows_every_level(small: GuestMemory) -> None:
    area, cr3 = long_tables(small)
    found = walk(small, cr3, area.gdt + 5, Paging.LEVEL4)
    assert [level.name for level in found.levels] == ["PML4", "PDPT", "PD", "PT"]
    for level in found.levels:
        assert int.from_bytes(small.read(level.entry_gpa, 8), "little") == level.entry
        assert level.entry & (paging.PRESENT | paging.ACCESSED)
    assert "supervisor, rwx" in str(found)
    assert f"gpa {area.gdt + 5:#x}" in str(found)


def test_a_and_d_bits_are_set_beforehand(small: GuestMemory) -> None:
    _, cr3 = long_tables(small)
    for gva in (0, 2 * MIB, 4 * GIB - 1):
        *tables, leaf = walk(small, cr3, gva, Paging.LEVEL4).levels
        assert leaf.entry & paging.DIRTY
        assert all(level.entry & paging.ACCESSED for level in (*tables, leaf))


@pytest.mark.parametrize("size", [128 * KIB, 4 * MIB, 4 * MIB + 32 * KIB, 16 * MIB, 5 * GIB])
def test_32_bit_identity_map(size: int) -> None:
    memory = Sparse(size)
    area = layout.supervisor_area(memory)
    cr3 = paging.build_legacy(memory, area)
    for gva in (0, area.base - 1, area.end, 3 * GIB, 4 * GIB - 1):
        found = walk(memory, cr3, gva, Paging.LEGACY)
        assert (found.gpa, found.user, found.writable) == (gva, True, True)
    for gva in range(area.base, area.end, 4 * KIB):
        assert_identity(walk(memory, cr3, gva, Paging.LEGACY), user=False, size=4096)
    assert_identity(walk(memory, cr3, 2 * GIB, Paging.LEGACY), user=True, size=4 * MIB)


def test_too_small_an_area_is_refused(small: GuestMemory) -> None:
    area = layout.supervisor_area(small)
    with pytest.raises(ValueError, match="has 8 pages for page tables, 11 are needed to map 8 GiB"):
        paging.build_long(small, area, 8)


@pytest.mark.parametrize(
    ("cr0", "cr4", "efer", "mode"),
    [
        (1, 0x20, 0x500, Paging.OFF),
        (0x80000001, 0x10, 0, Paging.LEGACY),
        (0x80000001, 0x20, 0, Paging.PAE),
        (0x80000001, 0x20, 0x500, Paging.LEVEL4),
        (0x80000001, 0x1020, 0x500, Paging.LEVEL5),
    ],
)
def test_paging_mode_from_control_registers(cr0: int, cr4: int, efer: int, mode: Paging) -> None:
    assert Paging.of(cr0, cr4, efer) is mode


def put(memory: GuestMemory, gpa: int, entry: int) -> None:
    memory.write(gpa, entry.to_bytes(8, "little"))


def test_walk_combines_the_permissions_of_all_levels(small: GuestMemory) -> None:
    put(small, 0x1000, 0x2000 | 7)
    put(small, 0x2000, 0x3000 | 5)  # not writable
    put(small, 0x3000, 0x4000 | 3)  # not user
    put(small, 0x4000, 0x9000 | 7 | 1 << 63)  # not executable
    found = walk(small, 0x1000, 0x123, Paging.LEVEL4)
    assert (found.gpa, found.writable, found.user, found.executable) == (
        0x9123,
        False,
        False,
        False,
    )
    assert walk(small, 0x1000, 0x123, Paging.LEVEL4, nx=False).executable


def test_walk_of_other_formats(small: GuestMemory) -> None:
    put(small, 0x1000, 0x2000 | 1)  # a PDPTE of PAE has no permission bits
    put(small, 0x2000, 0x40_0000 | 0x87)
    found = walk(small, 0x1000, 0x12345, Paging.PAE)
    assert (found.gpa, found.writable, found.user, found.page_size) == (
        0x412345,
        True,
        True,
        2 * MIB,
    )
    put(small, 0x3000, 0x1000 | 7)  # PML5 -> the table above as PML4 -> as PDPT
    put(small, 0x2000, 0x40_0000 | 0x87)
    put(small, 0x1000, 0x2000 | 7)
    found = walk(small, 0x3000, 0, Paging.LEVEL5)
    assert [level.name for level in found.levels] == ["PML5", "PML4", "PDPT"]
    assert found.page_size == GIB
    small.write(0x5000, (0x0040_0087 | 1 << 13).to_bytes(4, "little"))  # PSE-36
    assert walk(small, 0x5000, 5, Paging.LEGACY).gpa == 0x1_0040_0005
    assert walk(small, 0, 0x1_2345_6789, Paging.OFF).gpa == 0x2345_6789


def test_walk_names_each_fault(small: GuestMemory) -> None:
    assert walk(small, 0x1000, 0, Paging.LEVEL4).fault == "PML4 entry is not present"
    assert walk(small, 0x1000, 1 << 47, Paging.LEVEL4).fault == "address is not canonical"
    fault = walk(small, 1 << 40, 0, Paging.LEVEL4).fault
    assert fault == "PML4 entry at 0x10000000000 is outside RAM"
    put(small, 0x1000, 0x2000 | 0x87)
    found = walk(small, 0x1000, 0, Paging.LEVEL4)
    assert found.fault == "PML4 entry has the reserved PS bit set"
    assert "no table read" not in str(found)
    assert "PML4 0x2087 at 0x1000" in str(found)


@settings(max_examples=200, deadline=None)
@given(
    # Any value, or one that points into this memory and so leads the walk on.
    some.lists(some.integers(0, (1 << 64) - 1) | some.integers(0, 0x1FFF), min_size=4, max_size=4),
    some.integers(0, (1 << 64) - 1),
    some.integers(0, (1 << 64) - 1),
    some.sampled_from(Paging),
)
def test_walk_survives_hostile_tables(entries: list[int], cr3: int, gva: int, mode: Paging) -> None:
    with GuestMemory(8192) as memory:
        memory.write(0, struct.pack("<4Q", *entries) * 256)
        for root in (cr3, cr3 & 0x1000):
            found = walk(memory, root, gva, mode)
            assert (found.gpa is None) == (found.fault is not None)
            assert len(found.levels) <= 5
            assert str(found)


@given(some.integers(0, (1 << 64) - 1))
def test_canonical_addresses(address: int) -> None:
    top = address >> 47
    assert paging.is_canonical(address) == (top in (0, 0x1FFFF))


def test_canonical_limits() -> None:
    assert paging.is_canonical(0x7FFF_FFFF_FFFF)
    assert not paging.is_canonical(0x8000_0000_0000)
    assert paging.is_canonical(0xFFFF_8000_0000_0000)
    assert paging.is_canonical(0x8000_0000_0000, 57)
    assert not paging.is_canonical(-1)
    assert not paging.is_canonical(1 << 64)
