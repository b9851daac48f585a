"""Being seen by ``kvmpy top``: a running machine publishes its vCPUs to this user's processes.

Who connects to the machine's socket (its name is abstract and has our process id, so that it can
be found in /proc/net/unix) is handed memory in which the vCPUs count, and the descriptors of KVM's
statistics. It reads all else from /proc. So being watched takes no part of the guest's time.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..errors import UnsupportedError
from ..fd import Owner
from ..shim import ffi, lib

if TYPE_CHECKING:
    from ..vcpu import VCPU
    from ..vm import VM


#: Before a machine's process id and a number of its own in the name of its socket.
SOCKET_PREFIX = "kvmpy.machine/"
MAGIC = b"kvmpytop"
#: Of the greeting and of the memory behind it (struct shim_published).
FORMAT = 1
#: Magic, format, whether there are statistics, vCPUs, bytes of a vCPU's counters, bytes of guest
#: memory; behind it the machine's name.
GREETING = struct.Struct("=8sHHIIQ")
LONGEST_NAME = 200
HEADER_SIZE: int = ffi.sizeof("struct shim_published")
RECORD_SIZE: int = ffi.sizeof("struct shim_counters")
#: The memory never shrinks under a reader's feet, and readers cannot write.
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10 | fcntl.F_SEAL_SEAL  # F_SEAL_FUTURE_WRITE


class Publication(Owner):
    """One machine, seen from now until :meth:`close`. Its vCPUs must not be running yet.

    Raises OSError without descriptors or memory to spare; KvmIoctlError.

    >>> one = kvmpy.watch.publish.Publication(vm, [cpu], "an example")
    >>> [machine.name for machine in kvmpy.watch.machines() if machine.socket == one.socket]
    ['an example']
    >>> one.close()
    """

    def __init__(self, vm: VM, cpus: Sequence[VCPU], name: str):
        self._process = os.getpid()
        #: The socket's name, without the zero byte before it.
        self.socket = f"{SOCKET_PREFIX}{self._process}/{os.urandom(4).hex()}"
        with ExitStack() as undo:
            fds = [os.memfd_create("kvmpy-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)]
            undo.callback(_close_all, fds)
            size = HEADER_SIZE + len(cpus) * RECORD_SIZE
            os.ftruncate(fds[0], size)
            self._header = _mapped(fds[0], size)
            fcntl.fcntl(fds[0], fcntl.F_ADD_SEALS, SEALS)
            _collect_statistics(cpus, fds)
            first = ffi.cast("char *", self._header) + HEADER_SIZE
            for number, cpu in enumerate(cpus):
                at = first + number * RECORD_SIZE
                cpu._count_in(ffi.cast("struct shim_counters *", at), self._header)
            greeting = GREETING.pack(
                MAGIC, FORMAT, len(fds) > 1, len(cpus), RECORD_SIZE, vm.memory.size
            )
            label = name.encode("utf-8", "replace")[:LONGEST_NAME]
            self._handout: Any = _hand_out(self.socket, greeting + label, fds)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Withdraw it. The vCPUs go on counting where they do.

        >>> one = kvmpy.watch.publish.Publication(vm, [cpu], "an example")
        >>> one.close()
        >>> [machine for machine in kvmpy.watch.machines() if machine.socket == one.socket]
        []
        """
        handout, self._handout = self._handout, None
        if handout is None:
            return
        if self._process == os.getpid():  # the memory is shared with a parent, too
            self._header.ended = 1
        lib.shim_handout_close(handout)
        self._undo.close()


def _mapped(fd: int, size: int) -> Any:
    error = ffi.new("int *")
    memory = lib.shim_published_map(fd, size, error)
    if error[0]:
        raise OSError(-error[0], os.strerror(-error[0]))
    return ffi.gc(memory, lambda memory: lib.shim_published_unmap(memory, size))


def _collect_statistics(cpus: Sequence[VCPU], fds: list[int]) -> None:
    """Before the vCPUs run: a running one has KVM_GET_STATS_FD wait until it stops."""
    try:
        for cpu in cpus:
            fds.append(ioctls.KVM_GET_STATS_FD(cpu.fileno()))
    except UnsupportedError:  # before Linux 5.14: there are none, of any vCPU
        pass


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _hand_out(socket: str, message: bytes, fds: Sequence[int]) -> Any:
    result = ffi.new("struct shim_handout **")
    name = socket.encode()
    error = lib.shim_handout_open(
        result, name, len(name), message, len(message), list(fds), len(fds)
    )
    if error:
        raise OSError(-error, os.strerror(-error), f"the socket @{socket}")
    return result[0]
