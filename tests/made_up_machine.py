"""A machine that is none: what a Machine publishes to who watches, without KVM."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Sequence
from typing import Any

from kvmpy import _native
from kvmpy.watch import publish

_ffi, _lib = _native.ffi, _native.lib


def socket_name(pid: int | None = None) -> str:
    return f"{publish.SOCKET_PREFIX}{pid or os.getpid()}/{os.urandom(4).hex()}"


class Handout:
    """Whatever bytes and descriptors, for who connects to ``socket``."""

    def __init__(self, message: bytes, fds: Sequence[int] = (), pid: int | None = None):
        self.socket = socket_name(pid)
        self._handout = publish._hand_out(self.socket, message, fds)

    def close(self) -> None:
        handout, self._handout = self._handout, None
        if handout is not None:
            _lib.shim_handout_close(handout)


def greeting(name: bytes = b"made up", **fields: Any) -> bytes:
    """As a machine with one vCPU and no statistics greets, but for ``fields``."""
    values = {
        "magic": publish.MAGIC, "format": publish.FORMAT, "with_stats": 0, "cpus": 1,
        "record_size": publish.RECORD_SIZE, "memory": 1 << 28,
    } | fields  # fmt: skip
    return publish.GREETING.pack(*values.values()) + name


def memory(cpus: int = 1, seals: int = publish.SEALS, size: int | None = None) -> tuple[int, Any]:
    """(descriptor, struct shim_published *) of such memory; the descriptor is the caller's."""
    fd = os.memfd_create("made-up", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    size = publish.HEADER_SIZE + cpus * publish.RECORD_SIZE if size is None else size
    os.ftruncate(fd, size)
    mapped = publish._mapped(fd, max(size, 1))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd, mapped


class MadeUpMachine:
    """vCPUs that all run in the calling thread, if one believes it."""

    def __init__(self, cpus: int = 1, name: bytes = b"made up"):
        self._fd, self.published = memory(cpus)
        self.cpus = [self._counters(number) for number in range(cpus)]
        for number, counters in enumerate(self.cpus):
            counters.id, counters.running, counters.runs = number, 1, 1
            counters.thread = threading.get_native_id()
        self._handout = Handout(greeting(name, cpus=cpus), [self._fd])
        self.socket = self._handout.socket

    def _counters(self, number: int) -> Any:
        first = _ffi.cast("char *", self.published) + publish.HEADER_SIZE
        return _ffi.cast("struct shim_counters *", first + number * publish.RECORD_SIZE)

    def close(self) -> None:
        if self._fd >= 0:
            self.published.ended = 1
            self._handout.close()
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> MadeUpMachine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
