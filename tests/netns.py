"""A network namespace for a test: taps and bridges that the host never sees."""

from __future__ import annotations

import ctypes
import queue
import subprocess
import threading
from collections.abc import Callable
from typing import Any

_CLONE_NEWNET = 0x4000_0000
libc = ctypes.CDLL(None, use_errno=True)


class Namespace(threading.Thread):
    """A thread with a network namespace of its own; ``namespace(function, ...)`` runs there.

    Raises PermissionError without CAP_SYS_ADMIN.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.start()
        try:
            self(_unshare)
            self.ip("link set lo up")
        except BaseException:
            self.close()
            raise

    def run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                self._answers.put((call(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def __call__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._calls.put(lambda: function(*arguments, **options))
        value, error = self._answers.get(timeout=20)
        if error is not None:
            raise error
        return value

    def ip(self, *commands: str) -> None:
        """Run ``ip`` with each."""
        for command in commands:
            self(subprocess.run, ["ip", *command.split()], check=True, capture_output=True)

    def show(self, name: str) -> str:
        """What ``ip`` says of an interface, "" when there is none."""
        command = ["ip", "-d", "link", "show", name]
        text: str = self(
            subprocess.run, command, capture_output=True, text=True, check=False
        ).stdout
        return text

    def bridge(self, *taps: str) -> None:
        """Make the bridge br0, and ``taps`` as its ports."""
        self.ip("link add br0 type bridge", "link set br0 up")
        for tap in taps:
            self.ip(f"tuntap add dev {tap} mode tap", f"link set {tap} master br0 up")

    def is_forwarding(self, tap: str) -> bool:
        """Whether the bridge passes on ``tap``'s frames: once it has heard of the port's carrier,
        some time after somebody attached."""
        return "state forwarding" in self.show(tap)

    def close(self) -> None:
        """End the thread, and with it the namespace."""
        self._calls.put(None)
        self.join(20)


def _unshare() -> None:
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
