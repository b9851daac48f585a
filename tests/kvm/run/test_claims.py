"""Claims of ports and addresses: what is taken, and what happens while vCPUs run."""

import functools
import gc
import threading
import time
import weakref

import pytest
from conftest import RIG

import kvmpy
from kvmpy.run.bus import ClaimError


async def coroutine(*_):
    return 1


def generator(*_):
    yield 1


async def stream(*_):
    yield 1


class Deferred:
    async def __call__(self, *_):
        return 1

    async def method(self, *_):
        return 1


@pytest.mark.parametrize(
    "handler",
    [
        coroutine, generator, stream, Deferred(), Deferred().method,
        functools.partial(coroutine, 1), functools.partial(functools.partial(generator)),
        None, 5, "handler",
    ],
)  # fmt: skip
def test_what_would_never_run_is_no_handler(vm, handler):
    for claim in (
        vm.on_io(0x10),
        vm.on_mmio(0xD000_0000, 4),
        vm.on_io_batch(0x10),
        lambda each: vm.bus.handle_msr(0x10, 1, each, is_write=True),
    ):
        with pytest.raises(TypeError, match="handler"):
            claim(handler)
    vm.on_io(0x10)(lambda *_: 0)  # nothing was claimed
    vm.on_mmio(0xD000_0000, 4)(lambda *_: 0)


def test_a_decorator_without_ports(vm):
    for decorator in (vm.on_io, vm.on_io_batch):
        with pytest.raises(TypeError, match=r"@vm.on_io\(0x10\)"):

            @decorator
            def handler(*_):
                return 0


@pytest.mark.parametrize("ports", [1.0, "0x10", None])
def test_ports_are_integers(vm, ports):
    with pytest.raises(TypeError, match=r"ports .* is not an integer"):
        vm.on_io(ports)


