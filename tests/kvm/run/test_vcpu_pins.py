"""Where the thread of a vCPU runs: on the pCPUs it is pinned to and on no other, whoever runs it
and whenever the pin changes; what the host calls the thread, and how it schedules it."""

import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from conftest import RIG

import kvmpy
from kvmpy.host.scheduling import Scheduling, SchedulingError, schedule, scheduling
from kvmpy.host.topology import PinError, usable_cpus
from kvmpy.machine.threads import VcpuThreads

LIMIT = 20.0 * (10 if RIG else 1)
SPIN = "1: inc dword ptr [0x8000]; jmp 1b"
CPUS = sorted(os.sched_getaffinity(0))
two_pcpus = pytest.mark.skipif(len(CPUS) < 2, reason="this process has one pCPU: nowhere to go")


@pytest.fixture
def spinning(vm):
    """``spinning(n, **options)``: vCPUs about to spin."""
    vm.load(kvmpy.asm(SPIN, 16, org=0x1000), at=0x1000)

    def make(number=1, **options):
        made = []
        for _ in range(number):
            cpu = vm.vcpu(**options)
            cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
            made.append(cpu)
        return made

    return make


@pytest.fixture
def started():
    """``started(cpus, **options)``: VcpuThreads that run them, stopped after the test."""
    made = []

    def start(cpus, **options):
        threads = VcpuThreads(cpus, kvmpy.VCPU.run, **options)
        made.append(threads)
        threads.start()
        return threads

    yield start
    for threads in made:
        assert threads.stop(LIMIT)


@pytest.fixture
def same_affinity():
    """What a test does to the affinity of the main thread is undone."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def allowed_list(thread):
    """Of /proc/self/task/<tid>/status: where the kernel lets it run."""
    for line in Path(f"/proc/self/task/{thread}/status").read_text().splitlines():
        if line.startswith("Cpus_allowed_list:"):
            return kvmpy.host.topology.parse_cpu_list(line.partition(":")[2])
    raise AssertionError("no Cpus_allowed_list")


def processor(thread):
    """The pCPU it runs on, or ran on last: field 39 of /proc/self/task/<tid>/stat."""
    text = Path(f"/proc/self/task/{thread}/stat").read_text()
    return int(text.rpartition(")")[2].split()[36])


def thread_of(cpu, wait_until):
    wait_until(lambda: cpu.thread_id is not None)
    return cpu.thread_id


@pytest.mark.parametrize(
    "notation", [int, lambda n: {n}, lambda n: range(n, n + 1), str, lambda n: iter([n])]
)
def test_notations(vm, notation):
    cpu = vm.vcpu(pin=notation(CPUS[-1]))
    assert cpu.pin == {CPUS[-1]}
    assert repr(cpu).endswith(f"pinned to pCPU {CPUS[-1]}>")


def test_what_cannot_be(vm):
    with pytest.raises(PinError, match="pCPU 8000 does not exist"):
        vm.vcpu(pin={CPUS[0], 8000})
    cpu = vm.vcpu()
    for pin in ("8000", {8000}, set(), -1):
        with pytest.raises(PinError):
            cpu.pin = pin
    with pytest.raises(TypeError, match="give the number of a pCPU"):
        cpu.pin = 1.5
    assert cpu.pin is None
    cpu.close()
    with pytest.raises(kvmpy.ClosedError):
        cpu.pin = CPUS[0]


@two_pcpus
def test_never_outside_of_its_mask(spinning, started, wait_until):
    """Re-pinned at random while it spins: from the moment of the assignment on it is where it
    should be, and the kernel says so."""
    (cpu,) = spinning(pin=CPUS[0])
    started([cpu])
    thread = thread_of(cpu, wait_until)
    choose = random.Random(3)
    for _ in range(10 if RIG else 200):
        mask = frozenset(choose.sample(CPUS, choose.randint(1, len(CPUS))))
        cpu.pin = mask
        assert allowed_list(thread) == mask
        for _ in range(5):
            assert processor(thread) in mask
            time.sleep(choose.random() * 0.0004)
    assert cpu.thread_id == thread
    cpu.pin = None
    assert allowed_list(thread) == usable_cpus()
    assert cpu.pin is None


@two_pcpus
def test_the_thread_and_not_the_process(spinning, started, wait_until):
    main, cpus = os.sched_getaffinity(0), spinning(2)
    started(cpus)
    one, other = (thread_of(cpu, wait_until) for cpu in cpus)
    cpus[0].pin = CPUS[0]
    assert allowed_list(one) == {CPUS[0]}
    assert allowed_list(other) == main
    assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getpid()) == main


@two_pcpus
def test_a_pin_set_as_a_run_begins(spinning, run_in_thread, wait_until):
    """Neither the run nor the assignment misses the other."""
    (cpu,) = spinning()
    choose = random.Random(5)
    for _ in range(5 if RIG else 100):
        cpu.pin = CPUS[0]
        runner = run_in_thread(cpu)
        end = time.perf_counter() + choose.random() * 0.0006
        while time.perf_counter() < end:
            pass
        cpu.pin = CPUS[1]
        thread = thread_of(cpu, wait_until)
        assert allowed_list(thread) == {CPUS[1]}
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)


@two_pcpus
def test_one_thread_runs_several_vcpus(vm, spinning, same_affinity):
    """Each where it belongs, in turn; a vCPU without a pin wherever the thread is."""
    seen = []
    vm.on_io(0x10)(lambda port, size, value: seen.append(os.sched_getaffinity(0)))
    vm.load(kvmpy.asm("1: out 0x10, al; jmp 1b", 16, org=0x1000), at=0x1000)
    one, other, free = (*spinning(pin=CPUS[0]), *spinning(pin=CPUS[1]), *spinning())
    for cpu in (one, other, one, free, other, one):
        cpu.run(max_exits=1)
    first, second = {CPUS[0]}, {CPUS[1]}
    assert seen == [first, second, first, first, second, first]
    one.pin = None
    one.run(max_exits=1)
    assert seen[-1] == usable_cpus()


def test_thread_id(vm, spinning, started, wait_until):
    """While a run is under way, in a handler too; as the thread itself says."""
    seen = []

    @vm.on_io(0x10)
    def handler(port, size, value):
        seen.append((cpu.thread_id, threading.get_native_id()))

    vm.load(kvmpy.asm("out 0x10, al; hlt", 16, org=0x1000), at=0x1000)
    (cpu,) = spinning()
    assert cpu.thread_id is None
    cpu.run(timeout=LIMIT)
    assert cpu.thread_id is None
    ((there, here),) = seen
    assert there == here == threading.get_native_id()


def test_a_machine_s_vcpus():
    """One for all, or one for each."""
    code = kvmpy.asm("hlt", 16)
    with kvmpy.Machine(code, format="flat", memory="2M", cpus=2, pin={CPUS[0]}) as machine:
        assert [cpu.pin for cpu in machine.cpus] == [{CPUS[0]}] * 2
    pin = [CPUS[0], set(CPUS)]
    with kvmpy.Machine(code, format="flat", memory="2M", cpus=2, pin=pin) as machine:
        assert [cpu.pin for cpu in machine.cpus] == [{CPUS[0]}, set(CPUS)]
    with pytest.raises(ValueError, match="3 pins for 2 vCPUs"):
        kvmpy.Machine(code, format="flat", memory="2M", cpus=2, pin=[CPUS[0]] * 3)


# ---------------------------------------------------------------- names and scheduling


def test_names(spinning, started, wait_until):
    """For Python, and for ps and top; the caller's stays."""
    cpus, main = spinning(2), Path("/proc/self/comm").read_text()
    threads = started(cpus)
    for cpu in cpus:
        thread = thread_of(cpu, wait_until)
        assert Path(f"/proc/self/task/{thread}/comm").read_text() == f"vCPU {cpu.id}\n"
        assert threads.thread_ids()[cpu] == thread
    assert Path("/proc/self/comm").read_text() == main


