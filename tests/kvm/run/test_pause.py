"""Pause, resume and the start barrier: a vCPU that is out of the guest stays out, seen by a counter
that it increments; its registers is available; nothing waits for ever."""

import random
import signal
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import RIG

import kvmpy
from kvmpy.errors import StillRunningError
from kvmpy.machine.threads import VcpuThreads
from kvmpy.run.thread import pause_all, resume_all

LIMIT = 20.0 * (10 if RIG else 1)
COUNTERS = 0x8000
STILL = 0.02  # seconds in which a guest that runs counts many thousands


@pytest.fixture
def counting(vm):
    """``counting(n)``: vCPUs that count, each in its own word; ``values()`` of ``.counts``."""

    def make(number=1, extra=""):
        made = []
        for index in range(number):
            at = 0x1000 * (index + 1)
            word = COUNTERS + 64 * index
            code = f"1: inc dword ptr [{word:#x}]; {extra}; jmp 1b"
            vm.load(kvmpy.asm(code, 16, org=at), at=at)
            cpu = vm.vcpu()
            cpu.enter(kvmpy.REAL_MODE, rip=at)
            made.append(cpu)
        return made

    return make


@pytest.fixture
def count(vm):
    """``count(index)``: what that vCPU has counted."""
    return lambda index=0: struct.unpack("<I", vm.memory.read(COUNTERS + 64 * index, 4))[0]


@pytest.fixture
def started():
    """``started(cpus, **options)``: VcpuThreads that run them, stopped after the test."""
    made = []

    def start(cpus, body=kvmpy.VCPU.run, **options):
        threads = VcpuThreads(cpus, body)
        made.append(threads)
        threads.start(**options)
        return threads

    yield start
    for threads in made:
        assert threads.stop(LIMIT)


def moves(count, index, wait_until):
    before = count(index)
    wait_until(lambda: count(index) != before)


def stands_still(count, *indices):
    before = [count(index) for index in indices]
    time.sleep(STILL)
    assert [count(index) for index in indices] == before


def test_a_paused_guest_does_nothing(counting, count, started, wait_until):
    """Many times, at random moments; each time it goes on where it was."""
    cpus = counting()
    threads = started(cpus)
    choose = random.Random(7)
    for _ in range(5 if RIG else 100):
        moves(count, 0, wait_until)
        time.sleep(choose.random() * 0.002)
        assert threads.pause(timeout=LIMIT)
        before = count()
        time.sleep(choose.random() * 0.002)
        assert count() == before
        threads.resume()
    moves(count, 0, wait_until)


def test_registers_of_a_paused_vcpu(counting, count, started, wait_until):
    """They are read and written meanwhile, and refused before and after."""
    (cpu,) = counting()
    started([cpu])
    moves(count, 0, wait_until)
    with pytest.raises(kvmpy.KvmIoctlError, match="another thread"):
        _ = cpu.regs.rip
    cpu.pause(LIMIT)
    assert 0x1000 <= cpu.regs.rip < 0x1010
    assert cpu.sregs.cs.base == 0
    cpu.regs.rbx = 0x1234
    vm = cpu.vm
    vm.load(kvmpy.asm("mov [0x8800], bx; 1: jmp 1b", 16, org=0x3000), at=0x3000)
    cpu.regs.rip = 0x3000
    cpu.resume()
    wait_until(lambda: vm.memory.read(0x8800, 2) == b"\x34\x12")
    with pytest.raises(kvmpy.KvmIoctlError, match="another thread"):
        _ = cpu.regs.rip
    stands_still(count, 0)  # it counts no more: it took the new RIP


def test_one_of_several(counting, count, started, wait_until):
    cpus = counting(2)
    threads = started(cpus)
    moves(count, 1, wait_until)
    assert threads.pause(cpus[0], timeout=LIMIT)
    stands_still(count, 0)
    moves(count, 1, wait_until)
    assert (cpus[0].paused, cpus[1].paused) == (True, False)
    threads.resume(cpus[0])
    moves(count, 0, wait_until)


def test_pauses_nest(counting, count, started, wait_until):
    """The guest goes on with the last resume; one more is an error."""
    (cpu,) = counting()
    threads = started([cpu])
    for _ in range(3):
        assert cpu.pause(LIMIT)
    for _ in range(2):
        cpu.resume()
        stands_still(count, 0)
    threads.resume()
    moves(count, 0, wait_until)
    with pytest.raises(RuntimeError, match="vCPU 0: not paused"):
        cpu.resume()


