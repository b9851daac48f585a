"""Network device over a tap interface or a datagram socket."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from dataclasses import dataclass

from ...shim import lib
from . import tap as taps
from .device import VirtioDevice

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


class Net(VirtioDevice):
    """A network card on the tap interface ``tap``, by name or by descriptor.

    VIRTIO 1.2, "5.1 Network Device". Linux: ``eth0``, and on; the host's side is the tap.

    A name attaches to a tap that is there, or makes one where CAP_NET_ADMIN permits it; what is
    made is up, and gone when the device is closed. A descriptor is a tap's, attached to with
    IFF_TAP, IFF_NO_PI and IFF_VNET_HDR, or a datagram or seqpacket socket's, whose messages are a
    ``struct virtio_net_hdr_v1`` and a frame: the two ends of a socketpair() connect two guests. It
    is duplicated, and set non-blocking.

    ``mac``: "52:54:00:12:34:56". Without it the address is locally administered: for a tap made
    from the host's and the tap's name, so the same each time, for a socket by chance.

    Checksums and TCP segmentation are left to the tap where the driver knows how; with a socket
    they are the driver's. Frames that are none, that the tap refuses (an interface that is down) or
    that do not fit into the driver's buffers are dropped, and are ``statistics.errors``. When the
    tap is deleted, or the socket's other end closed, the guest sees its link go down.

    Raises KvmpyError with the remedy when there is no such tap and none can be made, when it is
    another user's, in use or not a tap; ValueError for a malformed name, address or descriptor.

    >>> import socket
    >>> left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    >>> with kvmpy.devices.virtio.Net(left.fileno(), mac="52:54:00:12:34:56") as net:
    ...     net.connect(vm, 0xD000_0000)
    ...     net
    <Net at 0xd0000000>
    """

    def __init__(self, tap: str | int, mac: str | None = None):
        address = None if mac is None else parse_mac(mac)
        self._tap: str | None
        if isinstance(tap, str):
            fd, self._tap = taps.open_tap(tap), tap
        else:
            fd, self._tap = taps.adopt(tap)
        self._mac = address or _address_for(self._tap)
        try:
            super().__init__(lib.shim_virtio_net_new(fd, self._mac))
        except BaseException:
            os.close(fd)
            raise

    @property
    def tap(self) -> str | None:
        """The tap's name, None for a socket.

        >>> import socket
        >>> left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        >>> kvmpy.devices.virtio.Net(left.fileno()).tap is None
        True
        """
        return self._tap

    @property
    def mac(self) -> str:
        """The guest's address.

        >>> import socket
        >>> left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        >>> kvmpy.devices.virtio.Net(left.fileno(), mac="52:54:00:AB:CD:EF").mac
        '52:54:00:ab:cd:ef'
        """
        return self._mac.hex(":")


@dataclass(frozen=True, slots=True)
class NetOptions:
    """What ``--net`` says: the tap's name, and the guest's address or None."""

    tap: str
    mac: str | None = None

    def open(self) -> Net:
        """The device.

        >>> options = kvmpy.devices.virtio.NetOptions("no such tap")
        >>> options.open()
        Traceback (most recent call last):
        ValueError: 'no such tap' is not an interface name: 1 to 15 bytes, no space / : %
        """
        return Net(self.tap, self.mac)


def parse_net(text: str) -> NetOptions:
    """``tap=NAME[,mac=ADDRESS]``, as on the command line. Raises ValueError.

    >>> kvmpy.devices.virtio.parse_net("tap=tap0,mac=52:54:00:12:34:56")
    NetOptions(tap='tap0', mac='52:54:00:12:34:56')
    """
    options: dict[str, str] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if key not in ("tap", "mac") or not equals:
            raise ValueError(f"{word!r} in {text!r}: expected tap=NAME[,mac=ADDRESS]")
        if key in options:
            raise ValueError(f"{text!r} has {key}= twice")
        options[key] = value
    if "tap" not in options:
        raise ValueError(f"{text!r} names no tap: expected tap=NAME[,mac=ADDRESS]")
    taps.check_name(options["tap"])
    if "mac" in options:
        parse_mac(options["mac"])
    return NetOptions(**options)


def parse_mac(text: str) -> bytes:
    """Six bytes of a unicast Ethernet address. Raises ValueError.

    >>> kvmpy.devices.virtio.parse_mac("52:54:00:12:34:56").hex()
    '525400123456'
    """
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not an Ethernet address like 52:54:00:12:34:56")
    address = bytes.fromhex(text.replace(":", ""))
    if address[0] & 1 or not any(address):
        raise ValueError(
            f"{text} is not a card's address: all zeros, or a group's, whose first byte is odd"
        )
    return address


def _address_for(tap: str | None) -> bytes:
    """Locally administered, unicast. The host's name is in it, so that guests of two hosts on one
    bridged network differ."""
    seed = os.urandom(16) if tap is None else f"{socket.gethostname()}/{tap}".encode()
    digest = hashlib.sha256(seed).digest()
    return bytes([digest[0] & 0xFC | 2]) + digest[1:6]
