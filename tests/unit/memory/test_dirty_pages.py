"""Dirty bitmaps against a model: a set of page numbers."""

import itertools

import pytest
from hypothesis import example, given, strategies as st

from kvmpy import DirtyPages

PAGES = st.integers(1, 400)


@st.composite
def dirty(draw, pages=None):
    """A number of pages and which of them are dirty, in runs as well as alone."""
    total = draw(PAGES) if pages is None else pages
    alone = draw(st.sets(st.integers(0, total - 1), max_size=20))
    runs = draw(st.lists(st.tuples(st.integers(0, total), st.integers(0, total)), max_size=4))
    numbers = alone.union(*(range(*sorted(run)) for run in runs))
    return total, numbers


@given(dirty(), st.integers(0, 1 << 39))
@example((64, set(range(64))), 0)
@example((65, {63, 64}), 0)
@example((128, set(range(1, 128))), 0)
def test_against_a_set(case, page):
    """Count, iteration, containment and ranges all tell of the same pages."""
    pages, numbers = case
    gpa = page * 4096
    found = DirtyPages.of(numbers, pages, gpa)
    addresses = [gpa + n * 4096 for n in sorted(numbers)]
    assert list(found.numbers()) == sorted(numbers)
    assert list(found) == addresses
    assert found.count == len(found) == len(numbers)
    assert found.size == 4096 * len(numbers)
    assert bool(found) == bool(numbers)
    for n in range(-1, pages + 1):
        assert (gpa + n * 4096 + 4095 in found) == (n in numbers)
    assert found.bitmap.nbytes == (pages + 63) // 64 * 8


@given(dirty())
def test_ranges(case):
    """They cover the pages, in order, and no two touch."""
    pages, numbers = case
    ranges = DirtyPages.of(numbers, pages).ranges()
    covered = [n for gpa, size in ranges for n in range(gpa // 4096, (gpa + size) // 4096)]
    assert covered == sorted(numbers)
    for (gpa, size), (after, _) in itertools.pairwise(ranges):
        assert gpa + size < after


@given(dirty(200), dirty(200))
def test_combining(a, b):
    """Union, intersection and difference are those of the sets."""
    (_, ours), (_, theirs) = a, b
    left, right = DirtyPages.of(ours, 200, 0x5000), DirtyPages.of(theirs, 200, 0x5000)
    assert set((left | right).numbers()) == ours | theirs
    assert set((left & right).numbers()) == ours & theirs
    assert set((left - right).numbers()) == ours - theirs
    assert (left == right) == (ours == theirs)
    assert (left | right).gpa == 0x5000


@given(st.binary(max_size=40), st.integers(-5, 400))
def test_any_bitmap(raw, pages):
    """Taken if its length is that of so many pages and no bit lies beyond; else ValueError."""
    fits = pages >= 0 and len(raw) == (pages + 63) // 64 * 8
    fits = fits and int.from_bytes(raw, "little") >> pages == 0
    try:
        found = DirtyPages(raw, pages)
    except ValueError:
        assert not fits
    else:
        assert fits
        assert found.count == sum(byte.bit_count() for byte in raw)


def test_the_bitmap_is_not_copied():
    """What KVM writes into the buffer later shows; nobody writes through us."""
    raw = bytearray(8)
    pages = DirtyPages(raw, 64)
    raw[0] = 2
    assert list(pages) == [0x1000]
    with pytest.raises(TypeError):
        pages.bitmap[0] = 0


def test_what_does_not_go_together():
    """Sets of different ranges, page numbers outside, other types."""
    here = DirtyPages.of([1], 64)
    with pytest.raises(ValueError, match="different ranges"):
        here | DirtyPages.of([1], 64, gpa=0x1000)
    with pytest.raises(ValueError, match="different ranges"):
        here & DirtyPages.of([1], 65)
    for number in (-1, 64):
        with pytest.raises(ValueError, match=r"not in 0\.\.63"):
            DirtyPages.of([number], 64)
    with pytest.raises(TypeError):
        here | 5
    assert here != 5
    assert "x" not in here
    with pytest.raises(TypeError):
        hash(here)
    assert repr(here) == "<DirtyPages 1 of 64, gpa 0x0..0x3ffff>"
