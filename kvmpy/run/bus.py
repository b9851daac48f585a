"""Who answers which port and which guest physical address.

Claims go into the shim's dispatch table (native/dispatch.c): what a C device, a counter or a ring
owns never reaches Python while the guest runs.
"""

from __future__ import annotations

import errno
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from ..arguments import check_handler, integer
from ..errors import KvmpyError
from ..fd import Owner, hears_of_forks
from ..shim import ffi, lib

#: ``handler(address, size, value)``: value is None for a read, whose answer it returns.
AccessHandler = Callable[[int, int, int | None], int | None]
_H = TypeVar("_H", bound=AccessHandler)
_B = TypeVar("_B", bound="Callable[[WriteBatch], None]")

_RECORD_WORDS = 4


class ClaimError(KvmpyError, ValueError):
    """The port or address range is claimed already, or invalid."""


class BusDevice(Protocol):
    """What :meth:`Bus.attach` takes: a face of a C device (see ``kvmpy.devices``)."""

    @property
    def _device(self) -> Any: ...
    @property
    def length(self) -> int: ...


class Counter:
    """Counts accesses in C. Reads give all ones."""

    __slots__ = ("_counter",)

    def __init__(self) -> None:
        self._counter = ffi.new("struct shim_counter *")

    @property
    def reads(self) -> int:
        """Reads so far.

        >>> counter = vm.count_io(0x80)
        >>> counter.reads
        0
        """
        count: int = self._counter.reads
        return count

    @property
    def writes(self) -> int:
        """Writes so far.

        >>> counter = vm.count_io(0x80)
        >>> vm.load(kvmpy.asm("out 0x80, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5), counter.writes
        (Hlt(), 1)
        """
        count: int = self._counter.writes
        return count

    def __repr__(self) -> str:
        return f"<Counter {self.reads} reads, {self.writes} writes>"


class WriteBatch:
    """Writes the guest made, in order, valid only during the handler's call.

    Iteration gives ``(address, size, value, tsc)``; ``words`` is one flat memoryview of u64, four
    to a write: address, value, size (bits 0 to 15, and bit 63 for MMIO) and TSC.
    """

    __slots__ = ("words",)

    def __init__(self, words: memoryview):
        self.words = words

    def __len__(self) -> int:
        return len(self.words) // _RECORD_WORDS

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        words = self.words
        for i in range(0, len(words), _RECORD_WORDS):
            yield words[i], words[i + 2] & 0xFFFF, words[i + 1], words[i + 3]


def split_by_handler(words: memoryview, handlers: int) -> list[memoryview]:
    """The records of each handler, in order. One handler, the usual case, costs no copy.

    >>> from array import array
    >>> words = memoryview(array("Q", [0x10, 7, 1, 0]))
    >>> [len(part) for part in kvmpy.run.bus.split_by_handler(words, 1)]
    [4]
    """
    if handlers == 1:
        return [words]
    records = [array("Q") for _ in range(handlers)]
    for i in range(0, len(words), _RECORD_WORDS):
        records[words[i + 2] >> 16 & 0xFFFF_FFFF].extend(words[i : i + _RECORD_WORDS])
    return [memoryview(part) for part in records]


def _bounds(ports: int | range) -> tuple[int, int]:
    if isinstance(ports, range):
        if ports.step != 1 or not ports:
            raise ClaimError(f"{ports!r} is not a contiguous range")
        return ports.start, len(ports)
    if callable(ports):
        raise TypeError("which ports? Not @vm.on_io, but @vm.on_io(0x10)")
    return integer(ports, "ports"), 1


class Numbered(list[Any]):
    """What the tables know by number, at its place."""

    def __init__(self) -> None:
        self._free: list[int] = []

    def put(self, one: object) -> int:
        """Its number from now on.

        >>> from kvmpy.run.bus import Numbered
        >>> Numbered().put(print)
        0
        """
        if self._free:
            number = self._free.pop()
            self[number] = one
        else:
            number = len(self)
            self.append(one)
        return number

    def drop(self, number: int) -> None:
        """Another can have the number.

        >>> from kvmpy.run.bus import Numbered
        >>> numbered = Numbered()
        >>> numbered.drop(numbered.put(print)); numbered.put(len)
        0
        """
        self[number] = None
        self._free.append(number)


