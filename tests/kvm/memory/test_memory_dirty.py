"""Dirty log and dirty ring on the real KVM: exactly the pages the guest wrote."""

import mmap

import pytest

import kvmpy

BASE, SIZE = 0x4000_0000, 8 << 20
PAGES = SIZE // 4096
DONE = 0x8000_0000
#: Writes ``count`` pages from rbx on, ``step`` bytes apart, and says so; round and round.
WRITER = """
    0: mov rbx, {first}; mov ecx, {count}
    1: mov qword ptr [rbx], 7; add rbx, {step}; dec ecx; jnz 1b
    mov rbx, {done}; mov [rbx], al; jmp 0b
"""


def writer(first, count, step):
    """Code that writes these pages and exits with an MmioWrite, again and again."""
    return WRITER.format(first=BASE + first * 4096, count=count, step=step * 4096, done=DONE)


@pytest.fixture
def region(vm):
    """8 MiB that hold neither code nor page tables, so that only the guest's own writes show."""
    return vm.memory.add(BASE, SIZE)


@pytest.fixture
def ring_vm():
    """A VM with a dirty ring of 1024 entries, and such a region, logged."""
    with kvmpy.VM("16M", dirty_ring=1024) as vm:
        vm.log_dirty(vm.memory.add(BASE, SIZE))
        yield vm


def ring_writer(vm, *pages, ring=3):
    """A vCPU about to write. In ring 3: kvm_pvm's emulator does not look at the ring."""
    vm.load(kvmpy.asm(writer(*pages), org=0x1000), at=0x1000)
    cpu = vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=ring)
    return cpu


# ---------------------------------------------------------------- log


@pytest.mark.parametrize("ring", [0, 3])
def test_log_has_exactly_the_pages_written(start, vm, region, ring):
    """Reading it clears it; reads of the guest do not count, nor do the host's writes."""
    vm.log_dirty(region)
    vm.memory.write(BASE, b"host")
    cpu = start(writer(3, 20, 7), ring=ring)
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    dirty = vm.get_dirty_log(region)
    assert list(dirty) == [BASE + n * 4096 for n in range(3, 3 + 20 * 7, 7)]
    assert (dirty.gpa, dirty.pages) == (BASE, PAGES)
    assert not vm.get_dirty_log(region)
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert vm.get_dirty_log(region) == dirty


def test_log_on_and_off(start, vm, region):
    """Off: ENOENT that says so; on again, it starts anew."""
    slot = vm.slots.of(region)
    cpu = start(writer(0, 5, 1))
    with pytest.raises(kvmpy.KvmIoctlError, match="dirty logging is off"):
        vm.get_dirty_log(slot)
    slot.dirty_logging = True
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    vm.log_dirty(slot, on=False)
    assert not slot.dirty_logging
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    vm.log_dirty()
    assert vm.slots[0].dirty_logging
    assert vm.get_dirty_log(slot.number).count == 0
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert vm.get_dirty_log(slot).ranges() == [(BASE, 5 * 4096)]


def test_log_moves_with_its_slot(start, vm, region):
    """The bitmap is the slot's: page numbers stay, addresses are the new ones."""
    vm.log_dirty(region)
    cpu = start(writer(1, 2, 1))
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    vm.get_dirty_log(region)
    vm.memory.move(region, BASE + 0x1000)
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert list(vm.get_dirty_log(region)) == [BASE + 0x1000, BASE + 0x2000]


def test_manual_protect(start, vm, region):
    """Reading leaves the log; clearing takes what it is told, and those pages are noted again."""
    vm.protect_dirty_log_manually()
    vm.log_dirty(region)
    cpu = start(writer(0, 256, 1))
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    first = vm.get_dirty_log(region)
    assert first.ranges() == [(BASE, 256 * 4096)]
    assert vm.get_dirty_log(region) == first
    vm.clear_dirty_log(region, first, first_page=64, count=64)
    assert vm.get_dirty_log(region).ranges() == [
        (BASE, 64 * 4096), (BASE + 128 * 4096, 128 * 4096)
    ]  # fmt: skip
    some = kvmpy.DirtyPages.of([0, 5, 200], first.pages, first.gpa)
    vm.clear_dirty_log(region, some)
    left = first - some - kvmpy.DirtyPages.of(range(64, 128), first.pages, first.gpa)
    assert vm.get_dirty_log(region) == left
    vm.clear_dirty_log(region)
    assert not vm.get_dirty_log(region)
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert vm.get_dirty_log(region) == first