def test_pauses_from_many_threads(counting, count, started, wait_until):
    """Whoever has paused them finds them standing still, whatever the others do."""
    cpus = counting(2)
    started(cpus)
    failures = []

    def control(seed):
        choose = random.Random(seed)
        try:
            for _ in range(3 if RIG else 60):
                some = choose.choice([cpus, cpus[:1], cpus[1:]])
                assert pause_all(some, LIMIT)
                before = [count(cpu.id) for cpu in some]
                time.sleep(choose.random() * 0.001)
                assert [count(cpu.id) for cpu in some] == before
                resume_all(some)
        except BaseException as error:
            failures.append(error)

    controllers = [threading.Thread(target=control, args=(seed,)) for seed in range(3)]
    for thread in controllers:
        thread.start()
    for thread in controllers:
        thread.join(4 * LIMIT)
    assert not failures
    for cpu in cpus:
        assert not cpu.paused
        moves(count, cpu.id, wait_until)


def test_before_the_run(counting, count, run_in_thread, wait_until):
    """A run that begins while the vCPU is paused waits, and is not over."""
    (cpu,) = counting()
    assert cpu.pause()
    runner = run_in_thread(cpu)
    wait_until(lambda: cpu.thread_id is not None)
    stands_still(count, 0)
    assert count() == 0
    cpu.resume()
    moves(count, 0, wait_until)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)
    assert cpu.thread_id is None


def test_a_kick_ends_a_paused_run(counting, count, run_in_thread, wait_until):
    (cpu,) = counting()
    runner = run_in_thread(cpu)
    moves(count, 0, wait_until)
    cpu.pause(LIMIT)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)
    assert cpu.paused
    stands_still(count, 0)
    cpu.resume()


def test_a_timeout_goes_on(counting, run_in_thread, wait_until):
    (cpu,) = counting()
    runner = run_in_thread(cpu, timeout=0.3)
    wait_until(lambda: cpu.thread_id is not None)
    cpu.pause(LIMIT)
    assert runner.result() == kvmpy.Timeout()
    cpu.resume()


def test_closing_a_paused_vcpu(counting, count, run_in_thread, wait_until):
    (cpu,) = counting()
    runner = run_in_thread(cpu)
    moves(count, 0, wait_until)
    cpu.pause(LIMIT)
    cpu.close()
    with pytest.raises(kvmpy.ClosedError):
        runner.result()
    with pytest.raises(kvmpy.ClosedError):
        cpu.pause()


def test_a_handler_is_waited_for(counting, vm, started):
    """pause() comes back when it has returned; what it answers has arrived."""
    inside, release = threading.Event(), threading.Event()

    @vm.on_io(0x10)
    def handler(port, size, value):
        inside.set()
        release.wait(LIMIT)
        return 0x5A

    (cpu,) = counting(extra="in al, 0x10")
    started([cpu])
    assert inside.wait(LIMIT)
    with pytest.raises(StillRunningError, match=r"held vCPU 0 for 0\.05 s"):
        cpu.pause(0.05)
    assert not cpu.paused
    threading.Timer(0.05, release.set).start()
    assert cpu.pause(LIMIT)
    assert cpu.regs.rax & 0xFF == 0x5A
    cpu.resume()


def test_in_a_handler(counting, count, vm, started, wait_until):
    """It cannot wait for itself: it is paused when it returns, the others soon."""
    gave = []

    @vm.on_io(0x10)
    def handler(port, size, value):
        if not gave:
            gave.append(threads.pause())

    cpus = counting(2, extra="out 0x10, al")
    threads = VcpuThreads(cpus, kvmpy.VCPU.run)
    threads.start()
    wait_until(lambda: gave)
    assert gave == [False]
    assert pause_all(cpus, LIMIT)
    resume_all(cpus)
    stands_still(count, 0, 1)
    threads.resume()
    moves(count, 0, wait_until)
    moves(count, 1, wait_until)
    assert threads.stop(LIMIT)


def test_exits_that_c_handles(vm, counting, count, started, wait_until):
    """The flag is looked at on each entry: a guest that only exits is out as soon."""
    vm.count_io(0x20)
    (cpu,) = counting(extra="out 0x20, al")
    started([cpu])
    for _ in range(3 if RIG else 50):
        moves(count, 0, wait_until)
        assert cpu.pause(LIMIT)
        before = count(), cpu.run_stats.total
        time.sleep(0.001)
        assert (count(), cpu.run_stats.total) == before
        cpu.resume()


