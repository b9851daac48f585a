"""Hyper-V enlightenments, where KVM has them."""

import os

import pytest
from irq_guest import NO_PIC, XAPIC, boot, interrupted, quiet

import kvmpy
from kvmpy.cpuid.cpuid import Cpuid

HV = pytest.mark.not_on("kvm_pvm", reason="has no Hyper-V enlightenments (KVM_CAP_HYPERV is 0)")
HYPERV_LEAF = 0x4000_0001
MSR_GUEST_OS_ID, MSR_HYPERCALL = 0x4000_0000, 0x4000_0001
MSR_SCONTROL, MSR_SINT2 = 0x4000_0080, 0x4000_0092


def with_hyperv(kvm, cpu):
    """What the vCPU shows, with Hyper-V's leaves in the place of KVM's."""
    hyperv = kvm.supported_hyperv_cpuid()
    others = [leaf for leaf in cpu.cpuid if leaf.function >> 8 != 0x400000]
    return Cpuid([*others, *hyperv])


@HV
def test_supported_cpuid():
    """Of the system and of a vCPU; the interface signature is Hv#1."""
    with kvmpy.KVM() as kvm, kvmpy.VM(irqchip=True) as vm:
        cpu = vm.vcpu()
        for leaves in (kvm.supported_hyperv_cpuid(), cpu.hyperv.supported_cpuid()):
            assert leaves[HYPERV_LEAF].eax == int.from_bytes(b"Hv#1", "little")
            assert all(leaf.function >> 8 == 0x400000 for leaf in leaves)


@pytest.mark.not_on("kvm_amd", reason="has Hyper-V enlightenments")
@pytest.mark.not_on("kvm_intel", reason="has Hyper-V enlightenments")
def test_without():
    """Each names its capability."""
    with kvmpy.KVM() as kvm, kvmpy.VM(irqchip=True) as vm:
        cpu = vm.vcpu()
        for call, capability in (
            (kvm.supported_hyperv_cpuid, "KVM_CAP_SYS_HYPERV_CPUID"),
            (cpu.hyperv.supported_cpuid, "KVM_CAP_HYPERV_CPUID"),
            (lambda: vm.hyperv.eventfd(1, 0), "KVM_CAP_HYPERV_EVENTFD"),
        ):
            with pytest.raises(kvmpy.UnsupportedError, match=capability):
                call()


@HV
def test_eventfd(vm):
    """Assigned once, taken back once; connection ids have 24 bits."""
    event = os.eventfd(0, os.EFD_CLOEXEC)
    vm.hyperv.eventfd(1, event)
    with pytest.raises(kvmpy.KvmIoctlError, match="EEXIST"):
        vm.hyperv.eventfd(1, event)
    vm.hyperv.eventfd(1, deassign=True)
    with pytest.raises(kvmpy.KvmIoctlError, match="ENOENT"):
        vm.hyperv.eventfd(1, deassign=True)
    with pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        vm.hyperv.eventfd(1 << 24, event)
    os.close(event)


@HV
def test_signal_event(vm):
    """The guest's HvSignalEvent (0x5d), a fast hypercall through the page that KVM fills, signals
    the eventfd of its connection; one of nobody's fails."""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    vm.hyperv.eventfd(7, event)
    call = "mov ecx, 0x1005d; xor r8d, r8d; mov eax, 0x3000; call rax; out 0x10, eax; "
    code = f"""
        xor edx, edx; mov eax, 1; mov ecx, {MSR_GUEST_OS_ID}; wrmsr
        xor edx, edx; mov eax, 0x3001; mov ecx, {MSR_HYPERCALL}; wrmsr
        mov edx, 7; {call} mov edx, 8; {call} hlt
    """
    with kvmpy.KVM() as kvm:
        cpu = vm.vcpu()
        cpu.set_cpuid(with_hyperv(kvm, cpu))
    vm.load(kvmpy.asm(code, org=0x1000), at=0x1000)
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    assert cpu.expect(kvmpy.IoOut, timeout=10).value == 0
    assert os.eventfd_read(event) == 1
    assert cpu.expect(kvmpy.IoOut, timeout=10).value != 0
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event)
    os.close(event)


@HV
def test_synthetic_interrupt():
    """A GSI routed to SINT 2 reaches the handler of the vector that the guest gave it; enabling the
    SynIC is an exit, since the host looks after its pages."""
    with kvmpy.VM("1M", irqchip=True) as vm, kvmpy.KVM() as kvm:
        cpu = vm.vcpu()
        cpu.enable_capability("KVM_CAP_HYPERV_SYNIC2")
        cpu.set_cpuid(with_hyperv(kvm, cpu))
        setup = f"{NO_PIC}; {XAPIC}; xor edx, edx; mov ecx, {MSR_SINT2}; mov eax, 0x91; wrmsr"
        boot(vm, setup, [0x91], cpu=cpu)
        vm.set_gsi_routing((*vm.gsi_routes, kvmpy.HvSintRoute(24, vcpu=0, sint=2)))
        vm.load(kvmpy.asm(f"mov ecx, {MSR_SCONTROL}; mov eax, 1; xor edx, edx; wrmsr; sti; "
                          "1: hlt; jmp 1b", org=0x2000), at=0x2000)  # fmt: skip
        cpu.regs.rip = 0x2000
        assert cpu.run(timeout=10).reason == 27  # KVM_EXIT_HYPERV
        vm.irq_line(24, 1)
        interrupted(cpu, 0x91)
        quiet(cpu)
