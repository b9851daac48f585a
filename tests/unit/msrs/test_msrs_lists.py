"""MSR names and numbers, and what is refused before KVM is asked."""

import errno

import pytest

import kvmpy
from kvmpy.msrs import msrs
from kvmpy.msrs.msrs import Msrs


def fake(scripted_ioctls, refuse=()):
    """An Msrs whose KVM_GET_MSRS and KVM_SET_MSRS stop at an index of ``refuse``."""
    calls, values = [], {}

    def kernel(name, fd, table, real):
        calls.append(table.nmsrs)
        if table.nmsrs >= 256:  # MAX_IO_MSRS
            return -errno.E2BIG
        for i in range(table.nmsrs):
            entry = table.entries[i]
            if entry.index in refuse:
                return i
            if name == "KVM_SET_MSRS":
                values[entry.index] = entry.data
            else:
                entry.data = values.get(entry.index, 0)
        return table.nmsrs

    scripted_ioctls(kernel)
    return Msrs(lambda: lambda: 3), calls, values


def test_names():
    """Any case, with or without prefix; numbers as they are."""
    assert msrs.index_of("LSTAR") == msrs.index_of("ia32_lstar") == msrs.index_of("MSR_LSTAR")
    assert msrs.index_of(0x10) == 0x10
    assert msrs.name_of(0x10) == "TSC"
    assert msrs.name_of(0x1234) == "0x1234"


@pytest.mark.parametrize("key", ["NOTHING", "", -1, 1 << 32])
def test_no_msr(key):
    """KeyError that quotes it."""
    with pytest.raises(KeyError):
        msrs.index_of(key)


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_value_out_of_range(scripted_ioctls, value):
    """Nothing is written, not even the others."""
    view, calls, values = fake(scripted_ioctls)
    with pytest.raises(ValueError, match="LSTAR"):
        view.write({"STAR": 1, "LSTAR": value})
    assert not calls
    assert not values


@pytest.mark.parametrize("count", [0, 1, 254, 255, 256, 257, 511, 1000])
def test_chunks(scripted_ioctls, count):
    """Each call is small enough for KVM, and every value arrives (correctness 9)."""
    view, calls, values = fake(scripted_ioctls)
    wanted = {0x1000 + i: i for i in range(count)}
    view.write(wanted)
    assert values == wanted
    assert view.read(wanted) == wanted
    assert all(n < 256 for n in calls)


@pytest.mark.parametrize("position", [0, 1, 254, 255, 256, 600])
def test_the_one_refused_is_named(scripted_ioctls, position):
    """Wherever it is in the list, in whatever chunk; those before it are set."""
    refused = 0x1000 + position
    view, _, values = fake(scripted_ioctls, {refused})
    wanted = {0x1000 + i: 7 for i in range(700)}
    with pytest.raises(kvmpy.MsrError, match=rf"KVM_SET_MSRS\(MSR {refused:#x} .* = 0x7") as info:
        view.write(wanted)
    error = info.value
    assert (error.index, error.position, error.value) == (refused, position, 7)
    assert set(values) == {index for index in wanted if index < refused}
    with pytest.raises(kvmpy.MsrError, match=rf"KVM_GET_MSRS\(MSR {refused:#x}") as info:
        view.read(wanted)
    assert (info.value.index, info.value.position, info.value.value) == (refused, position, None)


def test_a_vcpu_that_is_gone():
    """The view does not keep its vCPU: ClosedError then."""
    with pytest.raises(kvmpy.ClosedError):
        Msrs(lambda: None).read([0x10])
