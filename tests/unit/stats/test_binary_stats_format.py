"""The parser of KVM's binary statistics, on data made up and data damaged."""

import struct

import pytest
from hypothesis import given, strategies as st

from kvmpy.stats.kvm import Schema, Snapshot, Stat, StatDescriptor, StatsFormatError

NAME = 48
STATS = [  # name, flags (base, unit, kind), exponent, size, bucket_size, values
    ("exits", 0x000, 0, 1, 0, [41]),
    ("wait_ns", 0x020, -9, 1, 0, [5]),
    ("blocking", 0x041, 0, 1, 0, [1]),
    ("peak_pages", 0x002, 0, 1, 0, [9]),
    ("hist", 0x024, -9, 4, 0, [0, 3, 0, 2]),
    ("linear", 0x003, 0, 3, 10, [1, 0, 7]),
    ("cache", 0x111, 10, 1, 0, [12]),
    ("future", 0xFFF, -3, 1, 0, [1]),
]


def blob(stats=STATS, *, gap=16):
    """A statistics file: header, id, descriptors, a gap, data."""
    descriptors, data = b"", b""
    for name, flags, exponent, size, bucket, values in stats:
        descriptors += struct.pack("=IhHII", flags, exponent, size, len(data), bucket)
        descriptors += name.encode().ljust(NAME, b"\0")
        data += struct.pack(f"={size}Q", *values)
    at = 24 + NAME
    header = struct.pack("=6I", 0, NAME, len(stats), 24, at, at + len(descriptors) + gap)
    return header + b"kvm-1/vcpu-0".ljust(NAME, b"\0") + descriptors + bytes(gap) + data


def reader(raw):
    """Reads ``raw`` as pread would."""
    return lambda size, offset: raw[offset : offset + size]


def schema(raw):
    """What ``raw`` says of itself."""
    return Schema(reader(raw))


def snapshot(raw):
    """All statistics in ``raw``."""
    found = schema(raw)
    return Snapshot(found, found.words(reader(raw)))


def test_kinds_units_and_values():
    """Flags decoded; an unknown kind or unit is shown by its number."""
    stats = snapshot(blob())
    assert schema(blob()).id == "kvm-1/vcpu-0"
    assert list(stats) == [name for name, *_ in STATS]
    assert stats["exits"].kind == "cumulative"
    assert stats.exits == int(stats["exits"]) == 41
    assert (stats["wait_ns"].unit, stats.wait_ns) == ("ns", 5)
    assert stats.blocking is True
    assert stats["peak_pages"].kind == "peak"
    assert stats["cache"].unit == "KiB"
    assert stats["cache"].kind == "instant"
    assert (stats["future"].kind, stats["future"].unit) == ("kind 15", "0^-3 unit 15")
    assert range(100)[stats["exits"]] == 41
    assert str(stats["cache"]) == "12 KiB"
    assert repr(stats["blocking"]) == "<Stat blocking (instant): True>"


def test_histograms():
    """Bucket ranges as the API has them: the last has no upper bound."""
    stats = snapshot(blob())
    assert stats["hist"].kind == "log histogram"
    assert stats["hist"].descriptor.buckets() == [(0, 1), (1, 2), (2, 4), (4, None)]
    assert stats["hist"].histogram == {(1, 2): 3, (4, None): 2}
    assert stats.hist == (0, 3, 0, 2)
    assert str(stats["hist"]) == "1..1 ns: 3, 4.. ns: 2"
    assert stats["linear"].descriptor.buckets() == [(0, 10), (10, 20), (20, None)]
    assert stats["exits"].descriptor.buckets() == []
    with pytest.raises(TypeError, match="4 numbers"):
        int(stats["hist"])


def test_one_alone_and_all_at_once_agree():
    """Whatever way a statistic is read."""
    found, everything = schema(blob()), snapshot(blob())
    for name in everything:
        assert found.one(reader(blob()), name) == everything[name]


