"""Where one load puts things in guest memory.

Every range is checked when it is claimed: inside writable RAM, outside the supervisor area and,
in real mode, outside the vector table and its stubs, and clear of everything claimed before.
Nothing is written before ``commit``, so a refused image leaves guest memory as it was.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..x86 import layout
from ..x86.modes import Mode
from . import e820
from .image import Image, Request

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

LIMIT_4G = 4 * layout.GIB
"""Everything that a boot protocol hands over by 32-bit address ends below this."""

LOW_MEMORY = (0x1_0000, e820.LOW_HOLE[0])
"""Where boot information goes: above what Linux keeps off and where boot sectors live."""


class Placement:
    """The layout of one load.

    ``memory``: the guest's memory. ``mode``: CPU mode of the entry, which decides what is reserved.
    ``firmware_tables``: ACPI and MP tables are in guest memory already.

    Raises ImageError: no RAM, or not enough for ``mode``.
    """

    def __init__(self, memory: GuestMemory, mode: Mode, *, firmware_tables: bool = False) -> None:
        self._memory = memory
        self._ram = e820.writable_ram(memory)
        self._reserved = _reserved_ranges(memory, mode)
        if firmware_tables:
            tables = (layout.FIRMWARE_TABLES, layout.FIRMWARE_TABLES_END)
            self._reserved.append((tables, "the ACPI and MP tables"))
        self._free = e820.subtract(self._ram, (area for area, _ in self._reserved))
        if not self._free:
            raise ImageError("guest memory has no free RAM: 0 bytes, an image needs at least 1")
        self._claims: list[tuple[int, int, str]] = []
        self._writes: list[tuple[int, Image | bytes | None, int, int]] = []

    @classmethod
    def of(cls, request: Request, mode: Mode) -> Placement:
        """The layout of what ``request`` asks for."""
        return cls(request.memory, mode, firmware_tables=request.acpi_rsdp is not None)

    def claim(self, what: str, gpa: int, size: int) -> None:
        """Claim ``size`` bytes at exactly ``gpa``; a size of 0 claims nothing.

        Raises ImageError: the range is not free.
        """
        if size == 0:
            return
        end = gpa + size
        index = bisect.bisect_right(self._free, gpa, key=lambda free: free[0]) - 1
        if index < 0 or not self._free[index][0] <= gpa < end <= self._free[index][1]:
            raise ImageError(f"{what}: {gpa:#x}..{end - 1:#x} {self._obstacle(gpa, end)}")
        start, stop = self._free[index]
        self._free[index : index + 1] = [(a, b) for a, b in ((start, gpa), (end, stop)) if a < b]
        self._claims.append((gpa, size, what))

    def place(
        self,
        what: str,
        size: int,
        *,
        align: int = 1,
        window: e820.Range = (e820.LOW_HOLE[1], LIMIT_4G),
        top: bool = False,
    ) -> int:
        """Choose and claim ``size`` bytes in ``window``, never in 0xA0000..0xFFFFF.

        ``what``: name of the segment and, in messages, of the field. ``size``: in bytes, at least
        1. ``align``: alignment in bytes. ``window``: start and exclusive end of the search.
        ``top``: take the highest address instead of the lowest.

        Raises ImageError: there is no such range.
        """
        gaps = list(self._gaps(window))
        for start, end in reversed(gaps) if top else gaps:
            gpa = (end - size) // align * align if top else -(-start // align) * align
            if start <= gpa and gpa + size <= end:
                self.claim(what, gpa, size)
                return gpa
        largest = max((end - start for start, end in gaps), default=0)
        raise ImageError(
            f"{what} needs {size:#x} bytes aligned to {align:#x} in "
            f"{window[0]:#x}..{window[1] - 1:#x}: the largest free range there has {largest:#x}"
        )

    def place_data(self, what: str, data: bytes, *, align: int = 8) -> int:
        """Place boot information made by the loader in low memory; return its gpa."""
        gpa = self.place(what, len(data), align=align, window=LOW_MEMORY)
        self.put(gpa, data)
        return gpa

    def put(self, gpa: int, data: bytes) -> None:
        """Have ``commit`` write ``data`` at ``gpa``, inside a claimed range."""
        self._writes.append((gpa, data, 0, len(data)))

    def put_file(self, gpa: int, source: Image, offset: int, size: int) -> None:
        """Have ``commit`` copy a part of ``source``, already checked, to ``gpa``."""
        self._writes.append((gpa, source, offset, size))

    def put_zeros(self, gpa: int, size: int) -> None:
        self._writes.append((gpa, None, 0, size))

    def commit(self) -> tuple[tuple[int, int, str], ...]:
        """Write everything; return the segments, sorted by gpa."""
        for gpa, source, offset, size in self._writes:
            if isinstance(source, Image):
                source.copy_to(self._memory, gpa, offset, size)
            elif source is not None:
                self._memory.write(gpa, source)
            else:
                self._memory.zero(gpa, size)
        return tuple(sorted(self._claims))

    def _gaps(self, window: e820.Range) -> Iterator[e820.Range]:
        """Free ranges inside ``window`` and outside 0xA0000..0xFFFFF, by address."""
        for low, high in e820.subtract([window], [e820.LOW_HOLE]):
            for start, end in self._free:
                start, end = max(start, low), min(end, high)
                if start < end:
                    yield start, end

    def _obstacle(self, gpa: int, end: int) -> str:
        """Why ``gpa``..``end`` cannot be claimed."""
        for start, size, name in self._claims:
            if gpa < start + size and start < end:
                return f"overlaps {name} at {start:#x}..{start + size - 1:#x}"
        for (start, stop), name in self._reserved:
            if gpa < stop and start < end:
                return f"overlaps {name} at {start:#x}..{stop - 1:#x}"
        ram = ", ".join(f"{start:#x}..{stop - 1:#x}" for start, stop in self._ram)
        return f"lies outside the guest's writable RAM, {ram}"


def _reserved_ranges(memory: GuestMemory, mode: Mode) -> list[tuple[e820.Range, str]]:
    """What the host keeps for itself, with names."""
    if mode is not Mode.REAL_16:
        return [(e820.supervisor_range(memory), "the supervisor area")]
    vectors = (layout.REAL_IVT, layout.REAL_RESERVED_END)
    reserved = [(vectors, "the real-mode vector table and stubs")]
    with contextlib.suppress(ImageError):  # real mode works in less RAM than the area takes
        reserved.append((e820.supervisor_range(memory), "the supervisor area"))
    return reserved
