"""Objects begin and end: close, drop, fork, exec, and nothing is left."""

import fcntl
import gc
import os
import resource
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import RIG, kvm_descriptors

import kvmpy

SPIN = "1: inc rax; jmp 1b"


def test_closing_a_vm_closes_its_vcpus(start, vm):
    """And its memory, and its descriptors."""
    cpu = start("hlt")
    vm.close()
    assert vm.closed
    assert cpu.closed
    assert vm.memory.closed
    assert kvm_descriptors() == []
    vm.close()
    cpu.close()


USES_OF_VCPU = {
    "run": lambda cpu: cpu.run(),
    "iterate": lambda cpu: next(iter(cpu)),
    "expect": lambda cpu: cpu.expect(kvmpy.Hlt),
    "kick": lambda cpu: cpu.kick(),
    "answer": lambda cpu: cpu.answer(0),
    "regs": lambda cpu: cpu.regs.rax,
    "set regs": lambda cpu: setattr(cpu.regs, "rax", 1),
    "all regs": lambda cpu: cpu.regs.values(),
    "sregs": lambda cpu: cpu.sregs.cs.dpl,
    "set sregs": lambda cpu: setattr(cpu.sregs, "cr3", 1),
    "msr": lambda cpu: cpu.msrs["TSC"],
    "set msr": lambda cpu: cpu.msrs.write({"TSC": 1}),
    "cpuid": lambda cpu: cpu.get_cpuid(),
    "mp_state": lambda cpu: cpu.mp_state,
    "nmi": lambda cpu: cpu.nmi(),
    "interrupt": lambda cpu: cpu.interrupt(3),
    "fileno": lambda cpu: cpu.fileno(),
    "enter": lambda cpu: cpu.enter(kvmpy.LONG_MODE, rip=0x1000),
    "measure": lambda cpu: cpu.measure(),
}


@pytest.mark.parametrize("use", USES_OF_VCPU.values(), ids=USES_OF_VCPU)
def test_use_of_a_closed_vcpu(start, use):
    """Everything raises ClosedError, which is a ValueError too."""
    cpu = start("out 0x10, al; hlt")
    regs, sregs, msrs = cpu.regs, cpu.sregs, cpu.msrs
    cpu.run(timeout=5)
    assert (regs.rip, sregs.cs.dpl) == (0x1002, 0)
    assert msrs is cpu.msrs
    cpu.close()
    with pytest.raises(kvmpy.ClosedError, match="closed"):
        use(cpu)
    assert repr(cpu) == "<VCPU 0, closed>"


USES_OF_VM = {
    "vcpu": lambda vm: vm.vcpu(),
    "load": lambda vm: vm.load(b"x", at=0),
    "slice": lambda vm: vm.memory[0:4],
    "set slice": lambda vm: vm.memory.__setitem__(slice(0, 4), b"1234"),
    "read": lambda vm: vm.memory.read(0, 4),
    "write": lambda vm: vm.memory.write(0, b"x"),
    "add": lambda vm: vm.memory.add(1 << 30, "1M"),
    "on_io": lambda vm: vm.on_io(0x10)(lambda *access: None),
    "on_mmio": lambda vm: vm.on_mmio(0xD000_0000, 8)(lambda *access: None),
    "batch": lambda vm: vm.on_io_batch(0x10)(lambda batch: None),
    "count": lambda vm: vm.count_io(0x10),
    "attach": lambda vm: vm.attach(kvmpy.DebugConsole(), 0xE9),
    "release": lambda vm: vm.release(0x10),
    "irq": lambda vm: vm.irq_line(4, 1),
    "irqfd": lambda vm: vm.irqfd(0, 4),
    "fileno": lambda vm: vm.fileno(),
    "capability": lambda vm: vm.enable_capability(0),
}


@pytest.mark.parametrize("use", USES_OF_VM.values(), ids=USES_OF_VM)
def test_use_of_a_closed_vm(use):
    """Everything raises ClosedError."""
    vm = kvmpy.VM("1M")
    vm.close()
    with pytest.raises(kvmpy.ClosedError, match="closed"):
        use(vm)
    assert repr(vm) == "<VM, closed>"


