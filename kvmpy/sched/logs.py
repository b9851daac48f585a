"""The guest's logs, taken from its memory: rings that a running vCPU writes, read as what they are,
a stranger's bytes.

The guest writes a slot's number last and counts it after that, or before (gaps). A number that does
not fit its slot is a record not yet written, or overwritten; nothing of it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

#: ``read(gpa, size)``, as GuestMemory.read.
Reader = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Ring:
    """Where a log is: its ``counter`` of 64 bits and its ``base``, guest physical addresses;
    ``slots``, a power of 2, of ``size`` bytes; the number of the record is word ``number``."""

    counter: int
    base: int
    slots: int
    size: int
    number: int


class Log:
    """Reads a ring, piece by piece. ``lost``: records that were gone before they were read;
    ``damaged``: slots that hold another record than they should."""

    def __init__(self, ring: Ring, read: Reader):
        self.ring, self._read = ring, read
        self.lost = self.damaged = 0
        self._next = 0

    def _count(self) -> int:
        return int.from_bytes(self._read(self.ring.counter, 8), "little")

    def take(self, final: bool = False) -> list[tuple[int, ...]]:
        """The records since the last call, as words. Never more than the ring has slots, whatever
        the guest says.

        While the guest runs, a record that is not complete is left for the next call; ``final``:
        there is none.

        >>> words = {0: 1, 8: 77, 16: 1}  # the counter, and a slot: 77, number 1
        >>> read = lambda gpa, size: b"".join(
        ...     words.get(at, 0).to_bytes(8, "little") for at in range(gpa, gpa + size, 8))
        >>> kvmpy.sched.logs.Log(kvmpy.sched.logs.Ring(0, 8, 4, 16, number=1), read).take()
        [(77, 1)]
        """
        ring = self.ring
        count = self._count()
        if count < self._next:
            self.damaged += 1  # a counter only grows
            return []
        self._skip(count - ring.slots)
        first = self._next
        slots = self._slots(first, count - first)
        taken: list[tuple[int, ...]] = []
        for index, words in enumerate(slots, first):
            number = words[ring.number]
            if number == index + 1:
                taken.append(words)
            elif number > index or final:
                self.damaged += 1
            else:
                break  # on its way
            self._next = index + 1
        return self._without_overwritten(taken)

    def _skip(self, index: int) -> None:
        if index > self._next:
            self.lost += index - self._next
            self._next = index

    def _slots(self, first: int, count: int) -> list[tuple[int, ...]]:
        """``count`` slots from number ``first`` on, around the ring's end."""
        ring = self.ring
        at = first % ring.slots
        ahead = min(count, ring.slots - at)
        raw = self._read(ring.base + at * ring.size, ahead * ring.size)
        raw += self._read(ring.base, (count - ahead) * ring.size)
        return list(struct.iter_unpack(f"<{ring.size // 8}Q", raw))

    def _without_overwritten(self, taken: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Without those that the guest may have been overwriting meanwhile. It takes a slot before
        the counter says so (switches): one more is not sure."""
        oldest = self._count() - self.ring.slots + 1
        sure = [words for words in taken if words[self.ring.number] > oldest]
        self.lost += len(taken) - len(sure)
        return sure
