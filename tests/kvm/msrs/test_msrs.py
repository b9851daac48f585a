"""MSRs by name on the real KVM, and the feature MSRs of the system descriptor."""

import pytest

import kvmpy
from kvmpy.msrs import msrs, table as msr_names


@pytest.fixture
def kvm():
    with kvmpy.KVM() as kvm:
        yield kvm


def test_every_msr_that_kvm_saves_has_a_name(kvm):
    """Of a vCPU's state and of the host's features, on each module."""
    indices = {*kvm.msr_indices(), *kvm.feature_msr_indices()}
    assert len(indices) > 20
    assert {f"{index:#x}" for index in indices if index not in msr_names.table()} == set()


def test_read_all_that_can_be_read(kvm, vm):
    """In one call; those refused are named."""
    cpu = vm.vcpu()
    values, refusals = {}, []
    for index in kvm.msr_indices():
        try:
            values |= cpu.msrs.read([index])
        except kvmpy.MsrError as refused:
            refusals.append((refused.index, refused.msr))
    assert cpu.msrs.read(values).keys() == values.keys()
    assert {index for index, _ in refusals} == set(kvm.msr_indices()) - set(values)
    assert all(name == msrs.name_of(index) for index, name in refusals)
    assert msrs.index_of("LSTAR") in values
    for index, value in values.items():
        assert msrs.describe(index, value)


def test_refused(vm):
    """What nobody has, and a value that may not be: named, with position and value."""
    cpu = vm.vcpu()
    with pytest.raises(kvmpy.MsrError, match=r"KVM_GET_MSRS\(MSR 0xdead") as info:
        cpu.msrs.read(["EFER", "STAR", 0xDEAD, "LSTAR"])
    assert (info.value.index, info.value.position, info.value.value) == (0xDEAD, 2, None)
    with pytest.raises(kvmpy.MsrError, match=r"MSR APIC_BASE \(0x1b\) = 0x") as info:
        cpu.msrs.write({"LSTAR": 0x4000, "APIC_BASE": 0xFFFF_FFFF_FFFF_FFFF, "CSTAR": 1})
    assert (info.value.index, info.value.msr, info.value.position) == (0x1B, "APIC_BASE", 1)
    assert info.value.value == 0xFFFF_FFFF_FFFF_FFFF
    assert isinstance(info.value, kvmpy.KvmIoctlError)
    assert cpu.msrs["LSTAR"] == 0x4000  # those before it are written
    assert cpu.msrs["CSTAR"] != 1


def test_described(start):
    """A long-mode vCPU's own."""
    cpu = start("hlt")
    assert cpu.msrs.describe("EFER").endswith("SCE LME LMA NXE")
    assert "0xfee00000, " in cpu.msrs.describe("APIC_BASE")
    assert cpu.msrs.describe("STAR").startswith("STAR 0x23001000000000: SYSCALL CS 0x10 ")


def test_feature_msrs(kvm):
    """Same interface, read only."""
    features = kvm.feature_msrs
    values = features.read(features)
    assert tuple(values) == kvm.feature_msr_indices()
    assert features.names() == tuple(map(msrs.name_of, values))
    assert features["ARCH_CAPABILITIES"] == values[0x10A] == features[0x10A]
    assert "ARCH_CAPABILITIES 0x" in repr(features)
    assert features.describe("BIOS_SIGN_ID").startswith("BIOS_SIGN_ID 0x")
    with pytest.raises(kvmpy.MsrError, match=r"KVM_GET_MSRS\(MSR 0xdead") as info:
        features.read([0x10A, 0xDEAD])
    assert info.value.position == 1
    assert not hasattr(features, "write")
    kvm.close()
    with pytest.raises(kvmpy.ClosedError):
        features[0x10A]
    assert "closed" in repr(features)


def test_feature_msrs_that_kvm_does_not_have(kvm, monkeypatch):
    """UnsupportedError names the capability; nothing is silently empty."""
    monkeypatch.setattr(kvmpy.KVM, "check_extension", lambda self, capability: 0)
    for attempt in (lambda: kvm.feature_msrs["ARCH_CAPABILITIES"], lambda: list(kvm.feature_msrs)):
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_GET_MSR_FEATURES") as info:
            attempt()
        assert info.value.capability == "KVM_CAP_GET_MSR_FEATURES"
    assert "KVM_CAP_GET_MSR_FEATURES" in repr(kvm.feature_msrs)


def test_guest_and_host_see_the_same(start):
    """What the guest writes with WRMSR is read by name, and the other way round."""
    cpu = start("mov ecx, 0xc0000102; rdmsr; add eax, 1; wrmsr; hlt")
    cpu.msrs["KERNEL_GS_BASE"] = 0x1234_5678
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert cpu.msrs["IA32_KERNEL_GS_BASE"] == 0x1234_5679