def test_use_of_a_closed_kvm():
    """The same for the system descriptor; VMs made from it live on."""
    with kvmpy.KVM() as kvm:
        vm = kvmpy.VM("1M", kvm=kvm)
    for use in (kvm.fileno, kvm.create_vm, kvm.supported_cpuid, lambda: kvm.vcpu_mmap_size):
        with pytest.raises(kvmpy.ClosedError):
            use()
    with vm:
        vm.load(b"\xf4", at=0x1000)
        cpu = vm.vcpu(cpuid=None)
        cpu.enter(kvmpy.PROTECTED_MODE, rip=0x1000)
        assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_views_outlive_the_vm(vm, start):
    """Memory views and register views held after close are safe to touch."""
    view = vm.memory[0x1000:0x2000]
    cpu = start("hlt")
    cpu.run(timeout=5)
    regs, sregs, words = cpu.regs, cpu.sregs, cpu.regs._words
    vm.close()
    gc.collect()
    view[:4] = b"live"
    assert bytes(view[:4]) == b"live"
    assert list(words) == [0] * 18  # the page is zero now
    for read in (lambda: regs.rax, lambda: repr(sregs)):
        with pytest.raises(kvmpy.ClosedError):
            read()


def test_close_from_a_handler(start, vm):
    """The run ends with ClosedError, when the handler has returned."""
    order = []

    @vm.on_io(0x10)
    def handler(port, size, value):
        cpu.close()
        order.append("handler goes on")

    cpu = start("out 0x10, al; hlt")
    with pytest.raises(kvmpy.ClosedError):
        cpu.run(timeout=5)
    assert order == ["handler goes on"]
    assert cpu.closed


def test_close_the_vm_from_a_handler(start, vm):
    """The same, memory and bus included; a read's answer goes nowhere."""

    @vm.on_io(0x10)
    def handler(port, size, value):
        vm.close()
        return 5

    cpu = start("in al, 0x10; hlt")
    with pytest.raises(kvmpy.ClosedError):
        cpu.run(timeout=5)
    assert kvm_descriptors() == []


@pytest.mark.parametrize("ring", [0, 3])
def test_close_while_another_thread_runs(start, vm, run_in_thread, ring):
    """The run of the other thread ends with ClosedError, and close() waits for that."""
    cpu = start(SPIN, ring=ring)
    runner = run_in_thread(cpu)
    time.sleep(0.02)
    vm.close()
    with pytest.raises(kvmpy.ClosedError):
        runner.result()
    assert kvm_descriptors() == []


def test_close_while_another_thread_is_in_a_handler(start, vm, run_in_thread):
    """No waiting for the handler: its run ends when it returns."""
    inside, go_on = threading.Event(), threading.Event()

    @vm.on_io(0x10)
    def handler(port, size, value):
        inside.set()
        go_on.wait(30)

    cpu = start("out 0x10, al; hlt")
    runner = run_in_thread(cpu)
    assert inside.wait(30)
    cpu.close()
    assert cpu.closed
    go_on.set()
    with pytest.raises(kvmpy.ClosedError):
        runner.result()


def test_closes_race_with_runs(vm, start, run_in_thread):
    """At any moment of a run that exits all the time."""
    for delay in range(20):
        with kvmpy.VM("1M") as one:
            one.count_io(0x10)
            one.load(kvmpy.asm("1: out 0x10, al; jmp 1b", org=0x1000), at=0x1000)
            cpu = one.vcpu()
            cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
            runner = run_in_thread(cpu)
            time.sleep(delay / 10_000)
            cpu.close()
            with pytest.raises(kvmpy.ClosedError):
                runner.result()


def test_dropped_objects_go_at_once():
    """A VM that nobody holds is closed without the garbage collector."""
    gc.disable()
    try:
        vm = kvmpy.VM("1M")
        cpu = vm.vcpu()
        vm.load(b"\xf4", at=0x1000)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        vm.on_io(0x10)(lambda *access: None)
        cpu.run(timeout=5)
        _ = (cpu.regs.rip, cpu.sregs.cs.dpl, cpu.run_stats)
        del vm, cpu
        assert kvm_descriptors() == []
    finally:
        gc.enable()


