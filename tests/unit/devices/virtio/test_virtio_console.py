"""The console device, driven as a guest would."""

import hashlib
import os
import pty
import random
import select
import socket
import threading
import tty
from contextlib import suppress

import pytest
import virtio_driver as v
from hypothesis import given, settings, strategies as st
from virtio_driver import WRITE
from virtio_terminal import RX, RX_DATA, TX, TX_DATA, Terminal

import kvmpy
from kvmpy.devices.sink import KEEP_BYTES
from kvmpy.devices.virtio import VirtioConsole
from kvmpy.machine import ScriptConsole

MIB = 1 << 20


@pytest.fixture
def memory():
    with kvmpy.GuestMemory("16M") as memory:
        yield memory


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):  # the test did
            os.close(fd)


@pytest.fixture
def console():
    with VirtioConsole() as console:
        yield console


@pytest.fixture
def terminal(console, memory):
    return Terminal(console, memory)


def test_configuration(memory):
    with VirtioConsole(size=(132, 43)) as console:
        terminal = Terminal(console, memory)
        assert terminal.read(v.DEVICE_ID) == 3
        assert terminal.features() & 3 == 1, "F_SIZE, and no F_MULTIPORT"
        assert (terminal.config(0, 2), terminal.config(2, 2)) == (132, 43)
        generation = terminal.read(v.CONFIG_GENERATION)
        console.set_size(80, 24)
        assert terminal.wait_interrupt() == 2
        assert (terminal.config(0, 2), terminal.config(2, 2)) == (80, 24)
        assert terminal.read(v.CONFIG_GENERATION) != generation
        assert console.size == (80, 24)


@pytest.mark.parametrize("size", [(-1, 25), (80, 65536)])
def test_size_that_is_none(console, size):
    with pytest.raises(ValueError, match="columns"):
        console.set_size(*size)
    with pytest.raises(ValueError, match="columns"):
        VirtioConsole(size=size)
    assert console.size == (80, 25)


# ---------------------------------------------------------------- output


def test_output_in_memory(terminal):
    terminal.write(b"Hello, ")
    terminal.write(b"world\n", 1, 2, 3, 4, 5)
    assert terminal.device.output == b"Hello, world\n"
    assert terminal.device.statistics.bytes_out == 13
    terminal.device.close()
    assert terminal.device.output == b"Hello, world\n"


def test_nothing_to_read(terminal):
    """Empty chains, and ones with buffers to write to: nothing of those is output."""
    terminal.tx.add((TX_DATA, 0, 0))
    terminal.tx.add((TX_DATA, 100, WRITE))
    head = terminal.tx.add((TX_DATA, 0, 0), (TX_DATA, 100, WRITE))
    terminal.tx.set_used_event(2)
    assert terminal.complete(3, queue=TX)[-1] == (head, 0)
    terminal.write(b"!")
    assert terminal.device.output == b"!"


