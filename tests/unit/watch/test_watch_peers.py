"""Finding machines, and peers that are none: damaged, hostile, slow, gone, another user's."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import made_up_machine
import pytest
from hypothesis import given, strategies as st
from made_up_machine import Handout, MadeUpMachine, greeting, memory

from kvmpy.watch import PeerError, Watch, find, machines, publish

ME = os.getpid()


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@contextlib.contextmanager
def handing_out(message: bytes, *fds: int) -> Iterator[str]:
    """A peer that hands out this; its descriptors are closed afterwards."""
    peer = Handout(message, fds)
    try:
        yield peer.socket
    finally:
        peer.close()
        for fd in fds:
            os.close(fd)


def test_a_machine_is_found_by_who_and_what_it_is() -> None:
    with MadeUpMachine(3, b"vmlinuz") as machine:
        (info,) = [info for info in machines(ME) if info.socket == machine.socket]
        assert (info.pid, info.name, info.memory, info.cpus) == (ME, "vmlinuz", 1 << 28, 3)
    assert machine.socket not in {info.socket for info in machines()}


def test_names_are_told_from_all_else() -> None:
    name = made_up_machine.socket_name(77)
    text = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"00000000e77ea237: 00000002 00000000 00010000 0005 01 10954900 @{name}\n"
        f"00000000e77ea238: 00000002 00000000 00010000 0005 01 10954901 /run/{name}\n"
        "00000000e77ea239: 00000002 00000000 00010000 0005 01 10954902 @kvmpy.machine/x/00000000\n"
        "00000000e77ea23a: 00000002 00000000 00010000 0005 01 10954903 @kvmpy.machine/0/00000000\n"
        "00000000e77ea23b: 00000002 00000000 00010000 0005 01 10954904\n"
    )
    assert find._names(text) == [(77, name)]


@given(st.text(max_size=200))
def test_names_of_any_text(text: str) -> None:
    line = f"@{publish.SOCKET_PREFIX}{text}/0a0b0c0d\n"
    for pid, name in find._names(line):
        assert 0 < pid < 10**9
        assert name in line


def test_the_names_end_with_their_process() -> None:
    """However that ends: nothing stale is left to clean up."""
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import made_up_machine as m;"
        "machine = m.MadeUpMachine(); print(machine.socket, flush=True); time.sleep(600)"
    )
    tests = os.path.dirname(made_up_machine.__file__)
    command = [sys.executable, "-c", code, tests]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            name = process.stdout.readline().strip()
            with Watch(process.pid) as watch:
                assert [info.socket for info in watch.machines] == [name]
                process.kill()
                assert process.wait(60) == -signal.SIGKILL
                sample = watch.sample()
                assert ([m.info for m in sample.machines], len(sample.ended)) == ([], 1)
                assert watch.sample().ended == ()
            assert name not in {found for _, found in find.listed()}
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"x", "greeting has 1 bytes"),
        (greeting(magic=b"kvmpytoP"), "not that of a kvmpy machine"),
        (greeting(format=2), "another version"),
        (greeting(record_size=64), "another version"),
        (greeting(cpus=0), "have 0 vCPUs"),
        (greeting(cpus=1 << 20), "have 1048576 vCPUs"),
        (greeting(b"n" * 300), "sends too much"),
        (greeting(cpus=2), "memory it sends is not"),
        (greeting(with_stats=1), "1 descriptors for 1 vCPUs"),
        (greeting(with_stats=2), "claims to have"),
    ],
)
def test_damaged_greetings(message: bytes, text: str) -> None:
    fd, _ = memory()
    with handing_out(message, fd) as name, pytest.raises(PeerError, match=text):
        find.Peer(name)


@given(st.binary(max_size=300))
def test_any_greeting(data: bytes) -> None:
    """It is a machine's, or refused with a sentence."""
    name = f"{publish.SOCKET_PREFIX}{ME}/00000000"
    for message in (data, greeting()[:12] + data):
        try:
            info, with_stats = find._read_greeting(message, ME, name)
        except PeerError:
            continue
        assert 1 <= info.cpus <= 4096
        assert info.name.isprintable()
        assert with_stats in (False, True)


def test_a_name_that_a_terminal_would_obey() -> None:
    with MadeUpMachine(name=b"\x1b[2Jboo\xff") as machine:
        peer = find.Peer(machine.socket)
        peer.close()
        assert peer.info.name == "\\x1b[2Jboo�"


def test_memory_that_could_shrink_is_not_read() -> None:
    fd, _ = memory(seals=0)
    with (
        handing_out(greeting(), fd) as name,
        pytest.raises(PeerError, match="memory it sends is not"),
    ):
        find.Peer(name)


