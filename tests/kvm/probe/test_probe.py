"""What is found out about the host by running guests, on whichever module this is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import kvmpy
from kvmpy.host.module import module_name
from kvmpy.host.topology import PinError
from kvmpy.ioctls import capabilities
from kvmpy.probe import doctor, modes, verdict as backend
from kvmpy.probe.capabilities import limits, read
from kvmpy.probe.info import collect
from kvmpy.x86.modes import Mode

pytestmark = pytest.mark.kvm

MODULE = module_name()
HARDWARE = MODULE in ("kvm_intel", "kvm_amd")


def command(*args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "kvmpy", *args]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


def test_capabilities_by_name_and_number() -> None:
    with kvmpy.KVM() as kvm, kvmpy.VM(kvm=kvm) as vm:
        for name in capabilities.names():
            assert kvm.check_extension(name) == kvm.check_extension(capabilities.number(name)) >= 0
        assert vm.check_extension("USER_MEMORY") == vm.check_extension("KVM_CAP_USER_MEMORY") == 1
        with pytest.raises(ValueError, match="no capability named 'KVM_CAP_NO_SUCH'"):
            vm.check_extension("KVM_CAP_NO_SUCH")
        assert {item.name for item in read(kvm)} == set(capabilities.names())


def test_limits() -> None:
    with kvmpy.KVM() as kvm:
        found = limits(kvm)
    assert found["recommended_vcpus"] <= found["max_vcpus"] <= found["max_vcpu_id"]
    assert found["memslots"] >= 32
    assert found["kvm_run_bytes"] % 4096 == 0
    assert found["msrs"] > 10
    assert found["cpuid_leaves"] > 10


def test_verdict() -> None:
    """Ring 3 is native on every module; ring 0 on those with hardware behind them."""
    verdict = backend.verdict()
    assert verdict.module == MODULE
    assert verdict.ring3 == "native", verdict.detail
    assert verdict.ring3_ns is not None
    assert 0 <= verdict.ring3_ns < modes.EMULATED_NS
    if MODULE == "kvm_pvm":
        assert verdict.ring0 == "emulated", verdict.detail
        assert verdict.ring0_ns is not None
        assert verdict.ring0_ns > modes.EMULATED_NS
        assert not verdict.performance
    elif HARDWARE:
        assert verdict.ring0 == "native", verdict.detail
        assert verdict.extension == {"kvm_intel": "VT-x", "kvm_amd": "AMD-V"}[MODULE]
    assert MODULE in verdict.summary


@pytest.mark.parametrize(("mode", "ring"), [(m, r) for m, rings in modes.MODES for r in rings])
def test_modes(mode: Mode, ring: int) -> None:
    """With EPT or NPT every mode and ring is native; kvm_pvm lacks 32-bit paging."""
    result = modes.probe(mode, ring)
    if HARDWARE and backend.verdict().paging != "shadow":
        assert result.outcome == "native", result
    elif MODULE == "kvm_pvm" and mode is Mode.PAGED_32:
        assert result.outcome == "fails"
        assert "shut down" in result.detail or "#GP" in result.detail
    elif MODULE == "kvm_pvm":
        native = mode is Mode.LONG_64 and ring == 3
        assert result.outcome == ("native" if native else "emulated"), result
    else:
        assert result.outcome in ("native", "emulated", "fails")


def test_ways_in() -> None:
    """SYSENTER in long mode is #UD on AMD; kvm_pvm leaves SYSCALL in ring 3 and refuses INT."""
    ways = {way.instruction: way for way in modes.ways_in()}
    rings = {name: way.ring for name, way in ways.items()}
    if MODULE == "kvm_intel":
        assert rings == {"int 0x80": 0, "int3": 0, "syscall": 0, "sysenter": 0}
    elif MODULE == "kvm_amd":
        assert rings == {"int 0x80": 0, "int3": 0, "syscall": 0, "sysenter": None}
        assert "#UD" in ways["sysenter"].detail
    elif MODULE == "kvm_pvm":
        assert rings == {"int 0x80": None, "int3": 0, "syscall": 3, "sysenter": None}
        assert "#UD" in ways["int 0x80"].detail
    else:
        assert rings["int3"] == 0


def test_doctor() -> None:
    diagnosis = doctor.examine()
    assert diagnosis.runs
    assert not [check for check in diagnosis.checks if check.status in ("problem", "skipped")]
    assert not [check for check in diagnosis.checks if "Could not be checked" in check.finding]


def test_doctor_command() -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["runs"] is True
    assert answer["module"] == MODULE


def test_info_is_json() -> None:
    """collect() is plain data: it survives JSON unchanged."""
    info = collect()
    assert json.loads(json.dumps(info)) == info
    assert info["module"] == MODULE
    assert info["api_version"] == 12
    assert info["capabilities"]["KVM_CAP_USER_MEMORY"] == 1
    assert len(info["modes"]) == 13


def test_info_command_is_plain_in_a_pipe() -> None:
    done = command("info", "--all")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "KVM_CAP_USER_MEMORY 1" in lines
    listed = {line.split()[0] for line in lines if line.startswith("KVM_CAP_")}
    assert listed == set(capabilities.names())


def test_pin_that_cannot_be() -> None:
    with kvmpy.VM("1M") as vm, pytest.raises(PinError, match="pCPU 60000 does not exist"):
        vm.vcpu(pin=60000)
