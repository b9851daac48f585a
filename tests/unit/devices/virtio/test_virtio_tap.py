"""The network device on real taps, in a network namespace of its own; two guests on one bridge."""

import ctypes
import os
import socket
import struct
from contextlib import ExitStack

import pytest
import virtio_driver as v
from netns import libc
from virtio_card import F_CSUM, F_GUEST_CSUM, F_HOST_TSO4, F_MRG_RXBUF, RX, Card, header

import kvmpy
from kvmpy.devices.virtio import Net, NetOptions, parse_net, tap

F_GUEST_TSO4 = 1 << 7
NEEDS_CSUM, GSO_TCPV4 = 1, 1
CAPABILITY_VERSION_3, CAP_NET_ADMIN = 0x2008_0522, 12
SYS_SETRESUID = 117
NOBODY = 65534
ADDRESSES = ("10.9.0.1", "10.9.0.2")
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


@pytest.fixture
def devices(namespace):
    """``devices(name, **options)``: a Net and its driver."""
    with ExitStack() as stack:

        def make(name, mac=None, **options):
            net = stack.enter_context(namespace(Net, name, mac))
            memory = stack.enter_context(kvmpy.GuestMemory("16M"))
            return Card(net, memory, **options)

        yield make


# ---------------------------------------------------------------- attaching


def test_tap_that_is_made(namespace):
    with namespace(Net, "made0") as net:
        assert net.tap == "made0"
        assert int(net.mac[:2], 16) & 3 == 2, "locally administered, unicast"
        assert ",UP" in namespace.show("made0")
        first = net.mac
    assert not namespace.show("made0")
    with namespace(Net, "made0") as again, namespace(Net, "made1") as other:
        assert again.mac == first != other.mac


def test_tap_that_is_there(namespace):
    namespace.ip("tuntap add dev there0 mode tap")
    in_use = pytest.raises(kvmpy.KvmpyError, match="the tap there0 is in use")
    with namespace(Net, "there0"), in_use:
        namespace(Net, "there0")
    assert namespace.show("there0")
    namespace(Net, "there0").close()


def test_interface_that_is_no_tap(namespace):
    namespace.ip("tuntap add dev tun0 mode tun", "tuntap add dev many0 mode tap multi_queue")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("lo", "tun0", "many0"):
        with pytest.raises(kvmpy.KvmpyError, match=f"{name} is an interface, but not a tap"):
            namespace(Net, name)
    assert len(os.listdir("/proc/self/fd")) == before


def give_up_net_admin():
    """Of this thread."""
    head, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    for i in (0, 1, 2):  # effective, permitted, inheritable
        sets[i] &= ~(1 << CAP_NET_ADMIN)
    assert libc.capset(head, sets) == 0


def test_without_permission(namespace):
    namespace.ip(f"tuntap add dev nobodys0 mode tap user {NOBODY}")
    namespace.ip(f"tuntap add dev ours0 mode tap user {os.getuid()}")
    namespace(give_up_net_admin)
    with pytest.raises(kvmpy.KvmpyError, match=r"there is no tap new0, .*: ip tuntap add dev new0"):
        namespace(Net, "new0")
    with pytest.raises(kvmpy.KvmpyError, match="the tap nobodys0 belongs to another user"):
        namespace(Net, "nobodys0")
    namespace(Net, "ours0").close()


def test_device_that_may_not_be_opened(namespace, tmp_path, monkeypatch):
    monkeypatch.setattr(tap, "_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(kvmpy.KvmpyError, match=r"there is no .*/tun: .*modprobe tun"):
        namespace(Net, "new0")
    (tmp_path / "tun").touch(mode=0)
    assert namespace(libc.syscall, SYS_SETRESUID, NOBODY, NOBODY, NOBODY) == 0
    with pytest.raises(kvmpy.KvmpyError, match=r"no permission to open .*/tun"):
        namespace(Net, "new0")


def test_by_descriptor(namespace):
    with namespace(Net, "made0") as net:
        fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if is_tap(fd)]
        assert len(fds) == 1
        with Net(fds[0]) as same:
            assert (same.tap, same.mac) == ("made0", net.mac)
    assert not namespace.show("made0")


