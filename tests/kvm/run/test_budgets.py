"""Runs end when their host wants: kicks, timeouts, exit limits, and the next run goes on."""

import math
import threading
import time

import pytest

import kvmpy

SPIN = {  # a guest that never exits: in ring 3 (native everywhere), and in ring 0
    "ring 3": ("1: inc rax; jmp 1b", {"ring": 3}),
    "ring 0": ("1: inc rax; jmp 1b", {}),
}
SPINS = pytest.mark.parametrize("spin", SPIN.values(), ids=SPIN)


@SPINS
def test_timeout(start, spin):
    """A timeout ends a guest that never exits, not before its time and not much after."""
    cpu = start(spin[0], **spin[1])
    begin = time.monotonic()
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()
    assert 0.05 <= time.monotonic() - begin < 5
    assert cpu.regs.rax > 0


@SPINS
def test_run_goes_on_after_a_timeout(start, spin):
    """The guest continues where it was."""
    cpu = start(spin[0], **spin[1])
    before = -1
    for _ in range(5):
        assert cpu.run(timeout=0.01) == kvmpy.Timeout()
        assert 0x1000 <= cpu.regs.rip <= 0x1005
        assert cpu.regs.rax > before
        before = cpu.regs.rax


def test_timeout_of_zero(start):
    """Ends at once; a guest that is asked to run again and again does get somewhere, or nowhere,
    but the state stays whole."""
    cpu = start("1: inc rax; jmp 1b")
    for _ in range(20):
        assert cpu.run(timeout=0) == kvmpy.Timeout()
        assert 0x1000 <= cpu.regs.rip <= 0x1005


def test_timeout_that_does_not_come(start):
    """A run that ends earlier leaves no timer behind that would end the next."""
    cpu = start("1: out 0x10, al; jmp 1b")
    for _ in range(20):
        cpu.expect(kvmpy.IoOut, timeout=0.5)
    time.sleep(0.6)
    cpu.expect(kvmpy.IoOut)
    start("1: jmp 1b", ring=3, vcpu=cpu)
    begin = time.monotonic()
    assert cpu.run(timeout=0.1) == kvmpy.Timeout()
    assert time.monotonic() - begin >= 0.1


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_impossible_timeout(vm, timeout):
    """Refused before anything runs."""
    with pytest.raises(ValueError, match="timeout"):
        vm.vcpu().run(timeout=timeout)


@pytest.mark.parametrize("timeout", [1e9, 1e10, 1e300, math.inf])
def test_huge_timeout(start, timeout):
    """Longer than a clock counts: as good as none."""
    assert start("hlt").run(timeout=timeout) == kvmpy.Hlt()


@pytest.mark.parametrize("max_exits", [0, -1, 1 << 64])
def test_impossible_exit_limit(vm, max_exits):
    """Refused before anything runs."""
    with pytest.raises(ValueError, match="max_exits"):
        vm.vcpu().run(max_exits=max_exits)


def test_exit_limit(start, vm):
    """Counts exits that C handles; then ExitLimit, and the next run goes on."""
    counter = vm.count_io(0x10)
    cpu = start("1: out 0x10, al; jmp 1b")
    assert cpu.run(max_exits=7, timeout=5) == kvmpy.ExitLimit()
    assert counter.writes == 7
    assert cpu.run(max_exits=3, timeout=5) == kvmpy.ExitLimit()
    assert counter.writes == 10
    assert cpu.run_stats["IO"] == 10


def test_exit_limit_and_an_unclaimed_exit(start):
    """The limit's last exit is still given, if nobody claims it."""
    cpu = start("out 0x10, al; hlt")
    assert isinstance(cpu.run(max_exits=1), kvmpy.IoOut)
    assert isinstance(cpu.run(max_exits=1), kvmpy.Hlt)


def test_timeout_in_handlers(start, vm):
    """The deadline is kept when the time passes in Python handlers and in C devices."""
    vm.on_io(0x10)(lambda port, size, value: time.sleep(0.005))
    vm.count_io(0x11)
    for port in (0x10, 0x11):
        cpu = start(f"1: out {port}, al; jmp 1b")
        begin = time.monotonic()
        assert cpu.run(timeout=0.05) == kvmpy.Timeout()
        assert time.monotonic() - begin < 5
        cpu.close()


