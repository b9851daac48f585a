"""The terminal of ``kvmpy top``: the alternate screen, drawn anew at each sample, and its keys."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..console.terminal import Keeper
from .top_view import Line, View

if TYPE_CHECKING:
    from ..watch.find import MachineInfo
    from ..watch.samples import Sample
    from ..watch.watch import Watch

_QUIT = frozenset("qQ\x03\x04")
#: What a key sends, and how far it scrolls: lines, or what they are.
_KEYS: dict[str, int | str] = {
    "\x1b[A": -1, "\x1bOA": -1, "k": -1, "\x1b[B": 1, "\x1bOB": 1, "j": 1,
    "\x1b[5~": "-page", "b": "-page", "\x1b[6~": "page", " ": "page",
    "\x1b[H": "top", "\x1b[1~": "top", "g": "top", "\x1b[F": "end", "\x1b[4~": "end", "G": "end",
}  # fmt: skip
_FURNITURE = 3  # lines: title, columns, keys


def show(
    watch: Watch, interval: float, count: int | None, *, stay: bool
) -> tuple[MachineInfo, ...]:
    """Until q, Ctrl-C, or ``count`` samples; until no machine is left, unless ``stay``. Gives
    the machines whose end ended it."""
    screen = _Screen()
    try:
        with screen.open():
            return _watch(screen, watch, interval, count, stay)
    except KeyboardInterrupt:
        return ()


def _watch(
    screen: _Screen, watch: Watch, interval: float, count: int | None, stay: bool
) -> tuple[MachineInfo, ...]:
    screen.draw(watch.sample())
    due = time.monotonic() + interval
    while count is None or count > 0:
        if not screen.keys_until(due):
            return ()
        due = max(due + interval, time.monotonic())
        count = None if count is None else count - 1
        sample = watch.sample()
        if not (sample.machines or stay):
            return sample.ended
        screen.draw(sample)
    return ()


#: xterm's "use the normal screen buffer", and the cursor shown.
_LEAVE_SCREEN = r"\033[?1049l\033[?25h"


class _Screen:
    """What is on the screen, and from which line on."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._view = View()
        self._sample: Sample | None = None
        self._body: list[Line] = []
        self._width = 0
        self._top = 0
        self._wake_up = -1
        self._suspended = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """The terminal as we need it, and as it was, whatever happens."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wake_up = reader
        handlers = {
            signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: None),
            signal.SIGTERM: signal.signal(signal.SIGTERM, _terminate),
            signal.SIGTSTP: signal.signal(signal.SIGTSTP, self._suspend),
        }
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            with self._drawing():
                yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else -1
        saved = termios.tcgetattr(keys) if keys >= 0 else None
        self._live = Live(console=self._console, screen=True, auto_refresh=False)
        keeper = Keeper(keys, _LEAVE_SCREEN) if keys >= 0 else None
        try:
            if saved is not None:
                tty.setcbreak(keys)
            with self._live:
                yield
        finally:
            if saved is not None:
                termios.tcsetattr(keys, termios.TCSADRAIN, saved)
            if keeper is not None:
                keeper.close()

    def draw(self, sample: Sample | None = None) -> None:
        """Show a sample, or the one before in another part or size."""
        width, height = self._console.size
        if sample is not None:
            self._sample = sample
        assert self._sample is not None
        assert self._live is not None
        if sample is not None or width != self._width:
            self._body = self._view.body(self._sample, width)
            self._width = width
        room = max(height - _FURNITURE, 1)
        self._top = max(min(self._top, len(self._body) - room), 0)
        shown = self._body[self._top : self._top + room]
        blank = [[("", "")]] * (room - len(shown))
        lines: list[Line] = [
            self._view.title(self._sample, width), self._view.columns(width), *shown, *blank,
            self._keys_line(len(shown), width),
        ]  # fmt: skip
        self._live.update(Group(*map(_text, lines[:height])), refresh=True)

    def _keys_line(self, shown: int, width: int) -> Line:
        text = "q quits"
        if shown < len(self._body):
            text += f"   up, down, page up, page down: lines {self._top + 1}-{self._top + shown}"
            text += f" of {len(self._body)}"
        return [(text[:width], "dim")]

    def keys_until(self, due: float) -> bool:
        """Heed keys and changes of the terminal until then. False: the user wants to leave."""
        keys = sys.stdin.fileno() if sys.stdin and sys.stdin.isatty() else -1
        sources = [self._wake_up] + [keys] * (keys >= 0)
        while (left := due - time.monotonic()) > 0:
            ready, _, _ = select.select(sources, [], [], left)
            if self._wake_up in ready:
                os.read(self._wake_up, 512)
                if self._suspended:
                    self._sleep()
                self.draw()
            if keys in ready:
                typed = os.read(keys, 64).decode("latin-1")
                if not typed or typed[0] in _QUIT:
                    return False
                self._scroll(typed)
        return True

    def _scroll(self, typed: str) -> None:
        page = max(self._console.height - _FURNITURE, 1)
        steps = {"-page": -page, "page": page, "top": -len(self._body), "end": len(self._body)}
        for key, step in _KEYS.items():
            if typed.startswith(key):
                self._top += step if isinstance(step, int) else steps[step]
                self._top = max(self._top, 0)
                self.draw()
                return

    def _suspend(self, *_: object) -> None:
        self._suspended = True

    def _sleep(self) -> None:
        """Ctrl-Z: leave the terminal to the shell, and take it again afterwards."""
        self._suspended = False
        assert self._live is not None
        keys = sys.stdin.fileno()
        ours = termios.tcgetattr(keys) if sys.stdin.isatty() else None
        self._live.stop()
        if ours is not None:
            as_usual = [*ours]
            as_usual[3] |= termios.ICANON | termios.ECHO
            termios.tcsetattr(keys, termios.TCSADRAIN, as_usual)
        os.kill(os.getpid(), signal.SIGSTOP)
        if ours is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, ours)
        self._live.start()


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _text(line: Line) -> Text:
    text = Text(no_wrap=True, overflow="crop", end="\n")
    for piece, style in line:
        text.append(piece, style or None)
    return text