class Integer:
    """As numpy's are."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


def test_integers_of_any_kind(start, vm):
    vm.on_io(Integer(0x10))(lambda *_: 42)
    cpu = start("in al, 0x10; hlt")
    assert cpu.run(timeout=60) == kvmpy.Hlt()
    assert cpu.regs.rax & 0xFF == 42
    with kvmpy.VM(memory=Integer(1 << 21)) as other:
        assert other.memory.regions[0].size == 1 << 21
        assert other.vcpu(id=Integer(3)).id == 3


@pytest.mark.parametrize("memory", [16e6, b"16M", 1.5, [], "16 apples", 0, -4096, True])
def test_what_is_no_memory(memory):
    with pytest.raises(ValueError, match="size"):
        kvmpy.VM(memory=memory)


def test_memory_that_is_closed():
    memory = kvmpy.GuestMemory("2M")
    memory.close()
    with pytest.raises(kvmpy.ClosedError, match="guest memory is closed"):
        kvmpy.VM(memory=memory)


def test_the_next_vcpu_is_a_new_one(vm):
    assert [vm.vcpu(id).id for id in (1, None, None, 0, None, 7, None)] == [1, 2, 3, 0, 4, 7, 8]


def test_on_mmio_where_memory_is(vm):
    """It would never be called. Where the guest cannot write, its writes do come."""
    end = vm.memory.regions[0].end
    for gpa, size in ((0x1000, 4), (end - 1, 4), (0, 1 << 40)):
        with pytest.raises(ClaimError, match="guest memory backs"):
            vm.on_mmio(gpa, size)
    vm.on_mmio(end, 4)(lambda *_: 0)
    vm.memory.add(0x4000_0000, 0x1000, read_only=True)
    vm.on_mmio(0x4000_0000, 4)(lambda *_: 0)


def test_claims_from_several_threads(start, vm):
    """Each port's own handler answers."""
    barrier, rounds, threads = threading.Barrier(4), 64, []

    def claim(which):
        barrier.wait()
        for i in range(rounds):
            port = 0x1000 + 4 * i + which
            vm.on_io(port)(lambda *_, answer=port & 0xFF: answer)

    threads = [threading.Thread(target=claim, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu = start("""
        mov edx, 0x1000; mov edi, 0x3000
    1:  in al, dx; stosb; inc edx; cmp edx, 0x1100; jne 1b
        hlt
    """)
    assert cpu.run(timeout=60) == kvmpy.Hlt()
    assert vm.memory.read(0x3000, 256) == bytes(range(256))


def test_claims_beside_a_running_vcpu(start, vm, run_in_thread):
    """The guest asks for each as soon as it is there; one that is refused leaves no trace."""
    vm.on_io(0x2000)(lambda *_: 0)
    cpu = start("""
        mov edx, 0x1000; mov edi, 0x3000
    1:  in al, dx; cmp al, 0xff; je 1b
        stosb; inc edx; cmp edx, 0x1080; jne 1b
        hlt
    """)
    vm.bus.defer(0x3000, 1, lambda batch: None)
    runs = []

    def body():
        while not isinstance(exit := cpu.run(timeout=60), kvmpy.Hlt):
            assert isinstance(exit, kvmpy.IoIn), exit  # nobody's yet
            runs.append(exit)
            cpu.answer(0xFF)

    thread = threading.Thread(target=body)
    thread.start()
    for i in range(0x80):
        vm.on_io(0x1000 + i)(lambda *_, answer=i: answer)
        with pytest.raises(ClaimError):
            vm.on_io(0x2000)(lambda *_: 0xEE)
    thread.join(60)
    assert not thread.is_alive()
    assert vm.memory.read(0x3000, 0x80) == bytes(range(0x80))


# ---------------------------------------------------------------- what was released goes


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_claims_cost_what_they_hold(vm):
    """4,096 ports with a handler each take a few hundred bytes each; 10,000 claims made and taken
    back take nothing."""
    before = resident()
    for port in range(4096):
        vm.on_io(port)(nothing)
    assert resident() - before < 8 << 20
    before = resident()
    for _ in range(2000 if RIG else 10_000):
        vm.attach(kvmpy.PostPort(), 0x8000)
        vm.release(0x8000)
    assert resident() - before < 4 << 20


def nothing(address, size, value):
    return 0


@pytest.mark.parametrize("running", [False, True])
def test_released_handlers_die(vm, start, run_in_thread, running):
    """At once, whether the guest runs or not."""

    class Handler:
        def __call__(self, *arguments):
            return 0

    cpu = start("1: in al, 0x20; jmp 1b")
    vm.on_io(0x20)(nothing)
    if running:
        runner = run_in_thread(cpu)
    for claim, at, mmio in (
        (vm.on_io(0x10), 0x10, False),
        (vm.on_mmio(0xD000_0000, 4), 0xD000_0000, True),
        (vm.on_io_batch(0x11), 0x11, False),
    ):
        handler = Handler()
        alive = weakref.ref(handler)
        claim(handler)
        del handler
        assert alive() is not None
        vm.release(at, mmio=mmio)
        end = time.monotonic() + 20
        while alive() is not None and time.monotonic() < end:  # the guest may be at an exit now
            vm.on_io(0x30)(nothing)
            vm.release(0x30)
        assert alive() is None
    if running:
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)


def test_a_released_batch_handler_gets_its_writes(vm, start):
    """Those that were made before; and its number is not another's before they are through."""
    first, second = [], []
    vm.on_io_batch(0x10)(lambda batch: first.extend(value for _, _, value, _ in batch))

    @vm.on_io(0x20)
    def swap(port, size, value):
        vm.release(0x10)
        vm.on_io_batch(0x10)(lambda batch: second.extend(value for _, _, value, _ in batch))

    cpu = start("mov al, 1; out 0x10, al; out 0x20, al; mov al, 2; out 0x10, al; hlt")
    assert cpu.run(timeout=20) == kvmpy.Hlt()
    assert (first, second) == ([1], [2])


def test_a_device_that_was_released(vm, start):
    """It is the caller's again, and its line is still the VM's to cut."""
    vm.create_irqchip()
    uart = kvmpy.Uart()
    uart.connect_line(vm.fileno(), 4)
    vm.attach(uart, 0x3F8)
    vm.release(0x3F8)
    assert list(vm.bus.devices()) == []
    vm.close()
    alive = weakref.ref(uart)
    del uart
    gc.collect()
    assert alive() is None
