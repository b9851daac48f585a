"""The network device, driven as a guest would. A seqpacket socket stands in for the tap: its
messages are what a tap's are, a header and a frame."""

import os
import socket
import struct
import time
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import pytest
import virtio_driver as v
from hypothesis import given, settings, strategies as st
from virtio_card import (
    F_CSUM,
    F_GUEST_CSUM,
    F_HOST_TSO4,
    F_MAC,
    F_MRG_RXBUF,
    F_STATUS,
    HEADER,
    MAC,
    RX,
    RX_DATA,
    TX,
    TX_DATA,
    Card,
    frame,
    header,
)  # fmt: skip
from virtio_driver import WRITE

import kvmpy
from kvmpy.devices.virtio import Net

PATIENCE = 20


@contextmanager
def cards(kind=socket.SOCK_SEQPACKET, **options):
    with ExitStack() as stack:
        wire, device_end = socket.socketpair(socket.AF_UNIX, kind)
        stack.enter_context(wire)
        memory = stack.enter_context(kvmpy.GuestMemory("16M"))
        with device_end:
            net = stack.enter_context(Net(device_end.fileno(), mac=MAC))
        wire.settimeout(PATIENCE)
        yield wire, Card(net, memory, **options)


@pytest.fixture
def both():
    with cards() as both:
        yield both


@pytest.fixture
def plain():
    """A driver that merges no buffers."""
    with cards(features=v.F_VERSION_1 | F_MAC) as both:
        yield both


def errors(card):
    return card.device.statistics.errors


def test_configuration(both):
    _, card = both
    offered = card.features()
    assert offered & (F_MAC | F_STATUS | F_MRG_RXBUF) == F_MAC | F_STATUS | F_MRG_RXBUF
    assert not offered & (F_CSUM | F_GUEST_CSUM | F_HOST_TSO4), "a socket computes no checksums"
    assert card.read(v.DEVICE_ID) == 1
    assert card.config(0, 6).to_bytes(6, "little").hex(":") == MAC == card.device.mac
    assert card.config(6, 2) == 1
    assert len(card.device.queue_fds) == 2
    card.write(v.CONFIG, 0)
    assert card.config(0, 4) != 0


# ---------------------------------------------------------------- sending


@pytest.mark.parametrize("cuts", [(), (12,), (1, 5, 11, 13, 40), tuple(range(1, 72))])
@pytest.mark.parametrize("pair", ["both", "plain"])
def test_send(pair, cuts, request):
    wire, card = request.getfixturevalue(pair)
    for size in (14, 60, 1514, 65553):
        data = frame(size)
        card.send(data, *[cut for cut in cuts if cut < size + HEADER])
        assert wire.recv(1 << 17) == header() + data
    assert card.device.statistics.bytes_out == 14 + 60 + 1514 + 65553
    assert card.device.statistics.errors == 0


@pytest.mark.parametrize("pieces", [1022, 1023, 1024])
@pytest.mark.parametrize("size", [3000, 65553])
def test_send_as_many_pieces_as_a_chain_can_have(both, pieces, size):
    """With the header in the first of them there is one more than the kernel takes."""
    wire, card = both
    data = frame(size, 7)
    whole = header() + data
    edges = [0, HEADER + 1, *range(HEADER + 2, HEADER + pieces), len(whole)]
    buffers = []
    for start, end in pairwise(edges):
        gpa = TX_DATA + 2 * start  # with gaps: neighbours could become one
        card.memory.write(gpa, whole[start:end])
        buffers.append((gpa, end - start, 0))
    assert len(buffers) == pieces
    sent = card.tx.add_indirect(TX_DATA + 0x4_0000, *buffers)
    card.suppress(TX)
    assert card.complete(queue=TX) == [(sent, 0)]
    assert wire.recv(1 << 17) == whole
    assert errors(card) == 0


@pytest.mark.parametrize("bad", [b"", frame(13), frame(65554)])
def test_no_frame_is_dropped(both, bad):
    wire, card = both
    card.send(bad)
    card.send(frame(100, 7))
    assert wire.recv(1 << 17)[HEADER + 14] == 7
    assert errors(card) == 1


@pytest.mark.parametrize("head", [
    header(flags=1), header(gso_type=1), header(gso_type=3), header(gso_type=4),
    header(gso_type=5), header(gso_type=0x81), header(gso_type=0xFF),
])  # fmt: skip
def test_what_was_not_negotiated_is_dropped(both, head):
    wire, card = both
    card.send(frame(), head=head)
    card.send(frame(), head=header(flags=0xFE, buffers=0xFFFF))  # bits that mean nothing
    assert wire.recv(1 << 17)[:HEADER] == header()
    assert errors(card) == 1


