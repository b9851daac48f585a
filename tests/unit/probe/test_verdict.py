"""The verdict, from made-up findings; modules and their parameters, from a made-up sysfs."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmpy.host.cpu import HostCpu
from kvmpy.host.module import MODULES, module_name, module_parameters
from kvmpy.probe.modes import ModeOutcome, ModeResult
from kvmpy.probe.verdict import Verdict, judge
from kvmpy.x86.modes import Mode

INTEL = HostCpu("GenuineIntel", "Xeon", "VT-x", None, None)


def ring(number: int, outcome: ModeOutcome, ns: float | None, detail: str = "") -> ModeResult:
    return ModeResult(Mode.LONG_64, number, outcome, ns, detail)


def intel(cpu: HostCpu = INTEL, parameters: dict[str, str] | None = None) -> Verdict:
    chosen = {"ept": "Y", "unrestricted_guest": "Y", "nested": "N"}
    native = (ring(0, "native", 0.3), ring(3, "native", 0.3))
    return judge("kvm_intel", parameters or chosen, cpu, *native)


def test_bare_metal() -> None:
    verdict = intel()
    assert verdict.summary == "kvm_intel: rings 0 and 3 are native."
    assert verdict.performance
    assert (verdict.paging, verdict.unrestricted_guest, verdict.nested_guests) == (
        "EPT", True, False,
    )  # fmt: skip


def test_without_ept() -> None:
    verdict = intel(parameters={"ept": "N", "unrestricted_guest": "N", "nested": "1"})
    assert (verdict.paging, verdict.unrestricted_guest) == ("shadow", False)
    assert verdict.nested_guests is True


def test_unreadable_parameters_are_unknown() -> None:
    verdict = intel(parameters={"other": "1"})
    assert (verdict.paging, verdict.unrestricted_guest, verdict.nested_guests) == (
        None, None, None,
    )  # fmt: skip


def test_emulated_cpu_is_no_performance() -> None:
    verdict = intel(HostCpu("GenuineIntel", "i7", "VT-x", None, "Bochs"))
    assert verdict.summary == (
        "kvm_intel: rings 0 and 3 are native, nested, on emulated VT-x (Bochs). "
        "Times taken here say nothing about hardware."
    )
    assert not verdict.performance
    assert verdict.nested


def test_nested() -> None:
    verdict = intel(HostCpu("GenuineIntel", "Xeon", "VT-x", "KVM", None))
    assert verdict.summary == "kvm_intel: rings 0 and 3 are native, nested under KVM."
    assert verdict.performance


def test_pvm() -> None:
    cpu = HostCpu("AuthenticAMD", "EPYC", None, "KVM", None)
    verdict = judge("kvm_pvm", {}, cpu, ring(0, "emulated", 635.4), ring(3, "native", 0.25))
    assert verdict.summary == (
        "kvm_pvm: ring 3 is native, ring 0 is emulated (635 ns an instruction), nested under KVM. "
        "Times that include ring 0 measure the emulator."
    )
    assert not verdict.performance
    assert verdict.paging == "shadow"


def test_ring_that_fails() -> None:
    failed = ring(3, "fails", None, "#GP")
    verdict = judge("kvm_amd", {"npt": "1"}, INTEL, ring(0, "native", 0.3), failed)
    assert verdict.summary == "kvm_amd: ring 3 fails, ring 0 is native. ring 3: #GP."
    assert not verdict.performance
    assert verdict.paging == "NPT"


@pytest.mark.parametrize("name", MODULES)
def test_module_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "kvm").mkdir()
    assert module_name(tmp_path) == "kvm"
    (tmp_path / name).mkdir()
    assert module_name(tmp_path) == name


def test_both_vendors_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kvm_intel", "kvm_amd"):
        (tmp_path / name).mkdir()
    amd = HostCpu("AuthenticAMD", "EPYC", "AMD-V", None, None)
    monkeypatch.setattr("kvmpy.host.cpu.identify", lambda: amd)
    assert module_name(tmp_path) == "kvm_amd"
    monkeypatch.setattr("kvmpy.host.cpu.identify", lambda: INTEL)
    assert module_name(tmp_path) == "kvm_intel"


def test_module_parameters(tmp_path: Path) -> None:
    directory = tmp_path / "kvm_intel" / "parameters"
    directory.mkdir(parents=True)
    (directory / "ept").write_text("Y\n")
    (directory / "unreadable").mkdir()
    assert module_parameters("kvm_intel", tmp_path) == {"ept": "Y"}
    assert module_parameters("kvm_amd", tmp_path) == {}
