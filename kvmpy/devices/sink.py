"""Where a device's output goes."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

from ..fd import Owner, hears_of_forks
from ..shim import ffi, lib

#: Output kept for a host that never reads it; beyond that the oldest goes.
KEEP_BYTES = 16 << 20


class Sink(Owner):
    """Takes a device's bytes: to a file descriptor, or to memory when ``fd`` is None.

    With a descriptor, bytes are written at a newline, when 4 KiB have gathered, after 10 ms at the
    latest, and whenever a run ends. In memory the last 16 MiB are kept; ``dropped`` counts the
    rest. The descriptor stays the caller's: it is never closed here.
    """

    def __init__(self, fd: int | None = None):
        sink = lib.shim_sink_new(-1 if fd is None else fd)
        if sink == ffi.NULL:
            raise MemoryError("no memory for a sink")
        self._sink: Any = ffi.gc(sink, lib.shim_sink_free)
        self._taking = threading.Lock()  # guards the next two: what is taken is put in its order
        self._kept = bytearray()
        #: Bytes that were dropped because nobody took them.
        self.dropped = 0
        hears_of_forks(self)

    def _in_child(self) -> None:
        self._taking = threading.Lock()

    def drain(self) -> None:
        """Move what the C side holds into memory.

        >>> kvmpy.Sink().drain()
        """
        with self._taking:
            self._drain()

    def _drain(self) -> None:
        if self._sink.fd >= 0:
            return
        size = lib.SHIM_SINK_SIZE  # all that it can hold: once is enough
        buffer = ffi.new("uint8_t[]", size)
        count = lib.shim_sink_take(self._sink, buffer, size)
        self._kept += ffi.buffer(buffer, count)
        excess = len(self._kept) - KEEP_BYTES
        if excess > 0:
            del self._kept[:excess]
            self.dropped += excess

    @property
    def output(self) -> bytes:
        """All that is kept, without taking it.

        >>> kvmpy.Sink().output
        b''
        """
        with self._taking:
            self._drain()
            return bytes(self._kept)

    def take(self) -> bytes:
        """All that is kept, which is then forgotten.

        >>> kvmpy.Sink().take()
        b''
        """
        with self._taking:
            self._drain()
            output, self._kept = bytes(self._kept), bytearray()
        return output

    def flush(self) -> int:
        """Write to the descriptor what waits for its reader. Returns how many bytes still do: the
        reader does not keep up. Raises OSError for a write that failed, now or since the last
        redirect(): its bytes are lost.

        >>> kvmpy.Sink().flush()
        0
        """
        code = lib.shim_sink_flush(self._sink)
        if code in (0, -errno.EAGAIN):
            code = self._sink.error
        if code:
            raise OSError(-code, os.strerror(-code))
        waiting: int = self._sink.length if self._sink.fd >= 0 else 0
        return waiting

    def redirect(self, fd: int | None) -> None:
        """Send what comes from now on to another descriptor, or to memory.

        >>> import os
        >>> sink = kvmpy.Sink()
        >>> sink.redirect(1)
        >>> sink.redirect(None)
        """
        self.drain()
        lib.shim_sink_redirect(self._sink, -1 if fd is None else fd)

    @property
    def first_at(self) -> float | None:
        """When the first byte came, in seconds of time.monotonic(); None before.

        >>> kvmpy.Sink().first_at
        """
        at: int = self._sink.first_at
        return at / 1e9 if at else None

    @property
    def total(self) -> int:
        """Bytes the device has put out so far.

        >>> kvmpy.Sink().total
        0
        """
        total: int = self._sink.total
        return total
