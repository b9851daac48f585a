"""KVM's binary statistics (KVM API, "4.133 KVM_GET_STATS_FD"): ``vm.stats``, ``cpu.stats``.

The descriptor describes itself: what statistics there are differs between kernels and modules.
Header and descriptors are read once; a snapshot is one pread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import KvmpyError
from ..fd import Descriptor
from ..shim import ffi, lib
from ..values import dataclass

_HEADER_SIZE: int = ffi.sizeof("struct kvm_stats_header")
#: Without the name, which follows.
_DESCRIPTOR_SIZE: int = ffi.sizeof("struct kvm_stats_desc")
#: More than any kernel has, and what a damaged header must not make us allocate.
_MOST_NAME, _MOST_DESCRIPTORS, _MOST_DATA = 4096, 1 << 16, 1 << 24

KINDS = {
    lib.KVM_STATS_TYPE_CUMULATIVE >> lib.KVM_STATS_TYPE_SHIFT: "cumulative",
    lib.KVM_STATS_TYPE_INSTANT >> lib.KVM_STATS_TYPE_SHIFT: "instant",
    lib.KVM_STATS_TYPE_PEAK >> lib.KVM_STATS_TYPE_SHIFT: "peak",
    lib.KVM_STATS_TYPE_LINEAR_HIST >> lib.KVM_STATS_TYPE_SHIFT: "linear histogram",
    lib.KVM_STATS_TYPE_LOG_HIST >> lib.KVM_STATS_TYPE_SHIFT: "log histogram",
}
UNITS = {
    lib.KVM_STATS_UNIT_NONE >> lib.KVM_STATS_UNIT_SHIFT: "",
    lib.KVM_STATS_UNIT_BYTES >> lib.KVM_STATS_UNIT_SHIFT: "bytes",
    lib.KVM_STATS_UNIT_SECONDS >> lib.KVM_STATS_UNIT_SHIFT: "seconds",
    lib.KVM_STATS_UNIT_CYCLES >> lib.KVM_STATS_UNIT_SHIFT: "cycles",
    lib.KVM_STATS_UNIT_BOOLEAN >> lib.KVM_STATS_UNIT_SHIFT: "boolean",
}
_BASES = {
    lib.KVM_STATS_BASE_POW10 >> lib.KVM_STATS_BASE_SHIFT: 10,
    lib.KVM_STATS_BASE_POW2 >> lib.KVM_STATS_BASE_SHIFT: 2,
}
#: What only grows, so that a difference of two readings means something.
_GROWING = frozenset(("cumulative", "linear histogram", "log histogram"))


_MASK = (1 << 64) - 1


class StatsFormatError(KvmpyError, ValueError):
    """The statistics descriptor does not keep to its own format."""


@dataclass(frozen=True, slots=True)
class StatDescriptor:
    """What KVM says of one statistic.

    ``kind``: cumulative, instant, peak, linear histogram or log histogram. ``unit``: "", bytes,
    seconds, cycles or boolean, in steps of ``base ** exponent``: (seconds, 10, -9) are ns.
    ``size``: numbers it consists of; ``offset``: bytes from the data's begin.
    """

    name: str
    kind: str
    unit: str
    base: int
    exponent: int
    size: int
    offset: int
    bucket_size: int = 0

    @property
    def unit_text(self) -> str:
        """The unit with its step: "ns", "1e-3 cycles", "".

        >>> cpu.stats.descriptors["halt_wait_ns"].unit_text
        'ns'
        """
        if self.exponent == 0 or self.unit in ("", "boolean"):
            return self.unit
        if self.unit == "seconds" and self.base == 10:
            short = {-3: "ms", -6: "us", -9: "ns"}.get(self.exponent)
            if short:
                return short
        if self.unit == "bytes" and self.base == 2:
            short = {10: "KiB", 20: "MiB", 30: "GiB"}.get(self.exponent)
            if short:
                return short
        return f"{self.base}^{self.exponent} {self.unit}"

    def buckets(self) -> list[tuple[int, int | None]]:
        """The ranges [low, high) that a histogram's numbers count; None: no upper bound.

        >>> cpu.stats.descriptors["halt_wait_hist"].buckets()[:4]
        [(0, 1), (1, 2), (2, 4), (4, 8)]
        """
        if self.kind == "linear histogram":
            lows = [i * self.bucket_size for i in range(self.size)]
        elif self.kind == "log histogram":
            lows = [0, *(1 << i for i in range(self.size - 1))]
        else:
            return []
        return list(zip(lows, [*lows[1:], None], strict=True))


@dataclass(frozen=True, slots=True)
class Stat:
    """One statistic's value. ``int(stat)`` for a single number.

    ``values``: one number, or one a bucket.
    """

    descriptor: StatDescriptor
    values: tuple[int, ...]

    @property
    def name(self) -> str:
        """KVM's name for it.

        >>> cpu.stats["exits"].name
        'exits'
        """
        return self.descriptor.name

    @property
    def kind(self) -> str:
        """Cumulative, instant, peak, linear histogram or log histogram.

        >>> cpu.stats["exits"].kind
        'cumulative'
        """
        return self.descriptor.kind

    @property
    def unit(self) -> str:
        """The unit, with its step.

        >>> cpu.stats["exits"].unit
        ''
        """
        return self.descriptor.unit_text

    @property
    def value(self) -> Any:
        """An int, a bool (unit "boolean"), or a tuple of ints, one a bucket.

        >>> cpu.stats["exits"].value
        0
        """
        if len(self.values) != 1:
            return self.values
        return bool(self.values[0]) if self.descriptor.unit == "boolean" else self.values[0]

    @property
    def histogram(self) -> dict[tuple[int, int | None], int]:
        """The buckets that are not empty: range [low, high) to count.

        >>> cpu.stats["halt_wait_hist"].histogram
        {}
        """
        pairs = zip(self.descriptor.buckets(), self.values, strict=False)
        return {bounds: count for bounds, count in pairs if count}

    def __int__(self) -> int:
        if len(self.values) != 1:
            raise TypeError(f"{self.name} is {len(self.values)} numbers")
        return self.values[0]

    __index__ = __int__

    def __bool__(self) -> bool:
        return any(self.values)

    def __sub__(self, other: Stat) -> Stat:
        """What was added since ``other``; of what does not only grow, the value of now."""
        if self.descriptor != other.descriptor:
            raise ValueError(f"{self.name} and {other.name} are different statistics")
        if self.kind not in _GROWING:
            return self
        pairs = zip(self.values, other.values, strict=True)
        return Stat(self.descriptor, tuple(a - b & _MASK for a, b in pairs))

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.value} {self.unit.removeprefix('boolean')}".rstrip()
        unit = f" {self.unit}" if self.unit else ""
        parts = (
            f"{low}..{'' if high is None else high - 1}{unit}: {count}"
            for (low, high), count in self.histogram.items()
        )
        return ", ".join(parts) or "empty"

    def __repr__(self) -> str:
        return f"<Stat {self.name} ({self.kind}): {self}>"


class StatsView(Mapping[str, Stat]):
    """Statistics by name: ``view["exits"]`` is a Stat, ``view.exits`` its value."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name].value
        except KeyError:
            raise AttributeError(f"KVM has no statistic {name!r} here") from None

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self})

    def __repr__(self) -> str:
        """All that are not zero, by name."""
        found = {name: stat for name, stat in sorted(self.items()) if stat}
        width = max(map(len, found), default=0)
        lines = (f"\n  {name:<{width}}  {stat}" for name, stat in found.items())
        zero = len(self) - len(found)
        return f"<{type(self).__name__}:{''.join(lines)}\n  and {zero} that are zero>"