def test_a_vcpu_keeps_its_vm(start):
    """A vCPU alone is enough to go on with."""

    def make():
        vm = kvmpy.VM("1M")
        vm.load(b"\xf4", at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        return cpu

    cpu = make()
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_failing_constructions_leave_nothing():
    """Whatever goes wrong on the way to a VM is taken back."""
    for arguments in ({"memory": "1X"}, {"memory": 0}, {"memory": 4097}, {"memory": 1 << 60},
                      {"memory": "1M", "backing": "gold"}):  # fmt: skip
        with pytest.raises(ValueError, match=r".+"):
            kvmpy.VM(**arguments)
    with kvmpy.VM("1M") as vm:
        vm.vcpu(0)
        before = len(kvm_descriptors())
        with pytest.raises(kvmpy.KvmIoctlError, match="EEXIST"):
            vm.vcpu(0)
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_CREATE_VCPU"):
            vm.vcpu(1 << 20)
        assert len(kvm_descriptors()) == before
    gc.collect()
    assert kvm_descriptors() == []


def test_descriptors_are_close_on_exec(start, vm):
    """/dev/kvm, VM and vCPU (correctness 21)."""
    with kvmpy.KVM() as kvm:
        cpu = start("hlt")
        for fd in (kvm.fileno(), vm.fileno(), cpu.fileno()):
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_interpreter_exit_with_a_running_guest():
    """A script that ends while a daemon thread runs a guest ends."""
    script = (
        "import kvmpy, threading, time\n"
        "vm = kvmpy.VM('1M'); vm.load(b'\\xeb\\xfe', at=0x1000)\n"
        "cpu = vm.vcpu(); cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=3)\n"
        "threading.Thread(target=cpu.run, daemon=True).start(); time.sleep(0.1)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], timeout=30 * (10 if RIG else 1), capture_output=True
    )
    assert result.returncode == 0, result.stderr


def use_and_leave(i):
    """A VM with a vCPU that has run; every other one is dropped without close()."""
    vm = kvmpy.VM("1M")
    vm.load(b"\xe6\x10\xf4", at=0x1000)
    cpu = vm.vcpu(cpuid=None)
    cpu.enter(kvmpy.PROTECTED_MODE, rip=0x1000)
    assert isinstance(cpu.run(timeout=5), kvmpy.IoOut)
    _ = cpu.regs.rip
    if i % 2:
        vm.close()


@pytest.mark.slow
def test_two_thousand_vms_leave_nothing():
    """Descriptors, mappings and resident memory stay flat."""
    process = psutil.Process()
    rounds = 100 if RIG else 2000
    for i in range(rounds // 10):
        use_and_leave(i)
    gc.collect()
    fds, rss, maps = process.num_fds(), process.memory_info().rss, len(process.memory_maps(False))
    for i in range(rounds):
        use_and_leave(i)
    gc.collect()
    assert process.num_fds() == fds
    assert process.memory_info().rss - rss < 4 << 20
    assert abs(len(process.memory_maps(False)) - maps) <= 8


@pytest.mark.slow
def test_vms_side_by_side():
    """Fifty VMs at once, each with its own guest."""
    count = 5 if RIG else 50
    machines = []
    for i in range(count):
        vm = kvmpy.VM("1M")
        vm.load(kvmpy.asm(f"mov eax, {i}; out 0x10, eax"), at=0x1000)
        cpu = vm.vcpu(cpuid=None)
        cpu.enter(kvmpy.PROTECTED_MODE, rip=0x1000)
        machines.append((vm, cpu))
    for i, (_, cpu) in enumerate(machines):
        assert cpu.expect(kvmpy.IoOut, timeout=5).value == i
    for vm, _ in machines:
        vm.close()


def test_out_of_descriptors(vm):
    """EMFILE is an error with a hint, and everything made until then is taken back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    vms = []
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    try:
        with pytest.raises((kvmpy.KvmpyError, OSError), match="open files"):
            vms.extend(kvmpy.VM("1M") for _ in range(highest))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for one in vms:
        one.close()
