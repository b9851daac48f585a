"""guest_memfd, memory attributes, VM types, pre-faulting: where they are, what they do; where they
are not, which capability is missing."""

import mmap
import os

import pytest

import kvmpy
from kvmpy import _native, ioctls
from kvmpy.memory.guest_memfd import FLAG_INIT_SHARED, FLAG_MMAP

ffi = _native.ffi

BASE, SIZE, DONE = 0x4000_0000, 0x10000, 0x8000_0000
#: Ring 3, since kvm_pvm's emulator of ring 0 goes by the host mapping.
COPIER = f"""
    mov rbx, {BASE}; mov rdx, {DONE}
    1: mov eax, [rbx]; mov [rbx + 0x1000], eax; mov [rdx], eax; jmp 1b
"""


def has(vm, capability):
    """Whether this KVM has it; what it says."""
    return vm.check_extension(f"KVM_CAP_{capability}")


def refused(capability, use):
    """``use()`` raises UnsupportedError for this capability."""
    with pytest.raises(kvmpy.UnsupportedError, match=capability) as caught:
        use()
    assert caught.value.capability == f"KVM_CAP_{capability}"


def test_guest_memfd(vm):
    """Made, owned, closed; or named as missing."""
    if not has(vm, "GUEST_MEMFD"):
        refused("GUEST_MEMFD", lambda: vm.create_guest_memfd(SIZE))
        return
    memfd = vm.create_guest_memfd("64K")
    assert memfd.size == SIZE
    assert not os.get_inheritable(memfd.fileno())
    assert os.fstat(memfd.fileno()).st_size == SIZE
    with pytest.raises(kvmpy.KvmIoctlError, match="a flag is unknown"):
        vm.create_guest_memfd(SIZE, flags=1 << 40)
    memfd.close()
    with pytest.raises(kvmpy.ClosedError):
        memfd.fileno()
    left = vm.create_guest_memfd(SIZE)
    vm.close()
    assert left.closed
    assert repr(left) == "<GuestMemfd, closed>"


def test_guest_memfd_that_the_vm_cannot_use(vm):
    """Linux 6.12 makes one for any VM, and takes it in the slots of few: the method refuses it."""
    with kvmpy.KVM() as kvm:
        if not kvm.check_extension("KVM_CAP_GUEST_MEMFD") or has(vm, "GUEST_MEMFD"):
            pytest.skip("this KVM has guest_memfd for every type of VM, or for none")
    request = ffi.new("struct kvm_create_guest_memfd *", {"size": SIZE})
    os.close(ioctls.KVM_CREATE_GUEST_MEMFD(vm.fileno(), request))
    refused("GUEST_MEMFD", lambda: vm.create_guest_memfd(SIZE))


def test_newer_call_for_a_plain_slot(vm):
    """KVM_SET_USER_MEMORY_REGION2 without a guest_memfd does what the older call does."""
    if not has(vm, "USER_MEMORY2"):
        pytest.skip("this KVM has no KVM_CAP_USER_MEMORY2: Linux before 6.8")
    with mmap.mmap(-1, SIZE) as host:
        address = int(ffi.cast("uintptr_t", ffi.from_buffer(host)))
        request = ffi.new("struct kvm_userspace_memory_region2 *", {
            "slot": 5, "guest_phys_addr": BASE, "memory_size": SIZE, "userspace_addr": address,
        })  # fmt: skip
        ioctls.KVM_SET_USER_MEMORY_REGION2(vm.fileno(), request)
        with pytest.raises(kvmpy.KvmIoctlError, match="EEXIST"):
            vm.set_memory_region(6, BASE, SIZE, address)
        request.memory_size = 0
        ioctls.KVM_SET_USER_MEMORY_REGION2(vm.fileno(), request)
        assert vm.set_memory_region(6, BASE, SIZE, address).gpa == BASE
        vm.set_memory_region(6, BASE, 0, 0)


def test_slot_without_guest_memfd_support(vm):
    """KVM_SET_USER_MEMORY_REGION2 is named where it is missing."""
    with mmap.mmap(-1, SIZE) as host:
        if has(vm, "USER_MEMORY2"):
            with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_USER_MEMORY_REGION2"):
                vm.set_memory_region(5, BASE, SIZE, host, guest_memfd=0)
        else:
            refused(
                "USER_MEMORY2",
                lambda: vm.set_memory_region(5, BASE, SIZE, host, guest_memfd=0),
            )
        assert list(vm.slots) == [0]


