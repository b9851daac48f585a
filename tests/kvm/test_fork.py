"""What a fork()ed child finds: everything of its parent's is closed, and touches nothing of it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import RIG, kvm_descriptors

import kvmpy

SPIN = "1: inc rax; jmp 1b"


def in_child(action):
    """Fork, run ``action`` in the child, and give what it says or raises, within ten seconds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        signal.alarm(20 * (10 if RIG else 1))  # a child that hangs dies
        try:
            text = str(action())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        text = stream.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status:#x}"
    return text


FORKED = {
    "run": lambda vm, cpu: cpu.run(timeout=1),
    "regs": lambda vm, cpu: cpu.regs.rip,
    "sregs": lambda vm, cpu: cpu.sregs.cr3,
    "msrs": lambda vm, cpu: cpu.msrs["TSC"],
    "vcpu": lambda vm, cpu: vm.vcpu(),
    "enter": lambda vm, cpu: cpu.enter(kvmpy.LONG_MODE, rip=0x1000),
    "add memory": lambda vm, cpu: vm.memory.add(1 << 30, "1M"),
    "irq": lambda vm, cpu: vm.irq_line(4, 1),
    "set regs": lambda vm, cpu: setattr(cpu.regs, "rax", 1),
    "all regs": lambda vm, cpu: cpu.regs.values(),
    "set sregs": lambda vm, cpu: setattr(cpu.sregs, "cr3", 0),
    "set msrs": lambda vm, cpu: cpu.msrs.write({"TSC": 1}),
    "cpuid": lambda vm, cpu: cpu.get_cpuid(),
    "iterate": lambda vm, cpu: next(iter(cpu)),
    "kick": lambda vm, cpu: cpu.kick(),
    "pause": lambda vm, cpu: cpu.pause(),
    "pin": lambda vm, cpu: setattr(cpu, "pin", os.sched_getaffinity(0)),
    "answer": lambda vm, cpu: cpu.answer(0),
    "save": lambda vm, cpu: cpu.save(),
    "read memory": lambda vm, cpu: vm.memory.read(0x1000, 4),
    "write memory": lambda vm, cpu: vm.memory.write(0x1000, b"\xf4"),
    "slice of memory": lambda vm, cpu: vm.memory[0x1000:0x1004],
    "load": lambda vm, cpu: vm.load(b"\xf4", at=0x1000),
    "read-only slot": lambda vm, cpu: setattr(vm.slots[0], "read_only", True),
    "on_io": lambda vm, cpu: vm.on_io(0x10)(print),
    "bus": lambda vm, cpu: vm.bus,
    "attach": lambda vm, cpu: kvmpy.devices.virtio.Rng().connect(vm, 0xD000_0000),
    "fileno": lambda vm, cpu: vm.fileno(),
    "check_extension": lambda vm, cpu: vm.check_extension("KVM_CAP_USER_MEMORY"),
    "threads": lambda vm, cpu: (
        kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run).start() or cpu.run()
    ),
}


@pytest.mark.parametrize("use", FORKED.values(), ids=FORKED)
def test_use_after_fork(start, vm, use):
    """A child gets ForkedError, which says what to do; the parent goes on (correctness 21)."""
    cpu = start("out 0x10, al; hlt")
    cpu.run(timeout=5)
    text = in_child(lambda: use(vm, cpu))
    assert text.startswith("ForkedError: ")
    assert str(os.getpid()) in text
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_nothing_of_it_reaches_the_guest(start, vm):
    """Neither by the register page, nor by memory that others may map, nor by a view of either."""
    vm.memory.add(0x4000_0000, "64K", backing="memfd")
    cpu = start("mov al, [0x40000000]; hlt")
    with vm.memory[0x4000_0000:0x4000_0010] as view, vm.memory[0x8000:0x8010] as private:

        def child():
            view[:], private[:] = b"x" * 16, b"y" * 16  # zero pages of the child's own
            with pytest.raises(kvmpy.ForkedError):
                cpu.regs.rax = 7
            with pytest.raises(kvmpy.ForkedError):
                cpu.run()
            return bytes(view)

        assert in_child(child) == str(b"x" * 16)
        assert bytes(view) == bytes(private) == bytes(16)
        assert cpu.run(timeout=5) == kvmpy.Hlt()
        assert cpu.regs.rax == 0
        assert vm.memory.read(0x8000, 16) == bytes(16)


def test_dirty_ring(kvm):
    """What the parent is to harvest the child does not take."""
    if not kvm.check_extension("KVM_CAP_DIRTY_LOG_RING"):
        pytest.skip("this KVM has no dirty rings")
    with kvmpy.VM("1M", dirty_ring=4096) as vm:
        ring = vm.vcpu().dirty_ring
        assert in_child(ring.harvest).startswith("ForkedError: this dirty ring was made by")
        assert ring.harvest() == []


def test_children_have_none_of_its_descriptors(start, vm):
    """So that a VM ends with its parent, whatever children do; /dev/kvm itself they can use."""
    start("hlt")
    with kvmpy.KVM() as kvm:

        def child():
            with kvmpy.VM("1M", kvm=kvm) as own:
                own.vcpu()
                count = len(kvm_descriptors())
            return count, kvm.closed

        assert in_child(child) == "(3, False)"


def test_a_child_of_a_handler(start, vm):
    """The run that it finds itself in goes no further."""
    cpu = start("out 0x10, al; hlt")
    told = []

    @vm.on_io(0x10)
    def handler(port, size, value):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writer)
            with os.fdopen(reader, "rb") as stream:
                told.append(stream.read().decode())
            os.waitpid(pid, 0)
            return
        told.append(writer)

    parent = os.getpid()
    try:
        exit = cpu.run(timeout=20)
    except BaseException as error:
        if os.getpid() != parent:
            os.write(told[0], type(error).__name__.encode())
            os._exit(0)
        raise
    assert exit == kvmpy.Hlt()
    assert told == ["ForkedError"]


