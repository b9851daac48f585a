"""The host's side of the serial console: standard input to the UART, and the terminal's mode."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
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


#: For a shell of a session of its own, which no signal of the terminal's reaches. Its descriptor 0
#: is the terminal, 2 a pipe that we keep open.
_WATCH = """
saved=$(stty -g); echo
read -r end <&2 || { stty "$saved"; printf "$1" >&0; }
"""


class Keeper:
    """Puts a terminal back as it is now, and writes ``text`` to it, if this process ends without
    :meth:`close`: by SIGKILL, say. Made before the terminal is changed."""

    def __init__(self, fd: int, text: str = ""):
        end, self._alive = os.pipe2(os.O_CLOEXEC)
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sh", text],
                stdin=fd, stdout=subprocess.PIPE, stderr=end, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(end)
        assert self._shell.stdout is not None
        with self._shell.stdout as ready:
            ready.read(1)
        hears_of_forks(self)

    def _in_child(self) -> None:
        alive, self._alive = self._alive, -1
        if alive >= 0:
            os.close(alive)  # or the parent's end would not be seen while the child lives

    def close(self) -> None:
        """The terminal is as it was. Once."""
        with contextlib.suppress(BrokenPipeError):  # somebody has killed the shell
            os.write(self._alive, b"end\n")
        os.close(self._alive)
        self._alive = -1
        self._shell.wait()


class Console:
    """Feeds ``fd`` to a UART until the end of input, in a thread of its own.

    A terminal is put in raw mode (every key reaches the guest, Ctrl-C too) and restored by
    :meth:`close`; the escape key calls ``on_escape``. Output processing stays on, so that a guest's
    bare newline still starts a line.
    """

    def __init__(self, uart: Receiver, fd: int, on_escape: Callable[[], None]):
        self._uart, self._fd, self._on_escape = uart, fd, on_escape
        self._saved: list[Any] | None = None
        self._keeper: Keeper | None = None
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
            self._keeper = Keeper(self._fd)
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
            if self._keeper is not None:
                self._keeper.close()
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