class Snapshot(StatsView):
    """All statistics at one moment. ``later - earlier`` is what was added in between; of what does
    not only grow (instant, peak) it has the later value.

    >>> before = cpu.stats.snapshot()
    >>> (cpu.stats.snapshot() - before).exits
    0
    """

    def __init__(self, schema: Schema, words: tuple[int, ...]):
        self._schema, self._words = schema, words

    def __getitem__(self, name: str) -> Stat:
        descriptor = self._schema.descriptors[name]
        first = descriptor.offset // 8
        return Stat(descriptor, self._words[first : first + descriptor.size])

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema.descriptors)

    def __len__(self) -> int:
        return len(self._schema.descriptors)

    def __sub__(self, other: Snapshot) -> Snapshot:
        if self._schema.descriptors != other._schema.descriptors:
            raise ValueError("the snapshots are of different statistics")
        words = list(self._words)
        for descriptor in self._schema.descriptors.values():
            if descriptor.kind in _GROWING:
                first = descriptor.offset // 8
                for i in range(first, first + descriptor.size):
                    words[i] = self._words[i] - other._words[i] & _MASK
        return Snapshot(self._schema, tuple(words))


#: ``read(size, offset)``, as os.pread without the descriptor.
Reader = Callable[[int, int], bytes]


class Schema:
    """What a statistics descriptor says of itself, every number in it checked.

    Raises StatsFormatError for what is damaged or cut off.
    """

    def __init__(self, read: Reader):
        raw = _exactly(read, _HEADER_SIZE, 0, "header")
        header = ffi.from_buffer("struct kvm_stats_header *", raw)
        name_size, count, self._data_at = header.name_size, header.num_desc, header.data_offset
        if not 1 <= name_size <= _MOST_NAME or count > _MOST_DESCRIPTORS:
            raise StatsFormatError(f"{count} statistics with names of {name_size} bytes")
        #: KVM's name for what this is about: kvm-PID, kvm-PID/vcpu-ID.
        self.id = _text(_exactly(read, name_size, header.id_offset, "id"))
        step = _DESCRIPTOR_SIZE + name_size
        raw = _exactly(read, step * count, header.desc_offset, "descriptors")
        self.descriptors: dict[str, StatDescriptor] = {}
        for at in range(0, step * count, step):
            descriptor = _descriptor(raw[at : at + step])
            if descriptor.name in self.descriptors:
                raise StatsFormatError(f"two statistics are named {descriptor.name!r}")
            self.descriptors[descriptor.name] = descriptor
        ends = (d.offset + 8 * d.size for d in self.descriptors.values())
        self._data_size = max(ends, default=0)

    def words(self, read: Reader) -> tuple[int, ...]:
        """All numbers, in one read."""
        raw = _exactly(read, self._data_size, self._data_at, "data")
        return struct.unpack(f"={self._data_size // 8}Q", raw)

    def one(self, read: Reader, name: str) -> Stat:
        """One statistic, read alone. Raises KeyError for an unknown name."""
        descriptor = self.descriptors[name]
        raw = _exactly(read, 8 * descriptor.size, self._data_at + descriptor.offset, name)
        return Stat(descriptor, struct.unpack(f"={descriptor.size}Q", raw))


