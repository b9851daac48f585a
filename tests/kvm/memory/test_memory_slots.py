"""Memory slots on the real KVM: moving, deleting, reflagging, by hand; what stays mapped."""

import errno
import mmap

import pytest

import kvmpy
from kvmpy import ioctls

HERE, THERE = 0x4000_0000, 0x5000_0000
#: Writes what it reads at rbx to port 0x10, for ever.
READER = f"mov rbx, {HERE}; 1: mov eax, [rbx]; out 0x10, eax; jmp 1b"


def is_mapped(address):
    """Whether this process maps the address."""
    with open("/proc/self/maps") as lines:
        spans = [line.split()[0].split("-") for line in lines]
    return any(int(a, 16) <= address < int(b, 16) for a, b in spans)


def test_moved_slot_shows_its_content_at_the_new_gpa(start, vm):
    """And what was its place is MMIO, for the guest and for the host."""
    region = vm.memory.add(HERE, "64K")
    vm.memory.write(HERE, b"slot")
    cpu = start(READER)
    assert cpu.expect(kvmpy.IoOut, timeout=30).data == b"slot"
    slot = vm.slots.of(region)
    slot.move(THERE)
    assert (slot.gpa, region.gpa, vm.memory.read(THERE, 4)) == (THERE, THERE, b"slot")
    assert cpu.expect(kvmpy.MmioRead, timeout=30).gpa == HERE
    cpu.regs.rbx = THERE
    cpu.answer(0)
    cpu.expect(kvmpy.IoOut, timeout=30)  # what was under way
    assert cpu.expect(kvmpy.IoOut, timeout=30).data == b"slot"
    assert vm.slots.at(HERE) is None
    assert vm.slots.at(THERE) is slot


def test_move_of_the_slot_under_a_running_guest(vm, start, run_in_thread, wait_until):
    """KVM moves it live: the guest goes on where the memory now is."""
    region = vm.memory.add(HERE, "64K")
    cpu = start(f"mov rbx, {HERE}; mov rcx, {THERE}; 1: inc dword ptr [rbx]; jmp 1b")
    reads = []

    def gone(gpa, size, value):
        reads.append(value)
        cpu.regs.rbx = THERE
        return 0 if value is None else None

    vm.bus.handle(HERE, 0x10000, gone, mmio=True)
    vm.on_mmio(THERE, 0x10000)(lambda gpa, size, value: 0)  # for a moment it is at neither place

    runner = run_in_thread(cpu, timeout=30)
    wait_until(lambda: any(region.view[:4]))
    region_slot = vm.slots.of(region)
    region_slot.move(THERE)
    before = bytes(region.view[:4])
    wait_until(lambda: reads and bytes(region.view[:4]) != before)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked()


def test_deleted_slot_is_mmio(start, vm):
    """Its number is free again; the object says that it is deleted."""
    slot = vm.slots.of(vm.memory.add(HERE, "64K"))
    cpu = start(READER)
    cpu.expect(kvmpy.IoOut, timeout=30)
    slot.delete()
    assert cpu.expect(kvmpy.MmioRead, timeout=30).gpa == HERE
    assert slot.deleted
    assert list(vm.slots) == [0]
    for use in (slot.delete, lambda: slot.move(THERE), lambda: setattr(slot, "read_only", True)):
        with pytest.raises(kvmpy.ClosedError, match="deleted"):
            use()
    assert vm.slots.of(vm.memory.add(HERE, "64K")).number == slot.number


def test_read_only_and_back(start, vm):
    """Writes are MMIO exits while it is read-only; reads never are."""
    region = vm.memory.add(HERE, "64K")
    slot = vm.slots.of(region)
    vm.memory.write(HERE, b"ROM!")
    cpu = start(f"mov rbx, {HERE}; 1: mov eax, [rbx]; inc byte ptr [rbx + 4]; jmp 1b")
    slot.read_only = True
    assert region.read_only
    for _ in range(3):
        assert cpu.expect(kvmpy.MmioWrite, timeout=30) == kvmpy.MmioWrite(HERE + 4, b"\x01")
    assert cpu.regs.rax == int.from_bytes(b"ROM!", "little")
    slot.read_only = False
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()
    assert vm.memory.read(HERE, 4) == b"ROM!"
    assert vm.memory.read(HERE + 4, 1) != b"\0"


def test_by_hand(start, vm):
    """The ioctl itself: an mmap of one's own, moved, reflagged, deleted."""
    own = mmap.mmap(-1, 0x10000)
    own[:4] = b"hand"
    slot = vm.set_memory_region(7, HERE, 0x10000, own)
    cpu = start(READER)
    assert cpu.expect(kvmpy.IoOut, timeout=30).data == b"hand"
    assert vm.set_memory_region(7, THERE, 0x10000, own) is slot
    assert (slot.gpa, slot.pages, slot.region) == (THERE, 16, None)
    assert cpu.expect(kvmpy.MmioRead, timeout=30).gpa == HERE
    slot.move(HERE)
    cpu.answer(0)
    cpu.expect(kvmpy.IoOut, timeout=30)
    assert cpu.expect(kvmpy.IoOut, timeout=30).data == b"hand"
    with pytest.raises(kvmpy.KvmIoctlError, match=r"slot 7.*EINVAL"):
        vm.set_memory_region(7, HERE, 0x8000, own)  # its size cannot change
    assert slot.size == 0x10000
    assert vm.set_memory_region(7, HERE, 0, 0) is None
    assert slot.deleted
    own.close()


