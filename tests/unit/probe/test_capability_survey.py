"""Capability names: complete, from the compiler, each in one group."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmpy.ioctls import capabilities
from kvmpy.probe.capabilities import GROUPS, value_text

HEADER = Path("/usr/include/linux/kvm.h")
#: Of other architectures alone, as native/capabilities.h says.
OTHERS = re.compile(
    r"KVM_CAP_((ARM|LOONGARCH|MIPS|PPC|RISCV|S390|SPAPR)_\w+|COUNTER_OFFSET|GUEST_DEBUG_HW_BPS|"
    r"GUEST_DEBUG_HW_WPS|MSI_DEVID|PTP_KVM|IRQ_MPIC|IRQ_XICS|SW_TLB|VM_GPA_BITS)"
)
COMPLETE_UP_TO = 248

# From Linux 6.18's header: independent of the one that happens to be installed.
KNOWN = {
    "KVM_CAP_IRQCHIP": 0,
    "KVM_CAP_NR_VCPUS": 9,
    "KVM_CAP_MAX_VCPUS": 66,
    "KVM_CAP_SYNC_REGS": 74,
    "KVM_CAP_READONLY_MEM": 81,
    "KVM_CAP_IMMEDIATE_EXIT": 136,
    "KVM_CAP_XSAVE2": 208,
    "KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP": 225,
    "KVM_CAP_PMU_EVENT_MASKED_EVENTS": 226,
    "KVM_CAP_USER_MEMORY2": 231,
    "KVM_CAP_MEMORY_FAULT_INFO": 232,
    "KVM_CAP_MEMORY_ATTRIBUTES": 233,
    "KVM_CAP_GUEST_MEMFD": 234,
    "KVM_CAP_VM_TYPES": 235,
    "KVM_CAP_PRE_FAULT_MEMORY": 236,
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS": 237,
    "KVM_CAP_X86_GUEST_MODE": 238,
    "KVM_CAP_GUEST_MEMFD_FLAGS": 244,
}


@pytest.mark.parametrize(("name", "number"), KNOWN.items())
def test_numbers(name: str, number: int) -> None:
    assert capabilities.number(name) == number
    assert capabilities.number(name.removeprefix("KVM_CAP_")) == number
    assert capabilities.name(number) == name


def test_complete_and_right_by_the_installed_header() -> None:
    """Every x86 capability of the header is known, with its number, and nothing else is older."""
    text = HEADER.read_text()
    found = re.findall(r"^#define\s+(KVM_CAP_\w+)\s+(\d+)", text, re.MULTILINE)
    header = {name: int(number) for name, number in found}
    assert len(header) > 200
    expected = {
        name: number
        for name, number in header.items()
        if number <= COMPLETE_UP_TO and not OTHERS.fullmatch(name)
    }
    ours = {name: capabilities.number(name) for name in capabilities.names()}
    newest = max(header.values())
    assert expected == {name: value for name, value in ours.items() if value <= newest}
    assert not [name for name in ours if OTHERS.fullmatch(name)]


def test_numbers_are_distinct_and_ascending() -> None:
    numbers = [capabilities.number(name) for name in capabilities.names()]
    assert numbers == sorted(set(numbers))


def test_each_name_is_in_one_group() -> None:
    grouped = [f"KVM_CAP_{name}" for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(capabilities.names())


def test_numbers_pass_through() -> None:
    assert capabilities.number(9999) == 9999
    assert capabilities.name(9999) == "9999"


@pytest.mark.parametrize("bad", ["KVM_CAP_NO_SUCH", "", "KVM_CAP_", "KVM_RUN", "S390_PSW"])
def test_unknown_name(bad: str) -> None:
    with pytest.raises(ValueError, match="no capability named"):
        capabilities.number(bad)


def test_negative_number() -> None:
    with pytest.raises(ValueError, match="negative"):
        capabilities.number(-1)


def test_value_text() -> None:
    assert value_text("SYNC_REGS", 7) == "0x7"
    assert value_text("XSAVE2", 4096) == "4096 bytes"
    assert value_text("NR_MEMSLOTS", 32764) == "32764"
