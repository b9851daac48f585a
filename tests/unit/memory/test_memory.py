"""Guest memory without KVM: layout, access, hostile addresses."""

import mmap
import os
import warnings

import pytest
from hypothesis import example, given, strategies as st

from kvmpy.errors import ClosedError, GuestMemoryError
from kvmpy.machine.resident import measure
from kvmpy.memory.guest import HOLE_END, HOLE_START, MAX_GPA, GuestMemory, parse_size
from kvmpy.memory.mapping import HUGE_PAGE_SIZE, TRANSPARENT_FROM, HugePageFallbackWarning

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("text", "value"),
    [("4K", 4096), ("16M", 16 * MIB), ("16m", 16 * MIB), ("1G", GIB), ("1GiB", GIB), ("1GB", GIB),
     ("4096", 4096), ("4096B", 4096), (" 2 M ", 2 * MIB), ("1T", 1 << 40), (8192, 8192)],
)  # fmt: skip
def test_sizes(text, value):
    """Binary units, bytes without one."""
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "M", "-1M", "1.5M", "16X", "16 M B", "0", "0M", "1", "4097", "1B", "0x1000", "1e6", "4KK",
     "1MiBB", 0, -4096, 4097, 4096.5, "9" * 5000],
)  # fmt: skip
def test_no_sizes(text):
    """Anything else is a ValueError that quotes it."""
    with pytest.raises(ValueError, match=r".+"):
        parse_size(text)


@given(st.text(max_size=20) | st.integers() | st.floats(allow_nan=False))
def test_parse_size_takes_anything(size):
    """A positive multiple of 4 KiB, or ValueError (OverflowError is for infinities)."""
    try:
        value = parse_size(size)
    except (ValueError, OverflowError):
        return
    assert value > 0
    assert value % 4096 == 0


def test_layout_around_the_hole():
    """What does not fit below 3 GiB continues at 4 GiB (correctness 18); nothing is touched."""
    for total, expected in (
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 4096, [(0, 3 * GIB), (HOLE_END, 4096)]),
        (64 * GIB, [(0, HOLE_START), (HOLE_END, 61 * GIB)]),
    ):
        with GuestMemory(total) as memory:
            assert [(r.gpa, r.size) for r in memory.regions] == expected
            assert memory.size == total
            assert not memory.contains(HOLE_START)
            assert not memory.contains(HOLE_END - 1)


def test_read_and_write():
    """What is written is read."""
    with GuestMemory("1M") as memory:
        memory.write(0x1234, b"hello")
        assert memory.read(0x1234, 5) == b"hello"
        assert memory[0x1234:0x1239] == b"hello"
        memory[0x1234:0x1239] = b"HELLO"
        view = memory[0x1234:0x1239]
        view[0] = ord("J")
        assert memory.read(0x1233, 7) == b"\0JELLO\0"


OUTSIDE = [(MIB, 1), (MIB - 1, 2), (-1, 1), (-1, 2), (1 << 64, 1), (0, MIB + 1), (0, 1 << 62),
           (MAX_GPA, 8)]  # fmt: skip


@pytest.mark.parametrize(("gpa", "size"), OUTSIDE)
def test_outside(gpa, size):
    """An error, before anything is allocated or written."""
    with GuestMemory("1M") as memory:
        assert not memory.contains(gpa, size) or gpa < 0
        with pytest.raises(GuestMemoryError):
            memory.read(gpa, size)
        with pytest.raises(GuestMemoryError):
            memory[gpa : gpa + size]
        if size < 1 << 22:
            before = memory.read(0, MIB)
            with pytest.raises(GuestMemoryError):
                memory.write(gpa, b"\xaa" * size)
            assert memory.read(0, MIB) == before


def test_negative_sizes():
    """Refused too."""
    with GuestMemory("1M") as memory:
        with pytest.raises(GuestMemoryError):
            memory.read(0, -1)
        with pytest.raises(GuestMemoryError):
            memory[100:50]


@pytest.mark.parametrize("key", [slice(None, 10), slice(10, None), slice(None), 5, "x",
                                 slice("a", "b"), slice(0.0, 8.0)])  # fmt: skip
