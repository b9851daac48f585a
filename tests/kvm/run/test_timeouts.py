"""One meaning of ``timeout`` wherever a guest is run, paused, waited for."""

import math

import pytest

import kvmpy
from kvmpy.machine import Machine, VcpuThreads

SPIN = kvmpy.asm("1: jmp 1b", 16)
HALT = kvmpy.asm("hlt", 16)


@pytest.fixture
def cpu():
    with kvmpy.VM(memory="2M") as vm:
        vm.load(HALT, at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        yield cpu


@pytest.mark.parametrize("bad", [-1, -1e-9, math.nan, -math.inf, "5"])
def test_what_is_no_time_is_refused_before_anything_happens(cpu, bad):
    threads = VcpuThreads([cpu], kvmpy.VCPU.run)
    with Machine(HALT, format="flat", memory="2M") as machine:
        for wait in (
            lambda: cpu.run(bad),
            lambda: cpu.expect(kvmpy.Hlt, timeout=bad),
            lambda: cpu.until(0x1000, timeout=bad),
            lambda: list(cpu.steps(timeout=bad)),
            lambda: cpu.pause(bad),
            lambda: threads.pause(timeout=bad),
            lambda: threads.stop(bad),
            lambda: machine.run(timeout=bad),
            lambda: machine.start(timeout=bad),
            lambda: machine.pause(bad),
        ):
            with pytest.raises((ValueError, TypeError), match="not a number of seconds"):
                wait()
        assert not cpu.paused
        assert cpu.regs.rip == 0x1000
        machine.start()  # for the first time
        for wait in (machine.wait, machine.stop):
            with pytest.raises((ValueError, TypeError), match="not a number of seconds"):
                wait(bad)
        assert machine.wait(60).text == "the guest halted"
    threads.start()
    with pytest.raises((ValueError, TypeError), match="not a number of seconds"):
        threads.wait(bad)
    assert threads.wait(60).value == kvmpy.Hlt()


@pytest.mark.parametrize("none", [None, math.inf, 1e300])
def test_no_limit(cpu, none):
    assert cpu.pause(none) is True
    cpu.resume()
    assert cpu.run(none) == kvmpy.Hlt()
    cpu.regs.rip = 0x1000
    assert len(list(cpu.steps(1, timeout=none))) == 1
    cpu.regs.rip = 0x1000
    threads = VcpuThreads([cpu], kvmpy.VCPU.run)
    threads.start()
    assert threads.wait(none).value == kvmpy.Hlt()
    assert threads.stop(none) is True
    with Machine(HALT, format="flat", memory="2M") as machine:
        assert machine.run(timeout=none).text == "the guest halted"
    with Machine(HALT, format="flat", memory="2M") as machine:
        machine.start(timeout=none)
        assert machine.wait(none).text == "the guest halted"
        machine.stop(none)


def test_wait_in_a_handler_of_its_own():
    """It would wait for itself."""
    said = []
    program = kvmpy.asm("out 0x10, al; 1: jmp 1b", 16)
    with Machine(program, format="flat", memory="2M") as machine:

        @machine.vm.on_io(0x10)
        def handler(*_):
            try:
                machine.wait()
            except RuntimeError as error:
                said.append(str(error))
            machine.stop()

        machine.start()
        assert machine.wait(60).ending == "interrupted"
    assert said == ["wait() in a handler waits for itself: stop(), and return"]


@pytest.mark.parametrize("timeout", [1e-9, 1e-6, 1e-5, 1e-4])
def test_the_smallest_budgets_make_progress(start, timeout):
    """Some runs may end before the guest's first instruction; not all of them."""
    cpu = start("1: inc rax; jmp 1b", ring=3)
    for _ in range(50):
        assert cpu.run(timeout=timeout) == kvmpy.Timeout()
    assert cpu.regs.rax > 0


def test_a_budget_of_nothing_is_a_look(start):
    cpu = start("1: inc rax; jmp 1b", ring=3)
    for _ in range(20):
        assert cpu.run(timeout=0) == kvmpy.Timeout()
    assert cpu.regs.rax == 0


def test_numpys_integers_are_budgets(start):
    """And whatever else says that it is an integer; nothing else."""

    class Two:
        def __index__(self):
            return 2

    cpu = start("1: out 0x10, al; jmp 1b")
    cpu.vm.bus.count(0x10, 1)
    assert cpu.run(max_exits=Two()) == kvmpy.ExitLimit()
    with pytest.raises(TypeError, match="max_exits"):
        cpu.run(max_exits=2.0)