@pytest.fixture
def machine():
    """A machine that counts for ever, with a disk, a network card, a console and a rng."""
    import socket

    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    devices = [
        kvmpy.devices.virtio.Rng(), kvmpy.devices.virtio.Net(here.fileno()),
        kvmpy.devices.virtio.VirtioConsole(),
    ]  # fmt: skip
    code = kvmpy.asm(
        "mov dx, 0x3f8; mov al, 'A'; out dx, al; mov al, 10; out dx, al; 1: jmp 1b", 16
    )
    with kvmpy.Machine(code, format="flat", memory="2M", devices=devices) as machine, here, there:
        machine.start()
        machine.console.expect("A", timeout=20)
        machine.test_devices = devices
        yield machine


ENDINGS = {
    "close": lambda machine: machine.close(),
    "with": lambda machine: machine.__exit__(None, None, None),
    "stop": lambda machine: machine.stop(),
    "vm": lambda machine: machine.vm.close(),
    "console": lambda machine: machine.console.close(),
    "devices": lambda machine: [device.close() for device in machine.test_devices],
    "disconnect": lambda machine: [device.disconnect() for device in machine.test_devices],
}


@pytest.mark.parametrize("end", ENDINGS.values(), ids=ENDINGS)
def test_a_child_ends_what_its_parent_has_running(machine, end):
    """It is only its own copy that ends: quietly, and at once."""
    assert in_child(lambda: (end(machine), "ended")[-1]) == "ended"
    assert machine.running
    machine.pause()  # then only a worker that spins uses time
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1
    machine.resume()
    machine.stop()
    assert machine.wait(20).ending == "interrupted"


MACHINE_USES = {
    "wait": lambda machine: machine.wait(5),
    "run": lambda machine: machine.run(timeout=5),
    "pause": lambda machine: machine.pause(),
    "expect": lambda machine: machine.console.expect("x", timeout=5),
    "memory": lambda machine: machine.vm.memory.read(0, 4),
}


@pytest.mark.parametrize("use", MACHINE_USES.values(), ids=MACHINE_USES)
def test_use_of_a_parents_machine(machine, use):
    assert in_child(lambda: use(machine)).startswith("ForkedError: ")
    assert machine.running


def test_output_is_written_once(start, vm):
    """What waits in a sink for its reader is the parent's to write."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    full = 0
    try:
        while True:
            full += os.write(writer, bytes(4096))
    except BlockingIOError:
        pass
    debug = kvmpy.devices.DebugConsole(writer)
    vm.attach(debug, 0xE9)
    cpu = start("mov al, 'x'; out 0xe9, al; hlt")
    assert cpu.run(timeout=5) == kvmpy.Hlt()
    assert debug.sink.flush() == 1
    with os.fdopen(reader, "rb") as stream:
        assert len(stream.read(full)) == full
        assert in_child(lambda: (debug.sink.flush(), vm.close(), "ended")[-1]) == "ended"
        assert debug.sink.flush() == 0
        os.close(writer)
        assert stream.read() == b"x"


def test_forks_while_vcpus_and_workers_are_busy(machine):
    """Whatever lock a thread holds at that moment, no child waits for it."""
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            machine.serial.receive(b"x")
            assert machine.serial.sink.total
            kvmpy.Sink()
            with kvmpy.VM("64K") as vm:
                vm.vcpu()

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5 if RIG else 30):
            assert in_child(lambda: (machine.close(), "ended")[-1]) == "ended"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_child_process_of_a_thread_pool():
    """multiprocessing's children begin with fork(): their own VMs are theirs."""
    script = (
        "import kvmpy, multiprocessing\n"
        "vm = kvmpy.VM('1M'); vm.load(b'\\xf4', at=0x1000); cpu = vm.vcpu()\n"
        "def work(n):\n"
        "    with kvmpy.VM('1M') as own:\n"
        "        own.load(kvmpy.asm(f'mov eax, {n}; hlt'), at=0x1000)\n"
        "        one = own.vcpu(); one.enter(kvmpy.LONG_MODE, rip=0x1000)\n"
        "        one.run(timeout=60); return one.regs.rax\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(work, range(4)))\n"
        "cpu.enter(kvmpy.LONG_MODE, rip=0x1000); print(cpu.run(timeout=60))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], timeout=60 * (10 if RIG else 1), capture_output=True,
        text=True,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("[0, 1, 2, 3]\nHlt()\n", "")


def test_child_makes_its_own(start, vm):
    """A new VM in the child works, and closing the parent's there harms nobody."""
    cpu = start("out 0x10, al; hlt")
    cpu.run(timeout=5)

    def child():
        vm.close()
        with kvmpy.VM("1M") as own:
            own.load(b"\xf4", at=0x1000)
            one = own.vcpu()
            one.enter(kvmpy.LONG_MODE, rip=0x1000)
            return one.run(timeout=5)

    assert in_child(child) == "Hlt()"
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_fork_while_a_vcpu_runs(start, vm, run_in_thread):
    """The child can close what it got, and ends; the parent's guest runs on."""
    cpu = start(SPIN, ring=3)
    runner = run_in_thread(cpu)
    time.sleep(0.02)
    assert in_child(lambda: (cpu.close(), vm.close(), "closed")[-1]) == "closed"
    assert runner.is_alive()
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)
