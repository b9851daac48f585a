"""The UART and the small port devices, driven by guests. (Register by register: the C test
uart_test.c, which tests/unit runs.)"""

import errno
import fcntl
import os
import select
import threading
import time

import pytest
from conftest import RIG

import kvmpy
from kvmpy.devices import DebugConsole, DebugExitPort, PostPort, Uart

COM1 = 0x3F8
F_SETPIPE_SZ = 1031


@pytest.fixture
def pipe():
    """A pipe of one page; (reader, writer)."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(writer)
    os.close(reader)


@pytest.fixture
def broken_pipe():
    """The writing end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def available(fd, seconds=0.0):
    """What can be read from ``fd`` now, or within ``seconds``."""
    if not select.select([fd], [], [], seconds * (10 if RIG else 1))[0]:
        return b""
    return os.read(fd, 1 << 16)


def put(text, port=COM1):
    """Assembly that writes ``text`` to a port."""
    return f"mov dx, {port};" + "".join(f"mov al, {byte}; out dx, al;" for byte in text)


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("device", [Uart, DebugConsole])
def test_output_in_memory(start, vm, device):
    """Without a descriptor the output is kept; take() forgets it."""
    port = COM1 if device is Uart else 0xE9
    console = device()
    vm.attach(console, port)
    cpu = start(put(b"hi\nthere", port) + "hlt;" + put(b"!", port) + "hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert console.output == b"hi\nthere"
    assert console.sink.take() == b"hi\nthere"
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert console.output == b"!"
    assert console.sink.total == 9


def test_more_output_than_the_shim_holds(start, vm):
    """Twenty thousand bytes into memory: all there, in order."""
    uart = Uart()
    vm.attach(uart, COM1)
    count = 20_000
    cpu = start(f"mov dx, {COM1}; xor ebx, ebx; 1: mov al, bl; out dx, al; inc ebx;"
                f"cmp ebx, {count}; jne 1b; hlt")  # fmt: skip
    cpu.expect(kvmpy.Hlt, timeout=30)
    assert uart.output == bytes(i & 0xFF for i in range(count))
    assert uart.sink.dropped == 0


def test_output_goes_out_at_a_newline(start, vm, pipe):
    """Before the run ends."""
    reader, writer = pipe
    vm.attach(Uart(writer), COM1)
    seen = []
    vm.on_io(0x10)(lambda port, size, value: seen.append(available(reader)))
    cpu = start(put(b"one\ntwo") + "out 0x10, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == [b"one\n"]
    assert available(reader) == b"two"


@pytest.mark.parametrize("ring", [0, 3])
def test_a_prompt_is_written_while_the_guest_spins(start, vm, pipe, run_in_thread, ring):
    """No newline, no exit any longer: after about 10 ms it is there all the same."""
    reader, writer = pipe
    vm.attach(Uart(writer), COM1)
    go = "push 0x2b; push 0x700000; push 2; push 0x33; push 0x9000; iretq"
    vm.load(b"\xeb\xfe", at=0x9000)
    cpu = start(put(b"login: ") + ("1: jmp 1b" if ring == 0 else go))
    runner = run_in_thread(cpu)
    begin = time.monotonic()
    assert available(reader, 5) == b"login: "
    assert time.monotonic() - begin < 5 * (10 if RIG else 1)
    cpu.kick()
    assert runner.result() == kvmpy.Kicked(0)


def test_a_full_pipe_holds_the_guest(start, vm, pipe, run_in_thread, wait_until):
    """The reader is slow: the guest waits, a kick gets it out, and no byte is lost or doubled."""
    reader, writer = pipe
    uart = Uart(writer)
    vm.attach(uart, COM1)
    count = 20_000
    cpu = start(f"mov dx, {COM1}; xor ebx, ebx; 1: mov al, bl; out dx, al; inc ebx;"
                f"cmp ebx, {count}; jne 1b; hlt")  # fmt: skip
    for _ in range(3):
        runner = run_in_thread(cpu)
        held = -1
        while uart.sink.total != held:  # until it makes no progress any longer
            held = uart.sink.total
            time.sleep(0.3 * (10 if RIG else 1))
        assert runner.is_alive()
        assert held < 4096 + 8448
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)
    got = bytearray()
    runner = run_in_thread(cpu)
    while len(got) < count:
        chunk = available(reader, 5)
        assert chunk
        got += chunk
    assert runner.result() == kvmpy.Hlt()
    assert bytes(got) == bytes(i & 0xFF for i in range(count))


def test_runs_while_the_pipe_is_full_lose_nothing(start, vm, pipe):
    """Run after run against a reader that has stopped: each ends in time, none swallows a byte.
    (Hundreds of them, in C: dispatch_test.c.)"""
    reader, writer = pipe
    uart = Uart(writer)
    vm.attach(uart, COM1)
    cpu = start(f"mov dx, {COM1}; xor ebx, ebx; 1: mov al, bl; out dx, al; inc ebx; jmp 1b")
    assert cpu.run(timeout=0.5 * (10 if RIG else 1)) == kvmpy.Timeout()
    for _ in range(10):
        assert cpu.run(timeout=0.001) == kvmpy.Timeout()
    got = bytearray()
    while len(got) < 8192:
        got += available(reader)
        cpu.run(timeout=0.02)
    assert bytes(got) == bytes(i & 0xFF for i in range(len(got)))


def test_timeout_while_the_pipe_is_full(start, vm, pipe):
    """The deadline holds too."""
    vm.attach(Uart(pipe[1]), COM1)
    cpu = start(f"mov dx, {COM1}; 1: out dx, al; jmp 1b")
    begin = time.monotonic()
    assert cpu.run(timeout=0.3) == kvmpy.Timeout()
    assert 0.3 <= time.monotonic() - begin < 10


def test_input_while_the_pipe_is_full(start, vm, pipe, run_in_thread):
    """The thread that reads the guest's output is often the one that feeds its input: receive()
    must not wait for the guest that waits for it."""
    _reader, writer = pipe
    uart = Uart(writer)
    vm.attach(uart, COM1)
    cpu = start(f"mov dx, {COM1}; 1: out dx, al; jmp 1b")
    runner = run_in_thread(cpu)
    time.sleep(0.3)
    fed = []
    feeder = threading.Thread(target=lambda: fed.append(uart.receive(b"x")), daemon=True)
    feeder.start()
    feeder.join(5 * (10 if RIG else 1))
    stuck = feeder.is_alive()
    cpu.kick()
    runner.result()
    feeder.join(5)
    assert not stuck
    assert fed == [1]


def test_string_output_to_a_full_pipe(start, vm, pipe):
    """REP OUTSB, which KVM's emulator does not leave for a kick until it is through."""
    reader, writer = pipe
    uart = Uart(writer)
    vm.attach(uart, COM1)
    data = bytes(i * 3 & 0xFF for i in range(16_384))
    vm.load(data, at=0x10_0000)
    cpu = start(f"mov dx, {COM1}; mov esi, 0x100000; mov ecx, {len(data)}; rep outsb; hlt")
    got = b""
    while (exit := cpu.run(timeout=0.1)) != kvmpy.Hlt():
        assert exit == kvmpy.Timeout()
        got += available(reader)
    while uart.sink.flush():
        got += available(reader, 5)
    while chunk := available(reader):
        got += chunk
    assert got == data


@pytest.mark.parametrize("text", [b"x\n", b"y" * 5000])
def test_a_closed_pipe_is_an_error(start, vm, broken_pipe, text):
    """EPIPE comes out of run(); the guest can go on, its output goes nowhere."""
    vm.attach(Uart(broken_pipe), COM1)
    cpu = start(f"mov dx, {COM1};" + f"mov ecx, {len(text)};"
                "1: mov al, [0x8000]; cmp ecx, 1; jne 2f; mov al, [0x8001]; 2: out dx, al; loop 1b;"
                "hlt")  # fmt: skip
    vm.load(text[:1] + text[-1:], at=0x8000)
    with pytest.raises(OSError, match="Broken pipe") as info:
        cpu.run(timeout=5)
    assert info.value.errno == errno.EPIPE
    assert cpu.run(timeout=5) == kvmpy.Hlt()


@pytest.mark.parametrize("width", ["ax", "eax"])
def test_a_closed_pipe_and_a_wide_write(start, vm, broken_pipe, width):
    """The newline is not the last of the bytes: its error must not be forgotten."""
    vm.attach(DebugConsole(broken_pipe), 0xE9)
    cpu = start(f"mov eax, 0x6161610a; out 0xe9, {width}; hlt")
    with pytest.raises(OSError, match="Broken pipe"):
        cpu.run(timeout=5)


def test_a_closed_pipe_found_when_the_run_ends(start, vm, broken_pipe):
    """Nothing was written before: it is told in place of the exit, which comes next; once."""
    uart = Uart(broken_pipe)
    vm.attach(uart, COM1)
    cpu = start(put(b"x") + "out 0x10, al;" + put(b"y") + "hlt")
    with pytest.raises(OSError, match="Broken pipe"):
        cpu.run(timeout=5)
    assert cpu.run(timeout=5).port == 0x10
    assert cpu.run(timeout=5) == kvmpy.Hlt()
    with pytest.raises(OSError, match="Broken pipe"):
        uart.sink.flush()
    uart.sink.redirect(None)
    assert uart.sink.flush() == 0


@pytest.mark.parametrize("device", [Uart, DebugConsole])
def test_a_full_disk(start, vm, device):
    """ENOSPC, however little was to be written."""
    port = COM1 if device is Uart else 0xE9
    with open("/dev/full", "wb", buffering=0) as full:
        console = device(full.fileno())
        vm.attach(console, port)
        cpu = start(put(b"x", port) + "hlt")
        with pytest.raises(OSError, match="No space left"):
            cpu.run(timeout=5)
        assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_a_full_disk_and_a_batch_handler_that_raises(start, vm):
    """Both are told; the exit comes next."""
    vm.on_io_batch(0x10)(lambda batch: 1 / 0)
    with open("/dev/full", "wb", buffering=0) as full:
        vm.attach(DebugConsole(full.fileno()), 0xE9)
        cpu = start("out 0xe9, al; out 0x10, al; hlt")
        with pytest.raises(OSError, match="No space left") as info:
            cpu.run(timeout=5)
        assert isinstance(info.value.__context__, ZeroDivisionError)
        assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_what_is_left_when_the_run_ends(start, vm, pipe):
    """The pipe was full until then: flush() says how much waits, and writes it."""
    reader, writer = pipe
    uart = Uart(writer)
    vm.attach(uart, COM1)
    os.write(writer, b"-" * 4096)
    cpu = start(put(b"late") + "hlt")
    assert cpu.run(timeout=5) == kvmpy.Hlt()
    assert uart.sink.flush() == 4
    assert available(reader) == b"-" * 4096
    assert uart.sink.flush() == 0
    assert available(reader) == b"late"


def test_redirect(start, vm, pipe):
    """From memory to a descriptor and back: what came before stays where it was."""
    reader, writer = pipe
    uart = Uart()
    vm.attach(uart, COM1)
    cpu = start("".join(put(bytes([c])) + "hlt;" for c in b"abc"))
    cpu.expect(kvmpy.Hlt, timeout=5)
    uart.sink.redirect(writer)
    cpu.expect(kvmpy.Hlt, timeout=5)
    uart.sink.redirect(None)
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert uart.output == b"ac"
    assert available(reader) == b"b"


# ---------------------------------------------------------------- input and interrupts

ECHO = f"""
    mov dx, {COM1 + 5}
1:  in al, dx
    test al, 1
    jz 1b
    mov dx, {COM1}
    in al, dx
    cmp al, 'q'
    je 2f
    out dx, al
    mov dx, {COM1 + 5}
    jmp 1b
2:  hlt
"""


def test_polled_input(start, vm):
    """A guest that polls gets every byte once, in order."""
    uart = Uart()
    vm.attach(uart, COM1)
    assert uart.receive(b"hello q") == 7
    assert uart.backlog == 7
    cpu = start(ECHO)
    cpu.expect(kvmpy.Hlt, timeout=10)
    assert uart.output == b"hello "
    assert uart.backlog == 0


def test_input_from_another_thread(start, vm, run_in_thread, wait_until):
    """While the guest waits, more than the queue holds: the rest when the eventfd says so."""
    uart = Uart()
    vm.attach(uart, COM1)
    cpu = start(ECHO)
    runner = run_in_thread(cpu)
    data, sent = bytes(32 + i % 64 for i in range(10_000)) + b"q", 0
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        while sent < len(data):
            sent += uart.receive(data[sent:], space_eventfd=event)
            if sent < len(data):
                assert select.select([event], [], [], 30 * (10 if RIG else 1))[0]
                os.eventfd_read(event)
    finally:
        assert runner.result(60) == kvmpy.Hlt()
        uart.receive(b"", space_eventfd=None)
        os.close(event)
    assert uart.output == data[:-1]


FCR, LCR, MCR, LSR = COM1 + 2, COM1 + 3, COM1 + 4, COM1 + 5


def writes(*pairs):
    """Writes to registers; at the end HLT."""
    return "".join(f"mov dx, {port}; mov al, {value}; out dx, al; " for port, value in pairs)


#: All that is received goes to memory from 0x3000 on.
DRAIN = f"""
    mov edi, 0x3000
1:  mov dx, {LSR}; in al, dx; test al, 1; jz 2f
    mov dx, {COM1}; in al, dx; stosb
    jmp 1b
2:  hlt
"""


@pytest.mark.parametrize(
    "resets", [[7], [3], [1], [1, 7, 0], [1, 7, 0, 1, 7, 0, 7]], ids=lambda resets: str(resets)
)
def test_a_fifo_reset_takes_what_is_in_the_fifo(start, vm, resets):
    """Sixteen bytes, not what still waits on the wire: a driver resets it several times before it
    reads."""
    uart = Uart()
    vm.attach(uart, COM1)
    data = bytes(i % 251 for i in range(500))
    assert uart.receive(data) == 500
    cpu = start(f"mov dx, {LSR}; in al, dx; " + writes(*((FCR, v) for v in resets)) + DRAIN)
    cpu.expect(kvmpy.Hlt, timeout=60)
    left = data[16 * len(resets) :]
    assert vm.memory.read(0x3000, len(left) + 1) == left + b"\0"
    assert uart.backlog == 0


def test_a_reset_of_a_full_fifo_takes_sixteen(start, vm):
    uart = Uart()
    vm.attach(uart, COM1)
    data = bytes(i % 251 for i in range(500))
    uart.receive(data)
    cpu = start(
        writes((FCR, 1)) + f"mov dx, {LSR}; in al, dx; " + writes((FCR, 3)) + "hlt;" + DRAIN
    )
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert uart.backlog == 500 - 32  # FIFOs that are enabled begin empty, too
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert vm.memory.read(0x3000, 468) == data[32:]


def test_a_reset_of_an_empty_fifo_leaves_no_data(start, vm):
    uart = Uart()
    vm.attach(uart, COM1)
    uart.receive(b"x" * 32)
    cpu = start(
        writes((FCR, 1))
        + f"mov dx, {LSR}; in al, dx; mov bl, al;"
        + writes((FCR, 3))
        + f"mov dx, {LSR}; in al, dx; hlt"
    )
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert (cpu.regs.rbx & 0xFF, cpu.regs.rax & 0xFF) == (0x61, 0x60)


def test_space_after_the_guest_reads(start, vm):
    """Who waits for room is told once half of it is free."""
    uart = Uart()
    vm.attach(uart, COM1)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        taken = uart.receive(b"x" * 5000, space_eventfd=event)
        assert 0 < taken < 5000
        cpu = start(DRAIN)
        cpu.expect(kvmpy.Hlt, timeout=60)
        assert uart.backlog == 0
        assert os.eventfd_read(event) == 1
    finally:
        os.close(event)


@pytest.mark.parametrize(("fifo", "kept"), [(0, [40]), (1, list(range(1, 17)))])
def test_loopback(start, vm, fifo, kept):
    """What comes back is the guest's own alone, in a receiver of the depth that it has: a full FIFO
    keeps what it holds, RBR alone is overwritten; LSR tells of either."""
    uart = Uart()
    vm.attach(uart, COM1)
    uart.receive(b"host")
    cpu = start(
        writes((MCR, 0x10), (FCR, fifo), *((COM1, i) for i in range(1, 41)))
        + f"mov dx, {LSR}; in al, dx; mov bl, al; in al, dx; mov bh, al;"
        + DRAIN
        + writes((MCR, 0))
        + DRAIN
    )
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert cpu.regs.rbx & 0xFFFF == 0x6163  # overrun, once
    assert list(vm.memory.read(0x3000, len(kept) + 1)) == [*kept, 0]
    assert uart.output == b""
    assert uart.backlog == 4
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert vm.memory.read(0x3000, 4) == b"host"


@pytest.mark.parametrize("wide", ["in ax, dx", "in eax, dx"])
def test_a_read_past_the_last_register(start, vm, wide):
    """There is nothing: it must not take a byte from the receiver."""
    uart = Uart()
    vm.attach(uart, COM1)
    uart.receive(b"ab")
    cpu = start(
        writes((COM1 + 7, 0x5A)) + f"mov dx, {COM1 + 7}; mov eax, 0; {wide}; mov ebx, eax; hlt"
    )
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert cpu.regs.rbx & 0xFF == 0x5A
    assert cpu.regs.rbx >> 8 in (0xFF, 0xFFFFFF)
    assert uart.backlog == 2
    assert uart.output == b""


PIC = """
    mov al, 0x11; out 0x20, al; mov al, 0x20; out 0x21, al   # vectors from 0x20
    mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
    mov al, 0xef; out 0x21, al                               # IRQ 4 only
"""
#: HLT until IRQ 4; the handler reads the UART and writes the byte to port 0x10.
WAIT = f"""
    {PIC}
    mov dx, {COM1 + 1}; mov al, 1; out dx, al                # receive interrupt
    mov al, 1; out 0x11, al                                  # ready
    sti
1:  hlt
    jmp 1b
"""
HANDLER = f"""
    mov dx, {COM1 + 2}; in al, dx; mov ah, al
1:  mov dx, {COM1 + 5}; in al, dx; test al, 1; jz 2f
    mov dx, {COM1}; in al, dx
    out 0x10, al
    jmp 1b
2:  mov al, 0x20; out 0x20, al
    iretq
"""


@pytest.mark.parametrize("how", ["line", "eventfd"])
def test_interrupt_wakes_a_halted_guest(how, run_in_thread, wait_until):
    """With the in-kernel irqchip HLT does not exit (correctness 15): a byte from the host wakes the
    guest through IRQ 4 of the PIC."""
    uart = Uart()
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    with kvmpy.VM("2M", irqchip=True) as vm:
        vm.attach(uart, COM1)
        got, ready = [], []
        vm.on_io(0x10)(lambda port, size, value: got.append(value))
        vm.on_io(0x11)(lambda port, size, value: ready.append(value))
        if how == "line":
            uart.connect_line(vm.fileno(), 4)
        else:
            vm.irqfd(event, 4)
            uart.connect_eventfd(event)
        vm.load(kvmpy.asm(HANDLER, org=0x2000), at=0x2000)
        vm.load(kvmpy.asm(WAIT, org=0x1000), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000, handlers={0x24: 0x2000})
        runner = run_in_thread(cpu)
        wait_until(lambda: ready or not runner.is_alive())
        time.sleep(0.05)
        assert runner.is_alive(), runner.result()
        for byte in b"ab":
            uart.receive(bytes([byte]))
            wait_until(lambda byte=byte: byte in got)
        uart.receive(b"cdef")
        wait_until(lambda: len(got) == 6)
        assert bytes(got) == b"abcdef"
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)
        uart.disconnect()
    os.close(event)