def test_python_s_signal_handlers_run_meanwhile(counting, count):
    """The main thread's own vCPU is paused: alarms are handled at once, and it stays paused."""
    (cpu,) = counting()
    seen = []

    def alarm(number, frame):
        seen.append((cpu.paused, count()))
        if len(seen) == 3:
            cpu.kick()

    before = signal.signal(signal.SIGALRM, alarm)
    try:
        cpu.pause()
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.02)
        assert cpu.run(timeout=LIMIT) == kvmpy.Kicked(0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [(True, 0)] * 3
    cpu.resume()


def test_ctrl_c_ends_a_paused_run(counting):
    (cpu,) = counting()
    cpu.pause()
    main = threading.main_thread().ident
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        cpu.run(timeout=LIMIT)
    timer.join(LIMIT)
    cpu.resume()
    assert cpu.run(timeout=0.01) in (kvmpy.Timeout(), kvmpy.Kicked(signal.SIGINT))


def test_a_machine():
    """Its console's guest says nothing while it is paused."""
    code = kvmpy.asm("mov dx, 0x3f8; mov al, 'x'; 1: out dx, al; jmp 1b", 16)
    with kvmpy.Machine(code, format="flat", memory="2M") as machine:
        machine.start()
        machine.console.expect("xxx", timeout=LIMIT)
        assert machine.pause(LIMIT)
        before = machine.stats.total
        time.sleep(STILL)
        assert machine.stats.total == before
        assert machine.cpu.regs.rax & 0xFF == ord("x")
        machine.resume()
        machine.console.expect("xxx", timeout=LIMIT)
        machine.pause(LIMIT)
        machine.stop(LIMIT)
        assert machine.wait(LIMIT).ending == "interrupted"


# ---------------------------------------------------------------- the start barrier


def test_guests_begin_together(counting, count, started):
    """None begins before the last body has come."""
    ready = threading.Event()
    early = []
    cpus = counting(3)

    def body(cpu):
        if cpu is cpus[2]:
            time.sleep(0.05)
            early.extend(count(other.id) for other in cpus)
            ready.set()
        return cpu.run()

    started(cpus, body, together=True, timeout=LIMIT)
    assert ready.is_set()
    assert early == [0, 0, 0]
    assert not any(cpu.paused for cpu in cpus)


def test_a_body_that_does_not_come(counting, count):
    release = threading.Event()
    cpus = counting(2)

    def body(cpu):
        if cpu is cpus[1]:
            release.wait(LIMIT)
        return cpu.run()

    threads = VcpuThreads(cpus, body)
    threading.Timer(0.3, release.set).start()
    with pytest.raises(StillRunningError, match=r"vCPU 1 has not been run within 0\.1 s"):
        threads.start(together=True, timeout=0.1)
    assert threads.stop(LIMIT)
    assert count(0) == 0
    assert not cpus[0].paused


def test_a_body_that_raises_before_its_run(counting):
    cpus = counting(2)

    def body(cpu):
        if cpu is cpus[1]:
            raise LookupError("no guest for me")
        return cpu.run()

    threads = VcpuThreads(cpus, body)
    threads.start(together=True, timeout=LIMIT)
    with pytest.raises(LookupError, match="no guest"):
        threads.wait(LIMIT)
    assert threads.stop(LIMIT)
    assert not cpus[0].paused


# ---------------------------------------------------------------- readers


def at_once(count, function):
    """In so many threads; what one of them raises comes out."""
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(function) for _ in range(count)]:
            future.result()


def test_readers_of_an_idle_vcpu_wait_for_each_other(counting):
    """None is refused: there is no run."""
    (cpu,) = counting()

    def read():
        for _ in range(300):
            cpu.get_cpuid()
            assert len(cpu.regs.values()) == 18
            cpu.regs._fresh = False

    at_once(4, read)


def test_registers_can_be_read_whenever_it_is_paused(counting, run_in_thread):
    """By several, who pause and go on as they like: each has it out for as long as it wants."""
    (cpu,) = counting()
    runner = run_in_thread(cpu)

    def look():
        for _ in range(60):
            assert cpu.pause(LIMIT)
            cpu.regs._fresh = False
            assert cpu.regs.rip
            assert cpu.sregs.cs.selector is not None
            cpu.resume()

    at_once(3, look)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)
