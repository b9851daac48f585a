"""The words for what VT-x and AMD-V answer, and the report of a guest that did not get far."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from kvmpy.guests import image
from kvmpy.lab import vmx, vmx_codes, vmx_offer
from kvmpy.lab.show import vmx as vmx_show
from kvmpy.report.blocks import Picture
from kvmpy.report.table import Table

_NAMES = {
    guest: [name.removeprefix("step.") for name in image.load(guest).symbols if "step." in name]
    for guest in ("lab-vmx", "lab-svm")
}
_WORDS = st.integers(0, (1 << 64) - 1)


def made_up_step(name: str = "vmxon", **values: object) -> vmx.VmxStep:
    known: dict[str, object] = {
        "title": name, "vector": None, "error_code": 0, "carry": False, "zero": False,
        "first": 0, "second": 0, "exits": None, "entries": None, "outcome": "",
    }  # fmt: skip
    return vmx.VmxStep(name=name, **(known | values))  # type: ignore[arg-type]


def made_up_result(**values: object) -> vmx.Result:
    known: dict[str, object] = {
        "module": "kvm_intel", "verdict": "", "vendor": "GenuineIntel", "extension": "VT-x",
        "offered": True, "features": (), "facts": (), "steps": (), "l2_saw": "", "trips": 16,
        "exits_per_trip": None, "remedy": "", "failure": "",
    }  # fmt: skip
    return vmx.Result(**(known | values))  # type: ignore[arg-type]


@pytest.mark.parametrize("guest", _NAMES)
def test_every_step_has_a_title_and_the_first_a_heading(guest: str) -> None:
    names = _NAMES[guest]
    assert [name for name in names if name not in vmx_codes.TITLES] == []
    assert names[0] in vmx_codes.PARTS


@given(
    name=st.sampled_from([name for names in _NAMES.values() for name in names]),
    vmx_guest=st.booleans(), vector=st.none() | st.integers(0, 255), code=_WORDS, first=_WORDS,
    second=_WORDS, carry=st.booleans(), zero=st.booleans(),
)  # fmt: skip
def test_whatever_a_guest_reports_has_words(
    name: str, vmx_guest: bool, vector: int | None, code: int, first: int, second: int,
    carry: bool, zero: bool,
) -> None:  # fmt: skip
    step = made_up_step(
        name, vector=vector, error_code=code, first=first, second=second, carry=carry, zero=zero
    )
    assert vmx_codes.explained(step, vmx_guest).outcome


def test_outcomes() -> None:
    def outcome(name: str, *, vmx_guest: bool = True, **values: object) -> str:
        return vmx_codes.explained(made_up_step(name, **values), vmx_guest).outcome

    assert outcome("vmxon", vector=6) == "#UD"
    assert outcome("vmxon", vector=13) == "#GP(0)"
    assert outcome("vmxon", carry=True).startswith("VMfailInvalid")
    assert outcome("launch_again", zero=True, second=4).startswith("VMfail 4: VMLAUNCH")
    assert outcome("launch", first=18) == "exit 18: VMCALL"
    assert outcome("launch_bad_guest", first=0x8000_0021) == "entry failed, 33 invalid guest state"
    assert outcome("feature_read", first=5) == "0x5: LOCK VMX"
    assert outcome("run", vmx_guest=False, first=0x4E) == "exit 0x4e: exception 14"
    assert outcome("stgi", vmx_guest=False) == "done"


def test_facts_of_vmx() -> None:
    # VMX_BASIC of a Haswell: 4096 bytes, write-back; EPT with 2 MiB and 1 GiB pages.
    facts = dict(
        vmx_offer.vmx_facts(
            {
                "VMX_BASIC": 0x00DA_0400_0000_0012 | 0x1000 << 32,
                "VMX_MISC": 5,
                "VMX_EPT_VPID_CAP": 1 << 6 | 1 << 16 | 1 << 17 | 1 << 21,
            }
        )
    )
    assert facts == {
        "VMCS": "revision 0x12, 5120 bytes, write-back memory",
        "preemption timer": "counts down every 32 TSC ticks",
        "EPT for guests": "4 levels, pages of 4 KiB, 2 MiB, 1 GiB, accessed and dirty bits",
    }


def test_flags_of_vmx(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu vmx\nvmx flags\t: ept vpid\nbugs\t\t:\n")
    assert vmx_offer.vmx_flags(cpuinfo) == {"ept", "vpid"}
    cpuinfo.write_bytes(b"\xff\xfe flags: x\n")
    assert vmx_offer.vmx_flags(cpuinfo) == frozenset()
    assert vmx_offer.vmx_flags(tmp_path / "none") == frozenset()


def test_a_guest_that_stops_is_reported() -> None:
    result = made_up_result(steps=(made_up_step(outcome="done"),), failure="timeout, after: VMXON")
    blocks = list(vmx_show.blocks(result))
    assert any(isinstance(block, str) and "timeout, after" in block for block in blocks)
    assert not any(isinstance(block, Picture) for block in blocks)


def test_nesting_that_is_off_names_its_parameter() -> None:
    steps = (made_up_step("vmxe", vector=13, outcome="#GP(0)"),)
    result = made_up_result(offered=False, steps=steps, remedy="modprobe kvm_intel nested=1")
    text = " ".join(block for block in vmx_show.blocks(result) if isinstance(block, str))
    assert "CR4.VMXE is a reserved bit" in text
    assert "kvm_intel nested=1" in text


@pytest.mark.parametrize(
    ("extension", "exits", "words"),
    [("VT-x", 2.0, "VMCS shadowing and KVM uses it"), ("VT-x", 7.0, "for want of VMCS shadowing"),
     ("AMD-V", 2.0, "The VMCB is memory"), ("AMD-V", None, "two levels only")],
)  # fmt: skip
def test_what_an_exit_costs_is_explained(extension: str, exits: float | None, words: str) -> None:
    result = made_up_result(extension=extension, l2_saw="kvmpy to L2!", exits_per_trip=exits)
    blocks = list(vmx_show.blocks(result))
    assert any(isinstance(block, str) and words in block for block in blocks)


def test_tables_have_a_cell_for_each_column() -> None:
    feature = vmx_offer.Feature("EPT", True, None, False)
    steps = (made_up_step("vmxon_early", vector=6, exits=1), made_up_step("vmxon"))
    result = made_up_result(features=(feature,), steps=steps)
    for block in vmx_show.blocks(result):
        if isinstance(block, Table):
            assert {len(row) for row in block.rows} <= {2, len(block.header)}
