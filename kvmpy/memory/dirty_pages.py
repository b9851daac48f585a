"""A set of pages as a bitmap, the way KVM gives and takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from .guest import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: KVM's bitmaps are arrays of unsigned long.
PAGES_PER_WORD = 64
_FULL = (1 << PAGES_PER_WORD) - 1


class DirtyPages:
    """Pages of 4 KiB of a guest physical range, of which some are dirty.

    Iteration gives the guest physical addresses of the dirty ones, in order; ``len()`` and
    :attr:`count` how many they are. ``|``, ``&`` and ``-`` combine two sets of the same range.

    ``bitmap``: bit i % 8 of byte i // 8 is page i's; a multiple of 8 bytes. It is not copied.
    ``pages``: pages of the range. ``gpa``: where it begins.

    Raises ValueError for a bitmap of another size, or with a bit beyond the last page.

    >>> dirty = kvmpy.DirtyPages(bytes([0b1011, 0, 0, 0, 0, 0, 0, 0]), 64, gpa=0x10_0000)
    >>> [hex(gpa) for gpa in dirty]
    ['0x100000', '0x101000', '0x103000']
    """

    __slots__ = ("_view", "gpa", "pages")

    def __init__(self, bitmap: Buffer, pages: int, gpa: int = 0):
        view = memoryview(bitmap).cast("B").toreadonly()
        size = -(-pages // PAGES_PER_WORD) * 8
        if pages < 0 or view.nbytes != size:
            raise ValueError(f"a bitmap of {view.nbytes} bytes for {pages} pages: {size} it has")
        tail = pages % PAGES_PER_WORD
        if tail and int.from_bytes(view[-8:], "little") >> tail:
            raise ValueError(f"the bitmap has a bit beyond page {pages - 1}")
        self._view = view
        #: Pages of the range.
        self.pages = pages
        #: The guest physical address where the range begins.
        self.gpa = gpa

    @classmethod
    def of(cls, numbers: Iterable[int], pages: int, gpa: int = 0) -> DirtyPages:
        """The pages with these numbers, counted from the range's begin.

        >>> kvmpy.DirtyPages.of([0, 5], 64).count
        2
        """
        bitmap = bytearray(-(-pages // PAGES_PER_WORD) * 8)
        for number in numbers:
            if not 0 <= number < pages:
                raise ValueError(f"page {number} is not in 0..{pages - 1}")
            bitmap[number >> 3] |= 1 << (number & 7)
        return cls(bitmap, pages, gpa)

    @property
    def bitmap(self) -> memoryview:
        """The bitmap itself: bytes, read-only, not copied.

        >>> kvmpy.DirtyPages.of([9], 64).bitmap[1]
        2
        """
        return self._view

    @property
    def count(self) -> int:
        """How many pages are dirty.

        >>> kvmpy.DirtyPages.of([1, 2], 64).count
        2
        """
        return int.from_bytes(self._view, "little").bit_count()

    @property
    def size(self) -> int:
        """Bytes of all dirty pages.

        >>> kvmpy.DirtyPages.of([1, 2], 64).size
        8192
        """
        return self.count * PAGE_SIZE

    def numbers(self) -> Iterator[int]:
        """The numbers of the dirty pages, counted from the range's begin.

        >>> list(kvmpy.DirtyPages.of([63, 1], 64).numbers())
        [1, 63]
        """
        for first, last in self._runs():
            yield from range(first, last)

    def ranges(self) -> list[tuple[int, int]]:
        """``(gpa, bytes)`` of each run of dirty pages: what to copy at a time.

        >>> kvmpy.DirtyPages.of([0, 1, 2, 7], 64, gpa=0x8000).ranges()
        [(32768, 12288), (61440, 4096)]
        """
        return [
            (self.gpa + first * PAGE_SIZE, (last - first) * PAGE_SIZE)
            for first, last in self._runs()
        ]

    def _runs(self) -> Iterator[tuple[int, int]]:
        """First page and the one after the last of each run. By words: most are all 0 or all 1."""
        begin = -1
        with self._view.cast("Q") as words:
            for index, word in enumerate(words):
                if word == (0 if begin < 0 else _FULL):
                    continue
                page = index * PAGES_PER_WORD
                # The lowest bit that ends what is under way: a 1 after clean pages, a 0 in a run.
                at = 0
                while rest := (word if begin < 0 else word ^ _FULL) >> at:
                    at += (rest & -rest).bit_length() - 1
                    if begin < 0:
                        begin = page + at
                    else:
                        yield begin, page + at
                        begin = -1
        if begin >= 0:
            yield begin, self.pages

    def __iter__(self) -> Iterator[int]:
        return (self.gpa + number * PAGE_SIZE for number in self.numbers())

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        return any(self._view)

    def __contains__(self, gpa: object) -> bool:
        """Whether the page that holds ``gpa`` is dirty."""
        if not isinstance(gpa, int):
            return False
        number = (gpa - self.gpa) // PAGE_SIZE
        return 0 <= number < self.pages and bool(self._view[number >> 3] >> (number & 7) & 1)

    def __or__(self, other: DirtyPages) -> DirtyPages:
        return self._combined(other, int.__or__)

    def __and__(self, other: DirtyPages) -> DirtyPages:
        return self._combined(other, int.__and__)

    def __sub__(self, other: DirtyPages) -> DirtyPages:
        return self._combined(other, lambda a, b: a & ~b)

    def _combined(self, other: DirtyPages, operation: Callable[[int, int], int]) -> DirtyPages:
        if not isinstance(other, DirtyPages):
            return NotImplemented
        if (self.pages, self.gpa) != (other.pages, other.gpa):
            raise ValueError(f"{self!r} and {other!r} are of different ranges")
        ours, theirs = (int.from_bytes(view, "little") for view in (self._view, other._view))
        both = operation(ours, theirs)
        return DirtyPages(both.to_bytes(self._view.nbytes, "little"), self.pages, self.gpa)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DirtyPages):
            return NotImplemented
        return (self.pages, self.gpa) == (other.pages, other.gpa) and self._view == other._view

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        end = self.gpa + self.pages * PAGE_SIZE - 1
        return f"<DirtyPages {self.count} of {self.pages}, gpa {self.gpa:#x}..{end:#x}>"
