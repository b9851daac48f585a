"""Page tables that map every address to itself.

The builders map guest-virtual to the same guest-physical addresses: everything is writable and
accessible to ring 3 except the supervisor area, which only rings 0..2 reach. Accessed and dirty
bits are set beforehand, so the CPU never writes to the tables. No 1 GiB pages: kvm_pvm and older
hosts lack them.

Source: SDM vol. 3, "Paging".
"""

from __future__ import annotations

import struct
from array import array
from functools import lru_cache
from typing import Final

from .layout import GIB, MIB, PAGE_SIZE, MemoryLike, SupervisorArea

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
LARGE: Final = 1 << 7  # PS: the entry maps a page and not a table

_TABLE: Final = PRESENT | WRITABLE | USER | ACCESSED
_PAGE: Final = PRESENT | WRITABLE | ACCESSED | DIRTY


def _entries(base: int, size: int, step: int, flags: int, typecode: str) -> array[int]:
    """Entries for pages of ``step`` bytes in ``size`` bytes from ``base``, all with ``flags``."""
    return array(typecode, _table(base | flags, size, step, typecode))


@lru_cache(maxsize=16)  # scripts make many small guests that are alike
def _table(first: int, size: int, step: int, typecode: str) -> bytes:
    return array(typecode, range(first, first + size, step)).tobytes()


def _page_table(area: SupervisorArea, block: int, block_size: int, typecode: str) -> bytes:
    """The page table for the large page at ``block``, part of which is the supervisor area."""
    entries = _entries(block, block_size, PAGE_SIZE, _PAGE | USER, typecode)
    start, end = max(area.base, block), min(area.end, block + block_size)
    for index in range((start - block) // PAGE_SIZE, (end - block) // PAGE_SIZE):
        entries[index] &= ~USER
    return entries.tobytes()


def _overlapping_blocks(area: SupervisorArea, block_size: int) -> range:
    return range(area.base & -block_size, area.end, block_size)


def build_long(memory: MemoryLike, area: SupervisorArea, directories: int) -> int:
    """Write 4-level tables that map the first ``directories`` GiB (4..512); returns CR3.

    2 MiB pages, and 4 KiB pages around the supervisor area. Needs ``2 + directories`` pages and one
    or two more from ``area.page_tables``.

    Raises ValueError: the area has too few pages for page tables.

    >>> area = kvmpy.x86.layout.supervisor_area(memory)
    >>> hex(kvmpy.x86.paging.build_long(memory, area, directories=4))
    '0xff0000'
    """
    blocks = _overlapping_blocks(area, 2 * MIB)
    pages = area.page_tables
    if 2 + len(blocks) + directories > len(pages):
        raise ValueError(
            f"the supervisor area at {area.base:#x} has {len(pages)} pages for page tables, "
            f"{2 + len(blocks) + directories} are needed to map {directories} GiB"
        )
    pml4, pdpt, *rest = pages
    tables = dict(zip(blocks, rest, strict=False))
    pds = rest[len(tables) : len(tables) + directories]
    for block, table in tables.items():
        memory.write(table, _page_table(area, block, 2 * MIB, "Q"))
    for index, pd in enumerate(pds):
        base = index * GIB
        entries = _entries(base, GIB, 2 * MIB, _PAGE | USER | LARGE, "Q")
        for block, table in tables.items():
            if base <= block < base + GIB:
                entries[(block - base) // (2 * MIB)] = table | _TABLE
        memory.write(pd, entries.tobytes())
    pointers = struct.pack(f"<{len(pds)}Q", *(pd | _TABLE for pd in pds))
    memory.write(pdpt, pointers.ljust(PAGE_SIZE, b"\0"))
    memory.write(pml4, struct.pack("<Q", pdpt | _TABLE).ljust(PAGE_SIZE, b"\0"))
    return pml4


def build_legacy(memory: MemoryLike, area: SupervisorArea) -> int:
    """Write 32-bit tables (CR4.PSE set, CR4.PAE clear) that map the low 4 GiB; returns CR3.

    4 MiB pages, and 4 KiB pages around the supervisor area.

    >>> area = kvmpy.x86.layout.supervisor_area(memory)
    >>> hex(kvmpy.x86.paging.build_legacy(memory, area))
    '0xff0000'
    """
    directory, *rest = area.page_tables
    entries = _entries(0, 4 * GIB, 4 * MIB, _PAGE | USER | LARGE, "I")
    for block, table in zip(_overlapping_blocks(area, 4 * MIB), rest, strict=False):
        memory.write(table, _page_table(area, block, 4 * MIB, "I"))
        entries[block // (4 * MIB)] = table | _TABLE
    memory.write(directory, entries.tobytes())
    return directory


def is_canonical(address: int, bits: int = 48) -> bool:
    """Whether a 64-bit address repeats bit ``bits - 1`` in all bits above.

    >>> kvmpy.x86.paging.is_canonical(0xffff_8000_0000_0000)
    True
    >>> kvmpy.x86.paging.is_canonical(0x8000_0000_0000)
    False
    """
    return 0 <= address < 1 << 64 and (address >> (bits - 1)) in (0, (1 << (65 - bits)) - 1)
