"""Finding the machines that this user's processes run, and being handed what tells of them.

Any user can listen under any name, and any program of this user's can pretend to be a machine: what
a peer says is checked before it is used, and none can keep us waiting.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import KvmpyError
from ..report.table import printable
from ..shim import ffi
from . import publish

SOCKETS = "/proc/net/unix"
_NAME = re.compile(rf"@({re.escape(publish.SOCKET_PREFIX)}(\d{{1,9}})/[0-9a-f]{{8}})", re.ASCII)
#: KVM has no more vCPUs in a VM.
_MOST_VCPUS = 4096
#: Seconds in which a peer must have handed over everything.
_PATIENCE = 1.0
_MOST_FDS = 253  # in a packet: the kernel's limit


class PeerError(KvmpyError):
    """A process that says it runs a machine, and does not tell of it as it should."""


class _NotOursError(PeerError):
    """It is another user's, or not the process that its name says."""


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """A machine of a running process: ``memory`` is the guest's, in bytes; ``cpus`` counts vCPUs;
    ``socket`` tells it from others of the process."""

    pid: int
    name: str
    memory: int
    cpus: int
    socket: str


class Peer:
    """What a machine's process has handed us: its vCPUs' counters and KVM's statistics of them.

    ``stats``: a descriptor for each vCPU, or none. Raises PeerError.
    """

    def __init__(self, name: str):
        self.stats: list[int] = []
        self._pidfd = -1
        self._memory: Any = None
        fds: list[int] = []
        try:
            pid, greeting = _receive(name, fds)
            self.info, with_stats = _read_greeting(greeting, pid, name)
            if len(fds) != 1 + with_stats * self.info.cpus:
                raise PeerError(f"{len(fds)} descriptors for {self.info.cpus} vCPUs")
            self._memory = _map_counters(fds[0], self.info.cpus)
            for fd in fds[1:]:
                _check_statistics(fd)
            self._pidfd = os.pidfd_open(pid)
            self.stats = fds[1:]
        except OSError as error:
            self.close()
            raise PeerError(error.strerror or str(error)) from None
        except BaseException:
            self.close()
            raise
        finally:
            for fd in fds[:1] if self.stats else fds:
                os.close(fd)

    def counters(self, number: int) -> Any:
        """The ``struct shim_counters`` of a vCPU, live: the number-th, not by KVM's id."""
        first = ffi.cast("char *", self._memory) + publish.HEADER_SIZE
        return ffi.cast("struct shim_counters *", first + number * publish.RECORD_SIZE)

    @property
    def ended(self) -> bool:
        """Whether the machine was closed, or its process has ended."""
        if self._memory.ended:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the descriptors: while one of KVM's statistics is open, the VM lives on."""
        fds, self.stats = self.stats, []
        for fd in fds:
            os.close(fd)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1
        self._memory = None


def _names(text: str) -> list[tuple[int, str]]:
    """(process id, socket) of the machines in /proc/net/unix, whoever's they are, by process."""
    return sorted((int(match[2]), match[1]) for match in _NAME.finditer(text) if int(match[2]))


def listed() -> list[tuple[int, str]]:
    """(process id, socket) of all machines on this host. Raises OSError without /proc/net/unix."""
    with open(SOCKETS, encoding="utf-8", errors="replace") as file:
        # A listening socket has a line to itself, a connection to it another for a moment.
        return sorted(set(_names(file.read())))


def machines(pid: int | None = None) -> tuple[MachineInfo, ...]:
    """The machines that this user's processes run now, or those of one process.

    Those of other users are not seen, nor those in containers with a network or process namespace
    of their own.

    >>> import os
    >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
    ...     m.start()
    ...     [(machine.name, machine.cpus) for machine in kvmpy.watch.machines(os.getpid())]
    [('flat binary, 2 bytes at 0x7c00, real mode', 1)]
    """
    found = []
    for owner, name in listed():
        if pid is None or owner == pid:
            with contextlib.suppress(PeerError):
                peer = Peer(name)
                found.append(peer.info)
                peer.close()
    return tuple(found)


def _receive(name: str, fds: list[int]) -> tuple[int, bytes]:
    """The peer's process id and greeting; its descriptors go to ``fds``, also when it fails."""
    deadline = time.monotonic() + _PATIENCE
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(f"\0{name}")
        pid = _owner(connection)
        if pid != int(name.split("/")[1]):
            raise _NotOursError(f"it is process {pid}")
        greeting = b""
        for packet in _packets(connection, deadline, fds):
            greeting = greeting or packet
        return pid, greeting


def _owner(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("=iII", raw)
    if uid != os.geteuid():
        raise _NotOursError(f"it is user {uid}'s")
    return int(pid)


def _packets(connection: socket.socket, deadline: float, fds: list[int]) -> Iterator[bytes]:
    """Until the peer closes."""
    longest = publish.GREETING.size + publish.LONGEST_NAME
    while len(fds) <= 1 + _MOST_VCPUS:
        left = deadline - time.monotonic()
        if left <= 0:
            raise PeerError(f"it did not describe its machine within {_PATIENCE:g} s")
        connection.settimeout(left)
        try:
            # socket.recv_fds() has no use for its flags.
            data, control, flags, _ = connection.recvmsg(
                longest, socket.CMSG_SPACE(4 * _MOST_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except TimeoutError:
            continue
        for level, kind, raw in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds += memoryview(raw[: len(raw) // 4 * 4]).cast("i")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise PeerError("it sends too much, or this process has no descriptors left")
        if not data:
            return
        yield data
    raise PeerError("it sends more descriptors than a machine can have vCPUs")


def _read_greeting(greeting: bytes, pid: int, name: str) -> tuple[MachineInfo, bool]:
    if len(greeting) < publish.GREETING.size:
        raise PeerError(f"its greeting has {len(greeting)} bytes")
    fields = publish.GREETING.unpack_from(greeting)
    magic, version, with_stats, cpus, record_size, memory = fields
    if magic != publish.MAGIC:
        raise PeerError("its greeting is not that of a kvmpy machine")
    if (version, record_size) != (publish.FORMAT, publish.RECORD_SIZE):
        raise PeerError("it runs another version of kvmpy")
    if not 1 <= cpus <= _MOST_VCPUS or with_stats > 1:
        raise PeerError(f"it claims to have {cpus} vCPUs")
    text = greeting[publish.GREETING.size :].decode("utf-8", "replace")
    return MachineInfo(pid, printable(text), memory, cpus, name), bool(with_stats)


def _map_counters(fd: int, cpus: int) -> Any:
    """Memory that nobody can shrink: reading it never ends in SIGBUS."""
    size = publish.HEADER_SIZE + cpus * publish.RECORD_SIZE
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if not seals & fcntl.F_SEAL_SHRINK or os.fstat(fd).st_size != size:
        raise PeerError("the memory it sends is not that of a machine")
    memory = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ)
    return ffi.from_buffer("struct shim_published *", memory)


def _check_statistics(fd: int) -> None:
    """That it is KVM's: a read of anything else might take for ever."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    if not re.match(r"anon_inode:\[?kvm-vcpu-stats", target):
        raise PeerError(f"{target!r} is not a KVM statistics descriptor")
