"""What the host's CPU is, from made-up CPUID and firmware."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvmpy.host import cpu
from kvmpy.host.cpu import HostCpu, Registers, identify

VMX, SVM, HYPERVISOR = 1 << 5, 1 << 2, 1 << 31


def fake(
    vendor: str, model: str, features: int, extended: int = 0, hypervisor: str = ""
) -> Callable[[int], Registers]:
    b, d, c = struct.unpack("<3I", vendor.encode())
    brand = struct.unpack("<12I", model.encode().ljust(48, b"\0"))
    h = struct.unpack("<3I", hypervisor.encode().ljust(12, b"\0"))
    leaves: dict[int, Registers] = {
        0: (0x1F, b, c, d),
        1: (0, 0, features, 0),
        0x4000_0000: (0x4000_0001, *h),
        0x8000_0000: (0x8000_0008, 0, 0, 0),
        0x8000_0001: (0, 0, extended, 0),
    }
    for i in range(3):
        w, x, y, z = brand[4 * i : 4 * i + 4]
        leaves[0x8000_0002 + i] = (w, x, y, z)
    return leaves.__getitem__


def firmware(tmp_path: Path, vendor: str) -> Path:
    (tmp_path / "bios_vendor").write_text(vendor + "\n")
    return tmp_path


def test_bare_metal_intel(tmp_path: Path) -> None:
    found = identify(fake("GenuineIntel", "  Intel(R)  Xeon(R)", VMX), tmp_path)
    assert found == HostCpu("GenuineIntel", "Intel(R) Xeon(R)", "VT-x", None, None)
    assert not found.nested
    assert "bare metal" in found.surroundings


def test_nested_amd_under_kvm(tmp_path: Path) -> None:
    read = fake("AuthenticAMD", "AMD EPYC", HYPERVISOR, SVM, "KVMKVMKVM")
    found = identify(read, firmware(tmp_path, "SeaBIOS"))
    assert (found.extension, found.hypervisor, found.emulator) == ("AMD-V", "KVM", None)
    assert found.nested
    assert found.surroundings == "a virtual machine under KVM"


def test_tcg(tmp_path: Path) -> None:
    read = fake("AuthenticAMD", "QEMU TCG CPU version 2.5+", HYPERVISOR, SVM, "TCGTCGTCGTCG")
    found = identify(read, firmware(tmp_path, "SeaBIOS"))
    assert found.emulator == "QEMU TCG"
    assert found.surroundings == "a machine emulated by QEMU TCG"


def test_tcg_that_hides_its_leaf(tmp_path: Path) -> None:
    assert identify(fake("AuthenticAMD", "QEMU TCG CPU", 0, SVM), tmp_path).emulator == "QEMU TCG"


def test_bochs_announces_no_hypervisor(tmp_path: Path) -> None:
    read = fake("GenuineIntel", "Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz", VMX)
    found = identify(read, firmware(tmp_path, "The Bochs Project"))
    assert (found.hypervisor, found.emulator) == (None, "Bochs")
    assert found.nested


def test_no_extension(tmp_path: Path) -> None:
    assert identify(fake("AuthenticAMD", "x", HYPERVISOR), tmp_path).extension is None


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("Microsoft Hv", "Hyper-V"),
        ("VMwareVMware", "VMware"),
        ("XenVMMXenVMM", "Xen"),
        ("Whatever", "an unknown hypervisor ('Whatever')"),
    ],
)
def test_hypervisors(tmp_path: Path, signature: str, name: str) -> None:
    read = fake("GenuineIntel", "x", HYPERVISOR | VMX, 0, signature)
    assert identify(read, tmp_path).hypervisor == name


def test_this_machine() -> None:
    """CPUID agrees with what the kernel says of the same CPU."""
    info = Path("/proc/cpuinfo").read_text()
    found = identify()
    assert f"vendor_id\t: {found.vendor}\n" in info
    assert " ".join(found.model.split()) in " ".join(info.split())
    assert cpu.cpuid(0)[0] >= 1