@pytest.mark.parametrize("size", [0, 1, 11])
def test_no_header(both, size):
    _, card = both
    card.tx.add((TX_DATA, size, 0))
    card.notify(TX)
    assert card.wait_interrupt() == 2
    assert card.status & v.NEEDS_RESET
    assert card.device.fault == "queue 1: a frame without header"


def test_full_back_end_holds_frames_back(both):
    """Nothing is lost, and order is kept, when the other side reads late."""
    wire, card = both
    frames = [frame(1514, tag) for tag in range(250)]
    heads = [card.prepare(data) for data in frames[:32]]
    card.tx.set_used_event(0xFFFF)
    card.notify(TX)
    received = []
    sent = len(heads)
    while len(received) < len(frames):
        received.append(wire.recv(2048)[HEADER:])
        card.tx.take()
        if sent < len(frames) and sent - len(received) < 31:
            card.prepare(frames[sent])
            card.notify(TX)
            sent += 1
    assert received == frames
    assert errors(card) == 0


def test_more_than_the_back_end_takes_at_once(both):
    wire, card = both
    for _ in range(200):  # more than any socket buffer: 200 frames of 64 KiB
        card.tx.add((TX_DATA, HEADER + 65000, 0))
    card.memory.write(TX_DATA, header() + frame(65000))
    card.notify(TX)
    card.settle()
    waiting = 200 - len(card.tx.take())
    assert waiting > 0
    for _ in range(200):
        assert len(wire.recv(1 << 17)) == HEADER + 65000
    card.settle()
    assert card.device.statistics.requests == 200


# ---------------------------------------------------------------- receiving


def test_receive(plain):
    wire, card = plain
    card.offer(1526)
    card.offer(700, 1, 825)
    card.notify(RX)
    for tag, size in enumerate((60, 1514)):
        data = frame(size, tag)
        wire.send(header(flags=3, hdr_len=54) + data)
        head, got = card.next_frame()
        assert got == data
        # The checksum's flags are nothing to a driver without GUEST_CSUM.
        assert head == header(hdr_len=54, buffers=1)
    assert card.device.statistics.bytes_in == 60 + 1514


