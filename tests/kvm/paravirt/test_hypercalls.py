"""Hypercalls that user space answers: KVM's own, Xen's, Hyper-V's; and what else a guest asks."""

import pytest

import kvmpy
from kvmpy import (
    Cpuid,
    GuestException,
    Hlt,
    Hypercall,
    HypervHypercall,
    HypervSynic,
    IoOut,
    Leaf,
    SystemEvent,
    Xen,
    ioctls,
)  # fmt: skip

KVM_ENOSYS, ENOSYS = 1000, 38
GUEST_OS_ID, HYPERCALL, SCONTROL, CRASH_P0, CRASH_CTL = (
    0x40000000, 0x40000001, 0x40000080, 0x40000100, 0x40000105,
)  # fmt: skip
U64 = 1 << 64

pytestmark = pytest.mark.not_on("kvm_pvm", reason="VMCALL and VMMCALL never get past their RIP")


@pytest.fixture
def call(module):
    """The vendor's hypercall instruction."""
    return "vmmcall" if module == "kvm_amd" else "vmcall"


def test_own_hypercall(vm, start, call):
    """KVM_HC_MAP_GPA_RANGE with its arguments; the answer is RAX; then KVM answers again."""
    vm.exit_on_hypercalls(12)
    cpu = start(f"mov eax, 12; mov ebx, 0x200000; mov ecx, 3; mov edx, 0x10; {call}; hlt")
    exit = cpu.expect(Hypercall, timeout=5)
    assert (exit.number, exit.name, exit.longmode) == (12, "MAP_GPA_RANGE", True)
    assert exit.args[:3] == (0x200000, 3, 0x10)
    cpu.answer(-22)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == U64 - 22
    vm.exit_on_hypercalls()
    cpu.regs.rip = 0x1000
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == U64 - KVM_ENOSYS


@pytest.mark.parametrize(
    "act", [lambda cpu: cpu.refuse(), lambda cpu: None], ids=["refused", "left"]
)
def test_own_hypercall_without_an_answer(vm, start, call, act):
    """As KVM answers hypercalls it does not know."""
    vm.exit_on_hypercalls(12)
    cpu = start(f"mov eax, 12; mov ebx, 0x200000; mov ecx, 1; mov edx, 0; {call}; hlt")
    cpu.expect(Hypercall, timeout=5)
    act(cpu)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == U64 - KVM_ENOSYS


def test_own_hypercall_from_32_bit_code(vm, start, call):
    """longmode is False, and the answer has 32 bits."""
    vm.exit_on_hypercalls(12)
    code = f"mov eax, 12; mov ebx, 0x200000; mov ecx, 1; mov edx, 0; {call}; hlt"
    cpu = start(code, kvmpy.PROTECTED_MODE)
    assert cpu.expect(Hypercall, timeout=5).longmode is False
    cpu.answer(-1)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 0xFFFFFFFF


@pytest.fixture
def xen(vm):
    """A VM whose hypercalls are Xen's."""
    lib, ffi = kvmpy._native.lib, kvmpy._native.ffi
    if not vm.check_extension("XEN_HVM") & lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL:
        pytest.skip("this KVM does not intercept Xen hypercalls")
    config = ffi.new("struct kvm_xen_hvm_config *")
    config.flags, config.msr = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, 0x40000000
    ioctls.KVM_XEN_HVM_CONFIG(vm.fileno(), config)
    return vm


def test_xen_hypercall(xen, start, call):
    """Number, six parameters in Xen's registers, privilege; the answer is RAX."""
    parameters = "mov edi, 1; mov esi, 2; mov edx, 3; mov r10d, 4; mov r8d, 5; mov r9d, 6"
    cpu = start(f"mov eax, 17; {parameters}; {call}; hlt")
    exit = cpu.expect(Xen, timeout=5)
    assert exit == Xen(17, (1, 2, 3, 4, 5, 6), True, 0)
    cpu.answer(0x40011)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 0x40011
    cpu.regs.rip = 0x1000
    cpu.expect(Xen, timeout=5)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == U64 - ENOSYS