def test_strange_keys(key):
    """A TypeError or a GuestMemoryError, which says what was asked."""
    with GuestMemory("1M") as memory, pytest.raises((TypeError, GuestMemoryError)):
        memory[key]


def test_slice_assignment_must_fit():
    """No silent shortening, no growing."""
    with GuestMemory("1M") as memory:
        for data in (b"123", b"12345", b""):
            with pytest.raises(GuestMemoryError, match="bytes for a slice of 4"):
                memory[0:4] = data
        assert memory.read(0, 8) == bytes(8)


@given(st.integers(-(1 << 65), 1 << 65), st.integers(-(1 << 65), 1 << 65))
@example(0, 0x2001)
def test_any_slice(start, stop):
    """Exactly the bytes asked for if one region holds them, else GuestMemoryError: a view cannot
    span two host mappings."""
    memory = MEMORY
    held = any(region.gpa <= start <= stop <= region.end for region in memory.regions)
    try:
        view = memory[start:stop]
    except GuestMemoryError:
        assert not held
    else:
        assert held
        assert len(view) == stop - start


@given(st.integers(-0x1000, 0xA000), st.integers(0, 0x4000))
def test_any_range(gpa, size):
    """read(), contains() and a model agree."""
    inside = {*range(0x3000), *range(0x8000, 0x9000)}
    expected = all(address in inside for address in range(gpa, gpa + size))
    if size:
        assert MEMORY.contains(gpa, size) == expected
        if expected:
            assert len(MEMORY.read(gpa, size)) == size
        else:
            with pytest.raises(GuestMemoryError):
                MEMORY.read(gpa, size)


def _two_regions():
    memory = GuestMemory()
    memory.add(0, 0x2000)
    memory.add(0x2000, 0x1000)
    memory.add(0x8000, 0x1000)
    memory.write(0x1000, b"\x11" * 0x2000)
    return memory


def test_across_adjacent_regions():
    """read() and write() cross; a zero-copy slice cannot."""
    with _two_regions() as memory:
        memory.write(0x1FFE, b"abcd")
        assert memory.read(0x1FFD, 6) == b"\x11abcd\x11"
        with pytest.raises(GuestMemoryError, match="one region"):
            memory[0x1FFE:0x2002]
        assert memory[0x2000:0x3000].nbytes == 0x1000
        with pytest.raises(GuestMemoryError, match="0x3000"):
            memory.write(0x2FFE, b"abcd")
        assert memory.read(0x2FFE, 2) == b"\x11\x11"  # all or nothing


@pytest.mark.parametrize(
    ("gpa", "size"),
    [(0x1000, 4096), (1, 4096), (-4096, 4096), (MAX_GPA, 4096), (MAX_GPA - 4096, 8192),
     (0x7000, 0x2000), (0, 4096), (0x8000, 4096)],
)  # fmt: skip
def test_regions_that_cannot_be(gpa, size):
    """Overlapping, unaligned, beyond 52 bits: refused, and the layout stays."""
    with _two_regions() as memory:
        before = memory.regions
        with pytest.raises(GuestMemoryError):
            memory.add(gpa, size)
        assert memory.regions == before


def test_last_page_of_the_address_space():
    """Up to the 52nd bit."""
    with GuestMemory() as memory:
        region = memory.add(MAX_GPA - 4096, 4096)
        assert region.end == MAX_GPA
        memory.write(MAX_GPA - 4, b"last")


def test_too_large_for_the_host():
    """What cannot be mapped is an error, and leaves nothing."""
    with pytest.raises(GuestMemoryError, match="KVM's own tables for it would take"):
        GuestMemory(1 << 48)
    with pytest.raises(GuestMemoryError, match="KVM's own tables"):
        GuestMemory("64T", backing="memfd")


@pytest.mark.parametrize("backing", ["gold", "", None])
def test_unknown_backing(backing):
    """Refused wherever it is given."""
    with pytest.raises(ValueError, match="backing"):
        GuestMemory("1M", backing=backing)
    with GuestMemory("1M") as memory:
        with pytest.raises(ValueError, match="backing"):
            memory.add(GIB, "1M", backing=backing)
        assert len(memory.regions) == 1