def test_memory_is_bounded(terminal):
    """The last 16 MiB are kept, and the host has no more than twice that."""
    terminal.memory.write(TX_DATA, bytes(range(256)) * (MIB // 256))
    for _ in range(5):
        for _ in range(16):
            terminal.tx.add((TX_DATA, MIB, 0))
        terminal.tx.set_used_event(terminal.tx.used_idx + 15)
        terminal.complete(16, queue=TX)
    assert terminal.device.statistics.bytes_out == 80 * MIB
    output = terminal.device.output
    assert len(output) == KEEP_BYTES
    assert output == bytes(range(256)) * (KEEP_BYTES // 256)
    status = os.stat(f"/proc/self/fd/{terminal.device._memory_fd}")
    assert status.st_blocks * 512 <= 2 * KEEP_BYTES + MIB


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 70000, 3 * MIB])
@pytest.mark.parametrize("blocking", [True, False])
def test_pipe(memory, pipe, size, blocking):
    """A slow reader: the chain waits, whatever the pipe's mode; the caller's stays as it is."""
    reader, writer = pipe
    os.set_blocking(writer, blocking)
    data = random.Random(size).randbytes(size)
    with VirtioConsole(writer) as console:
        assert os.get_blocking(writer) is blocking
        terminal = Terminal(console, memory)
        terminal.prepare(data)
        terminal.notify(TX)
        terminal.settle()
        assert len(terminal.tx.take()) == (1 if size <= 65536 else 0)
        got = b""
        while len(got) < size:
            got += os.read(reader, 5000)
        assert got == data
        assert console.flush()
        assert console.statistics.requests == 1
        assert os.get_blocking(writer) is blocking


@pytest.mark.parametrize("kind", ["socket", "terminal", "controller", "file"])
def test_descriptors(memory, tmp_path, kind):
    """All kinds, none of them non-blocking."""
    data = random.Random(5).randbytes(200_000).replace(b"\n", b"")
    if kind == "file":
        path = tmp_path / "output"
        reader, writer = -1, os.open(path, os.O_WRONLY | os.O_CREAT)
    elif kind == "socket":
        reader, writer = (end.detach() for end in socket.socketpair())
    else:
        controller, user = pty.openpty()
        tty.setraw(user)
        reader, writer = (controller, user) if kind == "terminal" else (user, controller)
    try:
        with VirtioConsole(writer) as console:
            assert os.get_blocking(writer)
            terminal = Terminal(console, memory)
            terminal.prepare(data, 100, 101, 50_000)
            terminal.notify(TX)
            got = b""
            while reader >= 0 and len(got) < len(data):
                got += os.read(reader, 100_000)
            assert console.flush()
            assert (path.read_bytes() if kind == "file" else got) == data
    finally:
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)


def test_stalled_terminal_does_not_hold_the_worker(memory):
    """Nobody reads the other side: disconnect() comes back all the same."""
    controller, user = pty.openpty()
    tty.setraw(user)
    try:
        with VirtioConsole(user) as console:
            terminal = Terminal(console, memory)
            terminal.prepare(b"x" * MIB)
            terminal.notify(TX)
            terminal.settle()
            assert not console.flush(0.05)
    finally:
        os.close(controller)
        os.close(user)


def test_reader_that_goes_away(memory, pipe):
    """Output vanishes, and the guest goes on; until somebody else listens."""
    reader, writer = pipe
    with VirtioConsole(writer) as console:
        terminal = Terminal(console, memory)
        terminal.prepare(b"x" * 200_000)
        terminal.notify(TX)
        terminal.settle()
        os.close(reader)
        assert terminal.wait_interrupt() & 1
        terminal.tx.take()
        terminal.write(b"lost")
        with pytest.raises(BrokenPipeError):
            console.flush()
        assert console.statistics.errors == 2
        console.redirect(None)
        terminal.write(b"kept")
        assert console.flush()
        assert console.output == b"kept"


def test_redirect(memory, pipe):
    """In the middle of a chain: its rest goes to the new descriptor."""
    reader, writer = pipe
    data = random.Random(3).randbytes(200_000)
    with VirtioConsole(writer) as console:
        terminal = Terminal(console, memory)
        terminal.prepare(data)
        terminal.notify(TX)
        terminal.settle()
        console.redirect(None)
        assert console.flush()
        os.close(writer)
        rest = b""
        while part := os.read(reader, 65536):
            rest += part
        assert rest + console.output == data
        terminal.tx.take()
        console.redirect(1)
        console.redirect(None)
        terminal.write(b"more")
        assert rest + console.output == data + b"more"
    with pytest.raises(kvmpy.ClosedError):
        console.redirect(None)


def test_flush(memory, pipe):
    """Waits for the reader, and for what the worker has not seen yet."""
    reader, writer = pipe
    with VirtioConsole(writer) as console:
        assert console.flush(), "without a guest there is nothing to wait for"
        terminal = Terminal(console, memory)
        terminal.prepare(b"x" * 300_000)
        terminal.rings[TX].expose()  # without a notification
        assert not console.flush(0.05)
        got = []
        thread = threading.Thread(target=lambda: got.append(console.flush(20)))
        thread.start()
        left = 300_000
        while left:
            left -= len(os.read(reader, 65536))
        thread.join(20)
        assert got == [True]


