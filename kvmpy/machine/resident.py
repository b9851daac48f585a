"""How much host memory a machine takes: the guest's RAM, and what comes on top."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..shim import address_of
from ..values import dataclass

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_PAGES = ("Rss:", "Private_Hugetlb:", "Shared_Hugetlb:")  # huge pages are no part of Rss


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes in RAM now: ``guest`` of the guest's memory, ``host`` of all else in this process."""

    guest: int
    host: int


def measure(memory: GuestMemory) -> Resident:
    """Read it from /proc/self/smaps. Raises OSError where there is none.

    >>> kvmpy.machine.resident.measure(memory).host > 1 << 20
    True
    """
    addresses = {address_of(region.view[:]): region.size for region in memory.regions}
    guest = host = 0
    inside = False
    with open("/proc/self/smaps") as file:
        for line in file:
            mapping = _MAPPING.match(line)
            if mapping:
                start, end = (int(text, 16) for text in mapping.groups())
                inside = any(at < end and start < at + size for at, size in addresses.items())
            elif line.startswith(_PAGES):
                size = int(line.split()[1]) << 10
                guest, host = (guest + size, host) if inside else (guest, host + size)
    return Resident(guest, host)