@pytest.mark.parametrize("size", [0, 64, publish.HEADER_SIZE + publish.RECORD_SIZE - 1])
def test_memory_that_is_too_small(size: int) -> None:
    fd, _ = memory(size=size)
    with (
        handing_out(greeting(), fd) as name,
        pytest.raises(PeerError, match="memory it sends is not"),
    ):
        find.Peer(name)


def test_descriptors_that_are_something_else() -> None:
    reader, writer = os.pipe()
    with handing_out(greeting(), reader, writer) as name, pytest.raises(PeerError):
        find.Peer(name)
    fd, _ = memory()
    reader, writer = os.pipe()
    os.close(writer)
    with (
        handing_out(greeting(with_stats=1), fd, reader) as name,
        pytest.raises(PeerError, match="not a KVM statistics descriptor"),
    ):
        find.Peer(name)


def test_no_descriptors_at_all() -> None:
    with handing_out(greeting()) as name, pytest.raises(PeerError, match="0 descriptors"):
        find.Peer(name)


def test_many_descriptors_arrive_in_order() -> None:
    """More than go into a packet."""
    fds = [memory(size=64 + n)[0] for n in range(150)]
    with handing_out(greeting(cpus=149, with_stats=1), *fds) as name:
        got: list[int] = []
        pid, message = find._receive(name, got)
        try:
            assert (pid, message[:8]) == (ME, publish.MAGIC)
            assert [os.fstat(fd).st_size for fd in got] == [64 + n for n in range(150)]
            assert not any(os.get_inheritable(fd) for fd in got)
        finally:
            for fd in got:
                os.close(fd)


@contextlib.contextmanager
def listening(serve: bool) -> Iterator[str]:
    """A peer that accepts nothing, or that talks without an end."""
    name = made_up_machine.socket_name()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(f"\0{name}")
        server.listen(1)
        thread = threading.Thread(target=_talk, args=(server,))
        if serve:
            thread.start()
        yield name
        server.shutdown(socket.SHUT_RDWR)
    if serve:
        thread.join(20)


def _talk(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        while True:
            connection.send(greeting())
            time.sleep(0.001)


@pytest.mark.parametrize("serve", [False, True])
def test_a_peer_that_keeps_us_waiting(monkeypatch: pytest.MonkeyPatch, serve: bool) -> None:
    monkeypatch.setattr(find, "_PATIENCE", 0.1)
    with listening(serve) as name, pytest.raises(PeerError, match=r"within 0\.1 s|timed out"):
        find.Peer(name)


def test_a_full_queue_of_connections_is_refused_at_once() -> None:
    with listening(False) as name, contextlib.ExitStack() as stack:
        for _ in range(8):
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(f"\0{name}")
        with pytest.raises(PeerError, match="temporarily unavailable"):
            find.Peer(name)


def test_another_process_under_a_false_name() -> None:
    peer = Handout(greeting(), pid=1)
    try:
        with pytest.raises(PeerError, match=f"it is process {ME}"):
            find.Peer(peer.socket)
        with Watch(1) as watch:  # no word of it: it is no machine of process 1
            assert (watch.machines, dict(watch.sample().refused)) == ((), {})
    finally:
        peer.close()


def test_a_refused_peer_is_told_of_and_not_asked_again() -> None:
    with handing_out(greeting(format=9)) as name, Watch(socket=name) as watch:
        assert watch.machines == ()
        assert dict(watch.sample().refused) == {ME: "it runs another version of kvmpy"}
        assert dict(watch.sample().refused) == {ME: "it runs another version of kvmpy"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("theirs", ["machine", "watcher"])
def test_other_users(theirs: str) -> None:
    """Theirs is nothing to us, and ours nothing to them."""
    with MadeUpMachine() as machine:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                if theirs == "watcher":
                    fds: list[int] = []
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                        connection.settimeout(20)
                        connection.connect(f"\0{machine.socket}")
                        data, fds, _, _ = socket.recv_fds(connection, 100, 10)
                    os.write(writer, b"nothing" if not data and not fds else b"something")
                else:
                    peer = Handout(greeting())
                    os.write(writer, peer.socket.encode())
                    time.sleep(60)
            finally:
                os._exit(0)
        try:
            os.close(writer)
            text = os.read(reader, 100).decode()
            if theirs == "watcher":
                assert text == "nothing"
            else:
                with pytest.raises(PeerError, match="it is user 65534's"):
                    find.Peer(text)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(reader)


def test_a_forked_child_does_not_end_its_parents_machine() -> None:
    with MadeUpMachine() as machine:
        child = os.fork()
        if child == 0:
            machine._handout.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert machine.socket in {info.socket for info in machines(ME)}


def test_a_name_that_is_taken_or_too_long() -> None:
    with MadeUpMachine() as machine, pytest.raises(OSError, match="Address already in use"):
        publish._hand_out(machine.socket, b"", [])
    for length in (0, 200):
        with pytest.raises(OSError, match="Invalid argument"):
            publish._hand_out("n" * length, b"", [])
