"""MSR filter ranges: limits, bitmaps, and the rule KVM decides by."""

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy import MsrRange
from kvmpy.msrs import filters as vm_filters
from kvmpy.msrs.filters import MAX_MSRS, allows

INDEX = st.integers(0, (1 << 32) - 1)


@st.composite
def ranges(draw):
    """Any range KVM would take, near the bottom so that ranges overlap."""
    base = draw(st.integers(0, 64))
    count = draw(st.integers(1, 100))
    bitmap = draw(st.binary(min_size=(count + 7) // 8, max_size=(count + 7) // 8 + 3))
    read, write = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return MsrRange(base, bitmap, count, read, write)


@given(st.lists(ranges(), max_size=5), st.sampled_from(["allow", "deny"]), st.integers(0, 200),
       st.booleans())  # fmt: skip
def test_first_range_decides(chosen, default, index, write):
    """As kvm_msr_allowed(): the first range with the MSR and the direction, else the default."""
    expected = default == "allow"
    for one in chosen:
        direction = one.write if write else one.read
        if one.base <= index < one.base + one.count and direction:
            at = index - one.base
            expected = bool(int.from_bytes(one.bitmap, "little") >> at & 1)
            break
    assert allows(chosen, default, index, write=write) is expected


@given(INDEX, st.integers(-5, MAX_MSRS + 5), st.sets(st.integers(0, 300)))
def test_only(base, count, offsets):
    """What is named is allowed and the rest denied, or the range cannot be: ValueError."""
    wanted = {base + offset for offset in offsets if offset < count}
    if not 1 <= count <= MAX_MSRS or base + count > 1 << 32:
        with pytest.raises((ValueError, KeyError)):
            MsrRange.only(base, count, wanted)
        return
    made = MsrRange.only(base, count, wanted)
    assert {i for i in range(base, base + count) if made.allows(i)} == wanted


@given(st.integers(-(1 << 40), 1 << 40), st.integers(-(1 << 20), 1 << 20), st.binary(max_size=2000),
       st.booleans(), st.booleans())  # fmt: skip
def test_limits(base, count, bitmap, read, write):
    """A range is within KVM's limits or is refused, whatever it is made of."""
    try:
        made = MsrRange(base, bitmap, count, read, write)
    except ValueError:
        assert (
            not 1 <= count <= MAX_MSRS
            or not 0 <= base <= (1 << 32) - count
            or 8 * len(bitmap) < count
            or not (read or write)
        )
        return
    assert 1 <= made.count <= MAX_MSRS
    assert made.allows(base, write=not read) in (True, False)


@given(st.lists(ranges(), max_size=16))
def test_structure_has_whole_longs(chosen):
    """KVM copies bitmaps by longs: none of ours is shorter, and padding is zero."""
    table, kept = vm_filters._to_c(chosen, "allow")
    for one, entry, bitmap in zip(chosen, table.ranges, kept, strict=False):
        assert len(bitmap) >= (one.count + 63) // 64 * 8
        assert bytes(bitmap)[: len(one.bitmap)] == one.bitmap
        assert not any(bytes(bitmap)[len(one.bitmap) :])
        assert (entry.base, entry.nmsrs) == (one.base, one.count)
        assert bool(entry.flags & 1) == one.read
        assert bool(entry.flags & 2) == one.write


def test_names():
    """MSRs go by name as everywhere."""
    assert MsrRange.deny("EFER") == MsrRange.deny(0xC0000080)
    assert MsrRange.only("STAR", 4, ["LSTAR"]).allows("LSTAR")
    assert not MsrRange.only("STAR", 4, ["LSTAR"]).allows("CSTAR")
    with pytest.raises(KeyError, match="NONESUCH"):
        MsrRange.allow("NONESUCH")
    with pytest.raises(ValueError, match="is not in"):
        MsrRange.only(0x10, 1, [0x11])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), unique=True))
def test_handlers_deny_what_they_take(claims):
    """The ranges put in front: each MSR with a handler is denied, in the handler's direction."""
    made = vm_filters._denied([(index, 1, write) for index, write in claims])
    for index in range(6):
        for write in (False, True):
            assert allows(made, "allow", index, write=write) is ((index, write) not in claims)


def test_top_level_name():
    """kvmpy.MsrRange is it."""
    assert kvmpy.MsrRange is MsrRange
