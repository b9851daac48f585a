"""Encodings of PMU events, against the layout in the KVM API ("4.120 KVM_SET_PMU_EVENT_FILTER")."""

import pytest
from hypothesis import given, strategies as st

from kvmpy.msrs.pmu import amd_event, intel_event, masked_event

BYTE = st.integers(0, 0xFF)


@given(BYTE, BYTE)
def test_intel(select, umask):
    """Select in bits 7:0, unit mask in 15:8, nothing else."""
    event = intel_event(select, umask)
    assert event & 0xFF == select
    assert event >> 8 == umask


@given(st.integers(0, 0xFFF), BYTE)
def test_amd(select, umask):
    """The select's upper nibble in bits 35:32."""
    event = amd_event(select, umask)
    assert event & 0xFF | event >> 24 & 0xF00 == select
    assert event >> 8 & 0xFF == umask
    assert event & ~0xF_0000_FFFF == 0


@given(st.integers(0, 0xFFF), BYTE, BYTE, st.booleans())
def test_masked(select, mask, match, exclude):
    """Mask in 63:56, match in 15:8, exclude in 55; the bits KVM refuses stay zero."""
    event = masked_event(select, mask, match, exclude=exclude)
    assert event & 0xFF | event >> 24 & 0xF00 == select
    assert event >> 56 == mask
    assert event >> 8 & 0xFF == match
    assert bool(event >> 55 & 1) == exclude
    assert event & ~(0xFF << 56 | 1 << 55 | 0xF << 32 | 0xFFFF) == 0


@pytest.mark.parametrize(
    "make",
    [lambda: intel_event(0x100, 0), lambda: intel_event(0, -1), lambda: amd_event(0x1000, 0),
     lambda: amd_event(0, 0x100), lambda: masked_event(0, 0x100, 0),
     lambda: masked_event(0, 0, -1)],
)  # fmt: skip
def test_out_of_range(make):
    """A ValueError that names the part and its limit."""
    with pytest.raises(ValueError, match=r"is not in 0\.\.0x"):
        make()