def test_differences():
    """What only grows is subtracted, modulo 2**64; of the rest the later value stands."""
    later = [(n, f, e, s, b, [v + 2 for v in values]) for n, f, e, s, b, values in STATS]
    difference = snapshot(blob(later)) - snapshot(blob())
    assert difference.exits == 2
    assert difference.hist == (*difference.linear, 2) == (2, 2, 2, 2)
    assert difference.peak_pages == 11
    assert difference["cache"].value == 14
    assert (snapshot(blob()) - snapshot(blob(later))).exits == (1 << 64) - 2
    one, other = snapshot(blob(later)), snapshot(blob())
    assert (one["hist"] - other["hist"]).values == (2, 2, 2, 2)
    assert one["peak_pages"] - other["peak_pages"] == one["peak_pages"]
    with pytest.raises(ValueError, match="different"):
        one["exits"] - other["hist"]
    with pytest.raises(ValueError, match="different"):
        snapshot(blob(STATS[:2])) - other


def test_repr_is_sorted_and_leaves_zeros_out():
    """For a REPL."""
    stats = snapshot(blob([("b", 0, 0, 1, 0, [2]), ("zero", 0, 0, 1, 0, [0]), STATS[0]]))
    assert repr(stats) == "<Snapshot:\n  b      2\n  exits  41\n  and 1 that are zero>"
    assert "exits" in dir(stats)
    with pytest.raises(AttributeError, match="no statistic 'nothing'"):
        _ = stats.nothing
    with pytest.raises(AttributeError):
        _ = stats._nothing


def test_no_statistics_at_all():
    """An empty list is fine."""
    stats = snapshot(blob([]))
    assert len(stats) == 0
    assert "0 that are zero" in repr(stats)


@given(st.integers(0, len(blob()) - 1))
def test_cut_off_anywhere(length):
    """Every shorter file is an error: nothing is made up."""
    with pytest.raises(StatsFormatError):
        snapshot(blob()[:length])


@given(st.lists(st.tuples(st.integers(0, len(blob()) - 1), st.integers(0, 255)), min_size=1))
def test_damaged_anywhere(changes):
    """Parsed, or StatsFormatError; all values are in range, nothing else escapes."""
    raw = bytearray(blob())
    for at, value in changes:
        raw[at] = value
    try:
        stats = snapshot(bytes(raw))
    except StatsFormatError:
        return
    for stat in stats.values():
        assert len(stat.values) == stat.descriptor.size
        assert isinstance(repr(stat), str)
        assert len(stat.descriptor.buckets()) in (0, stat.descriptor.size)


@given(st.binary(max_size=300))
def test_any_bytes(raw):
    """The same for noise."""
    try:
        snapshot(raw)
    except StatsFormatError:
        return


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ([("", 0, 0, 1, 0, [1])], "statistic ''"),
        ([("none", 0, 0, 0, 0, [])], "0 numbers"),
        ([STATS[0], STATS[0]], "two statistics are named 'exits'"),
        ([("wide", 4, 0, 66, 0, [0] * 66)], "66 buckets"),
    ],
)
def test_what_no_kernel_says(stats, message):
    """No name, no numbers, the same name twice, buckets for more than 64 bits."""
    with pytest.raises(StatsFormatError, match=message):
        schema(blob(stats))


def test_sizes_that_must_not_be_allocated():
    """A damaged count or offset is refused before anything is read."""
    raw = bytearray(blob())
    raw[8:12] = b"\xff" * 4
    with pytest.raises(StatsFormatError, match="4294967295 statistics"):
        schema(bytes(raw))
    raw = bytearray(blob())
    raw[24 + NAME + 8 : 24 + NAME + 12] = b"\xf8\xff\xff\xff"  # the first one's offset
    with pytest.raises(StatsFormatError, match="at offset 4294967288"):
        schema(bytes(raw))
    raw[24 + NAME + 8 : 24 + NAME + 12] = b"\x04\0\0\0"
    with pytest.raises(StatsFormatError, match="at offset 4"):
        schema(bytes(raw))


@pytest.mark.parametrize(
    ("unit", "base", "exponent", "text"),
    [("seconds", 10, -9, "ns"), ("seconds", 10, -6, "us"), ("seconds", 10, 0, "seconds"),
     ("seconds", 10, -5, "10^-5 seconds"), ("bytes", 2, 20, "MiB"), ("bytes", 10, 3, "10^3 bytes"),
     ("cycles", 2, 4, "2^4 cycles"), ("", 10, 3, ""), ("boolean", 10, 0, "boolean")],
)  # fmt: skip
def test_unit_texts(unit, base, exponent, text):
    """Short where people have a word for it."""
    descriptor = StatDescriptor("x", "instant", unit, base, exponent, 1, 0)
    assert descriptor.unit_text == text
    assert Stat(descriptor, (0,)).unit == text
