"""vCPU threads: each vCPU in its own, the first to end ends them all, stop() from anywhere."""

import os
import threading

import pytest
from conftest import RIG

import kvmpy
from kvmpy.machine.threads import VcpuThreads

LIMIT = 20.0 * (10 if RIG else 1)
SPIN = "1: jmp 1b"
END = "mov al, 7; out 0xf4, al"


@pytest.fixture
def cpus(vm):
    """``cpus(code, code, ...)``: a vCPU for each, in real mode, about to run it."""

    def make(*codes, **options):
        made = []
        for number, code in enumerate(codes):
            at = 0x1000 * (number + 1)
            vm.load(kvmpy.asm(code, 16, org=at), at=at)
            cpu = vm.vcpu(**options)
            cpu.enter(kvmpy.REAL_MODE, rip=at)
            made.append(cpu)
        return made

    return make


@pytest.fixture
def debug_exit(vm):
    from kvmpy.devices import DebugExitPort

    vm.attach(DebugExitPort(), 0xF4)


def names():
    return {thread.name for thread in threading.enumerate()}


def test_the_first_to_end_ends_the_others(cpus, debug_exit):
    one, two, three = cpus(SPIN, END, SPIN)
    threads = VcpuThreads([one, two, three], kvmpy.VCPU.run)
    assert not threads.running
    threads.start()
    ending = threads.wait(LIMIT)
    assert (ending.vcpu, ending.value) == (two, kvmpy.DebugExit(7))
    assert threads.wait(0) == ending
    assert not threads.running
    assert threads.stop()
    assert one.regs.rip == 0x1000
    assert three.regs.rip == 0x3000


def test_stop_ends_spinning_guests(cpus):
    made = cpus(SPIN, SPIN)
    threads = VcpuThreads(made, kvmpy.VCPU.run)
    threads.start()
    assert {"vCPU 0", "vCPU 1"} <= names()
    with pytest.raises(kvmpy.StillRunningError, match=r"within 0\.05 s"):
        threads.wait(0.05)
    assert threads.running
    assert threads.stop(LIMIT)
    assert isinstance(threads.wait(0).value, kvmpy.Kicked)
    assert not {"vCPU 0", "vCPU 1"} & names()


def test_stop_at_once_after_start(cpus):
    """Kicked before their first entry, some of them: the kick is not lost."""
    made = cpus(SPIN, SPIN)
    for _ in range(20):
        threads = VcpuThreads(made, kvmpy.VCPU.run)
        threads.start()
        assert threads.stop(LIMIT)
        assert isinstance(threads.wait(0).value, kvmpy.Kicked)


def test_an_exception_in_a_handler_comes_out_of_wait(cpus, vm):
    @vm.on_io(0x10)
    def handler(port, size, value):
        raise LookupError(f"port {port:#x}")

    threads = VcpuThreads(cpus(SPIN, "out 0x10, al; hlt"), kvmpy.VCPU.run)
    threads.start()
    for _ in range(2):
        with pytest.raises(LookupError, match="port 0x10"):
            threads.wait(LIMIT)
    assert not threads.running


def test_stop_from_a_handler(cpus, vm):
    """It does not wait for itself; the run ends when the handler returns."""
    gave = []
    vm.on_io(0x10)(lambda port, size, value: gave.append(threads.stop()))
    threads = VcpuThreads(cpus("2: out 0x10, al; jmp 2b", SPIN), kvmpy.VCPU.run)
    threads.start()
    assert isinstance(threads.wait(LIMIT).value, kvmpy.Kicked)
    assert gave == [False]
    assert threads.stop()


def test_stop_from_handlers_of_all_at_once(cpus, vm):
    barrier = threading.Barrier(2)
    vm.on_io(0x10)(lambda port, size, value: barrier.wait(LIMIT) >= 0 and threads.stop() and None)
    threads = VcpuThreads(cpus("out 0x10, al; hlt", "out 0x10, al; hlt"), kvmpy.VCPU.run)
    threads.start()
    assert isinstance(threads.wait(LIMIT).value, kvmpy.Kicked)


def test_a_handler_that_does_not_return_bounds_stop(cpus, vm):
    release, inside = threading.Event(), threading.Event()
    vm.on_io(0x10)(lambda port, size, value: inside.set() or (release.wait(LIMIT) and None))
    threads = VcpuThreads(cpus("out 0x10, al; hlt"), kvmpy.VCPU.run)
    threads.start()
    assert inside.wait(LIMIT)
    assert not threads.stop(0.05)
    release.set()
    assert threads.stop(LIMIT)


def test_body_and_on_end(cpus, debug_exit):
    """The body decides what ends a vCPU; on_end comes once, after all, in the last thread."""
    seen = []

    def body(cpu):
        while isinstance(exit := cpu.run(), kvmpy.IoOut):
            pass
        return type(exit).__name__

    def on_end(ending):
        alive = [name for name in names() if name.startswith("vCPU")]
        seen.append((ending.value, threading.current_thread().name in alive, threads.running))

    made = cpus(f"out 0x20, al; out 0x21, al; {END}", "3: out 0x22, al; jmp 3b")
    threads = VcpuThreads(made, body, on_end=on_end)
    threads.start()
    assert threads.wait(LIMIT).value == "DebugExit"
    assert seen == [("DebugExit", True, True)]


def test_an_exception_in_on_end(cpus):
    def on_end(ending):
        raise OSError("disk full")

    threads = VcpuThreads(cpus("hlt"), kvmpy.VCPU.run, on_end=on_end)
    threads.start()
    with pytest.raises(OSError, match="disk full"):
        threads.wait(LIMIT)


def test_closing_the_vm_ends_them(cpus, vm):
    threads = VcpuThreads(cpus(SPIN, SPIN), kvmpy.VCPU.run)
    threads.start()
    vm.close()
    with pytest.raises(kvmpy.ClosedError):
        threads.wait(LIMIT)
    assert threads.stop(LIMIT)


def test_pinned_threads(cpus, vm):
    """Each on its own pCPU; this thread's affinity stays."""
    allowed = os.sched_getaffinity(0)
    pin, seen = min(allowed), []
    vm.on_io(0x10)(lambda port, size, value: seen.append(os.sched_getaffinity(0)))
    threads = VcpuThreads(cpus("out 0x10, al; hlt", pin=pin), kvmpy.VCPU.run)
    threads.start()
    threads.wait(LIMIT)
    assert seen == [{pin}]
    assert os.sched_getaffinity(0) == allowed


def test_wrong_use(cpus):
    with pytest.raises(ValueError, match="no vCPU"):
        VcpuThreads([], kvmpy.VCPU.run)
    threads = VcpuThreads(cpus("hlt"), kvmpy.VCPU.run)
    with pytest.raises(RuntimeError, match="not started"):
        threads.wait()
    threads.start()
    assert threads.wait(LIMIT).value == kvmpy.Hlt()
    with pytest.raises(RuntimeError, match="started before"):
        threads.start()


def test_a_host_without_threads(cpus, monkeypatch):
    """The second thread is not available: the first is ended too."""
    made = cpus(SPIN, SPIN)
    threads = VcpuThreads(made, kvmpy.VCPU.run)

    def refuse():
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads._threads[1], "start", refuse)
    with pytest.raises(RuntimeError, match="can't start"):
        threads.start()
    assert "vCPU 0" not in names()
    with pytest.raises(RuntimeError, match="can't start"):
        threads.wait(LIMIT)