def test_kick_of_a_halted_guest(run_in_thread):
    """A guest that KVM itself holds in HLT is kicked and timed out like any other."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        vm.load(kvmpy.asm("1: hlt; jmp 1b"), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        assert cpu.run(timeout=0.02) == kvmpy.Timeout()
        runner = run_in_thread(cpu)
        time.sleep(0.02)
        cpu.kick()
        assert runner.result() == kvmpy.Kicked(0)


def test_interrupts_after_the_vm_is_gone(run_in_thread):
    """Input for a UART whose VM was closed raises no line in another, which may well have got the
    same descriptor."""
    uart = Uart()
    with kvmpy.VM("2M", irqchip=True) as vm:
        vm.attach(uart, COM1)
        uart.connect_line(vm.fileno(), 4)
        vm.load(kvmpy.asm(f"mov dx, {COM1 + 1}; mov al, 1; out dx, al; out 0x99, al"), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        cpu.expect(kvmpy.IoOut, timeout=5)
        old = vm.fileno()
    with kvmpy.VM("2M", irqchip=True) as vm:
        assert vm.fileno() == old
        raised = []
        vm.on_io(0x10)(lambda port, size, value: raised.append(value))
        vm.load(kvmpy.asm("mov al, 0xff; out 0x10, al; iretq", org=0x2000), at=0x2000)
        vm.load(kvmpy.asm(f"{PIC}; sti; 1: hlt; jmp 1b", org=0x1000), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000, handlers={0x24: 0x2000})
        cpu.run(timeout=0.05)
        assert uart.receive(b"x") == 1
        cpu.run(timeout=0.05)
        assert raised == []


def test_user_space_interrupt(start, vm):
    """Without an irqchip: KVM_INTERRUPT wakes a guest that exited with HLT."""
    vm.load(kvmpy.asm("mov al, 5; out 0x10, al; iretq"), at=0x2000)
    cpu = start("sti; hlt; mov al, 6; out 0x10, al", handlers={0x30: 0x2000})
    cpu.expect(kvmpy.Hlt, timeout=5)
    cpu.interrupt(0x30)
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 5
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 6


# ---------------------------------------------------------------- small ports


@pytest.mark.parametrize(("width", "value"), [("al", 0x2A), ("ax", 0x1234), ("eax", 0xDEAD_BEEF)])
def test_debug_exit(start, vm, width, value):
    """The value written is the status; the run is over, and can be gone on with."""
    vm.attach(DebugExitPort(), 0xF4)
    cpu = start(f"mov eax, {value}; out 0xf4, {width}; hlt")
    exit = cpu.run(timeout=5)
    assert exit == kvmpy.DebugExit(value)
    assert not exit.resumable
    assert cpu.run(timeout=5) == kvmpy.Hlt()


def test_post_port(start, vm):
    """The last code is kept and reads back; writes are counted."""
    post = PostPort()
    vm.attach(post, 0x80)
    cpu = start(
        "mov al, 0x11; out 0x80, al; mov al, 0x22; out 0x80, al; xor eax, eax; in al, 0x80; hlt"
    )
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert (post.last, post.writes, cpu.regs.rax) == (0x22, 2, 0x22)


def test_debug_console_says_that_it_is_there(start, vm):
    """Reads give 0xe9."""
    vm.attach(DebugConsole(), 0xE9)
    cpu = start("in al, 0xe9; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rax & 0xFF == 0xE9


def test_uart_as_mmio(start, vm):
    """The same device at a guest physical address."""
    uart = Uart()
    vm.attach(uart, 0xD000_0000, mmio=True)
    cpu = start("mov ecx, 0xd0000000; mov byte ptr [rcx], 'm'; mov al, [rcx + 5]; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert uart.output == b"m"
    assert cpu.regs.rax & 0xFF == 0x60
