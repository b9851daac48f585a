"""The memory map handed to a guest, in the terms of ACPI's "System Address Map Interfaces".

INT 15h, AX=E820h gave the table its name. One builder serves the Linux zero page (``e820_table``),
the Multiboot information (``mmap_*``) and PVH (``memmap_paddr``): they differ only in encoding.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..values import dataclass
from ..x86 import layout

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

Range = tuple[int, int]
"""Start and exclusive end, guest-physical."""

# Video memory, option ROMs and firmware of every PC. Backed by RAM here, never used by choice.
LOW_HOLE: Range = (layout.LOW_MEMORY_END, layout.MIB)
# KVM_SET_IDENTITY_MAP_ADDR (one page) and KVM_SET_TSS_ADDR (three pages)
KVM_PRIVATE: Range = (layout.IDENTITY_MAP, layout.TSS_ADDR + 3 * layout.PAGE_SIZE)


class RangeType(enum.IntEnum):
    """Address Range Types of the ACPI Specification."""

    RAM = 1
    RESERVED = 2


@dataclass(frozen=True)
class MapEntry:
    """One address range: guest-physical ``base``, ``size`` in bytes, ``type``."""

    base: int
    size: int
    type: RangeType

    @property
    def end(self) -> int:
        return self.base + self.size


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Sorted union: overlapping and adjacent ranges become one."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def subtract(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """The parts of ``ranges`` outside every one of ``holes``, sorted."""
    left = merge(ranges)
    for hole_start, hole_end in holes:
        pieces = [
            piece
            for start, end in left
            for piece in ((start, min(end, hole_start)), (max(start, hole_end), end))
        ]
        left = merge(pieces)
    return left


def writable_ram(memory: GuestMemory) -> list[Range]:
    return merge((r.gpa, r.end) for r in memory.regions if not r.read_only)


def supervisor_range(memory: GuestMemory) -> Range:
    """The supervisor area.

    Raises ImageError: guest memory is too small, or too large, to have one.
    """
    try:
        area = layout.supervisor_area(memory)
    except ValueError as error:
        raise ImageError(f"guest memory: {error}") from None
    return area.base, area.end


def memory_map(memory: GuestMemory) -> tuple[MapEntry, ...]:
    """The map of ``memory``, sorted and without overlaps.

    RAM is what is writable, less 0xA0000..0xFFFFF and the supervisor area. Those two, read-only
    regions and the pages that KVM keeps for itself below 4 GiB are reserved. The hole below
    4 GiB is otherwise not listed: a guest may place devices there.

    Raises ImageError: see ``supervisor_range``.
    """
    read_only = ((r.gpa, r.end) for r in memory.regions if r.read_only)
    reserved = merge((LOW_HOLE, KVM_PRIVATE, supervisor_range(memory), *read_only))
    entries = [MapEntry(a, b - a, RangeType.RESERVED) for a, b in reserved]
    for start, end in subtract(writable_ram(memory), reserved):
        entries.append(MapEntry(start, end - start, RangeType.RAM))
    return tuple(sorted(entries, key=lambda entry: entry.base))
