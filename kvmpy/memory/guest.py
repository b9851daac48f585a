"""Guest physical memory: what backs it on the host, and how the host reads and writes it.

A :class:`GuestMemory` is a set of regions. It needs no KVM: a VM adopts one and registers each
region as a memory slot (KVM API, "4.35 KVM_SET_USER_MEMORY_REGION").
"""

from __future__ import annotations

import mmap
import operator
import os
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from ..errors import GuestMemoryError
from ..fd import Owner, gone, hears_of_forks
from ..shim import address_of
from .mapping import TRANSPARENT_FROM, Backing as Backing, map_memory

if TYPE_CHECKING:
    from typing_extensions import Buffer


PAGE_SIZE = 4096
#: RAM does not reach into the last GiB below 4 GiB: LAPIC, IOAPIC, KVM's own pages and MMIO
#: devices live there. What does not fit below continues at 4 GiB.
HOLE_START = 3 << 30
HOLE_END = 4 << 30
#: Guest physical addresses have at most 52 bits (SDM, "Linear-Address Translation").
MAX_GPA = 1 << 52

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(size: int | str) -> int:
    """Bytes from ``4096`` or from ``"64K"``, ``"256M"``, ``"1G"``, ``"1GiB"`` (binary units).

    Raises ValueError for anything else, for zero, and for sizes that are not multiples of 4 KiB.

    >>> kvmpy.memory.guest.parse_size("16M")
    16777216
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+)\s*([BKMGT]?)(?:I?B)?\s*", size.upper())
        if not match:
            raise ValueError(f"{size!r} is not a size: give bytes or a number with K, M, G or T")
        value = int(match[1]) * _UNITS[match[2]]
    else:
        try:
            value = operator.index(size)
        except TypeError:
            raise ValueError(
                f"{size!r} is not a size: give bytes or a number with K, M, G or T"
            ) from None
    if value <= 0 or value % PAGE_SIZE:
        raise ValueError(f"memory size {size!r} is not a positive multiple of {PAGE_SIZE} bytes")
    return value


class Region:
    """One contiguous piece of guest physical memory, backed by one host mapping.

    ``backing`` is what really backs it: ``"anonymous"`` where hugetlb could not be had.
    A read-only region is so for the guest; the host fills it.
    """

    def __init__(
        self, gpa: int, size: int, read_only: bool, backing: Backing, view: memoryview,
        fd: int | None = None, _map: mmap.mmap | None = None, _begin: int = 0,
    ):  # fmt: skip
        self.gpa, self.size, self.read_only, self.backing = gpa, size, read_only, backing
        self.view, self.fd, self._map = view, fd, _map
        self._begin = _begin  # where the region begins in its mapping

    @property
    def end(self) -> int:
        """The first guest physical address after the region.

        >>> hex(memory.regions[0].end)
        '0x1000000'
        """
        return self.gpa + self.size

    @property
    def hva(self) -> int:
        """Host virtual address of the mapping.

        >>> memory.regions[0].hva % 4096
        0
        """
        return address_of(self.view)

    def _hold(self) -> memoryview:
        """Keeps the mapping where it is until released, whatever becomes of the region."""
        return memoryview(self._map) if self._map is not None else self.view[:]

    def __repr__(self) -> str:
        mode = ", read-only" if self.read_only else ""
        return f"<Region {self.gpa:#x}..{self.end - 1:#x}, {self.backing}{mode}>"


class Adopter(Protocol):
    """How a VM, or a device by itself, follows each change of a memory's layout.

    Each method may raise; then nothing has changed on its side.
    """

    def add(self, region: Region) -> None:
        """A region is about to be part of the memory."""

    def move(self, region: Region, gpa: int) -> None:
        """A region is about to move to ``gpa``."""

    def remove(self, region: Region) -> None:
        """A region is about to go."""


class Follower(Adopter, Protocol):
    """A device, which has the memory's host addresses."""

    def changed(self, region: Region) -> None:
        """In some VM the guest may write there now, or no longer may."""