def test_receive_into_merged_buffers(both):
    wire, card = both
    for _ in range(60):
        card.offer(1000, 526)
    card.notify(RX)
    for size in (60, 1514, 1515, 40000, 65553, 14):
        data = frame(size)
        wire.send(header() + data)
        head, got = card.next_frame()
        assert got == data
        count = struct.unpack_from("<H", head, 10)[0]
        assert count == -(-(size + HEADER) // 1526)
        for _ in range(count):
            card.offer(1000, 526)
        card.notify(RX)


def test_header_in_tiny_pieces(both):
    wire, card = both
    card.offer(*[1] * 11, 1, 1, 1600)
    card.notify(RX)
    data = frame(1514)
    wire.send(header() + data)
    assert card.next_frame() == (header(buffers=1), data)


@pytest.mark.parametrize("pair", ["both", "plain"])
def test_too_long_a_frame_is_dropped(pair, request):
    """It does not come in part, and the buffer is there for the next."""
    wire, card = request.getfixturevalue(pair)
    head = card.offer(512)
    card.notify(RX)
    wire.send(header() + frame(501))
    wire.send(header() + frame(500, 9))
    ((done, data),) = card.wait()
    assert done == head
    assert len(data) == 512
    assert data[HEADER + 14] == 9
    assert errors(card) == 1


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
@pytest.mark.parametrize("size", [0, 1, 11, 12, 25])
def test_runt_is_dropped(kind, size):
    """A message without bytes is one, and not the end of the socket."""
    with cards(kind) as (wire, card):
        card.offer(2000)
        card.notify(RX)
        for _ in range(3):
            wire.send(bytes(size))
        wire.send(header() + frame(64, 3))
        assert card.next_frame()[1][14] == 3
        assert errors(card) == 3
        assert card.config(6, 2) == 1


def watched():
    """Descriptors that the process's epoll instances look at."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            with open(f"/proc/self/fdinfo/{fd}") as info:
                found += sum(line.startswith("tfd:") for line in info)
        except OSError:
            continue  # that of the listing itself
    return found


def test_frames_wait_for_buffers(both):
    """Their descriptor is not watched meanwhile, else the worker would spin."""
    wire, card = both
    for tag in range(3):
        wire.send(header() + frame(60, tag))
    card.notify(RX)
    card.settle()
    assert errors(card) == 0
    without = watched()
    for tag in range(3):
        card.offer(2000)
        card.notify(RX)
        assert card.next_frame()[1][14] == tag
    card.settle()
    assert watched() == without
    card.offer(2000)
    card.notify(RX)
    card.settle()
    assert watched() == without + 1


def test_the_longest_frame_waits_for_merged_buffers(both):
    """A driver that had room for 64 KiB once, and is short of it, gets the frame when it has taken
    back its buffers."""
    wire, card = both
    for _ in range(50):
        card.offer(1526)
    card.notify(RX)
    first, second = frame(60000, 1), frame(60000, 2)
    wire.send(header() + first)
    wire.send(header() + second)
    assert card.next_frame()[1] == first
    card.settle()
    assert not card.received
    assert card.poll() == []
    for _ in range(50):
        card.offer(1526)
    card.notify(RX)
    assert card.next_frame()[1] == second
    assert errors(card) == 0


@pytest.mark.parametrize("buffer", [
    [(RX_DATA, 11, WRITE)], [(RX_DATA, 0, WRITE)], [(RX_DATA, 2000, 0)],
    [(RX_DATA, 100, 0), (RX_DATA, 2000, WRITE)],
])  # fmt: skip
def test_receive_buffer_that_is_none(both, buffer):
    _, card = both
    card.rx.add(*buffer)
    card.notify(RX)
    assert card.wait_interrupt() == 2
    assert card.device.fault == "queue 0: a receive buffer without room for the header"


def test_receive_buffer_of_too_many_pieces(both):
    _, card = both
    card.rx.add_indirect(0x60_0000, *[(RX_DATA + i, 1, WRITE) for i in range(1024)])
    card.notify(RX)
    assert card.wait_interrupt() == 2
    assert card.device.fault == "queue 0: a receive buffer has too many pieces"


def test_receive_buffers_that_do_not_fit_together(both):
    """More pieces than one readv() takes: the first buffer gets the frame, and the next comes to
    the second."""
    wire, card = both
    card.offer(70_000)
    card.notify(RX)
    wire.send(header() + frame())
    card.next_frame()
    tables = []
    for i, count in enumerate((1000, 100)):
        table, data = 0x60_0000 + 0x1_0000 * i, RX_DATA + 0x8_0000 + 0x1000 * i
        rows = [(data + j, 1, WRITE) for j in range(count)]
        tables.append(card.rx.add_indirect(table, *rows))
        card.places[tables[-1]] = rows
    card.notify(RX)
    for head in tables:
        data = frame(80)
        wire.send(header() + data)
        ((done, got),) = card.wait()
        assert (done, got) == (head, header(buffers=1) + data)
        card.offer(70_000)  # the second alone may not be enough
        card.notify(RX)


def test_reset_forgets_buffers(both):
    """What the driver before had offered is not written to any longer."""
    wire, card = both
    card.offer(2000)
    card.notify(RX)
    card.settle()
    card.write(v.STATUS, 0)
    card.memory.write(RX_DATA, bytes(2000))
    wire.send(header() + frame())
    for _ in range(50):
        assert card.read(v.STATUS) == 0
    assert card.memory.read(RX_DATA, 2000) == bytes(2000)
    card.device.disconnect()
    again = Card(card.device, card.memory)
    again.filled = 0x1_0000
    again.offer(2000)
    again.notify(RX)
    assert again.next_frame()[1][:14] == frame()[:14]
    assert card.memory.read(RX_DATA, 2000) == bytes(2000)


# ---------------------------------------------------------------- link


def take_back(card, queue):
    card.write(v.QUEUE_SEL, queue)
    card.write(v.QUEUE_READY, 0)
    assert card.read(v.QUEUE_READY) == 0


def test_receive_buffers_that_were_taken_back(both):
    """QueueReady = 0 that reads back as 0 means that the device has stopped: it holds buffers that
    wait for a frame, and must not fill them any more."""
    wire, card = both
    for _ in range(3):
        card.offer(70_000)
    card.notify(RX)
    wire.send(header() + frame())
    card.next_frame()  # it has taken the others meanwhile
    take_back(card, RX)
    card.memory.write(RX_DATA, b"\xa5" * 0x4_0000)
    used = card.rx.used
    before = card.memory.read(used, 0x1000)
    for _ in range(3):
        wire.send(header() + frame(1514))
    time.sleep(0.2)  # what must not happen has no event
    assert card.memory.read(RX_DATA, 0x4_0000) == b"\xa5" * 0x4_0000
    assert card.memory.read(used, 0x1000) == before
    assert card.status & v.DRIVER_OK


def test_a_frame_that_was_taken_back(both):
    """It waits for room in the back end: its driver may use the memory for something else."""
    wire, card = both
    data, sent = frame(60_000), 0
    while True:
        card.prepare(data)
        card.notify(TX)
        sent += 1
        if not settled_within(card, sent):
            break
    take_back(card, TX)
    card.memory.write(TX_DATA, b"\xee" * 0x40_0000)
    for _ in range(sent - 1):
        assert wire.recv(1 << 17) == header() + data
    wire.settimeout(0.5)
    with pytest.raises(TimeoutError):
        wire.recv(1)
    assert card.status & v.DRIVER_OK


def settled_within(card, count, seconds=0.3):
    """Whether that many frames have been returned."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if card.device.statistics.requests >= count:
            return True
        time.sleep(0.005)
    return False


def test_other_end_closed(both):
    wire, card = both
    card.offer(2000)
    card.notify(RX)
    wire.send(header() + frame())
    card.next_frame()
    card.offer(2000)
    card.notify(RX)
    generation = card.read(v.CONFIG_GENERATION)
    wire.close()
    assert card.wait_interrupt() & 2
    assert card.config(6, 2) == 0
    assert card.read(v.CONFIG_GENERATION) != generation
    card.send(frame())
    assert errors(card) == 1


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_two_guests(kind):
    """Back to back: each sends a thousand frames while it receives the other's."""
    with ExitStack() as stack:
        ends = socket.socketpair(socket.AF_UNIX, kind)
        guests = []
        for end in ends:
            with end:
                net = stack.enter_context(Net(end.fileno()))
            memory = stack.enter_context(kvmpy.GuestMemory("16M"))
            guests.append(Card(net, memory))
        assert guests[0].device.mac != guests[1].device.mac
        for guest in guests:
            guest.tx.set_no_interrupt(True)
            guest.tx.set_used_event(0x8000)
            for _ in range(200):
                guest.offer(1526)
            guest.notify(RX)
        sent = {guest: [frame(100 + 14 * (i % 100), i % 251) for i in range(1000)]
                for guest in guests}  # fmt: skip
        got = {guest: [] for guest in guests}
        for i in range(0, 1000, 20):
            for guest in guests:
                guest.tx.take()
                for data in sent[guest][i : i + 20]:
                    guest.prepare(data)
                guest.notify(TX)
            for guest in guests:
                for _ in range(20):
                    got[guest].append(guest.next_frame()[1])
                    guest.offer(1526)
                guest.notify(RX)
        assert got[guests[0]] == sent[guests[1]]
        assert got[guests[1]] == sent[guests[0]]


# ---------------------------------------------------------------- anything at all

PIECES = st.lists(
    st.tuples(st.integers(0, 0x3000), st.one_of(st.integers(0, 40), st.integers(0, 0x2000)),
              st.sampled_from([0, WRITE])), min_size=1, max_size=5)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from([RX, TX]), PIECES), max_size=12),
    st.lists(st.integers(1, 3000), max_size=6),
    st.sampled_from([v.F_VERSION_1, v.F_VERSION_1 | F_MRG_RXBUF, None]),
)
@settings(max_examples=60, deadline=None)
def test_any_chains(chains, arriving, features):
    """Whatever the driver offers and the wire brings, the device stays within what it was given and
    can be used after a reset."""
    with cards(features=features) as (wire, card):
        card.memory.write(RX_DATA, bytes(0x10000))
        for queue, pieces in chains:
            base = RX_DATA if queue == RX else TX_DATA
            card.rings[queue].add(*[(base + at, size, flags) for at, size, flags in pieces])
            card.notify(queue)
        for size in arriving:
            wire.send(os.urandom(size))
        card.settle()
        writable = bytearray(0x10000)
        for queue, pieces in chains:
            for at, size, flags in pieces:
                if queue == RX and flags:
                    writable[at : at + size] = b"\1" * size
        content = card.memory.read(RX_DATA, 0x10000)
        assert not any(byte and not may for byte, may in zip(content, writable, strict=True))
        card.device.disconnect()
        wire.setblocking(False)
        try:
            while True:
                wire.recv(1 << 17)
        except BlockingIOError:
            wire.settimeout(PATIENCE)
        again = Card(card.device, card.memory)
        again.send(frame(77))
        assert len(wire.recv(1 << 17)) == HEADER + 77


def test_nothing_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    with cards() as (_, card):
        card.offer(2000)
        card.notify(RX)
    assert len(os.listdir("/proc/self/fd")) == before