# ---------------------------------------------------------------- kicks


@SPINS
def test_kick_from_another_thread(start, run_in_thread, wait_until, spin):
    """A kick ends a spinning guest, which can then be run again."""
    cpu = start(spin[0], **spin[1])
    for _ in range(10):
        runner = run_in_thread(cpu)
        time.sleep(0.002)
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()  # on one slow CPU no kick may have waited
    assert cpu.regs.rax > 0


@SPINS
def test_kick_before_the_run(start, spin):
    """A kick of a vCPU that does not run ends its next run before the guest does anything: not the
    one after, and kicks do not add up (correctness 2)."""
    cpu = start(spin[0], **spin[1])
    cpu.kick()
    cpu.kick()
    assert cpu.run() == kvmpy.Kicked(0)
    assert (cpu.regs.rip, cpu.regs.rax) == (0x1000, 0)
    assert cpu.run(timeout=0.02) == kvmpy.Timeout()
    assert cpu.regs.rax > 0


def test_kick_before_the_first_entry(vm, start):
    """Even before KVM has ever entered it (correctness 6)."""
    cpu = start("hlt")
    cpu.kick()
    assert cpu.run(timeout=5) == kvmpy.Kicked(0)
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_kick_from_a_handler(start, vm):
    """A handler ends its own run; the access it was called for is finished."""

    @vm.on_io(0x10)
    def port(port, size, value):
        cpu.kick()
        return 0x33

    cpu = start("in al, 0x10; hlt")
    assert cpu.run(timeout=5) == kvmpy.Kicked(0)
    assert (cpu.regs.rax, cpu.regs.rip) == (0x33, 0x1002)
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_kick_of_a_guest_that_only_exits(start, vm, run_in_thread):
    """A guest whose every exit C handles, so that KVM_RUN is entered all the time."""
    vm.count_io(0x10)
    cpu = start("1: out 0x10, al; jmp 1b")
    for _ in range(10):
        runner = run_in_thread(cpu)
        time.sleep(0.001)
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)


def test_kick_reaches_its_own_vcpu_only(vm, start, run_in_thread, wait_until):
    """With two vCPUs in two threads, each kick ends one run."""
    first = start("1: jmp 1b", ring=3)
    second = vm.vcpu()
    # The same tables will do: the guest has no interrupts and takes no exceptions.
    start("1: jmp 1b", ring=3, at=0x2000, vcpu=second)
    one, two = run_in_thread(first), run_in_thread(second)
    time.sleep(0.02)
    second.kick()
    assert two.result() == kvmpy.Kicked(0)
    time.sleep(0.02)
    assert one.is_alive()
    first.kick()
    assert one.result() == kvmpy.Kicked(0)


def test_iteration_ends_with_a_kick(start, vm, run_in_thread):
    """for exit in cpu: a kick ends the loop, an exit that cannot be resumed too."""
    cpu = start("out 0x10, al; out 0x10, al; ud2")
    kinds = [type(exit) for exit in cpu]
    assert kinds == [kvmpy.IoOut, kvmpy.IoOut, kvmpy.GuestException]
    start("out 0x10, al; 1: jmp 1b", vcpu=cpu)
    seen = []
    timer = threading.Timer(0.02, cpu.kick)
    timer.start()
    seen = [type(exit) for exit in cpu]
    timer.join()
    assert seen in ([kvmpy.IoOut], [])


def test_kicks_at_random_moments(start, run_in_thread):
    """A thousand kicks through Python: each ends one run or the next, none is lost.
    (A million of them, in C: test_kick_stress.py.)"""
    cpu = start("1: inc rax; jmp 1b", ring=3)
    rounds, done = 300, threading.Semaphore(0)
    ended = []

    def runs():
        for _ in range(rounds):
            ended.append(cpu.run(timeout=30))
            done.release()

    thread = threading.Thread(target=runs)
    thread.start()
    for _ in range(rounds):
        cpu.kick()
        assert done.acquire(timeout=60), "a kick was lost"
    thread.join()
    assert set(ended) == {kvmpy.Kicked(0)}
