"""Run an emulator, stream what its guest prints, and take its outcome.

A rig's guest has three serial ports, and the emulator writes each to a pipe of ours:

====== ==================================================================================
ttyS0  the kernel's console: kept, and shown when something goes wrong
ttyS1  the command's stdout and stderr: copied to our stdout byte by byte, as it comes
ttyS2  the outcome: ``start``, then ``exit STATUS``, then perhaps ``junit SIZE`` and SIZE
       bytes of gzip, then ``end``, each on its own line
====== ==================================================================================

The emulator is killed as soon as the outcome is complete: a power-off would only cost time.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .host import RigError, say

EXIT_TIMEOUT = 124
EXIT_NO_OUTCOME = 125
_TAIL_LINES = 60
_TAIL_BYTES = 64 * 1024
_PANIC = b"Kernel panic - not syncing"
_PANIC_GRACE = 2.0  # seconds for the rest of the panic's text


@dataclass
class Outcome:
    """What came out of ttyS2 so far."""

    started_at: float | None = None
    status: int | None = None
    junit: bytes | None = None
    complete: bool = False
    _pending: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes, now: float) -> None:
        """Take more bytes of the outcome.  Raises RigError when they are not what a rig sends."""
        self._pending += data
        while not self.complete and (end := self._pending.find(b"\n")) >= 0:
            word, _, value = self._pending[:end].partition(b" ")
            size = end + 1
            if word == b"start":
                self.started_at = now
            elif word == b"exit" and value.isdigit():
                self.status = int(value)
            elif word == b"junit" and value.isdigit():
                size += int(value)
                if len(self._pending) < size:
                    return
                self.junit = _inflate(bytes(self._pending[end + 1 : size]))
            elif word == b"end":
                self.complete = True
            else:
                raise RigError(f"the guest sent a broken outcome: {bytes(self._pending[:60])!r}")
            del self._pending[:size]


def _inflate(data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise RigError(f"the JUnit file was damaged on its way out: {error}") from None


@dataclass(frozen=True)
class Ports:
    """Paths that an emulator opens and writes its three serial ports to."""

    console: str
    output: str
    outcome: str


class Session:
    """One run of an emulator, with a limit of ``timeout`` seconds of the host's time."""

    def __init__(self, name: str, timeout: float, *, show_console: bool = False) -> None:
        self.outcome = Outcome()
        self._name = name
        self._timeout = timeout
        self._show_console = show_console
        self._console = bytearray()
        self._panic_at: float | None = None

    def run(
        self, command: Callable[[Ports], list[str]], log: Path, environment: Mapping[str, str]
    ) -> int:
        """Run ``command(ports)`` until it ends, and return the status that the rig exits with.

        The emulator's own messages go to ``log``.  It is never left behind, whatever happens.
        """
        begin = time.monotonic()
        pipes = [os.pipe() for _ in range(3)]
        readers, writers = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
        with contextlib.ExitStack() as stack:
            for descriptor in readers:
                stack.callback(os.close, descriptor)
            try:
                argv = command(Ports(*(f"/dev/fd/{descriptor}" for descriptor in writers)))
                stack.enter_context(_emulator(argv, writers, log, environment))
            finally:
                for descriptor in writers:  # so that a reader sees the end when the emulator dies
                    os.close(descriptor)
            ended = self._serve(readers[0], readers[1], readers[2], begin)
        return self._report(ended, time.monotonic() - begin, begin, log)

    def _serve(self, console: int, output: int, outcome: int, begin: float) -> str:
        """Copy until the outcome is complete or nothing more can come.  Returns what ended it."""
        takers = {
            console: self._take_console,
            output: self._take_output,
            outcome: self._take_outcome,
        }
        with selectors.DefaultSelector() as selector:
            for descriptor in takers:
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map() and not self.outcome.complete:
                now = time.monotonic()
                if now - begin >= self._timeout:
                    return "timeout"
                if self._panic_at is not None and now - self._panic_at > _PANIC_GRACE:
                    return "panic"
                for key, _ in selector.select(min(0.5, begin + self._timeout - now)):
                    data = os.read(key.fd, 65536)
                    takers[key.fd](data)
                    if not data:
                        selector.unregister(key.fd)
        # The guest drains ttyS1 before it reports, so what is left is in the pipe already.
        os.set_blocking(output, False)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(output, 65536):
                self._take_output(data)
        return "outcome" if self.outcome.complete else "emulator"

    def _take_console(self, data: bytes) -> None:
        self._console += data
        del self._console[:-_TAIL_BYTES]
        if self._show_console:
            os.write(sys.stderr.fileno(), data.replace(b"\r", b""))
        if self._panic_at is None and _PANIC in self._console:
            self._panic_at = time.monotonic()

    def _take_output(self, data: bytes) -> None:
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]

    def _take_outcome(self, data: bytes) -> None:
        self.outcome.feed(data, time.monotonic())

    def _report(self, ended: str, seconds: float, begin: float, log: Path) -> int:
        """Say how it went; when the guest gave no status, show what the console said last."""
        started = self.outcome.started_at
        boot = "did not reach the command" if started is None else f"boot {started - begin:.1f} s"
        if ended == "outcome" and self.outcome.status is not None:
            status = self.outcome.status
            say(f"{self._name}: exit status {status} after {seconds:.1f} s ({boot})")
            return status
        why = {
            "timeout": f"killed at its limit of {self._timeout:g} s",
            "panic": f"the inner kernel panicked after {seconds:.1f} s",
        }.get(ended, f"the emulator ended without an outcome after {seconds:.1f} s")
        _show("emulator's messages", log.read_bytes())
        _show("console", bytes(self._console))
        say(f"{self._name}: {why} ({boot})")
        return EXIT_TIMEOUT if ended == "timeout" else EXIT_NO_OUTCOME


def _show(title: str, data: bytes) -> None:
    lines = data.decode(errors="replace").replace("\r", "").strip().splitlines()
    say(f"last lines of the {title}:" if lines else f"the {title}: nothing")
    for line in lines[-_TAIL_LINES:]:
        print(f"  | {line}", file=sys.stderr)


@contextlib.contextmanager
def _emulator(
    argv: list[str], descriptors: list[int], log: Path, environment: Mapping[str, str]
) -> Iterator[None]:
    """Run ``argv`` in a process group of its own, and kill the whole group at the end.

    Its own group, so that Ctrl-C reaches us alone; with a parent-death signal where util-linux's
    setpriv has it, so that not even SIGKILL leaves an emulator behind.
    """
    if shutil.which("setpriv"):
        argv = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
    with open(log, "wb") as messages:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            pass_fds=descriptors,
            start_new_session=True,
            env=environment,
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
