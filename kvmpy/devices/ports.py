"""One-port devices: debug console, debug exit, POST codes."""

from __future__ import annotations

from typing import Any

from ..fd import Owner
from ..shim import ffi, lib
from .sink import Sink


def _owned(device: Any) -> Any:
    if device == ffi.NULL:
        raise MemoryError("no memory for a device")
    return ffi.gc(device, lambda d: lib.shim_device_free(ffi.cast("struct shim_device *", d)))


class DebugConsole(Owner):
    """Bochs's debug console, by custom at port 0xE9: each byte written is output; a read gives
    0xE9, which tells a guest that the console is there."""

    length = 1

    def __init__(self, fd: int | None = None):
        self.sink = Sink(fd)
        self._device = _owned(lib.shim_debugcon_new(self.sink._sink))

    def _drain(self) -> None:
        self.sink.drain()

    @property
    def output(self) -> bytes:
        """What the guest has written, when no descriptor takes it.

        >>> console = kvmpy.DebugConsole()
        >>> vm.attach(console, 0xe9)
        >>> vm.load(kvmpy.asm("mov al, 'A'; out 0xe9, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5), console.output
        (Hlt(), b'A')
        """
        return self.sink.output


class DebugExitPort(Owner):
    """Ends the run: a write comes back from ``run()`` as DebugExit(status). By custom at 0xF4.

    The value of an 8-, 16- or 32-bit write is the status.
    """

    length = 1

    def __init__(self) -> None:
        self._device = _owned(lib.shim_debug_exit_new())


class PostPort(Owner):
    """POST codes, at port 0x80: the last byte written is kept, and reads back."""

    length = 1

    def __init__(self) -> None:
        self._device = _owned(lib.shim_post_new())

    @property
    def last(self) -> int:
        """The last code, 0 before the first.

        >>> kvmpy.PostPort().last
        0
        """
        code: int = self._device.last
        return code

    @property
    def writes(self) -> int:
        """How many codes were written.

        >>> kvmpy.PostPort().writes
        0
        """
        count: int = self._device.writes
        return count