@pytest.mark.parametrize("wanted", [Scheduling("batch", nice=3), Scheduling("other", nice=19)])
def test_scheduling_that_everybody_may(spinning, started, wanted):
    """From the start, and of this process's other threads none."""
    before = scheduling()
    threads = started(spinning(2), scheduling=wanted)
    assert [scheduling(thread) for thread in threads.thread_ids().values()] == [wanted] * 2
    assert scheduling() == before


def test_scheduling_while_it_runs(spinning, started):
    """Of one: the other keeps what it had."""
    cpus = spinning(2)
    threads = started(cpus)
    threads.schedule(Scheduling("idle"), cpus[1])
    one, other = (scheduling(threads.thread_ids()[cpu]) for cpu in cpus)
    assert (one, other) == (Scheduling(), Scheduling("idle"))
    with pytest.raises(ValueError, match="not one of these"):
        threads.schedule(Scheduling("idle"), spinning()[0])


REAL_TIME = [
    Scheduling("fifo", priority=1),
    Scheduling("rr", priority=2),
    Scheduling("deadline", runtime=2_000_000, deadline=20_000_000, period=100_000_000),
    Scheduling("other", nice=-5),
]


@pytest.mark.parametrize("wanted", REAL_TIME, ids=str)
def test_scheduling_that_takes_a_privilege(spinning, started, wanted):
    """Permitted, and then the kernel says so; or refused with what is missing, and no thread is
    left. A real-time thread here leaves other threads their share: see sched_rt_runtime_us."""
    seen = []

    def body(cpu):
        seen.append(scheduling())
        return cpu.run(timeout=0.02)

    threads = VcpuThreads(spinning(), body, scheduling=wanted)
    refusal = None
    try:
        threads.start()
    except SchedulingError as error:
        refusal = str(error)
    if refusal is None:
        assert threads.wait(LIMIT).value == kvmpy.Timeout()
        assert seen == [wanted]
        return
    assert f"{wanted} for thread" in refusal
    assert any(name in refusal for name in ("RLIMIT_", "CAP_SYS_NICE", "no room", "built"))
    assert not seen
    with pytest.raises(SchedulingError):
        threads.wait(LIMIT)


