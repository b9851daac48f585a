"""Each ioctl raw and checked; CPUID and MSR views on the real KVM."""

import errno

import pytest

import kvmpy
from kvmpy import _native, ioctls
from kvmpy.cpuid.cpuid import HAS_INDEX, Cpuid, Leaf

ffi = _native.ffi


def test_raw_gives_minus_errno(vm):
    """No exception: the number is the caller's to look at."""
    assert ioctls.KVM_CREATE_VCPU.raw(vm.fileno(), 1 << 20) == -errno.EINVAL
    assert ioctls.KVM_GET_API_VERSION.raw(vm.fileno()) == -errno.ENOTTY
    assert ioctls.KVM_GET_REGS.raw(9999, ffi.new("struct kvm_regs *")) == -errno.EBADF


def test_checked_says_what_failed(vm):
    """Name, argument, errno, and what usually causes it."""
    vm.vcpu(0)
    with pytest.raises(kvmpy.KvmIoctlError) as info:
        ioctls.KVM_CREATE_VCPU(vm.fileno(), 0, "id 0")
    error = info.value
    assert (error.name, error.errno, error.argument) == ("KVM_CREATE_VCPU", errno.EEXIST, "id 0")
    assert isinstance(error, OSError)
    assert str(error) == "KVM_CREATE_VCPU(id 0) failed with EEXIST: a vCPU with this id exists"


def test_buffers_and_structures(start):
    """The argument may be a cffi structure or any writable buffer; both give the same."""
    cpu = start("hlt")
    structure = ffi.new("struct kvm_regs *")
    buffer = bytearray(ioctls.KVM_GET_REGS.size)
    assert ioctls.KVM_GET_REGS(cpu.fileno(), structure) == 0
    assert ioctls.KVM_GET_REGS(cpu.fileno(), buffer) == 0
    assert bytes(ffi.buffer(structure)) == bytes(buffer)
    assert structure.rip == 0x1000


def test_buffer_that_is_too_small(vm):
    """Refused before KVM writes past its end."""
    cpu = vm.vcpu()
    with pytest.raises(ValueError, match=f"{ioctls.KVM_GET_REGS.size} bytes of struct kvm_regs"):
        ioctls.KVM_GET_REGS.raw(cpu.fileno(), bytearray(ioctls.KVM_GET_REGS.size - 1))
    with pytest.raises((TypeError, BufferError, ValueError)):
        ioctls.KVM_GET_REGS.raw(cpu.fileno(), bytes(200))


def test_run_made_by_hand(start):
    """KVM_RUN is an ioctl as any other: one entry, and the exit reason in the shared page."""
    cpu = start("mov eax, 7; hlt")
    assert ioctls.KVM_RUN.raw(cpu.fileno()) == 0
    assert cpu._shim.run.exit_reason == _native.lib.KVM_EXIT_HLT
    structure = ffi.new("struct kvm_regs *")
    ioctls.KVM_GET_REGS(cpu.fileno(), structure)
    assert structure.rax == 7


def test_hints_of_real_failures(vm):
    """What beginners meet."""
    cpu = vm.vcpu()
    with pytest.raises(kvmpy.KvmIoctlError, match="no in-kernel irqchip"):
        vm.irq_line(4, 1)
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_ENABLE_CAP\(capability 9999\)"):
        vm.enable_capability(9999)
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_CREATE_IRQCHIP.*irqchip comes first"):
        ioctls.KVM_CREATE_IRQCHIP(vm.fileno())
    with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_MP_STATE"):
        cpu.mp_state = 77
    with pytest.raises(kvmpy.KvmIoctlError, match="KVM_IRQFD"):
        vm.irqfd(0, 4)