# ---------------------------------------------------------------- input


@pytest.mark.parametrize("features", [v.F_VERSION_1, None])
def test_input(console, memory, features):
    terminal = Terminal(console, memory, features=features)
    assert console.receive(b"before ") == 7
    assert console.backlog == 7
    terminal.offer(3, 1)
    terminal.offer(100)
    terminal.notify(RX)
    terminal.settle()
    assert console.backlog == 0
    assert terminal.take_input() == b"before "
    assert console.receive(b"now") == 3
    terminal.offer(2)
    terminal.notify(RX)
    terminal.settle()
    assert terminal.take_input() == b"no"
    assert console.backlog == 1
    assert console.statistics.bytes_in == 9


def test_input_waits_for_the_driver(console, memory):
    assert console.receive(b"x" * 1000) == 1000
    terminal = Terminal(console, memory)
    terminal.offer_pages(1)
    assert terminal.read_input(1000) == b"x" * 1000


def test_input_is_bounded(console, memory):
    """64 KiB; then the eventfd says when half of it is free, once."""
    event = os.eventfd(0, os.EFD_NONBLOCK)
    data = random.Random(4).randbytes(100_000)
    try:
        assert console.receive(data, space_eventfd=event) == 65536
        assert console.receive(b"more", space_eventfd=event) == 0
        terminal = Terminal(console, memory)
        terminal.offer(32767)
        terminal.notify(RX)
        terminal.settle()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
        terminal.offer(1)
        terminal.notify(RX)
        terminal.settle()
        assert os.eventfd_read(event) == 1
        assert terminal.take_input() == data[:32768]
        assert console.receive(data[65536:], space_eventfd=event) == 32768
        assert console.receive(b"") == 0  # forgets the eventfd
        os.close(event)
        event = os.eventfd(0, os.EFD_NONBLOCK)  # the same number
        terminal.offer_pages(16)
        assert terminal.read_input(65536) == data[32768 : 32768 + 65536]
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
    finally:
        os.close(event)


def test_input_in_no_place(terminal):
    """Buffers to read from, and empty ones, take nothing with them."""
    terminal.device.receive(b"input")
    terminal.rx.add((RX_DATA, 100, 0))
    terminal.rx.add((RX_DATA, 0, WRITE))
    terminal.notify(RX)
    terminal.settle()
    assert [length for _, length in terminal.rx.take()] == [0, 0]
    terminal.offer(10)
    terminal.notify(RX)
    terminal.settle()
    assert terminal.take_input() == b"input"


@pytest.mark.parametrize("queue", [RX, TX])
def test_broken_chain(terminal, queue):
    terminal.device.receive(b"input")
    terminal.rings[queue].add((0x7000_0000, 100, WRITE if queue == RX else 0))
    terminal.notify(queue)
    assert terminal.wait_interrupt() & 2
    assert terminal.device.fault == f"queue {queue}: a buffer lies outside guest memory"
    assert terminal.device.flush()
    terminal.device.disconnect()
    again = Terminal(terminal.device, terminal.memory)
    again.offer_pages(1)
    assert again.read_input(5) == b"input"


@given(st.lists(st.one_of(
    st.tuples(st.just("input"), st.integers(0, 80_000)),
    st.tuples(st.just("buffer"), st.lists(st.integers(0, 9000), min_size=1, max_size=4)),
    st.tuples(st.just("output"), st.lists(st.integers(0, 9000), min_size=1, max_size=4)),
), max_size=30))  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_any_traffic(steps):
    """Input and output are what went in, in order, whatever the buffers."""
    chance = random.Random(6)
    with kvmpy.GuestMemory("16M") as memory, VirtioConsole() as console:
        terminal = Terminal(console, memory)
        sent, typed, got = b"", b"", b""
        for what, size in steps:
            if what == "input":
                data = chance.randbytes(size)
                typed += data[: console.receive(data)]
            elif what == "buffer":
                terminal.offer(*size)
                terminal.notify(RX)
                terminal.settle()
                got += terminal.take_input()
            else:
                data = chance.randbytes(sum(size))
                cuts = [sum(size[:i]) for i in range(1, len(size))]
                terminal.write(data, *cuts)
                sent += data
        got += terminal.take_input()
        assert console.output == sent
        assert typed == got + typed[len(got) :]
        assert len(typed) - len(got) == console.backlog


