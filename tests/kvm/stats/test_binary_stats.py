"""KVM's own statistics count what the guest did."""

import os

import pytest

import kvmpy

MMIO = 0x8000_0000


def test_exits_are_counted(start):
    """Five MMIO writes and a HLT, by KVM's count too."""
    cpu = start(f"mov rbx, {MMIO};" + "mov [rbx], al;" * 5 + "hlt")
    with cpu.stats.measure() as counted:
        for _ in range(5):
            cpu.expect(kvmpy.MmioWrite, timeout=30)
        cpu.expect(kvmpy.Hlt, timeout=30)
    assert counted.mmio_exits == 5
    assert counted.halt_exits == 1
    assert counted["exits"].value >= 6
    assert counted["exits"].kind == "cumulative"
    assert counted["exits"].unit == ""


@pytest.mark.not_on("kvm_pvm", reason="io_exits stays 0: OUT is emulated there")
def test_port_exits_are_counted(start):
    """Seven OUTs."""
    cpu = start("out 0x10, al;" * 7 + "hlt")
    with cpu.stats.measure() as counted:
        for _ in range(7):
            cpu.expect(kvmpy.IoOut, timeout=30)
    assert counted.io_exits == 7
    assert counted.halt_exits == 0


@pytest.mark.not_on("kvm_intel", reason="the processor runs ring 0 itself")
@pytest.mark.not_on("kvm_amd", reason="the processor runs ring 0 itself")
@pytest.mark.parametrize("nops", [100, 300])
def test_emulated_instructions_are_counted(start, nops):
    """On kvm_pvm each instruction of ring 0, HLT with them."""
    cpu = start("nop;" * nops + "hlt")
    with cpu.stats.measure() as counted:
        cpu.expect(kvmpy.Hlt, timeout=30)
    assert counted.insn_emulation == nops + 1


def test_measurement_stands_still_after_the_block(start):
    """Inside it is live; afterwards it is what was; an earlier snapshot can be subtracted too."""
    cpu = start(f"mov rbx, {MMIO}; 1: mov [rbx], al; jmp 1b")
    before = cpu.stats.snapshot()
    with cpu.stats.measure() as counted:
        cpu.expect(kvmpy.MmioWrite, timeout=30)
        assert counted.mmio_exits == 1
        cpu.expect(kvmpy.MmioWrite, timeout=30)
        assert counted.mmio_exits == 2
    cpu.expect(kvmpy.MmioWrite, timeout=30)
    assert counted.mmio_exits == 2
    assert cpu.stats.mmio_exits == cpu.stats.snapshot().mmio_exits == 3
    assert (cpu.stats.snapshot() - before)["mmio_exits"].value == 3
    assert repr(counted).startswith("<Measurement:\n")
    assert "mmio_exits  " in repr(counted)


def test_all_of_them_can_be_read(vm):
    """Every statistic of the VM and a vCPU: value, kind, unit, text."""
    cpu = vm.vcpu()
    for stats in (vm.stats, cpu.stats):
        snapshot = stats.snapshot()
        assert len(snapshot) == len(stats) > 10
        for name, stat in snapshot.items():
            assert stat.name == name
            assert stat.kind in (
                "cumulative", "instant", "peak", "linear histogram", "log histogram"
            )  # fmt: skip
            assert stat.unit in ("", "boolean", "ns", "bytes", "cycles")
            assert len(stat.values) == stats.descriptors[name].size
            assert len(stats[name].values) == len(stat.values)
            assert stat.descriptor.buckets() or len(stat.values) == 1
        assert f"<Stats of kvm-{os.getpid()}" in repr(stats)
    assert vm.stats.id == f"kvm-{os.getpid()}"
    assert cpu.stats.id == f"kvm-{os.getpid()}/vcpu-0"
    assert cpu.stats.blocking is False
    with pytest.raises(KeyError):
        cpu.stats["no such thing"]


def test_descriptors_are_cached_closed_and_not_inherited(vm):
    """One per VM and vCPU; closed with them; another vCPU has its own."""
    first, second = vm.vcpu(), vm.vcpu()
    assert first.stats is first.stats
    fds = [thing.stats.fileno() for thing in (vm, first, second)]
    assert len(set(fds)) == 3
    assert not any(os.get_inheritable(fd) for fd in fds)
    kept, of_vm = first.stats, vm.stats
    first.close()
    with pytest.raises(kvmpy.ClosedError):
        _ = kept.exits
    with pytest.raises(kvmpy.ClosedError):
        _ = first.stats
    assert second.stats.exits == 0
    vm.close()
    for stats in (of_vm, second._stats or kept):
        with pytest.raises(kvmpy.ClosedError):
            stats.snapshot()
    assert repr(kept) == "<Stats, closed>"


def test_a_vcpu_nobody_holds_closes_its_statistics(vm):
    """As it closes its own descriptor."""
    fd = vm.vcpu().stats.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