def test_initially_set(start, vm, region):
    """All pages are dirty when logging begins, until they are cleared."""
    vm.protect_dirty_log_manually(initially_set=True)
    vm.log_dirty(region)
    assert vm.get_dirty_log(region).count == PAGES
    vm.clear_dirty_log(region)
    cpu = start(writer(7, 1, 1))
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert list(vm.get_dirty_log(region)) == [BASE + 7 * 4096]


def test_slot_of_odd_length(start, vm):
    """100 pages: two words of bitmap, the last one in part; cleared to the slot's end."""
    vm.protect_dirty_log_manually()
    region = vm.memory.add(BASE, 100 * 4096)
    vm.log_dirty(region)
    cpu = start(writer(90, 10, 1))
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    dirty = vm.get_dirty_log(region)
    assert dirty.bitmap.nbytes == 16
    assert dirty.ranges() == [(BASE + 90 * 4096, 10 * 4096)]
    vm.clear_dirty_log(region, dirty, first_page=64, count=36)
    assert not vm.get_dirty_log(region)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"first_page": 1}, "not a multiple of 64"),
        ({"first_page": 128}, r"0\.\.99"),
        ({"first_page": -64}, r"0\.\.99"),
        ({"count": 10}, "not a multiple of 64"),
        ({"count": 0}, r"1\.\.100"),
        ({"first_page": 64, "count": 64}, r"1\.\.36"),
        ({"pages": kvmpy.DirtyPages.of([], 64)}, "are not the pages of"),
    ],
)
def test_parts_that_cannot_be_cleared(vm, part, message):
    """KVM's rules of alignment, as a sentence instead of EINVAL."""
    vm.protect_dirty_log_manually()
    region = vm.memory.add(BASE, 100 * 4096)
    vm.log_dirty(region)
    with pytest.raises(ValueError, match=message):
        vm.clear_dirty_log(region, **part)


# ---------------------------------------------------------------- ring


def test_ring_has_exactly_the_pages_written(ring_vm):
    """Slot and offset of each; after the reset they are noted again."""
    cpu = ring_writer(ring_vm, 5, 30, 11)
    wanted = {(1, n) for n in range(5, 5 + 30 * 11, 11)}
    for _ in range(2):
        cpu.expect(kvmpy.MmioWrite, timeout=30)
        pages = cpu.dirty_ring.harvest()
        assert set(pages) == wanted
        assert len(pages) == 30
        assert cpu.dirty_ring.harvest() == []
        assert ring_vm.reset_dirty_rings() == 30
    assert ring_vm.reset_dirty_rings() == 0


def test_full_ring_ends_the_run_and_goes_on(ring_vm):
    """DirtyRingFull until there is room; nothing is lost, whatever the number of rounds."""
    cpu = ring_writer(ring_vm, 0, PAGES, 1)
    seen, rounds = set(), 0
    while isinstance(exit := cpu.run(timeout=30), kvmpy.DirtyRingFull):
        if rounds == 0:
            assert cpu.run(timeout=30) == kvmpy.DirtyRingFull()
            assert "nobody has harvested" in cpu.explain(exit)
        seen.update(cpu.dirty_ring.harvest())
        assert ring_vm.reset_dirty_rings() > 0
        rounds += 1
    assert isinstance(exit, kvmpy.MmioWrite)
    seen.update(cpu.dirty_ring.harvest())
    assert seen == {(1, n) for n in range(PAGES)}
    assert rounds >= 2


def test_rings_of_two_vcpus_as_bitmaps(ring_vm):
    """collect_dirty_rings() gives what get_dirty_log() would, all vCPUs together."""
    first = ring_writer(ring_vm, 0, 10, 1)
    first.expect(kvmpy.MmioWrite, timeout=30)
    second = ring_writer(ring_vm, 100, 10, 1)
    second.expect(kvmpy.MmioWrite, timeout=30)
    found = ring_vm.collect_dirty_rings()
    assert list(found) == [1]
    assert found[1].ranges() == [(BASE, 10 * 4096), (BASE + 100 * 4096, 10 * 4096)]
    assert ring_vm.collect_dirty_rings() == {}


def test_harvest_while_the_guest_runs(ring_vm, run_in_thread):
    """Another thread harvests and resets; the guest's run ends for no full ring in the end."""
    cpu = ring_writer(ring_vm, 0, 600, 1)
    runner = run_in_thread(cpu, timeout=60)
    seen = set()
    while len(seen) < 600 and runner.is_alive():
        seen.update(cpu.dirty_ring.harvest())
        ring_vm.reset_dirty_rings()
    assert isinstance(runner.result(), kvmpy.MmioWrite)
    seen.update(cpu.dirty_ring.harvest())
    assert seen == {(1, n) for n in range(600)}


