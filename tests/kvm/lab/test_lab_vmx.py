"""`kvmpy lab vmx`: what is offered, and a guest that is a hypervisor.

What must hold is said by SDM vol. 3, "Introduction to Virtual Machine Extensions" (enabling VMX),
"VMX Instruction Reference" (VMfail), "VM Entries" (checks), and by APM vol. 2, "Secure Virtual
Machine" (enabling SVM, VMRUN).
"""

from __future__ import annotations

import dataclasses
import io
import json

import pytest

from kvmpy import lab
from kvmpy.lab import vmx, vmx_codes
from kvmpy.report import page, terminal

_FAILED_ENTRY = 1 << 31


@pytest.fixture(scope="module")
def result() -> vmx.Result:
    return vmx.run()


def step(result: vmx.Result, name: str) -> vmx.VmxStep:
    found = result.step(name)
    assert found is not None, f"{name}: the guest did not get there: {result.failure}"
    return found


def nested(result: vmx.Result, extension: str) -> None:
    if result.extension != extension:
        pytest.skip(f"{result.module}: the guest is the one for {result.extension}")
    if not result.offered:
        pytest.skip(f"guests get no {extension} here: {result.remedy}")


def test_the_guest_ends_itself(result: vmx.Result, module: str) -> None:
    assert result.module == module
    assert result.failure == ""


def test_off_at_first(result: vmx.Result) -> None:
    first = result.steps[0]
    assert first.name == ("vmxon_early" if result.extension == "VT-x" else "vmrun_early")
    assert first.vector == 6


def test_without_nesting(result: vmx.Result) -> None:
    if result.offered:
        pytest.skip(f"guests get {result.extension} here")
    switch = step(result, "vmxe" if result.extension == "VT-x" else "svme")
    assert (switch.vector, switch.error_code) == (13, 0)  # a reserved bit
    assert switch is result.steps[-1]
    assert result.remedy
    assert not result.l2_saw
    if result.module != "kvm_pvm":
        assert f"{result.module}.nested=1" in result.remedy


def test_vmx_is_turned_on(result: vmx.Result) -> None:
    nested(result, "VT-x")
    assert step(result, "vmxe").vector is None
    read = step(result, "feature_read")
    assert read.vector is None
    if not read.first & 1:  # not locked by whoever made the vCPU
        assert step(result, "vmxon_locked_out").outcome == "#GP(0)"
        assert step(result, "feature_write").vector is None
    assert step(result, "feature_again").outcome == "#GP(0)"
    on = step(result, "vmxon")
    assert (on.vector, on.carry, on.zero) == (None, False, False)


def test_vmx_refuses(result: vmx.Result) -> None:
    nested(result, "VT-x")
    for name in ("vmxon_again", "vmlaunch_nothing", "vmptrld_misaligned"):
        assert step(result, name).carry, name  # VMfailInvalid: no current VMCS to hold a number
    numbers = {
        name: step(result, name).second
        for name in vmx_codes.TITLES
        if (found := result.step(name)) is not None and found.zero
    }
    assert numbers == {
        "vmwrite_unknown": 12,
        "launch_bad_control": 7,
        "launch_bad_host": 8,
        "resume_clear": 5,
        "launch_again": 4,
    }
    for name, qualification in (("launch_bad_guest", 0), ("launch_bad_link", 4)):
        failed = step(result, name)
        assert failed.first == _FAILED_ENTRY | 33, name
        assert failed.second == qualification, name


def test_vmx_runs_a_guest(result: vmx.Result) -> None:
    nested(result, "VT-x")
    reasons = {
        name: step(result, name).first for name in ("launch", "resume", "resume_hlt", "trips")
    }
    assert reasons == {"launch": 10, "resume": 18, "resume_hlt": 12, "trips": 10}
    assert result.l2_saw == "kvmpy to L2!"


def test_vmx_is_turned_off(result: vmx.Result) -> None:
    nested(result, "VT-x")
    assert step(result, "vmxe_off_inside").outcome == "#GP(0)"
    assert step(result, "vmxoff").outcome == "done"
    assert step(result, "vmxoff_again").outcome == "#UD"
    assert step(result, "vmxe_off").vector is None


def test_svm_is_turned_on(result: vmx.Result) -> None:
    nested(result, "AMD-V")
    assert not step(result, "vm_cr").first & 1 << 4  # SVMDIS
    assert step(result, "svme").vector is None
    assert step(result, "vmrun_misaligned").outcome == "#GP(0)"
    assert step(result, "hsave").vector is None


def test_svm_refuses(result: vmx.Result) -> None:
    nested(result, "AMD-V")
    for name in ("run_asid_0", "run_no_intercept", "run_no_svme"):
        assert step(result, name).first == vmx_codes.SVM_INVALID, name


def test_svm_runs_a_guest(result: vmx.Result) -> None:
    nested(result, "AMD-V")
    codes = {name: step(result, name).first for name in ("run", "run_again", "run_hlt", "trips")}
    assert codes == {"run": 0x72, "run_again": 0x81, "run_hlt": 0x78, "trips": 0x72}
    assert result.l2_saw == "kvmpy to L2!"


def test_svm_is_turned_off(result: vmx.Result) -> None:
    nested(result, "AMD-V")
    assert step(result, "svme_off").vector is None
    assert step(result, "vmrun_late").outcome == "#UD"


def test_exits_of_a_nested_guest(result: vmx.Result) -> None:
    if not result.l2_saw:
        pytest.skip(f"no nested guest here: {result.remedy}")
    trips = step(result, "trips")
    assert trips.entries == result.trips
    # L2's exit and L1's VMRESUME or VMRUN, both taken by L0; more without VMCS shadowing.
    assert result.exits_per_trip is not None
    assert result.exits_per_trip >= 2
    if result.extension == "AMD-V":
        assert result.exits_per_trip < 3


def test_what_is_offered(result: vmx.Result) -> None:
    if result.module == "kvm_pvm":
        return  # its host may have either
    names = {feature.name: feature for feature in result.features}
    paging = names["EPT" if result.module == "kvm_intel" else "NPT"]
    assert paging.cpu is not False
    assert result.facts if result.offered else True
    if not result.offered:
        assert not any(feature.guests for feature in result.features)


def test_it_is_shown(result: vmx.Result) -> None:
    json.dumps(dataclasses.asdict(result))
    section = lab.section("vmx", result)
    stream = io.StringIO()
    terminal.section(section, stream)
    assert f"A hypervisor in a guest: {result.extension}" in stream.getvalue()
    assert all(len(line) <= 79 for block in section.blocks if hasattr(block, "svg")
               for line in block.text.splitlines())  # fmt: skip
    assert "<table>" in "".join(page.section(section))
