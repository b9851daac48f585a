"""The doctor on made-up hosts: each trouble has its own finding, remedy and exit status."""

from __future__ import annotations

import argparse
import errno
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from kvmpy.cli import doctor as command
from kvmpy.errors import (
    KvmBrokenError,
    KvmBusyError,
    KvmIoctlError,
    KvmMissingError,
    KvmPermissionError,
    KvmVersionError,
)
from kvmpy.host.cpu import HostCpu
from kvmpy.probe import doctor
from kvmpy.probe.doctor import Check, Diagnosis, examine
from kvmpy.probe.modes import ModeResult, WayIn
from kvmpy.probe.system import DeviceAccess, System
from kvmpy.probe.verdict import Verdict, judge
from kvmpy.x86.modes import Mode

GOOD_ACCESS = DeviceAccess("kvm", 0o660, True, "ada", False, True, True)
INTEL = HostCpu("GenuineIntel", "Xeon", "VT-x", None, None)


class FakeHost(System):
    """A healthy kvm_intel host; attributes change one thing at a time."""

    def __init__(self, **changes: Any):
        self.host_cpu = INTEL
        self.flags = frozenset({"vmx"})
        self.vendor_module = "kvm_intel"
        self.files = {"/dev/kvm", "/dev/net/tun"}
        self.texts = {"/proc/meminfo": "MemAvailable: 8000000 kB\nHugePages_Free: 4\n"}
        self.tools = {"as", "ld"}
        self.limits: dict[int, int] = {}
        self.access = GOOD_ACCESS
        self.variables: dict[str, str] = {}
        self.failing: dict[str, Exception] = {}
        self.trouble = ""
        self.ring0 = ModeResult(Mode.LONG_64, 0, "native", 0.3)
        self.ways = [WayIn(name, 0) for name in ("int 0x80", "int3", "syscall", "sysenter")]
        for name, value in changes.items():
            assert hasattr(self, name)
            setattr(self, name, value)

    def _answer(self, name: str, value: Any = None) -> Any:
        if name in self.failing:
            raise self.failing[name]
        return nullcontext(value) if value is None else value

    def cpu(self) -> HostCpu:
        return self.host_cpu

    def cpu_flags(self) -> frozenset[str]:
        return self.flags

    def module(self) -> str:
        return self.vendor_module

    def text(self, path: str) -> str | None:
        return self.texts.get(path)

    def exists(self, path: str) -> bool:
        return path in self.files

    def environment(self, name: str) -> str:
        return self.variables.get(name, "")

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.tools else None

    def limit(self, number: int) -> int | None:
        return self.limits.get(number)

    def allowed_cpus(self) -> frozenset[int]:
        return frozenset({0, 1, 2, 5})

    def device_access(self) -> DeviceAccess:
        return self.access

    def open_kvm(self) -> Any:
        return self._answer("open")

    def create_vm(self, kvm: Any) -> Any:
        return self._answer("vm")

    def create_vcpu(self, vm: Any) -> Any:
        return self._answer("vcpu")

    def run_guest(self, vcpu: Any) -> str:
        self._answer("run")
        return self.trouble

    def verdict(self) -> Verdict:
        self._answer("verdict")
        ring3 = ModeResult(Mode.LONG_64, 3, "native", 0.3)
        parameters = {"ept": "Y", "unrestricted_guest": "Y"}
        return judge(self.vendor_module, parameters, self.host_cpu, self.ring0, ring3)

    def ways_in(self) -> list[WayIn]:
        return self.ways


def find(diagnosis: Diagnosis, name: str) -> Check:
    (check,) = [check for check in diagnosis.checks if check.name == name]
    return check


def status(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.status for check in diagnosis.checks}


def cli(monkeypatch: pytest.MonkeyPatch, host: FakeHost, *, as_json: bool = False) -> int:
    monkeypatch.setattr(command, "examine", lambda: examine(host))
    return command.run(argparse.Namespace(json=as_json))


def test_healthy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    diagnosis = examine(FakeHost())
    assert diagnosis.runs
    assert set(status(diagnosis).values()) == {"ok"}
    assert diagnosis.headline == "Guests run on this host (kvm_intel)."
    assert cli(monkeypatch, FakeHost()) == 0
    out = capsys.readouterr().out
    assert out.endswith("\nGuests run on this host (kvm_intel).\n")
    assert "\x1b" not in out


# --- the troubles: (what is wrong with the host, where it shows, finding, remedy)