def test_guest_memfd_behind_a_slot(start, vm):
    """The guest works on the guest_memfd and not on the slot's host mapping; when it is closed,
    the next access is a MemoryFault."""
    flags = FLAG_MMAP | FLAG_INIT_SHARED
    if has(vm, "GUEST_MEMFD_FLAGS") & flags != flags:
        refused("GUEST_MEMFD", lambda: vm.create_guest_memfd(SIZE, flags))
        return
    memfd, host = vm.create_guest_memfd(SIZE, flags), mmap.mmap(-1, SIZE)
    host[:4] = b"host"
    with mmap.mmap(memfd.fileno(), SIZE) as shared:
        shared[:4] = b"mem!"
        slot = vm.set_memory_region(5, BASE, SIZE, host, guest_memfd=memfd)
        assert slot.guest_memfd is memfd
        cpu = start(COPIER, ring=3)
        assert cpu.expect(kvmpy.MmioWrite, timeout=30).data == b"mem!"
        assert shared[0x1000:0x1004] == b"mem!"
        assert host[0x1000:0x1004] == bytes(4)
    memfd.close()
    fault = cpu.expect(kvmpy.MemoryFault, timeout=30)
    assert fault.gpa in (BASE, BASE + 0x1000)
    assert (fault.size, fault.private) == (4096, False)
    assert "guest_memfd is closed" in cpu.explain(fault)


def test_slot_with_a_guest_memfd_is_final(vm):
    """KVM logs no writes to it and changes nothing of it; it can be deleted."""
    if not has(vm, "GUEST_MEMFD"):
        refused("GUEST_MEMFD", lambda: vm.create_guest_memfd(SIZE))
        return
    host = mmap.mmap(-1, 2 * SIZE)
    with vm.create_guest_memfd(SIZE) as memfd:
        with pytest.raises(kvmpy.KvmIoctlError, match="too small"):
            vm.set_memory_region(5, BASE, 2 * SIZE, host, guest_memfd=memfd)
        slot = vm.set_memory_region(5, BASE, SIZE // 2, host, guest_memfd=memfd,
                                    guest_memfd_offset=SIZE // 2)  # fmt: skip
        with pytest.raises(kvmpy.GuestMemoryError, match="logs no writes"):
            slot.dirty_logging = True
        vm.log_dirty()
        assert not slot.dirty_logging
        with pytest.raises(kvmpy.KvmIoctlError, match="was to change"):
            slot.move(BASE + SIZE)
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_USER_MEMORY_REGION2"):
            slot.read_only = True
        assert (slot.gpa, slot.read_only) == (BASE, False)
        slot.delete()
        vm.set_memory_region(5, BASE, SIZE, host, guest_memfd=memfd)


def test_memory_attributes(vm):
    """Set where this VM's pages have them; named where not. A page of any VM can be shared."""
    with kvmpy.KVM() as kvm:
        known = kvm.check_extension("KVM_CAP_MEMORY_ATTRIBUTES")
    if vm.memory_attributes:
        vm.set_memory_attributes(0x10_0000, 0x1000, private=True)
        vm.set_memory_attributes(0x10_0000, 0x1000, private=False)
    else:
        refused("MEMORY_ATTRIBUTES", lambda: vm.set_memory_attributes(0, 0x1000, private=True))
        if known:
            vm.set_memory_attributes(0, 0x1000, private=False)
        else:
            refused("MEMORY_ATTRIBUTES", lambda: vm.set_memory_attributes(0, 0x1000, private=False))


def test_pre_fault(vm):
    """All of it, where KVM can."""
    cpu = vm.vcpu()
    if has(vm, "PRE_FAULT_MEMORY"):
        assert cpu.pre_fault_memory(0, 0x10_0000) == 0x10_0000
        with pytest.raises(kvmpy.KvmIoctlError, match="no memory slot"):
            cpu.pre_fault_memory(BASE, 0x1000)
    else:
        refused("PRE_FAULT_MEMORY", lambda: cpu.pre_fault_memory(0, 0x1000))


def test_vm_types():
    """Those that KVM has can be created; any other is named as missing."""
    with kvmpy.KVM() as kvm:
        assert kvm.vm_types[0] is kvmpy.VmType.DEFAULT
        for kind in kvmpy.VmType:
            if kind in (kvmpy.VmType.DEFAULT, kvmpy.VmType.SW_PROTECTED) and kind in kvm.vm_types:
                kvmpy.VM("1M", type=kind).close()
            if kind not in kvm.vm_types:
                refused("VM_TYPES", lambda kind=kind: kvmpy.VM("1M", type=kind))