@pytest.mark.not_on("kvm_intel", reason="the processor runs ring 0, and KVM ends the run in time")
@pytest.mark.not_on("kvm_amd", reason="the processor runs ring 0, and KVM ends the run in time")
def test_overrun_is_no_silent_loss():
    """kvm_pvm emulates ring 0, and looks at the ring only when the host's timer ticks or so: it
    fills it beyond its end. That is an error, and stays one."""
    with kvmpy.VM("16M", dirty_ring=256) as vm:
        vm.log_dirty(vm.memory.add(BASE, SIZE))
        cpu = ring_writer(vm, 0, PAGES, 1, ring=0)

        def rounds():
            for _ in range(100):
                cpu.run(timeout=30)
                cpu.dirty_ring.harvest()
                vm.reset_dirty_rings()

        with pytest.raises(kvmpy.DirtyRingOverrunError, match="256 entries has overrun"):
            rounds()
        vm.reset_dirty_rings()
        with pytest.raises(kvmpy.DirtyRingOverrunError):
            cpu.dirty_ring.harvest()


def test_a_vm_has_a_ring_or_a_log(ring_vm, vm):
    """Each says what it is not; the ring comes before the first vCPU, and once."""
    with pytest.raises(kvmpy.KvmIoctlError, match="this VM has dirty rings"):
        ring_vm.get_dirty_log(1)
    with pytest.raises(kvmpy.KvmIoctlError, match="this VM has dirty rings"):
        ring_vm.clear_dirty_log(1)
    with pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        ring_vm.enable_dirty_ring(1024)
    with pytest.raises(kvmpy.KvmIoctlError, match="has no dirty rings"):
        vm.reset_dirty_rings()
    cpu = vm.vcpu()
    with pytest.raises(kvmpy.KvmpyError, match="no dirty ring"):
        _ = cpu.dirty_ring
    with pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        vm.enable_dirty_ring(1024)


@pytest.mark.parametrize("entries", [0, -1024, 100, 128, 1000, 1 << 17, 3 << 10])
def test_ring_sizes_that_cannot_be(entries):
    """A power of two within KVM's limits."""
    with pytest.raises(ValueError, match="power of two from 256 to"):
        kvmpy.VM("1M", dirty_ring=entries)


def test_ring_goes_with_its_vcpu(ring_vm):
    """Closed: an error for the vCPU, no entries for who has kept the ring; nothing stays mapped."""
    cpu = ring_writer(ring_vm, 0, 10, 1)
    ring = cpu.dirty_ring
    assert cpu.dirty_ring is ring
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    cpu.close()
    assert ring.harvest() == []
    with pytest.raises(kvmpy.ClosedError):
        _ = cpu.dirty_ring

    def ring_mappings():
        with open("/proc/self/maps") as lines:
            return sum("kvm-vcpu" in line for line in lines)

    before = ring_mappings()
    for _ in range(3):
        with ring_vm.vcpu(5) as other:
            assert other.dirty_ring.harvest() == []
            assert ring_mappings() == before + 2
        assert ring_mappings() == before
        break  # an id is used once per VM


def test_missing_dirty_capabilities_are_named(vm, monkeypatch):
    """UnsupportedError with the capability, when KVM says it has none."""
    monkeypatch.setattr(type(vm), "check_extension", lambda self, capability: 0)
    for use, capability in (
        (lambda: vm.enable_dirty_ring(1024), "KVM_CAP_DIRTY_LOG_RING"),
        (vm.protect_dirty_log_manually, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"),
        (lambda: vm.memory.add(BASE, "4K", read_only=True), "KVM_CAP_READONLY_MEM"),
        (lambda: setattr(vm.slots[0], "read_only", True), "KVM_CAP_READONLY_MEM"),
    ):
        with pytest.raises(kvmpy.UnsupportedError) as caught:
            use()
        assert caught.value.capability == capability


def test_log_of_a_slot_by_hand(start, vm):
    """With KVM_MEM_LOG_DIRTY_PAGES given by hand."""
    with mmap.mmap(-1, 0x10000) as own:
        slot = vm.set_memory_region(4, BASE, 0x10000, own, flags=1)
        assert slot.dirty_logging
        cpu = start(writer(2, 3, 2))
        cpu.expect(kvmpy.MmioWrite, timeout=30)
        assert list(vm.get_dirty_log(4).numbers()) == [2, 4, 6]
        slot.delete()