# ---------------------------------------------------------------- with a script


def test_script_console(memory, pipe):
    """ScriptConsole's two sides: the pipe, and receive()."""
    reader, writer = pipe
    with VirtioConsole(writer) as console:
        os.close(writer)
        terminal = Terminal(console, memory)
        terminal.offer_pages(4)
        with ScriptConsole(os.dup(reader), console) as script:
            terminal.write(b"host login: ")
            script.expect("login: ", timeout=20)
            script.send(b"root\n")
            assert terminal.read_input(5) == b"root\n"
            terminal.write(b"# ")
            assert script.expect("# ", timeout=20).before == b""


@pytest.mark.parametrize("size", [100 * MIB])
def test_100_mib_both_ways(memory, pipe, size):
    """At the same time, through a script's console; by checksum."""
    reader, writer = pipe
    block = random.Random(7).randbytes(MIB)
    expected = hashlib.sha256()
    for _ in range(size // MIB):
        expected.update(block)
    with VirtioConsole(writer) as console:
        terminal = Terminal(console, memory)
        terminal.offer_pages(64)
        read, event = hashlib.sha256(), os.eventfd(0)

        def type_all():
            left = memoryview(block * 2)
            sent = 0
            while sent < size:
                chunk = left[sent % MIB :][: min(65536, size - sent)]
                taken = console.receive(bytes(chunk), space_eventfd=event)
                sent += taken
                if taken < len(chunk):
                    os.eventfd_read(event)

        def read_all():
            left = size
            while left:
                data = os.read(reader, MIB)
                read.update(data)
                left -= len(data)

        threads = [threading.Thread(target=f, daemon=True) for f in (type_all, read_all)]
        for thread in threads:
            thread.start()
        memory.write(TX_DATA, block)
        got, typed, sent = hashlib.sha256(), 0, 0
        while sent < size or typed < size or terminal.tx.chains:
            terminal.tx.take()
            while sent < size and len(terminal.tx.free) > 32:
                terminal.tx.add((TX_DATA + sent % MIB, 32768, 0))
                sent += 32768
            terminal.tx.set_used_event(terminal.tx.used_idx)
            terminal.notify(TX)
            if typed < size:
                data = terminal.read_input(1)
                typed += len(data)
                got.update(data)
            elif terminal.tx.chains and not terminal.tx.take():
                terminal.wait_interrupt()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        os.close(event)
    assert typed == size
    assert got.digest() == read.digest() == expected.digest()
    assert console.statistics.bytes_out == console.statistics.bytes_in == size


def test_nothing_is_left_open(memory, pipe):
    before = len(os.listdir("/proc/self/fd"))
    for fd in (None, pipe[1]):
        with VirtioConsole(fd) as console:
            Terminal(console, memory).write(b"x")
            console.redirect(pipe[1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        VirtioConsole(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before


def test_output_that_was_taken_back(memory, pipe):
    """QueueReady = 0: what waits for the pipe's reader is the driver's again."""
    reader, writer = pipe
    os.set_blocking(writer, False)
    with VirtioConsole() as console:
        console.redirect(writer)
        terminal = Terminal(console, memory)
        memory.write(TX_DATA, b"a" * MIB)
        terminal.rings[TX].add((TX_DATA, MIB, 0))
        terminal.notify(TX)
        got = os.read(reader, 4096)
        assert not console.flush(0.2)  # the pipe is full
        terminal.write(v.QUEUE_SEL, TX)
        terminal.write(v.QUEUE_READY, 0)
        assert terminal.read(v.QUEUE_READY) == 0
        memory.write(TX_DATA, b"secret! " * (MIB // 8))
        while select.select([reader], [], [], 0.2)[0]:  # a writer that goes on would fill it again
            got += os.read(reader, MIB)
    assert set(got) == {ord("a")}
    assert len(got) < MIB
