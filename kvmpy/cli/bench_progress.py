"""How far a benchmark is, on stderr: one line that changes on a terminal, else one in 10 s."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

_EVERY_TERMINAL, _EVERY_PIPE = 0.1, 10.0  # seconds


class Progress:
    """Call it with the share that is done, 0 to 1, and what is being measured now.

    The time left is an estimate from the pace so far, so the share should be one of time. Used as a
    context manager it clears its line.
    """

    def __init__(
        self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._title, self._stream, self._clock = title, stream, clock
        self._terminal = stream.isatty()
        self._begun = clock()
        self._shown: float | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._terminal and self._shown is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, share: float, what: str = "") -> None:
        """Note the progress, and show it when it is time."""
        now = self._clock()
        every = _EVERY_TERMINAL if self._terminal else _EVERY_PIPE
        since = self._begun if self._shown is None and not self._terminal else self._shown
        if since is not None and now - since < every:
            return
        self._shown = now
        text = self._text(now - self._begun, share, what)
        if self._terminal:
            width = shutil.get_terminal_size((80, 24)).columns - 1
            self._stream.write(f"\r{text[:width]}\x1b[K")
        else:
            self._stream.write(f"kvmpy: {text}\n")
        self._stream.flush()

    def _text(self, seconds: float, share: float, what: str) -> str:
        share = min(1.0, max(0.0, share))
        left = f"{_duration(seconds * (1 - share) / share)} left" if share > 0.01 else ""
        parts = [f"bench {self._title}", f"{share:4.0%}", left, what]
        return "  ".join(part for part in parts if part)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes else f"{rest} s"