UNPRIVILEGED = """
    import os, resource, threading
    from kvmpy.host.scheduling import *
    for which in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
        resource.setrlimit(which, (0, 0))
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 65534)
    for wanted in (
        Scheduling("fifo", priority=6), Scheduling("rr", priority=50), Scheduling("other", nice=-1),
        Scheduling("deadline", runtime=10**6, deadline=10**7), Scheduling("batch", nice=-20),
    ):
        try:
            schedule(wanted)
        except SchedulingError as error:
            print(error.errno, error.strerror.partition(": ")[2])
        else:
            print("permitted")
"""


def test_what_is_missing_is_named():
    """Without CAP_SYS_NICE and with low limits, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNPRIVILEGED)],
        capture_output=True, text=True, timeout=60 * (10 if RIG else 1), check=True,
    )  # fmt: skip
    fifo, rr, other, deadline, batch = done.stdout.splitlines()
    assert fifo.startswith("1 not permitted. RLIMIT_RTPRIO is 0 (ulimit -r), and there is no CAP_")
    assert "raise the limit to 6 " in fifo
    assert "raise the limit to 50 " in rr
    assert other.startswith("1 not permitted. RLIMIT_NICE is 0 (ulimit -e), and there is no CAP_")
    assert "raise the limit to 21, " in other
    assert "SCHED_DEADLINE takes CAP_SYS_NICE" in deadline
    assert "raise the limit to 40, " in batch


def test_a_thread_that_has_ended(spinning):
    threads = VcpuThreads(spinning(), lambda cpu: cpu.run(timeout=0.001))
    threads.start()
    threads.wait(LIMIT)
    assert threads.stop(LIMIT)
    thread = next(iter(threads.thread_ids().values()))
    deadline = time.monotonic() + LIMIT
    while os.path.exists(f"/proc/self/task/{thread}") and time.monotonic() < deadline:
        time.sleep(0.001)  # joined, and on the kernel's list for a moment longer
    with pytest.raises(SchedulingError, match="No such process"):
        threads.schedule(Scheduling("idle"))
    with pytest.raises(SchedulingError, match="No such process"):
        schedule(Scheduling("idle"), thread)


# ---------------------------------------------------------------- many


def test_64_threads_under_load_stop_within_a_second(vm):
    """All of them in the guest, two pCPUs for 64. On a rig: all of them stop."""
    number = 8 if RIG else 64
    made = []
    for index in range(number):
        at = 0x1000 * (index + 1)
        word = 0x100000 + 64 * index
        code = f"1: inc dword ptr [{word:#x}]; jmp 1b"
        vm.load(kvmpy.asm(code, 32, org=at), at=at)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.PROTECTED_MODE, rip=at)
        made.append(cpu)
    threads = VcpuThreads(made, kvmpy.VCPU.run)
    threads.start(together=True, timeout=LIMIT)

    def all_have_counted():
        return all(any(vm.memory.read(0x100000 + 64 * i, 4)) for i in range(number))

    deadline = time.monotonic() + LIMIT
    while not all_have_counted():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    before = time.monotonic()
    assert threads.pause(timeout=LIMIT)
    paused = time.monotonic()
    counts = vm.memory.read(0x100000, 64 * number)
    time.sleep(0.02)
    assert vm.memory.read(0x100000, 64 * number) == counts
    threads.resume()
    time.sleep(0.05)
    stopping = time.monotonic()
    assert threads.stop(LIMIT)
    stopped = time.monotonic()
    assert threads.wait(0).value == kvmpy.Kicked(0)
    if not RIG:  # where time is the host's
        assert paused - before < 1.0
        assert stopped - stopping < 1.0


def test_stop_of_one(spinning, started, wait_until):
    """The others go on; the last one's end is the end."""
    cpus = spinning(3)
    threads = started(cpus)
    ids = [thread_of(cpu, wait_until) for cpu in cpus]
    assert threads.stop(LIMIT, vcpu=cpus[1])
    assert [cpu.thread_id for cpu in cpus] == [ids[0], None, ids[2]]
    assert threads.running
    assert threads.stop(LIMIT, vcpu=cpus[0])
    assert threads.running
    assert threads.stop(LIMIT, vcpu=cpus[2])
    assert threads.wait(LIMIT).vcpu is cpus[2]
    assert not threads.running