def is_tap(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "/dev/net/tun"
    except OSError:
        return False


# ---------------------------------------------------------------- frames


def ones_sum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def tcp_frame(payload, *, finished):
    """From the first address to the second. ``finished``: with its checksum; else with the sum of
    the pseudo-header, as NEEDS_CSUM wants it."""
    source, target = (socket.inet_aton(address) for address in ADDRESSES)
    size = 20 + len(payload)
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 0, 5 << 4, 0x10, 1000, 0, 0)
    pseudo = source + target + struct.pack("!BBH", 0, 6, size & 0xFFFF)
    total = ones_sum(pseudo + tcp + payload) ^ 0xFFFF if finished else ones_sum(pseudo)
    tcp = tcp[:16] + struct.pack("!H", total) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0x4000, 64, 6, 0) + source + target
    head = head[:10] + struct.pack("!H", ones_sum(head) ^ 0xFFFF) + head[12:]
    ethernet = bytes.fromhex((MACS[1] + MACS[0]).replace(":", "")) + b"\x08\x00"
    return ethernet + head + tcp + payload


def tcp_payload(frame):
    """The payload of a frame whose checksums are right."""
    (size,) = struct.unpack_from("!H", frame, 16)
    packet = frame[14 : 14 + size]
    assert ones_sum(packet[:20]) == 0xFFFF
    pseudo = packet[12:20] + struct.pack("!BBH", 0, 6, size - 20)
    assert ones_sum(pseudo + packet[20:]) == 0xFFFF
    return packet[40:]


def next_packet(card):
    """The next that is IPv4 to one host: hosts send to groups on their own."""
    while True:
        head, data = card.next_frame()
        if data[12:14] == b"\x08\x00" and not data[0] & 1:
            return head, data


def offer(card, count=200, size=1526):
    for _ in range(count):
        card.offer(size)
    card.notify(RX)


