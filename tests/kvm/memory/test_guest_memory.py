"""Guest memory as the guest sees it: slots, holes, read-only, shared, added while it lives."""

import contextlib
import mmap
import os

import pytest

import kvmpy

GIB = 1 << 30


def poke(start, address, value=0x5A, **options):
    """A vCPU that stores a byte at ``address`` in long mode, reads it back and halts."""
    return start(f"mov rcx, {address}; mov byte ptr [rcx], {value}; mov al, [rcx]; hlt", **options)


def test_guest_and_host_see_the_same(start, vm):
    """Without a copy: what the guest writes is in the view, and the other way round."""
    view = vm.memory[0x8000:0x9000]
    view[1] = 0x77
    cpu = start("mov al, [0x8001]; mov byte ptr [0x8002], 0x66; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rax == 0x77
    assert view[2] == 0x66


def test_memory_above_the_hole():
    """6 GiB: 3 below, 3 from 4 GiB on; the hole is MMIO (correctness 18). Nothing is touched, so
    it costs nothing."""
    with kvmpy.VM("6G") as vm:
        assert [(r.gpa, r.size) for r in vm.memory.regions] == [(0, 3 * GIB), (4 * GIB, 3 * GIB)]
        vm.load(
            kvmpy.asm(
                f"mov rcx, {7 * GIB - 8}; mov qword ptr [rcx], 5; mov rcx, {3 * GIB - 0x20000};"
                f"mov qword ptr [rcx], 6; mov rcx, {3 * GIB}; mov [rcx], rcx;"
                f"mov rcx, {4 * GIB - 8}; mov [rcx], rcx; hlt"
            ),
            at=0x1000,
        )
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        assert cpu.expect(kvmpy.MmioWrite, timeout=5).gpa == 3 * GIB
        assert cpu.expect(kvmpy.MmioWrite, timeout=5).gpa == 4 * GIB - 8
        cpu.expect(kvmpy.Hlt, timeout=5)
        assert vm.memory.read(7 * GIB - 8, 8) == (5).to_bytes(8, "little")
        assert vm.memory.read(3 * GIB - 0x20000, 8) == (6).to_bytes(8, "little")
        with pytest.raises(kvmpy.GuestMemoryError):
            vm.memory.read(3 * GIB - 4, 8)


def test_read_only_slot(start, vm):
    """The guest reads it; a write comes back as MmioWrite, and the host fills it."""
    region = vm.memory.add(0x200_0000, "64K", read_only=True)
    vm.load(b"ROM!", at=0x200_0000)
    cpu = start("mov ecx, 0x2000000; mov eax, [rcx]; mov [rcx + 2], eax; mov ebx, [rcx]; hlt")
    assert cpu.expect(kvmpy.MmioWrite, timeout=5) == kvmpy.MmioWrite(0x200_0002, b"ROM!")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rax == cpu.regs.rbx == int.from_bytes(b"ROM!", "little")
    assert vm.memory.read(0x200_0000, 8) == b"ROM!\0\0\0\0"
    assert region.read_only


def test_several_slots_side_by_side(start, vm):
    """Adjacent regions are one address space, to guest and host."""
    for i in range(3):
        vm.memory.add(0x200_0000 + i * 0x1000, 0x1000)
    vm.load(bytes(range(200)), at=0x200_0000 + 0x1000 - 100)
    cpu = start("mov ecx, 0x2000ffe; mov eax, [rcx]; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rax == int.from_bytes(bytes((98, 99, 100, 101)), "little")
    assert vm.memory.read(0x200_0000 + 0x1000 - 100, 200) == bytes(range(200))
    with pytest.raises(kvmpy.GuestMemoryError, match="one region"):
        vm.memory[0x200_0FFE:0x200_1002]


def test_memory_added_while_the_guest_lives(start, vm):
    """What was MMIO is memory from the next access on."""
    cpu = start("mov ecx, 0x3000000; 1: mov dword ptr [rcx], 5; jmp 1b")
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    vm.memory.add(0x300_0000, "1M")
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()
    assert vm.memory.read(0x300_0000, 4) == b"\x05\0\0\0"


def test_memory_added_from_a_handler(start, vm):
    """Even from the handler of the access that missed."""
    vm.on_mmio(0x300_0000, 4)(lambda gpa, size, value: vm.memory.add(0x300_0000, 4096))
    cpu = start("mov ecx, 0x3000000; mov dword ptr [rcx], 5; mov dword ptr [rcx], 6; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert vm.memory.read(0x300_0000, 4) == b"\x06\0\0\0"


def test_overlap_is_refused_and_leaves_nothing(vm):
    """By us before KVM is asked; the layout is as it was."""
    before = vm.memory.regions
    with pytest.raises(kvmpy.GuestMemoryError, match="overlaps"):
        vm.memory.add(0xFF_F000, "8K")
    assert vm.memory.regions == before
    vm.memory.add(0x100_0000, "4K")


def test_slot_that_kvm_refuses(vm, scripted_ioctls):
    """An error from KVM takes the region back; the next one gets the slot's number."""
    refusing = True

    def refuse(name, fd, argument, real):
        return -22 if refusing and name == "KVM_SET_USER_MEMORY_REGION" else real()

    before = vm.memory.regions
    scripted_ioctls(refuse)
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_SET_USER_MEMORY_REGION.*gpa 0x1000000"):
        vm.memory.add(0x100_0000, "4K")
    assert vm.memory.regions == before
    refusing = False
    vm.memory.add(0x100_0000, "4K")


def test_memfd_is_shared(start):
    """Another mapping of the same memfd sees the guest's writes (another process could)."""
    with kvmpy.VM("1M", backing="memfd") as vm:
        (region,) = vm.memory.regions
        with mmap.mmap(region.fd, region.size) as other:
            other[0x1000:0x1008] = bytes.fromhex("c6042500800000 21")[:8]  # mov byte [0x8000], 0x21
            other[0x1008] = 0xF4
            cpu = vm.vcpu()
            cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
            cpu.expect(kvmpy.Hlt, timeout=5)
            assert other[0x8000] == 0x21
        assert not os.get_inheritable(region.fd)


def test_hugetlb_falls_back_with_a_warning():
    """No huge pages here, or not enough: ordinary ones, and a warning that says so."""
    with pytest.warns(kvmpy.HugePageFallbackWarning, match="nr_hugepages"):
        vm = kvmpy.VM("64G", backing="hugetlb")
    with vm:
        assert vm.memory.regions[0].backing == "anonymous"


def test_memory_of_the_callers_own(start):
    """A GuestMemory given to a VM is the caller's: the VM does not close it, and it can serve
    another."""
    with kvmpy.GuestMemory("1M") as memory:
        memory.write(0x1000, b"\xf4")
        for _ in range(2):
            with kvmpy.VM(memory) as vm:
                cpu = vm.vcpu()
                cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
                cpu.expect(kvmpy.Hlt, timeout=5)
            assert not memory.closed
        assert memory.read(0x1000, 1) == b"\xf4"


def test_closing_memory_under_a_vm(start):
    """The mapping stays for as long as a guest can reach it: never may it write to whatever the
    host maps at that address next."""
    memory = kvmpy.GuestMemory("2M")
    memory.write(0x1000, kvmpy.asm("1: inc dword ptr [0x8000]; jmp 1b", org=0x1000))
    with kvmpy.VM(memory) as vm:
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        assert cpu.run(timeout=0.01) == kvmpy.Timeout()
        memory.close()
        others = [mmap.mmap(-1, 2 << 20) for _ in range(8)]
        with contextlib.suppress(kvmpy.KvmIoctlError):  # EFAULT would be an answer too
            cpu.run(timeout=0.05)
        assert all(not any(other[0x8000:0x8004]) for other in others)


def test_guest_cannot_reach_past_its_memory(start, vm):
    """The last byte is memory; the next is not."""
    end = 16 << 20
    cpu = start(f"mov ecx, {end - 1}; mov byte ptr [rcx], 1; mov byte ptr [rcx + 1], 2")
    assert cpu.expect(kvmpy.MmioWrite, timeout=5) == kvmpy.MmioWrite(end, b"\x02")


def test_vm_without_memory():
    """Memory can come later."""
    with kvmpy.VM() as vm:
        assert vm.memory.size == 0
        vm.memory.add(0, "1M")
        vm.load(b"\xf4", at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        cpu.expect(kvmpy.Hlt, timeout=5)


def test_two_vms_share_a_memory_and_what_is_added_to_it():
    """A region added after both VMs have the memory reaches the guests of both."""
    with (
        kvmpy.GuestMemory("1M") as memory,
        kvmpy.VM(memory) as first,
        kvmpy.VM(memory) as second,
    ):
        memory.add(0x4000_0000, "64K")
        memory.write(
            0x1000, kvmpy.asm("mov eax, [0x40000000]; inc eax; mov [0x40000000], eax; hlt")
        )
        for vm in (first, second):
            cpu = vm.vcpu()
            cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
            cpu.expect(kvmpy.Hlt, timeout=30)
        assert memory.read(0x4000_0000, 4) == b"\x02\0\0\0"