def _exactly(read: Reader, size: int, offset: int, what: str) -> bytes:
    raw = read(size, offset) if size else b""
    if len(raw) != size:
        raise StatsFormatError(f"the {what} ends after {len(raw)} bytes of {size}")
    return raw


def _descriptor(raw: bytes) -> StatDescriptor:
    fields = ffi.from_buffer("struct kvm_stats_desc *", raw)
    flags, size, offset = fields.flags, fields.size, fields.offset
    name = _text(raw[_DESCRIPTOR_SIZE:])
    if not name or not size or offset % 8 or offset + 8 * size > _MOST_DATA:
        raise StatsFormatError(f"statistic {name!r}: {size} numbers at offset {offset}")
    if flags & lib.KVM_STATS_TYPE_MASK == lib.KVM_STATS_TYPE_LOG_HIST and size > 65:
        raise StatsFormatError(f"statistic {name!r}: {size} buckets for numbers of 64 bits")
    kind = (flags & lib.KVM_STATS_TYPE_MASK) >> lib.KVM_STATS_TYPE_SHIFT
    unit = (flags & lib.KVM_STATS_UNIT_MASK) >> lib.KVM_STATS_UNIT_SHIFT
    base = (flags & lib.KVM_STATS_BASE_MASK) >> lib.KVM_STATS_BASE_SHIFT
    # A newer kernel may have kinds and units of its own: their numbers are shown as they are.
    return StatDescriptor(
        name,
        KINDS.get(kind, f"kind {kind}"),
        UNITS.get(unit, f"unit {unit}"),
        _BASES.get(base, 0),
        fields.exponent,
        size,
        offset,
        fields.bucket_size,
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "backslashreplace")


class Measurement(StatsView):
    """What was added since :meth:`Stats.measure` began; it stands still when the block ends."""

    def __init__(self, stats: Stats):
        self._stats = stats
        self._start = stats.snapshot()
        self._end: Snapshot | None = None

    @property
    def difference(self) -> Snapshot:
        """All of it: at the end of the block, or until now.

        >>> with cpu.stats.measure() as m:
        ...     pass
        >>> m.difference.exits
        0
        """
        return (self._end or self._stats.snapshot()) - self._start

    def __getitem__(self, name: str) -> Stat:
        return self.difference[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._start)

    def __len__(self) -> int:
        return len(self._start)

    def __enter__(self) -> Measurement:
        self._start, self._end = self._stats.snapshot(), None
        return self

    def __exit__(self, *exception: object) -> None:
        self._end = self._stats.snapshot()

    def __repr__(self) -> str:
        return repr(self.difference).replace("<Snapshot", "<Measurement", 1)


class Stats(Descriptor, StatsView):
    """The statistics of a VM or vCPU, live: ``stats["exits"]`` reads that one, as it is now.

    >>> cpu.stats.exits
    0
    """

    _what = "statistics object"

    def __init__(self, fd: int):
        self._opened(fd)
        try:
            self._schema = Schema(self._pread)
        except BaseException:
            self.close()
            raise

    def _pread(self, size: int, offset: int) -> bytes:
        return os.pread(self.fileno(), size, offset)

    @property
    def id(self) -> str:
        """KVM's name for what this is about: "kvm-PID", "kvm-PID/vcpu-ID".

        >>> cpu.stats.id.endswith("/vcpu-0")
        True
        """
        return self._schema.id

    @property
    def descriptors(self) -> Mapping[str, StatDescriptor]:
        """What KVM says of each statistic, by name.

        >>> cpu.stats.descriptors["exits"].kind
        'cumulative'
        """
        return self._schema.descriptors

    def snapshot(self) -> Snapshot:
        """All of them at this moment, with one read.

        >>> cpu.stats.snapshot()["exits"]
        <Stat exits (cumulative): 0>
        """
        return Snapshot(self._schema, self._schema.words(self._pread))

    def measure(self) -> Measurement:
        """What is added during a ``with`` block.

        >>> with cpu.stats.measure() as m:
        ...     exit = cpu.run(max_exits=1)
        >>> m.exits >= 1
        True
        """
        return Measurement(self)

    def __getitem__(self, name: str) -> Stat:
        return self._schema.one(self._pread, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema.descriptors)

    def __len__(self) -> int:
        return len(self._schema.descriptors)

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<Stats, closed>"
        return repr(self.snapshot()).replace("<Snapshot", f"<Stats of {self.id}", 1)