def test_host_and_guest(namespace, devices):
    """Against the host's own IP stack: a datagram there, and its answer."""
    card = devices("guest0", MACS[1], features=v.F_VERSION_1)  # whole checksums, please
    namespace.ip(
        f"addr add {ADDRESSES[0]}/24 dev guest0", f"link set guest0 address {MACS[0]}",
        f"neigh replace {ADDRESSES[1]} lladdr {MACS[1]} dev guest0",
    )  # fmt: skip
    offer(card)
    with namespace(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind((ADDRESSES[0], 5000))
        host.settimeout(20)
        for size in (1, 1000, 1472):
            host.sendto(b"q" * size, (ADDRESSES[1], 6000))
            _, data = next_packet(card)
            assert data[42:] == b"q" * size
            # Back, addresses and ports exchanged: neither checksum changes.
            answer = data[6:12] + data[:6] + data[12:26] + data[30:34] + data[26:30]
            card.send(answer + data[36:38] + data[34:36] + data[38:])
            assert host.recvfrom(2000) == (b"q" * size, (ADDRESSES[1], 6000))


def test_interface_that_is_down(namespace, devices):
    card = devices("guest0")
    namespace.ip("link set guest0 down")
    card.send(tcp_frame(b"", finished=True))
    assert card.device.statistics.errors == 1


def test_tap_that_is_deleted(namespace, devices):
    namespace.ip("tuntap add dev gone0 mode tap", "link set gone0 up")
    card = devices("gone0")
    offer(card)
    assert card.config(6, 2) == 1
    namespace.ip("link del gone0")
    while not card.wait_interrupt() & 2:
        pass
    assert card.config(6, 2) == 0
    card.send(tcp_frame(b"", finished=True))


# ---------------------------------------------------------------- two guests on one bridge


@pytest.fixture
def bridged(namespace, devices, wait_until):
    """``bridged(features of the first, features of the second)``."""
    namespace.bridge("one0", "two0")

    def make(first=None, second=None):
        cards = [
            devices(name, mac, features=features and features | v.F_VERSION_1)
            for name, mac, features in zip(("one0", "two0"), MACS, (first, second), strict=True)
        ]
        for card in cards:
            offer(card)
        for name in ("one0", "two0"):
            wait_until(lambda name=name: namespace.is_forwarding(name))
        return cards

    return make


def test_two_guests(bridged):
    one, two = bridged()
    for card, mac in zip((one, two), MACS, strict=True):
        assert card.config(0, 6).to_bytes(6, "little").hex(":") == mac
    for i in range(100):
        frame = tcp_frame(b"ping %d" % i, finished=True)
        one.send(frame)
        assert next_packet(two)[1] == frame
        back = frame[6:12] + frame[:6] + frame[12:]
        two.send(back)
        assert next_packet(one)[1] == back


PAYLOAD = os.urandom(40_000)
SEGMENTED = header(
    flags=NEEDS_CSUM, gso_type=GSO_TCPV4, hdr_len=54, gso_size=1448, csum_start=34, csum_offset=16
)


def test_segmentation_is_left_to_the_receiver(bridged):
    """One guest sends 40 KB in one frame, and the other gets them so."""
    one, two = bridged()
    for feature in (F_CSUM, F_GUEST_CSUM, F_HOST_TSO4, F_GUEST_TSO4):
        assert one.features() & feature
    one.send(tcp_frame(PAYLOAD, finished=False), head=SEGMENTED)
    head, data = next_packet(two)
    flags, gso_type, _, gso_size, start, offset, count = struct.unpack("<BBHHHHH", head)
    assert (flags, gso_type, gso_size, start, offset) == (NEEDS_CSUM, GSO_TCPV4, 1448, 34, 16)
    assert count == -(-(len(data) + len(head)) // 1526)
    assert data[54:] == PAYLOAD


@pytest.mark.parametrize("features", [F_MRG_RXBUF, 0, F_GUEST_CSUM])
def test_segmentation_is_done_for_a_guest_that_cannot(bridged, features):
    """It gets segments, with checksums."""
    one, two = bridged(None, features | v.F_EVENT_IDX)
    one.send(tcp_frame(PAYLOAD, finished=False), head=SEGMENTED)
    got = b""
    while len(got) < len(PAYLOAD):
        head, data = next_packet(two)
        assert len(data) <= 1514
        assert head[1] == 0
        if not features & F_GUEST_CSUM:
            assert head[0] == 0
            got += tcp_payload(data)
        else:
            got += data[54 : 14 + struct.unpack_from("!H", data, 16)[0]]
    assert got == PAYLOAD


def test_checksum_is_done_for_a_guest_that_cannot(bridged):
    one, two = bridged(F_CSUM | v.F_EVENT_IDX, v.F_EVENT_IDX)
    head = header(flags=NEEDS_CSUM, csum_start=34, csum_offset=16)
    one.send(tcp_frame(b"payload", finished=False), head=head)
    got, data = next_packet(two)
    assert got == header(buffers=1)
    assert tcp_payload(data) == b"payload"


@pytest.mark.parametrize("head", [
    header(flags=NEEDS_CSUM, csum_start=60000, csum_offset=16),
    header(flags=NEEDS_CSUM, csum_start=34, csum_offset=60000),
    header(flags=NEEDS_CSUM, gso_type=GSO_TCPV4, csum_start=34, csum_offset=16),
    header(flags=NEEDS_CSUM, gso_type=4, gso_size=1000, csum_start=34, csum_offset=16),
])  # fmt: skip
def test_header_that_contradicts_its_frame(bridged, head):
    """The tap refuses it, and nothing else happens."""
    one, two = bridged()
    one.send(tcp_frame(b"x" * 1000, finished=False), head=head)
    one.send(tcp_frame(b"next", finished=True))
    assert tcp_payload(next_packet(two)[1]) == b"next"
    assert one.device.statistics.errors == 1


# ---------------------------------------------------------------- what is no tap


def test_options():
    assert parse_net("tap=tap0") == NetOptions("tap0", None)
    assert parse_net(f"mac={MACS[0]},tap=vm-1.2") == NetOptions("vm-1.2", MACS[0])


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "expected"), ("tap0", "expected"), ("tap=", "interface name"),
    ("tap=a,tap=b", "twice"), ("mac=" + MACS[0], "names no tap"), ("tap=a,mtu=9000", "expected"),
    ("tap=sixteen-letters0", "interface name"), ("tap=a/b", "interface name"),
    ("tap=a b", "interface name"),
    ("tap=tap%d", "interface name"), ("tap=..", "interface name"),
    ("tap=a,mac=52:54", "Ethernet address"),
    ("tap=a,mac=01:00:5e:00:00:01", "first byte is odd"), ("tap=a,mac=ff:ff:ff:ff:ff:ff", "odd"),
    ("tap=a,mac=00:00:00:00:00:00", "all zeros"), ("tap=a,mac=g2:54:00:12:34:56", "Ethernet"),
    ("tap=a,", "expected"), (f"tap=a,mac={MACS[0]}0", "Ethernet"),
])  # fmt: skip
def test_options_that_are_none(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_net(text)


def test_descriptor_that_is_no_tap(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    left, right = socket.socketpair()
    with left, right, open(tmp_path / "file", "wb") as file:
        for fd in (left.fileno(), file.fileno()):
            with pytest.raises(ValueError, match="neither a tap's nor a datagram"):
                Net(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        Net(1 << 20)
    assert len(os.listdir("/proc/self/fd")) == before
