"""Console device."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from ...arguments import nanoseconds
from ...fd import gone
from ...shim import lib
from ..sink import KEEP_BYTES
from .device import VirtioDevice

_PTMX = os.makedev(5, 2)


class VirtioConsole(VirtioDevice):
    """A console: one port, to Linux ``hvc0`` (``console=hvc0``).

    VIRTIO 1.2, "5.3 Console Device".

    ``fd``: where output goes, straight from guest memory: a pipe, socket, terminal or file; None
    keeps the last 16 MiB for :attr:`output`. It is duplicated: the caller closes the original. A
    reader that does not keep up makes the guest wait, and nothing is lost; one that goes away makes
    output vanish, and flush() says so. ``size``: columns and rows of the terminal.

    >>> with kvmpy.devices.virtio.VirtioConsole() as console:
    ...     console.connect(vm, 0xD000_0000)
    ...     console.receive(b"root"), console.output
    (4, b'')
    """

    def __init__(self, fd: int | None = None, *, size: tuple[int, int] = (80, 25)):
        self._size = _checked(*size)
        self._output = b""
        self._memory_fd = os.memfd_create("kvmpy-console")
        try:
            target, keep = self._target(fd)
            try:
                super().__init__(lib.shim_virtio_console_new(target, keep, *self._size))
            except BaseException:
                os.close(target)
                raise
        except BaseException:
            os.close(self._memory_fd)
            raise

    def _target(self, fd: int | None) -> tuple[int, int]:
        """A descriptor for C, and how much to keep of what is written to it."""
        if fd is None:
            return fcntl.fcntl(self._memory_fd, fcntl.F_DUPFD_CLOEXEC, 0), KEEP_BYTES
        return _own(fd), 0

    # -- output

    @property
    def output(self) -> bytes:
        """What the guest has sent while no descriptor took it: the last 16 MiB.

        >>> kvmpy.devices.virtio.VirtioConsole().output
        b''
        """
        return self._output if self.closed else _end_of(self._memory_fd)

    def redirect(self, fd: int | None) -> None:
        """Send what comes from now on to another descriptor, or to memory.

        >>> with kvmpy.devices.virtio.VirtioConsole() as console:
        ...     console.redirect(1)
        ...     console.redirect(None)
        """
        if self.closed:
            raise gone("device", self._process)
        lib.shim_virtio_console_redirect(self._virtio, *self._target(fd))

    def flush(self, timeout: float | None = 5.0) -> bool:
        """Wait until what the guest has sent so far is written; False when its reader has not taken
        it within ``timeout`` seconds. Raises OSError for a write that failed since the last
        redirect(): its bytes are lost, and those that follow.

        >>> kvmpy.devices.virtio.VirtioConsole().flush()
        True
        """
        code = lib.shim_virtio_console_flush(self._virtio, nanoseconds(timeout, 1 << 62))
        if code and code != -errno.ETIMEDOUT:
            raise OSError(-code, os.strerror(-code))
        return not code

    # -- input

    def receive(self, data: bytes, *, space_eventfd: int | None = None) -> int:
        """Send bytes to the guest, from any thread. Returns how many were taken; fewer than all
        means that what waits for the guest's buffers (64 KiB) is all there is room for, and
        ``space_eventfd`` is signalled when half of it is free again. It must stay open until then,
        or until a later call (``receive(b"")``) replaces it.

        >>> kvmpy.devices.virtio.VirtioConsole().receive(b"ls")
        2
        """
        event = -1 if space_eventfd is None else space_eventfd
        taken: int = lib.shim_virtio_console_receive(self._virtio, data, len(data), event)
        return taken

    @property
    def backlog(self) -> int:
        """Bytes that the guest has no buffers for yet.

        >>> console = kvmpy.devices.virtio.VirtioConsole()
        >>> console.receive(b"ls"), console.backlog
        (2, 2)
        """
        count: int = lib.shim_virtio_console_backlog(self._virtio)
        return count

    # -- the terminal's size

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows, as the guest was told.

        >>> kvmpy.devices.virtio.VirtioConsole().size
        (80, 25)
        """
        return self._size

    def set_size(self, columns: int, rows: int) -> None:
        """Tell the guest that the terminal's size has changed: 0 to 65535 each.

        >>> console = kvmpy.devices.virtio.VirtioConsole()
        >>> console.set_size(132, 43); console.size
        (132, 43)
        """
        self._size = _checked(columns, rows)
        lib.shim_virtio_console_resize(self._virtio, *self._size)

    def close(self) -> None:
        """As :meth:`VirtioDevice.close`; :attr:`output` stays readable.

        >>> console = kvmpy.devices.virtio.VirtioConsole()
        >>> console.close(); console.output
        b''
        """
        if not self.closed:
            super().close()
            self._output = _end_of(self._memory_fd)
            os.close(self._memory_fd)


def _checked(columns: int, rows: int) -> tuple[int, int]:
    if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
        raise ValueError(f"a terminal of {columns} columns and {rows} rows: 0 to 65535 each")
    return columns, rows


def _own(fd: int) -> int:
    """A descriptor of ours for what ``fd`` is. A pipe or terminal is opened anew where that can be
    done, so that it is non-blocking for us and stays as it is for others."""
    status = os.fstat(fd)
    is_terminal = os.isatty(fd) and status.st_rdev != _PTMX  # opening that makes another terminal
    if stat.S_ISFIFO(status.st_mode) or is_terminal:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


def _end_of(fd: int) -> bytes:
    """The last bytes of a file that grows, and whose beginning is forgotten."""
    while True:
        size = os.fstat(fd).st_size
        start = max(0, size - KEEP_BYTES)
        data = os.pread(fd, size - start, start)
        if os.fstat(fd).st_size - size < KEEP_BYTES:
            return data