def test_memfd():
    """Another mapping of the descriptor is the same memory; the descriptor goes with the region."""
    with GuestMemory("1M", backing="memfd") as memory:
        (region,) = memory.regions
        fd = region.fd
        with mmap.mmap(fd, region.size) as other:
            memory.write(0, b"shared")
            assert other[:6] == b"shared"
            other[:6] = b"SHARED"
            assert memory.read(0, 6) == b"SHARED"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_hugetlb_fallback():
    """A size that is not a multiple of 2 MiB, a pool too small: a warning, and ordinary pages."""
    with pytest.warns(HugePageFallbackWarning, match="multiple of 2 MiB"):
        memory = GuestMemory(4096, backing="hugetlb")
    memory.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with GuestMemory("2M", backing="hugetlb") as memory:
            fell_back = memory.regions[0].backing == "anonymous"
    assert bool(caught) == fell_back
    assert all(w.category is HugePageFallbackWarning for w in caught)


def test_a_kernels_memory_can_have_huge_pages():
    """It begins where a huge page does, asks for them, and is cleared and measured as any other."""
    with GuestMemory(TRANSPARENT_FROM) as memory:
        (region,) = memory.regions
        assert region.hva % HUGE_PAGE_SIZE == 0
        assert len(region.view) == region.size == TRANSPARENT_FROM
        memory.prefer_huge_pages()
        memory.write(TRANSPARENT_FROM - 5, b"twice")
        memory.write(0, b"first")
        assert TRANSPARENT_FROM > measure(memory).guest >= 2 * 4096
        memory.zero(HUGE_PAGE_SIZE, TRANSPARENT_FROM - HUGE_PAGE_SIZE)
        assert memory.read(0, 5) == b"first"
        assert memory.read(TRANSPARENT_FROM - 5, 5) == bytes(5)
        flags = advice(region.hva)
    assert "hg" in flags or not os.path.exists("/sys/kernel/mm/transparent_hugepage")


def advice(address):
    """VmFlags in smaps of the mapping that begins at ``address``."""
    with open("/proc/self/smaps") as file:
        inside = False
        for line in file:
            if line.startswith(f"{address:x}-"):
                inside = True
            if inside and line.startswith("VmFlags:"):
                return line.split()[1:]
    return []


def test_closed():
    """Everything says so; closing twice is nothing."""
    memory = GuestMemory("1M")
    view = memory[0:16]
    memory.close()
    memory.close()
    assert memory.closed
    assert repr(memory) == "<GuestMemory, closed>"
    for use in (
        lambda: memory[0:1],
        lambda: memory.read(0, 1),
        lambda: memory.write(0, b"x"),
        lambda: memory.add(0, 4096),
        lambda: memory.__setitem__(slice(0, 1), b"x"),
    ):
        with pytest.raises(ClosedError):
            use()
    view[0] = 5  # its mapping lives as long as it
    assert view[0] == 5


def test_many_come_and_go():
    """No mapping is left behind."""

    def maps():
        with open("/proc/self/maps") as lines:
            return sum(1 for _ in lines)

    GuestMemory("1M").close()
    before = maps()
    for _ in range(200):
        with GuestMemory("6G", backing="anonymous") as memory:
            memory.write(5 * GIB, b"x")
    assert maps() - before < 10


MEMORY = _two_regions()


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_zero_is_exact_and_all_or_nothing(backing):
    """From an odd byte to an odd byte, over whole pages that the host forgets."""
    with GuestMemory("4M", backing=backing) as memory:
        memory.write(0, b"\xff" * memory.size)
        memory.zero(0x1001, 0x20_0000)
        assert memory.read(0x1000, 1) == b"\xff"
        assert memory.read(0x1001, 0x20_0000) == bytes(0x20_0000)
        assert memory.read(0x20_1001, 1) == b"\xff"
        with pytest.raises(GuestMemoryError):
            memory.zero(0x30_0000, 0x20_0000)
        assert memory.read(0x30_0000, 0x10_0000) == b"\xff" * 0x10_0000