def test_refused_by_hand(vm):
    """What KVM says no to, and what cannot be right."""
    own = mmap.mmap(-1, 0x4000)
    for gpa, size in ((HERE + 1, 0x1000), (HERE, 0x1001), (0, 0x1000)):
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_USER_MEMORY_REGION"):
            vm.set_memory_region(3, gpa, size, own)
    with pytest.raises(kvmpy.KvmIoctlError, match="slot number is too high"):
        vm.set_memory_region(1 << 15, HERE, 0x1000, own)
    with pytest.raises(kvmpy.KvmIoctlError):
        vm.set_memory_region(3, HERE, 0, 0)  # there is none to delete
    with pytest.raises(ValueError, match="smaller than"):
        vm.set_memory_region(3, HERE, 0x8000, own)
    with pytest.raises(ValueError, match="not a multiple of 4096"):
        vm.set_memory_region(3, HERE, 0x1000, memoryview(own)[8:0x1008])
    with pytest.raises(ValueError, match="read-only"):
        vm.set_memory_region(3, HERE, 0x1000, bytes(0x1000))
    with pytest.raises(kvmpy.GuestMemoryError, match="use its own methods"):
        vm.set_memory_region(0, HERE, 0x4000, own)
    with pytest.raises(kvmpy.GuestMemoryError, match="not a memory slot"):
        vm.slots.of(3)
    assert list(vm.slots) == [0]
    own.close()  # nothing holds it


def test_no_mapping_goes_while_a_slot_points_to_it(vm):
    """Whoever closes what: the host mapping stays until the slot is deleted or the VM closed."""
    own = mmap.mmap(-1, 0x4000)
    slot = vm.set_memory_region(3, HERE, 0x4000, own)
    with pytest.raises(BufferError):
        own.close()
    slot.delete()
    own.close()
    memory = kvmpy.GuestMemory("1M")
    with kvmpy.VM(memory) as other:
        address = memory.regions[0].hva
        memory.close()
        assert is_mapped(address)
        (left,) = other.slots.values()
        left.delete()
        assert not is_mapped(address)
    memory = kvmpy.GuestMemory("1M")
    with kvmpy.VM(memory):
        address = memory.regions[0].hva
        memory.close()
        assert is_mapped(address)
    assert not is_mapped(address)


def test_a_region_of_two_vms_moves_and_goes_in_both():
    """The layout is the memory's."""
    with (
        kvmpy.GuestMemory("1M") as memory,
        kvmpy.VM(memory) as first,
        kvmpy.VM(memory) as second,
    ):
        region = memory.add(HERE, "64K")
        first.slots.of(region).move(THERE)
        assert second.slots.of(region).gpa == THERE
        assert region.gpa == THERE
        second.slots.of(region).delete()
        assert list(first.slots) == list(second.slots) == [0]


def test_move_that_one_vm_refuses(monkeypatch):
    """Then the other one's slot is where it was."""
    with (
        kvmpy.GuestMemory("1M") as memory,
        kvmpy.VM(memory) as first,
        kvmpy.VM(memory) as second,
    ):
        region = memory.add(HERE, "64K")
        own = mmap.mmap(-1, 0x1000)
        second.set_memory_region(9, THERE, 0x1000, own)  # KVM knows it, the memory does not
        with pytest.raises(kvmpy.KvmIoctlError, match="overlaps another memory slot"):
            memory.move(region, THERE)
        assert first.slots.of(region).gpa == second.slots.of(region).gpa == region.gpa == HERE
        with pytest.raises(kvmpy.KvmIoctlError, match="overlaps another memory slot"):
            memory.add(THERE, "4K")
        assert len(first.slots) == 2


def test_slot_numbers_are_used_again(vm):
    """The lowest that is free."""
    regions = [vm.memory.add(HERE + i * 0x1000, "4K") for i in range(4)]
    assert [vm.slots.of(region).number for region in regions] == [1, 2, 3, 4]
    vm.memory.remove(regions[1])
    assert vm.slots.of(vm.memory.add(THERE, "4K")).number == 2
    assert vm.slots.of(vm.memory.add(THERE + 0x1000, "4K")).number == 5
    assert repr(vm.slots).startswith("<6 memory slots: <Slot 0: gpa 0x0..0xffffff>, <Slot 1")


def test_shadow_pages(vm):
    """KVM_SET_NR_MMU_PAGES, and KVM_GET_NR_MMU_PAGES where the kernel still has it."""
    vm.nr_mmu_pages = 2000
    with pytest.raises(kvmpy.KvmIoctlError, match="at least 64"):
        vm.nr_mmu_pages = 63
    if ioctls.KVM_GET_NR_MMU_PAGES.raw(vm.fileno()) == -errno.ENOTTY:
        with pytest.raises(kvmpy.KvmIoctlError, match="ENOTTY"):
            _ = vm.nr_mmu_pages
    else:
        assert vm.nr_mmu_pages == 2000
