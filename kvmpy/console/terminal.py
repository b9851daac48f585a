"""The host's side of the serial console: standard input to the UART, and the terminal's mode."""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..fd import hears_of_forks

if TYPE_CHECKING:
    from .script import Receiver


#: Ctrl-], as in telnet: ends the machine when the terminal passes every other key to the guest.
ESCAPE_KEY = 0x1D
_CHUNK = 1024


def _is_our_terminal(fd: int) -> bool:
    """Reading the terminal from the background would stop the process (SIGTTIN)."""
    try:
        return os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False


class Console:
    """Feeds ``fd`` to a UART until the end of input, in a thread of its own.

    A terminal is put in raw mode (every key reaches the guest, Ctrl-C too) and restored by
    :meth:`close`; the escape key calls ``on_escape``. Output processing stays on, so that a guest's
    bare newline still starts a line.
    """

    def __init__(self, uart: Receiver, fd: int, on_escape: Callable[[], None]):
        self._uart, self._fd, self._on_escape = uart, fd, on_escape
        self._saved: list[Any] | None = None
        self._thread: threading.Thread | None = None
        self._stop = self._space = -1

    @property
    def is_raw(self) -> bool:
        """Whether a terminal was put in raw mode."""
        return self._saved is not None

    def start(self) -> None:
        """Start feeding. A descriptor that cannot be read (closed, a background terminal) is left
        alone: the guest then has no input."""
        terminal = os.isatty(self._fd) if self._fd >= 0 else False
        if self._fd < 0 or (terminal and not _is_our_terminal(self._fd)):
            return
        self._stop, self._space = os.eventfd(0), os.eventfd(0)
        if terminal:
            self._saved = termios.tcgetattr(self._fd)
            raw = termios.tcgetattr(self._fd)
            raw[0] &= ~(termios.ICRNL | termios.IXON | termios.INLCR | termios.IGNCR)
            raw[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
            raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSADRAIN, raw)
        self._thread = threading.Thread(target=self._pump, name="kvmpy-console", daemon=True)
        self._thread.start()
        hears_of_forks(self)

    def _in_child(self) -> None:
        self._thread = self._saved = None  # the parent has the terminal

    def _pump(self) -> None:
        while self._wait_for(self._fd):
            try:
                data = os.read(self._fd, _CHUNK)
            except OSError:
                return
            if not data:
                return  # end of input: the guest goes on without
            if self.is_raw and ESCAPE_KEY in data:
                self._feed(data[: data.index(ESCAPE_KEY)])
                self._on_escape()
                return
            if not self._feed(data):
                return

    def _feed(self, data: bytes) -> bool:
        """All of ``data`` to the UART; waits while its queue is full. False: told to stop."""
        while data:
            taken = self._uart.receive(data, space_eventfd=self._space)
            data = data[taken:]
            if data:
                if not self._wait_for(self._space):
                    return False
                os.eventfd_read(self._space)
        return True

    def _wait_for(self, fd: int) -> bool:
        """True when ``fd`` is readable, False when told to stop. Regular files always are."""
        ready, _, _ = select.select([fd, self._stop], [], [])
        return self._stop not in ready

    def close(self) -> None:
        """Stop feeding and give the terminal back."""
        if self._thread is not None:
            os.eventfd_write(self._stop, 1)
            if self._thread is not threading.current_thread():
                self._thread.join()
            self._thread = None
            self._uart.receive(b"")  # forgets the eventfd
        if self._saved is not None:
            saved, self._saved = self._saved, None
            termios.tcsetattr(self._fd, termios.TCSADRAIN, saved)
        for fd in (self._stop, self._space):
            if fd >= 0:
                os.close(fd)
        self._stop = self._space = -1


def standard_input() -> int:
    """The descriptor of standard input, -1 when it is closed."""
    try:
        return sys.stdin.fileno() if sys.stdin else -1
    except (OSError, ValueError):
        return -1
