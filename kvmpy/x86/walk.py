"""A page-table walk that explains itself: each level's entry, the result, or why there is none.

Source: SDM vol. 3, "Paging".
"""

from __future__ import annotations

import enum
from typing import Final

from ..values import dataclass
from .bits import LMA
from .layout import PAGE_SIZE, MemoryLike
from .paging import ACCESSED, DIRTY, LARGE, PRESENT, USER, WRITABLE, is_canonical

NO_EXECUTE: Final = 1 << 63
_ADDRESS_MASK: Final = 0x000F_FFFF_FFFF_F000


class Paging(enum.Enum):
    """The paging modes of the architecture."""

    OFF = "off"
    LEGACY = "32-bit"
    PAE = "PAE"
    LEVEL4 = "4-level"
    LEVEL5 = "5-level"

    @classmethod
    def of(cls, cr0: int, cr4: int, efer: int) -> Paging:
        """The mode that these control registers select.

        >>> kvmpy.x86.walk.Paging.of(cr0=0x80000001, cr4=0x20, efer=0x500)
        <Paging.LEVEL4: '4-level'>
        """
        if not cr0 >> 31 & 1:
            return cls.OFF
        if not cr4 >> 5 & 1:
            return cls.LEGACY
        if not efer & LMA:
            return cls.PAE
        return cls.LEVEL5 if cr4 >> 12 & 1 else cls.LEVEL4


_FLAGS: Final = {
    0: "P", 1: "RW", 2: "US", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 8: "G", 63: "XD",
}  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One step of a walk: the table's name, where its entry is, and the entry's value."""

    name: str
    entry_gpa: int
    entry: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags set, by the SDM's names. PS is PAT in a PT's entry, and XD is bit 63.

        >>> kvmpy.x86.walk.Level("PT", 0x1000, 0x2063).flags
        ('P', 'RW', 'A', 'D')
        """
        names = {**_FLAGS, 7: "PAT" if self.name == "PT" else "PS"}
        return tuple(name for bit, name in sorted(names.items()) if self.entry >> bit & 1)

    def __str__(self) -> str:
        bits = ((PRESENT, "P"), (WRITABLE, "W"), (USER, "U"), (ACCESSED, "A"), (DIRTY, "D"))
        flags = "".join(letter for bit, letter in bits if self.entry & bit) or "not present"
        return f"{self.name} {self.entry:#x} at {self.entry_gpa:#x} [{flags}]"


@dataclass(frozen=True)
class PageWalk:
    """What a walk found. ``gpa`` is None when there is no translation; ``fault`` then says why.

    The permissions are those of all levels together; they say nothing when ``gpa`` is None.
    """

    gva: int
    levels: tuple[Level, ...]
    gpa: int | None
    page_size: int
    writable: bool
    user: bool
    executable: bool
    fault: str | None = None

    def __str__(self) -> str:
        steps = " -> ".join(map(str, self.levels))
        if self.gpa is None:
            return f"gva {self.gva:#x}: {self.fault}; {steps or 'no table read'}"
        rights = ("w" if self.writable else "-") + ("x" if self.executable else "-")
        who = "user" if self.user else "supervisor"
        return f"gva {self.gva:#x} -> gpa {self.gpa:#x} ({who}, r{rights}); {steps or 'paging off'}"


# name, lowest address bit that indexes the table, index bits. From the root down.
_LEVELS: Final[dict[Paging, tuple[tuple[str, int, int], ...]]] = {
    Paging.LEGACY: (("PD", 22, 10), ("PT", 12, 10)),
    Paging.PAE: (("PDPT", 30, 2), ("PD", 21, 9), ("PT", 12, 9)),
    Paging.LEVEL4: (("PML4", 39, 9), ("PDPT", 30, 9), ("PD", 21, 9), ("PT", 12, 9)),
    Paging.LEVEL5: (
        ("PML5", 48, 9),
        ("PML4", 39, 9),
        ("PDPT", 30, 9),
        ("PD", 21, 9),
        ("PT", 12, 9),
    ),
}


def _table_base(cr3: int, paging: Paging) -> int:
    if paging is Paging.LEGACY:
        return cr3 & 0xFFFF_F000
    return cr3 & 0xFFFF_FFE0 if paging is Paging.PAE else cr3 & _ADDRESS_MASK


def _page_address(entry: int, shift: int, paging: Paging) -> int:
    if paging is Paging.LEGACY and shift == 22:
        return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32  # PSE-36: bits 39:32
    return entry & _ADDRESS_MASK & -(1 << shift)


def walk(
    memory: MemoryLike, cr3: int, gva: int, paging: Paging, *, pse: bool = True, nx: bool = True
) -> PageWalk:
    """Translate ``gva`` by the tables in guest memory, and show each level's entry.

    Reserved bits are not checked, except for a large page where the level has none. ``pse`` and
    ``nx`` are CR4.PSE and EFER.NXE. The tables are guest input: an entry outside RAM ends the walk
    with a fault; nothing is raised.

    >>> from kvmpy.x86.walk import Paging, walk
    >>> state = kvmpy.x86.modes.prepare(memory, kvmpy.LONG_MODE, rip=0x1000)
    >>> found = walk(memory, state.sregs.cr3, 0x1234, Paging.LEVEL4)
    >>> hex(found.gpa), len(found.levels)
    ('0x1234', 3)
    """
    levels: list[Level] = []
    writable = user = executable = True

    def result(gpa: int | None, size: int, fault: str | None = None) -> PageWalk:
        return PageWalk(gva, tuple(levels), gpa, size, writable, user, executable, fault)

    if paging is Paging.OFF:
        return result(gva & 0xFFFF_FFFF, PAGE_SIZE)
    if paging in (Paging.LEGACY, Paging.PAE):
        gva &= 0xFFFF_FFFF
    elif not is_canonical(gva, 57 if paging is Paging.LEVEL5 else 48):
        return result(None, 0, "address is not canonical")

    size = 4 if paging is Paging.LEGACY else 8
    table = _table_base(cr3, paging)
    for name, shift, bits in _LEVELS[paging]:
        where = table + size * (gva >> shift & (1 << bits) - 1)
        try:
            entry = int.from_bytes(memory.read(where, size), "little")
        except ValueError:
            return result(None, 0, f"{name} entry at {where:#x} is outside RAM")
        levels.append(Level(name, where, entry))
        if not entry & PRESENT:
            return result(None, 0, f"{name} entry is not present")
        if not (paging is Paging.PAE and name == "PDPT"):  # has no permission bits
            writable &= bool(entry & WRITABLE)
            user &= bool(entry & USER)
            executable &= not (nx and entry & NO_EXECUTE)
        large = shift > 12 and bool(entry & LARGE) and (paging is not Paging.LEGACY or pse)
        if large and (name in ("PML4", "PML5") or (paging is Paging.PAE and name == "PDPT")):
            return result(None, 0, f"{name} entry has the reserved PS bit set")
        if large or shift == 12:
            page = _page_address(entry, shift, paging)
            return result(page | gva & (1 << shift) - 1, 1 << shift)
        table = entry & (0xFFFF_F000 if paging is Paging.LEGACY else _ADDRESS_MASK)
    raise AssertionError("the last level always returns")