def test_order_of_creation():
    """TSS and identity map, irqchip, PIT, vCPUs (correctness 8): with everything, HLT waits."""
    with kvmpy.VM("1M", irqchip=True, pit=True) as vm:
        assert vm.has_irqchip
        with pytest.raises(kvmpy.KvmIoctlError, match="EEXIST"):
            ioctls.KVM_CREATE_IRQCHIP(vm.fileno())
        vm.load(b"\xf4", at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        assert cpu.run(timeout=0.02) == kvmpy.Timeout()
        with pytest.raises(kvmpy.KvmIoctlError, match=r"EBUSY|EEXIST|EINVAL"):
            ioctls.KVM_SET_IDENTITY_MAP_ADDR(vm.fileno(), ffi.new("uint64_t *", 0xFFFB_0000))


def test_pit_alone_brings_the_irqchip():
    """pit=True is enough."""
    with kvmpy.VM("1M", pit=True) as vm:
        assert vm.has_irqchip
        vm.irq_line(4, 1)


# ---------------------------------------------------------------- CPUID


def test_supported_cpuid():
    """A plausible table, of the size KVM says."""
    with kvmpy.KVM() as kvm:
        cpuid = kvm.supported_cpuid()
    assert cpuid.vendor in ("GenuineIntel", "AuthenticAMD")
    assert cpuid[0].eax >= 1
    assert cpuid[0x8000_0000].eax >= 0x8000_0001
    assert len(cpuid) > 10


@pytest.mark.parametrize("first", [128, 200, 1000])
def test_supported_cpuid_grows_until_it_fits(scripted_ioctls, first):
    """E2BIG means a larger table (correctness 10), as often as it takes."""
    sizes = []

    def cramped(name, fd, argument, real):
        if name == "KVM_GET_SUPPORTED_CPUID":
            sizes.append(argument.nent)
            if argument.nent < first:
                return -errno.E2BIG
        return real()

    scripted_ioctls(cramped)
    with kvmpy.KVM() as kvm:
        assert len(kvm.supported_cpuid()) > 10
    assert sizes[-1] >= first
    assert sizes == sorted(sizes)


def test_supported_cpuid_gives_up(monkeypatch):
    """A KVM that always says E2BIG is an error, not an endless loop."""
    raw = ioctls.Ioctl.raw

    def never(self, fd, argument=0):
        return -errno.E2BIG if "CPUID" in self.name else raw(self, fd, argument)

    monkeypatch.setattr(ioctls.Ioctl, "raw", never)
    with kvmpy.KVM() as kvm, pytest.raises(kvmpy.KvmIoctlError, match="KVM_GET_SUPPORTED_CPUID"):
        kvm.supported_cpuid()


def test_cpuid_as_the_guest_sees_it(start, vm, module):
    """Leaf 1: this vCPU's APIC id and the hypervisor bit (correctness 11), by CPUID in ring 0."""
    cpu = start("mov eax, 1; cpuid; out 0x10, al", vcpu=vm.vcpu(3))
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.regs.rbx >> 24 == 3
    assert cpu.regs.rcx >> 31 & 1


def test_cpuid_of_ones_own(start, vm):
    """A table by hand: the guest sees what was put in, and get_cpuid() gives it back."""
    with kvmpy.KVM() as kvm:
        table = kvm.supported_cpuid().for_vcpu(0)
    table = table.with_leaf(Leaf(0x4000_0000, eax=0x4000_0001, ebx=0x796D766B))
    cpu = start("mov eax, 0x40000000; cpuid; out 0x10, al", vcpu=vm.vcpu(cpuid=table))
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.regs.rbx == 0x796D_766B
    got = cpu.cpuid
    assert got[0x4000_0000].ebx == 0x796D_766B
    assert list(got)[-1] != Leaf(0)  # trailing empty entries are cut off
    assert {leaf.function for leaf in got} <= {leaf.function for leaf in table}


def test_cpuid_is_final_after_the_first_run(start, vm):
    """Changing it later is an error with its reason."""
    cpu = start("hlt")
    cpu.run(timeout=5)
    changed = cpu.get_cpuid().with_leaf(Leaf(0, eax=1))
    with pytest.raises(kvmpy.KvmIoctlError, match="cannot change once the vCPU has run"):
        cpu.cpuid = changed


def test_get_cpuid_with_a_table_too_small(vm):
    """E2BIG, with the number asked for."""
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_GET_CPUID2\(1 entries\) failed with E2BIG"):
        vm.vcpu().get_cpuid(entries=1)


def test_topology_of_supported_cpuid(vm):
    """Leaves with subleaves keep their index; 4 and 0xb are this vCPU's own (correctness 11)."""
    table = vm.vcpu(1).get_cpuid()
    for leaf in table:
        if leaf.function in (0xB, 0x1F):
            assert leaf.edx == 1
        if leaf.function == 4 and leaf.eax & 0x1F and leaf.eax >> 5 & 7 < 3:
            assert leaf.eax >> 14 & 0xFFF == 0
            assert leaf.flags & HAS_INDEX
    assert isinstance(table, Cpuid)


# ---------------------------------------------------------------- MSRs


def test_msrs_by_name_and_number(vm):
    """Names with and without prefix; write and read back."""
    cpu = vm.vcpu()
    cpu.msrs["LSTAR"] = 0x1234_5678
    assert cpu.msrs[0xC000_0082] == cpu.msrs["IA32_LSTAR"] == cpu.msrs["msr_lstar"] == 0x1234_5678
    cpu.msrs.write({"STAR": 1 << 63, 0x174: 0x10})
    assert cpu.msrs.read(["STAR", "SYSENTER_CS"]) == {0xC000_0081: 1 << 63, 0x174: 0x10}


def test_refused_msr_is_named(vm):
    """KVM processes up to the one it refuses; the error says which (correctness 9)."""
    cpu = vm.vcpu()
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_GET_MSRS\(MSR 0x12345678"):
        cpu.msrs.read(["STAR", "LSTAR", 0x1234_5678, "SFMASK"])
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_SET_MSRS\(MSR 0x12345678.* = 0x7"):
        cpu.msrs.write({"STAR": 5 << 32, 0x1234_5678: 7, "LSTAR": 9})
    assert cpu.msrs["STAR"] == 5 << 32
    assert cpu.msrs["LSTAR"] != 9


def test_msrs_are_chunked(vm):
    """More at once than KVM takes in one call (correctness 9)."""
    cpu = vm.vcpu()
    assert cpu.msrs.read(["LSTAR"] * 700) == {0xC000_0082: cpu.msrs["LSTAR"]}
    with pytest.raises(kvmpy.KvmIoctlError, match="0x12345678"):
        cpu.msrs.read([*["LSTAR"] * 300, 0x1234_5678])


def test_no_msrs(vm):
    """Nothing asked, nothing done."""
    cpu = vm.vcpu()
    assert cpu.msrs.read([]) == {}
    cpu.msrs.write({})


def test_msr_lists_chunked_and_readable(vm):
    """The state list: each of them readable on a vCPU with the host's CPUID, or named if not."""
    with kvmpy.KVM() as kvm:
        indices = kvm.msr_indices()
        assert 0x10 in indices
        assert 0xC000_0082 in indices
        assert len(set(indices)) == len(indices)
        assert isinstance(kvm.feature_msr_indices(), tuple)
    cpu = vm.vcpu()
    refused = []
    for index in indices:
        try:
            cpu.msrs.read([index])
        except kvmpy.KvmIoctlError as error:
            refused.append((index, str(error)))
    assert len(refused) < len(indices) - 10
    assert all(f"{index:#x}" in text for index, text in refused)


def test_guest_and_host_see_the_same_msr(start):
    """WRMSR in the guest, read by the host, and back."""
    cpu = start(
        "mov ecx, 0xc0000102; mov eax, 0x1111; mov edx, 0x22; wrmsr; out 0x10, al;"
        "rdmsr; out 0x10, eax"
    )
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.msrs["KERNEL_GS_BASE"] == 0x22_0000_1111
    cpu.msrs["KERNEL_GS_BASE"] = 0x33_0000_4444
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x4444


def test_entering_resets_system_call_msrs(start, vm):
    """STAR, LSTAR, CSTAR, SFMASK, SYSENTER_*, KERNEL_GS_BASE belong to what enter() sets
    (correctness 22)."""
    cpu = start("hlt")
    fresh = cpu.msrs.read(["STAR", "LSTAR", "CSTAR", "SFMASK", "SYSENTER_CS", "SYSENTER_ESP",
                           "SYSENTER_EIP", "KERNEL_GS_BASE", "FS_BASE", "GS_BASE"])  # fmt: skip
    cpu.msrs.write(dict.fromkeys((*fresh,), 0x1000))
    start("hlt", vcpu=cpu)
    assert cpu.msrs.read(fresh) == fresh
    start("hlt", kvmpy.REAL_MODE, at=0x7C00, vcpu=cpu)
    assert cpu.msrs["KERNEL_GS_BASE"] == 0


def test_eio_of_a_dead_vm(vm, scripted_ioctls):
    """EIO for everything on our own VM means that KVM has given it up (correctness 7)."""
    cpu = vm.vcpu()
    scripted_ioctls(lambda name, fd, argument, real: -errno.EIO)
    with pytest.raises(kvmpy.VmDeadError, match="marked this VM as dead"):
        _ = cpu.mp_state


def test_eio_of_one_ioctl_is_no_dead_vm(vm, scripted_ioctls):
    """The VM still answers KVM_CHECK_EXTENSION: the ioctl has a reason of its own."""

    def failing(name, fd, argument, real):
        return -errno.EIO if name == "KVM_GET_MP_STATE" else real()

    cpu = vm.vcpu()
    scripted_ioctls(failing)
    with pytest.raises(kvmpy.KvmIoctlError) as caught:
        _ = cpu.mp_state
    assert not isinstance(caught.value, kvmpy.VmDeadError)


def test_sync_regs_refuse_unknown_bits(start):
    """KVM_RUN gives EINVAL for a field it does not know, and the error says so (correctness 20)."""
    cpu = start("hlt")
    if not cpu.vm.sync_fields:
        pytest.skip("this KVM lacks KVM_CAP_SYNC_REGS")
    cpu._shim.sync_supported |= 1 << 31  # Linux 6.12 ignores bits from 32 on
    cpu._shim.accessed = 1 << 31
    with pytest.raises(kvmpy.KvmIoctlError, match="a bit KVM does not know"):
        cpu.run(timeout=5)
    cpu._shim.accessed = 0
    assert cpu.run(timeout=5) == kvmpy.Hlt()
