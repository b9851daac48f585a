"""Tap interfaces: the host's side of a guest's network card.

A tap's descriptor gives one frame a read and takes one a write, here each behind the header that
says what is left to do about checksums and segmentation (``struct virtio_net_hdr_v1``).
Source: Linux, "Universal TUN/TAP device driver".
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct

from ...errors import KvmpyError

#: Bytes of an interface's name, without the terminating zero: IFNAMSIZ - 1.
NAME_SIZE = 15
#: Bytes of struct virtio_net_hdr_v1.
HEADER_SIZE = 12

_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNGETIFF, _TUNSETVNETHDRSZ = 0x4004_54CA, 0x8004_54D2, 0x4004_54D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_FLAGS = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_IFREQ = struct.Struct("16sH22x")  # struct ifreq with ifr_flags


def check_name(name: str) -> None:
    """Raises ValueError unless the kernel would take ``name`` for an interface.

    >>> kvmpy.devices.virtio.tap.check_name("tap0")
    """
    size = len(name.encode())
    bad = set("/:%").intersection(name) or any(c.isspace() or c == "\0" for c in name)
    if not 1 <= size <= NAME_SIZE or bad or name in (".", ".."):
        raise ValueError(
            f"{name!r} is not an interface name: 1 to {NAME_SIZE} bytes, no space / : %"
        )


def open_tap(name: str) -> int:
    """A descriptor of the tap ``name``, close-on-exec and non-blocking.

    One that is not there yet is made and brought up, which takes CAP_NET_ADMIN; it goes with the
    descriptor. Raises KvmpyError with the remedy when that, or access, is not permitted, when
    another uses the tap, and when ``name`` is not a tap.

    >>> kvmpy.devices.virtio.tap.open_tap("lo")
    Traceback (most recent call last):
    kvmpy.errors.KvmpyError: lo is an interface, but not a tap with a single queue
    """
    check_name(name)
    is_new = not _exists(name)
    fd = _open_device()
    try:
        try:
            fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _FLAGS))
        except OSError as error:
            raise _explained(error, name, is_new) from error
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
        if is_new:
            _bring_up(name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def adopt(fd: int) -> tuple[int, str | None]:
    """A duplicate of somebody's descriptor, and its tap's name: None for a datagram or seqpacket
    socket. It becomes non-blocking, and a tap gets the header's size that the device needs.

    Raises ValueError when it is neither, or a tap that was attached to with other flags.

    >>> import os, socket
    >>> left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    >>> fd, name = kvmpy.devices.virtio.tap.adopt(left.fileno())
    >>> name is None, os.get_blocking(left.fileno())
    (True, False)
    >>> os.close(fd)
    """
    name, flags = _identify(fd)
    if name is None and not _keeps_messages(fd):
        raise ValueError(f"descriptor {fd} is neither a tap's nor a datagram or seqpacket socket's")
    if name is not None and flags & _FLAGS != _FLAGS:
        raise ValueError(f"{name} needs the flags IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")
    fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    try:
        os.set_blocking(fd, False)
        if name is not None:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
    except BaseException:
        os.close(fd)
        raise
    return fd, name


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            text = f"there is no {_DEVICE}: load the kernel module (modprobe tun)"
        elif error.errno in (errno.EACCES, errno.EPERM):
            text = f"no permission to open {_DEVICE}: its mode is usually 0666 (chmod)"
        else:
            raise
        raise KvmpyError(text) from error


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _explained(error: OSError, name: str, is_new: bool) -> Exception:
    make = f"ip tuntap add dev {name} mode tap user $USER && ip link set {name} up"
    if error.errno == errno.EPERM and is_new:
        return KvmpyError(f"there is no tap {name}, and making one takes CAP_NET_ADMIN: {make}")
    if error.errno == errno.EPERM:
        return KvmpyError(f"the tap {name} belongs to another user; yours is made by: {make}")
    if error.errno == errno.EBUSY:
        return KvmpyError(f"the tap {name} is in use: by another guest, perhaps")
    if error.errno == errno.EINVAL:
        return KvmpyError(f"{name} is an interface, but not a tap with a single queue")
    return error


def _bring_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        request = fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(name.encode(), 0))
        _, flags = _IFREQ.unpack(request)
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name.encode(), flags | _IFF_UP))


def _identify(fd: int) -> tuple[str | None, int]:
    """Name and flags of the tap or tun behind ``fd``; None when there is none."""
    try:
        request = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as error:
        if error.errno == errno.EBADF:
            raise
        return None, 0
    name, flags = _IFREQ.unpack(request)
    return name.rstrip(b"\0").decode(), flags


def _keeps_messages(fd: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as probe:
        return probe.type in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