def hyperv_cpuid(vm):
    """The host's leaves, and a hypervisor that is Hyper-V with all features."""
    base = vm.vcpu().cpuid
    leaves = [leaf for leaf in base if not 0x40000000 <= leaf.function < 0x40010000]
    ones = 0xFFFFFFFF
    leaves += [
        Leaf(0x40000000, 0, 0, 0x4000000A, 0x7263694D, 0x666F736F, 0x76482074),
        Leaf(0x40000001, 0, 0, 0x31237648, 0, 0, 0),
        Leaf(0x40000003, 0, 0, ones, ones, 0, ones),
        Leaf(0x40000004, 0, 0, ones, ones, 0, 0),
    ]
    return Cpuid(leaves)


@pytest.fixture
def hyperv():
    """A Hyper-V guest's vCPU, with SynIC."""
    with kvmpy.VM(memory="16M", irqchip=True) as vm:
        if not vm.check_extension("HYPERV_SYNIC2"):
            pytest.skip("this KVM has no KVM_CAP_HYPERV_SYNIC2")
        with kvmpy.VM() as other:
            cpuid = hyperv_cpuid(other)
        cpu = vm.vcpu(cpuid=cpuid)
        cpu.hyperv.synic()
        yield cpu


def test_synic(hyperv):
    """A write to SCONTROL by the guest is told."""
    code = f"mov ecx, {SCONTROL:#x}; mov eax, 1; xor edx, edx; wrmsr; out 0x10, al"
    hyperv.vm.load(kvmpy.asm(code), at=0x1000)
    hyperv.enter(kvmpy.LONG_MODE, rip=0x1000)
    exit = hyperv.expect(HypervSynic, timeout=5)
    assert (exit.msr, exit.control & 1) == (SCONTROL, 1)
    with pytest.raises(ValueError, match="takes no answer"):
        hyperv.answer(0)
    hyperv.expect(IoOut, timeout=5)


def test_hyperv_hypercall(hyperv, call):
    """HvPostMessage goes to user space; the answer is the result value."""
    code = f"mov ecx, 0x5c; mov edx, 0x2000; mov r8d, 0x3000; {call}; out 0x10, al"
    hyperv.vm.load(kvmpy.asm(code), at=0x1000)
    hyperv.enter(kvmpy.LONG_MODE, rip=0x1000)
    hyperv.msrs[GUEST_OS_ID] = 1
    for answer, result in ((0x11, 0x11), (None, 2)):
        exit = hyperv.expect(HypervHypercall, timeout=5)
        assert (exit.code, exit.params) == (0x5C, (0x2000, 0x3000))
        if answer is not None:
            hyperv.answer(answer)
        hyperv.expect(IoOut, timeout=5)
        assert hyperv.regs.rax == result
        hyperv.regs.rip = 0x1000


def test_crash(hyperv):
    """A Hyper-V guest's crash message is a system event; its parameters are in the MSRs."""
    code = f"mov ecx, {CRASH_CTL:#x}; xor eax, eax; mov edx, 0x80000000; wrmsr; out 0x10, al"
    hyperv.vm.load(kvmpy.asm(code), at=0x1000)
    hyperv.enter(kvmpy.LONG_MODE, rip=0x1000)
    hyperv.msrs[CRASH_P0] = 0xDEAD
    exit = hyperv.expect(SystemEvent, timeout=5)
    assert exit.name == "crash"
    assert hyperv.msrs[CRASH_P0] == 0xDEAD
    hyperv.expect(IoOut, timeout=5)


def test_quirk_disabled(vm, start, module):
    """Without KVM_X86_QUIRK_FIX_HYPERCALL_INSN the other vendor's instruction is #UD."""
    vm.disable_quirks("FIX_HYPERCALL_INSN")
    exit = start("vmcall" if module == "kvm_amd" else "vmmcall").run(timeout=5)
    assert isinstance(exit, GuestException)
    assert exit.vector == 6