class GuestMemory(Owner):
    """The guest physical address space as its host sees it.

    ``size`` bytes of RAM start at guest physical address 0; what does not fit below 3 GiB
    continues at 4 GiB. ``size`` None makes an empty one, to be filled with :meth:`add`.

    ``memory[a:b]`` is a writable zero-copy memoryview of the guest physical range [a, b).
    Views may outlive :meth:`close`; the mapping goes with the last of them.

    Raises ValueError for an impossible size and GuestMemoryError when the host cannot map it.
    """

    def __init__(self, size: int | str | None = None, *, backing: Backing = "anonymous"):
        self._regions: tuple[Region, ...] = ()
        self._closed = False
        #: The region at guest physical address 0, if there is one.
        self._low, self._low_end = memoryview(b""), -1
        #: The VMs that have it, and the devices that write to it by host address.
        self._adopters: list[Adopter] = []
        self._followers: list[Follower] = []
        self._process = os.getpid()
        hears_of_forks(self)
        if size is None:
            return
        try:
            self.add_ram(size, backing=backing)
        except BaseException:
            self.close()
            raise

    # -- regions

    @property
    def regions(self) -> tuple[Region, ...]:
        """All regions, in the order of their guest physical addresses.

        >>> len(memory.regions)
        1
        """
        return self._regions

    @property
    def size(self) -> int:
        """Bytes of all regions together.

        >>> memory.size >> 20
        16
        """
        return sum(region.size for region in self._regions)

    def add(
        self, gpa: int, size: int | str, *, read_only: bool = False, backing: Backing = "anonymous"
    ) -> Region:
        """Add a region at ``gpa`` (a multiple of 4 KiB). Raises GuestMemoryError if it overlaps
        another or leaves the 52-bit physical address space.

        >>> vm.memory.add(0x4000_0000, "64K", read_only=True)
        <Region 0x40000000..0x4000ffff, anonymous, read-only>
        """
        self._check_open()
        if backing not in ("anonymous", "memfd", "hugetlb"):
            raise ValueError(f"backing {backing!r}: give anonymous, memfd or hugetlb")
        size = parse_size(size)
        self._check_place(gpa, size)
        _check_tables(size)
        try:
            mapping, begin, actual, fd = map_memory(size, backing)
        except (OSError, OverflowError, ValueError) as error:
            raise GuestMemoryError(f"cannot map {size:#x} bytes of memory: {error}") from error
        view = memoryview(mapping)[begin : begin + size]
        region = Region(gpa, size, read_only, actual, view, fd, mapping, begin)
        try:
            # Devices last: what KVM refuses, no device is ever to have had, since what it has of a
            # region, it keeps.
            self._tell(
                (*self._adopters, *self._followers),
                lambda vm: vm.add(region), lambda vm: vm.remove(region),
            )  # fmt: skip
        except BaseException:
            _release(region)
            raise
        self._regions = (*self._regions, region)
        self._sort()
        return region

    def prefer_huge_pages(self) -> None:
        """Ask for transparent huge pages in regions of 64 MiB and more, where nothing has been
        written yet: KVM then maps 2 MiB at a fault, and the host clears as much. For a guest that
        will touch most of its memory.

        >>> memory.prefer_huge_pages()
        """
        for region in self._regions:
            if region.backing == "anonymous" and region._map and region.size >= TRANSPARENT_FROM:
                try:
                    region._map.madvise(mmap.MADV_HUGEPAGE, region._begin, region.size)
                except OSError:
                    return  # a kernel without them

    def move(self, region: Region, gpa: int) -> None:
        """Move a region, with its content, to ``gpa``, for the host and every VM that has it.

        A vCPU that runs meanwhile sees it at the one place, at the other, or for a moment at
        neither. Raises GuestMemoryError as :meth:`add` does, and while a virtio device uses the
        memory: its queues may lie there.

        >>> flash = vm.memory.add(0x4000_0000, "64K")
        >>> vm.memory.write(0x4000_0000, b"boot")
        >>> vm.memory.move(flash, 0x5000_0000)
        >>> vm.memory.read(0x5000_0000, 4)
        b'boot'
        """
        self._check_own(region)
        self._check_place(gpa, region.size, region)
        old = region.gpa
        self._tell(
            (*self._followers, *self._adopters),
            lambda vm: vm.move(region, gpa), lambda vm: vm.move(region, old),
        )  # fmt: skip
        region.gpa = gpa
        self._sort()

    def remove(self, region: Region) -> None:
        """Take a region out of the address space: where it was, there is no memory any longer.

        Views that are held keep its mapping alive. Raises GuestMemoryError while a virtio device
        uses the memory.

        >>> extra = vm.memory.add(0x4000_0000, "64K")
        >>> vm.memory.remove(extra)
        >>> vm.memory.contains(0x4000_0000)
        False
        """
        self._check_own(region)
        self._tell(
            (*self._followers, *self._adopters),
            lambda vm: vm.remove(region), lambda vm: vm.add(region),
        )  # fmt: skip
        self._regions = tuple(other for other in self._regions if other is not region)
        self._sort()
        _release(region)

    def _tell(
        self,
        adopters: tuple[Adopter, ...],
        do: Callable[[Adopter], None],
        undo: Callable[[Adopter], None],
    ) -> None:
        """All that have the memory follow a change, in this order, or none does."""
        done: list[Adopter] = []
        try:
            for adopter in adopters:
                do(adopter)
                done.append(adopter)
        except BaseException:
            for adopter in reversed(done):
                undo(adopter)
            raise

    def _check_own(self, region: Region) -> None:
        self._check_open()
        if not any(other is region for other in self._regions):
            raise GuestMemoryError(f"{region!r} is not part of this memory")

    def _check_place(self, gpa: int, size: int, itself: Region | None = None) -> None:
        if gpa < 0 or gpa % PAGE_SIZE or gpa + size > MAX_GPA:
            raise GuestMemoryError(
                f"region {gpa:#x}+{size:#x} is not page-aligned within the 52-bit address space"
            )
        for other in self._regions:
            if other is not itself and gpa < other.end and other.gpa < gpa + size:
                raise GuestMemoryError(f"region {gpa:#x}+{size:#x} overlaps {other!r}")

    def _sort(self) -> None:
        self._regions = tuple(sorted(self._regions, key=lambda region: region.gpa))
        self._low, self._low_end = memoryview(b""), -1
        if self._regions and self._regions[0].gpa == 0:
            self._low, self._low_end = self._regions[0].view, self._regions[0].size

    def add_ram(self, size: int | str, *, backing: Backing = "anonymous") -> None:
        """Add ``size`` bytes of RAM from 0 on, around the hole below 4 GiB.

        >>> memory = kvmpy.GuestMemory()
        >>> memory.add_ram("4M")
        >>> memory.size >> 20
        4
        """
        total = parse_size(size)
        low = min(total, HOLE_START)
        self.add(0, low, backing=backing)
        if total > low:
            self.add(HOLE_END, total - low, backing=backing)

    def region_at(self, gpa: int) -> Region | None:
        """The region that holds ``gpa``, or None.

        >>> memory.region_at(0x1234) is memory.regions[0]
        True
        """
        for region in self._regions:
            if region.gpa <= gpa < region.end:
                return region
        return None

    def _pieces(self, gpa: int, size: int) -> Iterator[memoryview]:
        """Views that together are [gpa, gpa + size), crossing from region to adjacent region."""
        if gpa < 0 or size < 0:
            raise GuestMemoryError(f"gpa {gpa:#x} or size {size:#x} is negative")
        while size:
            region = self.region_at(gpa)
            if region is None:
                self._check_open()
                raise GuestMemoryError(f"guest physical address {gpa:#x} is outside guest memory")
            length = min(size, region.end - gpa)
            yield region.view[gpa - region.gpa : gpa - region.gpa + length]
            gpa += length
            size -= length

    # -- access

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all of [gpa, gpa + size) is guest memory.

        >>> memory.contains(0xff_ffff), memory.contains(0xff_ffff, 2)
        (True, False)
        """
        end = gpa + size
        while gpa < end:
            region = self.region_at(gpa)
            if region is None:
                return False
            gpa = region.end
        return size >= 0

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of ``size`` bytes at ``gpa``. Raises GuestMemoryError outside guest memory.

        >>> memory.read(0x1000, 4).hex()
        '00000000'
        """
        if size > 0 and not self.contains(gpa, size):  # before anything is allocated
            list(self._pieces(gpa, size))
        return b"".join(self._pieces(gpa, size))

    def write(self, gpa: int, data: Buffer) -> None:
        """Write all of ``data`` at ``gpa``, or raise GuestMemoryError and write nothing.

        >>> memory.write(0x1000, b"abc")
        >>> bytes(memory[0x1000:0x1003])
        b'abc'
        """
        source = memoryview(data).cast("B")
        end = gpa + source.nbytes
        if 0 <= gpa <= end <= self._low_end:
            self._low[gpa:end] = source
            return
        for piece in list(self._pieces(gpa, source.nbytes)):
            piece[:] = source[: piece.nbytes]
            source = source[piece.nbytes :]

    def zero(self, gpa: int, size: int) -> None:
        """Zero ``size`` bytes at ``gpa``, or raise GuestMemoryError and change nothing.

        >>> memory.write(0x1000, b"abc")
        >>> memory.zero(0x1000, 3)
        >>> memory.read(0x1000, 3).hex()
        '000000'
        """
        if size < 0 or (size and not self.contains(gpa, size)):
            list(self._pieces(gpa, size))  # names the address that is none
        for region in self._regions:
            start, end = max(gpa, region.gpa), min(gpa + size, region.end)
            if start >= end:
                continue
            first, last = -(-start // PAGE_SIZE) * PAGE_SIZE, end // PAGE_SIZE * PAGE_SIZE
            if last - first >= len(_ZEROS) and _forget(region, first, last):
                self._write_zeros(start, first)
                self._write_zeros(last, end)
            else:
                self._write_zeros(start, end)

    def _write_zeros(self, start: int, end: int) -> None:
        with memoryview(_ZEROS) as zeros:
            for gpa in range(start, end, len(_ZEROS)):
                with zeros[: end - gpa] as part:
                    self.write(gpa, part)

    def __getitem__(self, key: slice) -> memoryview:
        try:
            start, stop = key.start, key.stop
        except AttributeError:
            raise TypeError(f"memory[{key!r}]: give a slice, memory[start:stop]") from None
        if 0 <= start <= stop <= self._low_end:  # nearly always: one comparison, one slice
            return self._low[key]
        for region in self._regions:
            gpa = region.gpa
            if gpa <= start <= stop <= gpa + region.size:
                return region.view[start - gpa : stop - gpa : key.step]
        raise self._slice_error(key)

    def __setitem__(self, key: slice, data: Buffer) -> None:
        view = self[key]
        source = memoryview(data).cast("B")
        if source.nbytes != view.nbytes:
            raise GuestMemoryError(f"{source.nbytes} bytes for a slice of {view.nbytes}")
        view[:] = source

    def _slice_error(self, key: slice) -> Exception:
        if self._closed:
            return gone("guest memory", self._process)
        return GuestMemoryError(
            f"[{key.start!r}:{key.stop!r}] does not lie within one region of guest memory"
        )

    # -- life

    def _check_open(self) -> None:
        if self._closed:
            raise gone("guest memory", self._process)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called.

        >>> memory.closed
        False
        """
        return self._closed

    def close(self) -> None:
        """Give the memory back. Views that are still held keep their mapping alive.

        >>> memory.close()
        >>> memory.closed
        True
        """
        regions, self._regions, self._closed = self._regions, (), True
        self._low, self._low_end = memoryview(b""), -1
        for region in regions:
            _release(region)

    def _in_child(self) -> None:
        self._adopters, self._followers = [], []
        self.close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<GuestMemory, closed>"
        return f"<GuestMemory {self.size >> 10} KiB: {', '.join(map(repr, self._regions))}>"


#: From this size on what KVM itself needs for a region is looked at: 8 bytes for each page (struct
#: kvm_memory_slot's arrays), filled when the region is added.
_LARGE = 1 << 36


def _check_tables(size: int) -> None:
    """Rather than have the kernel fill the host's memory, for minutes, before it gives up."""
    if size < _LARGE:
        return
    tables, there = size // PAGE_SIZE * 8, os.sysconf("SC_AVPHYS_PAGES") * PAGE_SIZE
    if tables > there // 2:
        raise GuestMemoryError(
            f"{size >> 30} GiB of guest memory: KVM's own tables for it would take {tables >> 20} "
            f"MiB of this host's memory, of which {there >> 20} MiB are free"
        )


_ZEROS = bytes(1 << 20)

# How the host forgets pages, so that they read as zero: at once, whatever their number. Writing
# zeros would take seconds per GiB of memory not yet touched, and would make all of it resident.
_FORGET = {"anonymous": mmap.MADV_DONTNEED, "memfd": mmap.MADV_REMOVE}


def _forget(region: Region, start: int, end: int) -> bool:
    """Drop whole pages of a region; False where its backing or the kernel cannot."""
    if region.backing not in _FORGET or region._map is None:
        return False
    try:
        offset = region._begin + start - region.gpa
        region._map.madvise(_FORGET[region.backing], offset, end - start)
    except OSError:
        return False
    return True


def _release(region: Region) -> None:
    region.view.release()
    if region.fd is not None:
        os.close(region.fd)
        region.fd = None
    mapping, region._map = region._map, None
    if mapping is not None:
        try:
            mapping.close()
        except BufferError:
            pass  # a view is held: the mapping goes with it
