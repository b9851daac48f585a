"""Python handlers: exceptions, wrong answers, runs within runs."""

import threading

import pytest

import kvmpy


class Boom(Exception):
    """Something no library would raise."""


def is_running(cpu):
    """Whether another thread runs the vCPU: its state cannot be read then."""
    try:
        _ = cpu.mp_state
    except kvmpy.KvmIoctlError:
        return True
    return False


@pytest.mark.parametrize("instruction", ["out 0x10, al", "in al, 0x10", "mov [rcx], al",
                                         "mov al, [rcx]"])  # fmt: skip
def test_exception_comes_out_unchanged(start, vm, instruction):
    """The very object that was raised, and the vCPU can be run again: the access is over, a read
    that was not answered gives all ones."""
    error = Boom("as raised")

    def handler(address, size, value):
        raise error

    vm.on_io(0x10)(handler)
    vm.on_mmio(0xD000_0000, 8)(handler)
    cpu = start(f"{instruction}; out 0x11, al; hlt", regs={"rcx": 0xD000_0000, "rax": 5})
    with pytest.raises(Boom) as info:
        cpu.run(timeout=5)
    assert info.value is error
    assert info.value.__cause__ is None
    value = cpu.expect(kvmpy.IoOut, timeout=5).value
    assert value == (0xFF if instruction.startswith(("in", "mov al")) else 5)
    cpu.expect(kvmpy.Hlt, timeout=5)


def test_exception_then_state(start, vm):
    """After an exception the registers can be read, and are complete."""

    @vm.on_io(0x10)
    def handler(port, size, value):
        raise Boom

    cpu = start("nop; out 0x10, al; hlt")
    with pytest.raises(Boom):
        cpu.run(timeout=5)
    assert cpu.regs.rip == 0x1003
    cpu.expect(kvmpy.Hlt, timeout=5)


def test_many_exceptions(start, vm):
    """A thousand of them leave nothing behind."""

    @vm.on_io(0x10)
    def handler(port, size, value):
        raise Boom

    cpu = start("1: out 0x10, al; jmp 1b")
    for _ in range(200):
        with pytest.raises(Boom):
            cpu.run(timeout=5)
    assert cpu.run_stats["IO"] == 200


@pytest.mark.parametrize(("answer", "error"), [
    (None, TypeError), ("x", TypeError), (1.0, TypeError), (256, ValueError), (-1, ValueError),
])  # fmt: skip
def test_wrong_answer(start, vm, answer, error):
    """An answer that is no byte is an error that quotes it, and the guest reads all ones."""
    vm.on_io(0x10)(lambda port, size, value: answer)
    cpu = start("in al, 0x10; out 0x11, al")
    with pytest.raises(error, match="1-byte read returned") as info:
        cpu.run(timeout=5)
    assert __file__ in str(info.value)  # whose it is
    assert "0x10" in str(info.value)
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0xFF


def test_handler_may_return_bool_or_int_subclasses(start, vm):
    """True is 1."""
    vm.on_io(0x10)(lambda port, size, value: True)
    cpu = start("in al, 0x10; out 0x11, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 1


def test_run_within_a_handler(start, vm):
    """Running the vCPU from its own handler is refused with a clear error; the outer run goes on
    as if nothing had been tried."""
    errors = []

    @vm.on_io(0x10)
    def handler(port, size, value):
        with pytest.raises(kvmpy.KvmIoctlError, match="running already") as info:
            cpu.run(timeout=1)
        errors.append(info.value)
        return 0x44

    cpu = start("in al, 0x10; out 0x11, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x44
    assert len(errors) == 1


def test_another_vcpu_within_a_handler(start, vm):
    """A handler may run another vCPU: machines made of machines."""
    inner = start("mov al, 9; out 0x21, al", at=0x2000)

    @vm.on_io(0x10)
    def handler(port, size, value):
        return inner.expect(kvmpy.IoOut, timeout=5).value

    outer = start("in al, 0x10; out 0x11, al")
    assert outer.expect(kvmpy.IoOut, timeout=5).value == 9


def test_run_from_two_threads(start, run_in_thread, wait_until):
    """The second one is refused with a clear error; the first does not notice."""
    cpu = start("1: inc rax; jmp 1b", ring=3)
    runner = run_in_thread(cpu)
    wait_until(lambda: is_running(cpu))
    for _ in range(50):
        with pytest.raises(kvmpy.KvmIoctlError, match="running already"):
            cpu.run(timeout=0.001)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)


def test_refused_run_takes_nothing_from_the_running_one(start, vm, run_in_thread, wait_until):
    """A run refused in another thread neither drains the first one's ring nor touches the value
    its handler is given."""
    seen, batches, stop = [], [], threading.Event()
    vm.on_io_batch(0x20)(lambda batch: batches.append((threading.get_ident(), len(batch))))
    vm.on_io(0x10)(lambda port, size, value: seen.append(value))
    cpu = start("1: mov eax, 0x55; out 0x20, al; out 0x10, al; jmp 1b")
    identity = []

    def work():
        identity.append(threading.get_ident())
        cpu.run()

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(seen) > 10)
    for _ in range(2000):
        with pytest.raises(kvmpy.KvmIoctlError):
            cpu.run()
    stop.set()
    cpu.kick()
    thread.join(20)
    assert set(seen) == {0x55}
    assert {who for who, _ in batches} == set(identity)
    assert abs(sum(count for _, count in batches) - len(seen)) <= 1


def test_registers_read_while_another_thread_runs(start, vm, run_in_thread, wait_until):
    """A clear error for the reader, and none at all for the run."""
    calls = []
    vm.on_io(0x10)(lambda port, size, value: calls.append(None))
    cpu = start("1: out 0x10, al; jmp 1b")
    runner = run_in_thread(cpu)
    wait_until(lambda: len(calls) > 10)
    failures = 0
    for _ in range(3000):
        try:
            _ = cpu.regs.rip
        except kvmpy.KvmIoctlError:
            failures += 1
        failures += is_running(cpu)
        if not runner.is_alive():
            break
    assert runner.is_alive(), runner.result()
    assert failures
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)


def test_handlers_see_the_gil_as_others_do(start, vm, run_in_thread):
    """While a guest spins, other Python threads run: the GIL is free."""
    cpu = start("1: jmp 1b", ring=3)
    runner = run_in_thread(cpu)
    total = sum(range(100_000))
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)
    assert total == 4_999_950_000


def test_pin(start, vm):
    """The thread that runs a pinned vCPU is bound to the CPU; others are not."""
    import os

    allowed = os.sched_getaffinity(0)
    target = max(allowed)
    cpu = start("hlt", vcpu=vm.vcpu(pin=target))
    seen = []

    def work():
        cpu.run(timeout=5)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{target}]
    assert os.sched_getaffinity(0) == allowed


def test_pin_to_a_cpu_that_is_not_there(vm):
    """Refused when the vCPU is made."""
    with pytest.raises(kvmpy.KvmpyError, match="100000 does not exist"):
        vm.vcpu(pin=100_000)