class _Claim:
    """Of a range: what C or Python has there, and its number if it goes by one."""

    __slots__ = ("number", "numbers", "released_at", "what")

    def __init__(self, what: object, numbers: Numbered | None):
        self.what, self.numbers, self.number = what, numbers, 0
        #: The generation of tables that no longer had it.
        self.released_at = 0

    def drop(self) -> None:
        if self.numbers is not None:
            self.numbers.drop(self.number)


class Bus(Owner):
    """The ports and MMIO ranges of one VM."""

    def __init__(self) -> None:
        bus = lib.shim_bus_new()
        if bus == ffi.NULL:
            raise MemoryError("no memory for a bus")
        self._bus = ffi.gc(bus, lib.shim_bus_free)
        # Guards all below. Signal handlers may claim, too.
        self._claiming = threading.RLock()
        self.handlers, self.batch_handlers, self.msr_handlers = Numbered(), Numbered(), Numbered()
        self._claims: dict[tuple[int, int], _Claim] = {}  # by space and first address
        self._released: list[_Claim] = []  # that vCPUs may still be looking at
        self._oldest = ffi.new("uint64_t[2]")
        hears_of_forks(self)

    def _in_child(self) -> None:
        self._claiming = threading.RLock()

    # -- claims of any kind

    def _claim(
        self, space: int, first: int, length: int, owner: int,
        what: object, numbers: Numbered | None = None, target: Any = ffi.NULL,
    ) -> int:  # fmt: skip
        """0 or -errno."""
        claim = _Claim(what, numbers)
        with self._claiming:
            gone = self._reclaim()
            if numbers is not None:  # before the table has it: a vCPU may ask at once
                claim.number = numbers.put(what)
            error = -errno.EINVAL
            try:
                error = lib.shim_bus_claim(
                    self._bus, space, first, length, owner, claim.number, target
                )
            finally:
                if error:
                    claim.drop()
                else:
                    self._claims[space, first] = claim
        del gone  # without the lock: what ends here may claim or release itself
        return int(error)

    def _release(self, space: int, first: int) -> int:
        """0 or -errno."""
        with self._claiming:
            error: int = lib.shim_bus_release(self._bus, space, first)
            if not error:
                claim = self._claims.pop((space, first))
                claim.released_at = lib.shim_bus_generation(self._bus)
                self._released.append(claim)
            gone = self._reclaim()
        del gone
        return error

    def _reclaim(self) -> list[_Claim]:
        """What was released goes once no vCPU can be looking at it, or has writes for it."""
        lib.shim_bus_reclaim(self._bus, self._oldest)
        looked_at, in_rings = self._oldest
        gone: list[_Claim] = []
        left: list[_Claim] = []
        for claim in self._released:
            oldest = in_rings if claim.numbers is self.batch_handlers else looked_at
            (left if claim.released_at > oldest else gone).append(claim)
        self._released = left
        for claim in gone:
            claim.drop()
        return gone

    # -- ports and addresses

    def _claim_range(
        self, mmio: bool, first: int, length: int, owner: int,
        what: object, numbers: Numbered | None = None, target: Any = None,
    ) -> None:  # fmt: skip
        first, length = integer(first, "first"), integer(length, "length")
        kind = "MMIO" if mmio else "port"
        end = 1 << 64 if mmio else 1 << 16
        if first < 0 or not 1 <= length < 1 << 64 or first + length > end:
            raise ClaimError(f"{kind} range {first:#x}+{length:#x} is not one")
        pointer = ffi.NULL if target is None else ffi.cast("void *", target)
        error = self._claim(int(mmio), first, length, owner, what, numbers, pointer)
        if error == -errno.EEXIST:
            raise ClaimError(
                f"{kind} {first:#x}..{first + length - 1:#x} overlaps a range that is claimed"
            )
        if error:
            raise OSError(-error, os.strerror(-error))

    def handle(
        self, first: int, length: int, handler: AccessHandler, *, mmio: bool = False
    ) -> None:
        """Have ``handler`` answer accesses whose first byte lies in the range.

        >>> vm.bus.handle(0x10, 1, lambda port, size, value: 42)
        """
        check_handler(handler)
        self._claim_range(mmio, first, length, lib.SHIM_OWNER_PYTHON, handler, self.handlers)

    def attach(self, device: BusDevice, first: int, *, mmio: bool = False) -> None:
        """Have a C device answer ``device.length`` ports (bytes, with ``mmio``) from ``first``.

        >>> vm.bus.attach(kvmpy.PostPort(), 0x80)
        """
        owner, target = lib.SHIM_OWNER_DEVICE, device._device
        self._claim_range(mmio, first, device.length, owner, device, target=target)

    def count(self, first: int, length: int, *, mmio: bool = False) -> Counter:
        """Count accesses, and do nothing else.

        >>> vm.bus.count(0x80, 1)
        <Counter 0 reads, 0 writes>
        """
        counter = Counter()
        owner, target = lib.SHIM_OWNER_COUNTER, counter._counter
        self._claim_range(mmio, first, length, owner, counter, target=target)
        return counter

    def defer(
        self,
        first: int,
        length: int,
        handler: Callable[[WriteBatch], None],
        *,
        mmio: bool = False,
    ) -> None:
        """Put writes into the vCPU's ring, for ``handler``; reads give all ones.

        >>> vm.bus.defer(0x10, 1, lambda batch: print(len(batch)))
        """
        check_handler(handler)
        self._claim_range(mmio, first, length, lib.SHIM_OWNER_RING, handler, self.batch_handlers)

    def release(self, first: int, *, mmio: bool = False) -> None:
        """Take back the claim that starts at ``first``.

        >>> vm.bus.attach(kvmpy.PostPort(), 0x80)
        >>> vm.bus.release(0x80)
        """
        error = self._release(int(mmio), first)
        if error == -errno.ENOENT:
            raise ClaimError(f"no claim starts at {first:#x}")
        if error:
            raise OSError(-error, os.strerror(-error))

    def handle_msr(
        self, first: int, count: int, handler: Callable[..., Any], *, is_write: bool
    ) -> None:
        """Have ``handler`` answer reads, or writes, of ``count`` MSRs from ``first`` on.

        >>> vm.bus.handle_msr(0x10, 1, lambda index, value: 0, is_write=False)
        """
        check_handler(handler)
        space, owner = lib.SHIM_WRMSR if is_write else lib.SHIM_RDMSR, lib.SHIM_OWNER_PYTHON
        error = self._claim(space, first, count, owner, handler, self.msr_handlers)
        if error == -errno.EEXIST:
            raise ClaimError(f"MSRs {first:#x}..{first + count - 1:#x}: some have a handler")
        if error == -errno.EINVAL:
            raise ClaimError(f"MSRs {first:#x}+{count:#x} are not in 0..2**32-1")
        if error:
            raise OSError(-error, os.strerror(-error))

    def release_msr(self, first: int, *, is_write: bool) -> None:
        """Take back the claim of reads, or writes, that starts at MSR ``first``.

        >>> vm.bus.handle_msr(0x10, 1, lambda index, value: 0, is_write=False)
        >>> vm.bus.release_msr(0x10, is_write=False)
        """
        space = lib.SHIM_WRMSR if is_write else lib.SHIM_RDMSR
        error = self._release(space, first)
        if error == -errno.ENOENT:
            raise ClaimError(f"no handler's MSRs start at {first:#x}")
        if error:
            raise OSError(-error, os.strerror(-error))

    def devices(self) -> Iterator[object]:
        """Everything that is attached.

        >>> vm.attach(kvmpy.PostPort(), 0x80)
        >>> len(list(vm.bus.devices()))
        1
        """
        with self._claiming:
            claims = list(self._claims.values())
        return (claim.what for claim in claims if claim.numbers is None)
