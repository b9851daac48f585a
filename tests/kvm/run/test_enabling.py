"""KVM_ENABLE_CAP on VMs and vCPUs, the friendly forms, and what is missing."""

import pytest
from api.coverage import has

import kvmpy
from kvmpy import GuestException, Hlt, InternalError, KvmIoctlError, UnsupportedError
from kvmpy.ioctls import enabling

#: Needs what no test machine has to be enabled, or a second VM with encryption.
SKIPPED = {"SGX_ATTRIBUTE", "VM_COPY_ENC_CONTEXT_FROM", "VM_MOVE_ENC_CONTEXT_FROM",
           "HYPERV_ENLIGHTENED_VMCS", "HYPERV_DIRECT_TLBFLUSH"}  # fmt: skip


def reasonable(vm, row):
    """An argument that KVM takes where it has the capability."""
    special = {
        "DISABLE_QUIRKS": 1, "DISABLE_QUIRKS2": 1, "SPLIT_IRQCHIP": 24, "MAX_VCPU_ID": 8,
        "MANUAL_DIRTY_LOG_PROTECT2": 1, "DIRTY_LOG_RING": 65536, "DIRTY_LOG_RING_ACQ_REL": 65536,
        "HALT_POLL": 1000, "X86_APIC_BUS_CYCLES_NS": 1, "X86_BUS_LOCK_EXIT": 2, "PMU_CAPABILITY": 1,
        "X86_NOTIFY_VMEXIT": 1 << 32 | 1, "EXIT_HYPERCALL": 1 << 12, "X86_USER_SPACE_MSR": 7,
        "X86_DISABLE_EXITS": vm.check_extension("X86_DISABLE_EXITS") & 6,
        "VM_DISABLE_NX_HUGE_PAGES": 0,
    }  # fmt: skip
    return (special.get(row.name, 1),) if row.argument else ()


@pytest.mark.parametrize("name", sorted(set(enabling.TABLE) - SKIPPED))
def test_every_capability(name):
    """Enabled where KVM has it, early ones before the first vCPU; UnsupportedError, naming it,
    where not."""
    row = enabling.TABLE[name]
    irqchip = row.target == "vcpu" or name == "X86_APIC_BUS_CYCLES_NS"
    with kvmpy.VM(irqchip=irqchip) as vm:
        target = vm.vcpu() if row.target == "vcpu" else vm
        if vm.check_extension(name):
            target.enable_capability(name, *reasonable(vm, row))
            return
        enable = target.enable_capability
        if name == "X86_BUS_LOCK_EXIT":  # KVM itself takes it, and does nothing
            enable = lambda *_: vm.exit_on_bus_locks()  # noqa: E731
        with pytest.raises(UnsupportedError) as caught:
            enable(name, *reasonable(vm, row))
        assert caught.value.capability == "KVM_CAP_" + name


def test_table_names_methods_that_are_there():
    """Every friendlier method of the table exists."""
    for row in enabling.TABLE.values():
        if row.method:
            owner, *attributes = row.method.split(".")
            assert has(getattr(kvmpy, owner), attributes), row


def test_too_late(vm):
    """After the first vCPU the error says so."""
    cpu = vm.vcpu()
    with pytest.raises(KvmIoctlError, match="before the first vCPU"):
        vm.enable_capability("DIRTY_LOG_RING", 65536)
    with pytest.raises(KvmIoctlError, match="enabled on a vm, not on a vcpu"):
        cpu.enable_capability("EXCEPTION_PAYLOAD", 1)


def test_arguments(vm):
    """What cannot be is refused before KVM sees it."""
    with pytest.raises(ValueError, match="takes four"):
        vm.enable_capability("EXCEPTION_PAYLOAD", 1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match="is not in 0"):
        vm.enable_capability("EXCEPTION_PAYLOAD", -1)
    with pytest.raises(ValueError, match="no exit named"):
        vm.disable_exits("cpuid")
    with pytest.raises(ValueError, match="no quirk named"):
        vm.disable_quirks("NONE SUCH")
    with pytest.raises(ValueError, match=r"bits 0\.\.63"):
        vm.exit_on_hypercalls(64)
    with pytest.raises(ValueError, match="notify window"):
        vm.exit_on_notify(1 << 32)
    with pytest.raises(UnsupportedError, match="EXIT_HYPERCALL"):
        vm.exit_on_hypercalls(11)
    with pytest.raises(ValueError, match="no capability named"):
        vm.enable_capability("NONESUCH")


def test_emulation_failure_in_user_code(vm, start):
    """An instruction KVM must emulate and cannot, in ring 3: InternalError instead of #UD."""
    code = "mov ebx, 0xd0000000; fldenv [rbx]; hlt"
    exit = start(code, ring=3).run(timeout=5)
    assert isinstance(exit, (GuestException, InternalError))
    vm.exit_on_emulation_failure()
    cpu = start(code, ring=3, vcpu=vm.vcpu())
    exit = cpu.run(timeout=5)
    assert isinstance(exit, InternalError)
    assert exit.suberror == 1
    assert exit.flags & 1
    assert exit.instruction[:2] == b"\xd9\x23"


@pytest.mark.not_on("kvm_intel", reason="Bochs never wakes a guest that halts without an exit")
def test_hlt_without_exits():
    """disable_exits("hlt"): HLT stays in the guest; a kick gets it out."""
    with kvmpy.VM(memory="16M") as vm:
        try:
            vm.disable_exits("hlt")
        except UnsupportedError as error:
            pytest.skip(str(error))
        cpu = vm.vcpu()
        vm.load(kvmpy.asm("out 0x10, al; hlt"), at=0x1000)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        cpu.run(timeout=5)
        exit = cpu.run(timeout=0.3)
        assert isinstance(exit, (kvmpy.Timeout, Hlt))


def test_platform_info(vm, start):
    """msr_platform_info(False): a read gives #GP."""
    cpu = start("mov ecx, 0xce; rdmsr; hlt")
    cpu.expect(Hlt, timeout=5)
    vm.msr_platform_info(False)
    cpu.regs.rip = 0x1000
    assert cpu.expect(GuestException, timeout=5).vector == 13