MISSING = KvmMissingError("/dev/kvm does not exist: no KVM module.", "Load it.", errno.ENOENT)
DENIED = KvmPermissionError("/dev/kvm may not be opened.", "Join its group.", errno.EACCES)
BUSY = KvmBusyError("/dev/kvm is busy.", "Stop VirtualBox.", errno.EBUSY)
BROKEN = KvmBrokenError("KVM_CREATE_VM fails: EOPNOTSUPP.", "See dmesg.", errno.EOPNOTSUPP)
OLD = KvmVersionError("/dev/kvm speaks KVM API version 9.", "Use a kernel of 2007 or later.")
NO_ACCESS = replace(GOOD_ACCESS, readable=False, member=False, active=False)

TROUBLES = {
    "module not loaded": (
        {"vendor_module": "kvm", "files": set(), "failing": {"open": MISSING}},
        "module", "No KVM module is loaded", "sudo modprobe kvm_intel",
    ),
    "permission": (
        {"access": NO_ACCESS, "failing": {"open": DENIED}},
        "permissions", "ada may not open it", "sudo usermod -aG kvm ada",
    ),
    "device is root's alone": (
        {"access": replace(NO_ACCESS, group="root", mode=0o600), "failing": {"open": DENIED}},
        "permissions", "mode 600; ada may not", "chgrp kvm /dev/kvm; sudo chmod 660 /dev/kvm; sudo",
    ),
    "membership not active": (
        {"access": replace(NO_ACCESS, member=True), "failing": {"open": DENIED}},
        "permissions", "added to the group after this login", "newgrp kvm",
    ),
    "device cgroup": (
        {"failing": {"open": DENIED}},
        "KVM", "may not be opened", "docker run --device /dev/kvm",
    ),
    "another hypervisor": ({"failing": {"open": BUSY}}, "KVM", "is busy", "Stop VirtualBox"),
    "no VM": ({"failing": {"vm": BROKEN}}, "VM", "KVM_CREATE_VM fails", "See dmesg"),
    "other API": ({"failing": {"open": OLD}}, "KVM", "version 9", "Use a kernel of 2007"),
    "nested without VT-x": (
        {
            "host_cpu": HostCpu("GenuineIntel", "Xeon", None, "KVM", None),
            "vendor_module": "kvm", "files": set(), "failing": {"open": MISSING},
        },
        "CPU", "no VT-x or AMD-V; a virtual machine under KVM", "nested=1",
    ),
    "no extension at all": (
        {
            "host_cpu": HostCpu("GenuineIntel", "Atom", None, None, None),
            "vendor_module": "kvm", "files": set(), "failing": {"open": MISSING},
        },
        "CPU", "no VT-x or AMD-V", "firmware setup",
    ),
    "disabled in firmware": (
        {"flags": frozenset(), "vendor_module": "kvm", "files": set(),
         "failing": {"open": MISSING}},
        "CPU", "the firmware disables it", "firmware setup",
    ),
    "container without device": (
        {"files": {"/.dockerenv"}, "failing": {"open": MISSING}},
        "device", "does not exist", "docker run --device /dev/kvm",
    ),
    "no vCPU": (
        {"failing": {"vcpu": KvmIoctlError("KVM_CREATE_VCPU", errno.ENOMEM, "id 0")}},
        "vCPU", "KVM_CREATE_VCPU(id 0) failed with ENOMEM", "dmesg",
    ),
    "guest fails": (
        {"trouble": "the guest shut down: triple fault"},
        "first guest", "triple fault", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_troubles(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, where, finding, remedy = TROUBLES[name]
    host = FakeHost(**changes)
    check = find(examine(host), where)
    assert check.status == "problem"
    assert finding in check.finding
    assert remedy in check.remedy
    assert cli(monkeypatch, host) == 69
    out = capsys.readouterr().out
    assert "Guests do not run on this host: " in out
    assert remedy in out
    assert "Traceback" not in out


def test_five_troubles_differ() -> None:
    """Absent, denied, busy, no VM, nested: five findings with five remedies."""
    names = ("module not loaded", "permission", "another hypervisor", "no VM")
    names += ("nested without VT-x",)
    headlines, remedies = set(), set()
    for name in names:
        changes, where, _, _ = TROUBLES[name]
        diagnosis = examine(FakeHost(**changes))
        headlines.add(diagnosis.headline)
        remedies.add(find(diagnosis, where).remedy)
    assert len(headlines) == len(remedies) == 5
    assert "" not in remedies


def test_later_steps_are_skipped_after_a_problem() -> None:
    found = status(examine(FakeHost(failing={"vm": BROKEN})))
    assert (found["KVM"], found["VM"]) == ("ok", "problem")
    assert found["vCPU"] == found["first guest"] == "skipped"
    assert found["backend"] == found["ring 3 to 0"] == "skipped"
    assert found["assembler"] == "ok"


def test_a_remedy_given_above_is_not_repeated() -> None:
    changes = TROUBLES["permission"][0]
    assert find(examine(FakeHost(**changes)), "KVM").remedy == "See permissions above."


def test_a_guest_that_runs_overrules_suspicions() -> None:
    """An unknown vendor module, on a CPU without VT-x or AMD-V, that works all the same."""
    cpu = HostCpu("AuthenticAMD", "EPYC", None, "KVM", None)
    diagnosis = examine(FakeHost(host_cpu=cpu, vendor_module="kvm"))
    assert diagnosis.runs
    assert find(diagnosis, "CPU").status == "warning"
    assert find(diagnosis, "backend").status == "ok"


# --- warnings


def test_emulated_cpu() -> None:
    cpu = HostCpu("AuthenticAMD", "TCG", "AMD-V", "QEMU TCG", "QEMU TCG")
    check = find(examine(FakeHost(host_cpu=cpu, vendor_module="kvm_amd")), "backend")
    assert check.status == "warning"
    assert "nested, on emulated AMD-V (QEMU TCG)" in check.finding


def test_pvm() -> None:
    host = FakeHost(
        host_cpu=HostCpu("AuthenticAMD", "EPYC", None, "KVM", None),
        flags=frozenset(),
        vendor_module="kvm_pvm",
        ring0=ModeResult(Mode.LONG_64, 0, "emulated", 635.0),
        ways=[WayIn("int3", 0), WayIn("syscall", 3, "still in ring 3")],
    )
    diagnosis = examine(host)
    assert find(diagnosis, "CPU").status == "ok"
    assert "ring 0 is emulated (635 ns" in find(diagnosis, "backend").finding
    assert find(diagnosis, "ring 3 to 0").finding.endswith("int3; not syscall.")
    assert diagnosis.headline == "Guests run on this host (kvm_pvm), with 2 warnings."


def test_sysenter_is_no_fault_on_amd() -> None:
    ways = [WayIn("syscall", 0), WayIn("sysenter", None, "#UD")]
    amd = HostCpu("AuthenticAMD", "EPYC", "AMD-V", None, None)
    host = FakeHost(ways=ways, vendor_module="kvm_amd", host_cpu=amd)
    assert find(examine(host), "ring 3 to 0").status == "ok"
    assert find(examine(FakeHost(ways=ways)), "ring 3 to 0").status == "warning"


@pytest.mark.parametrize(
    ("changes", "name", "status", "text"),
    [
        ({"tools": {"ld"}}, "assembler", "warning", "GNU as not found"),
        ({"tools": set()}, "assembler", "warning", "GNU as and ld not found"),
        ({"limits": {doctor.resource.RLIMIT_NOFILE: 64}}, "limits", "warning", "64 open files"),
        ({"limits": {doctor.resource.RLIMIT_AS: 1 << 30}}, "limits", "warning", "1024 MiB"),
        (
            {"texts": {"/proc/meminfo": "MemAvailable: 65536 kB\n"}},
            "memory", "warning", "64 MiB available",
        ),
        ({"files": {"/dev/kvm"}}, "network", "note", "No /dev/net/tun"),
        ({}, "pCPUs", "ok", "0-2,5"),
    ],
)  # fmt: skip
def test_around_kvm(changes: dict[str, Any], name: str, status: str, text: str) -> None:
    diagnosis = examine(FakeHost(**changes))
    check = find(diagnosis, name)
    assert check.status == status
    assert text in check.finding
    assert diagnosis.runs


def test_a_failing_check_is_a_finding_and_the_rest_goes_on() -> None:
    host = FakeHost(failing={"verdict": ZeroDivisionError("division by zero")})
    check = find(examine(host), "backend")
    assert check.status == "warning"
    assert "ZeroDivisionError: division by zero" in check.finding
    assert "bug" in check.remedy
    assert find(examine(host), "network").status == "ok"


class BrokenHost(FakeHost):
    """Nothing can be found out."""

    def __getattribute__(self, name: str) -> Any:
        if name in vars(System):
            raise OSError(errno.EIO, "the disk is gone")
        return super().__getattribute__(name)


def test_never_raises() -> None:
    diagnosis = examine(BrokenHost())
    assert not diagnosis.runs
    assert {check.name for check in diagnosis.checks} >= {"CPU", "KVM", "network"}
    assert "skipped" in status(diagnosis).values()


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    changes = TROUBLES["permission"][0]
    assert cli(monkeypatch, FakeHost(**changes), as_json=True) == 69
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"runs", "module", "headline", "checks"}
    assert answer["runs"] is False
    by_name = {check["name"]: check for check in answer["checks"]}
    assert by_name["permissions"]["remedy"].startswith("'sudo usermod -aG kvm ada'")
    assert set(by_name["KVM"]) == {"name", "status", "finding", "remedy"}
