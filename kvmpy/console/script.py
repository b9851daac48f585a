"""A guest's console as a script uses it: wait for output, send input, run commands.

One thread per console blocks in poll() on the descriptor that the guest's output comes from, and
hands it to whoever waits. It reads at all times, so a guest never waits for its script; of what it
read, the last ``limit`` bytes are kept.
"""

from __future__ import annotations

import io
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from ..arguments import deadline, encoded, left, seconds
from ..errors import ConsoleError, ExpectEof, ExpectTimeout, UnsupportedError
from ..fd import Owner, gone, hears_of_forks
from .output import KEEP_BYTES, TAIL_BYTES, Match, Output, printable
from .search import QUIET, Found, Pattern, Search

if TYPE_CHECKING:
    from .shell import CommandResult

#: Bytes of input that wait for the guest before send() waits too.
QUEUE_BYTES = 1 << 20
_READ_SIZE = 1 << 16


class Receiver(Protocol):
    """A device's receive side, as :meth:`kvmpy.Uart.receive`: takes what it has room for, says how
    much, and signals ``space_eventfd`` when there is room for the rest. A later call replaces
    the descriptor of an earlier one."""

    def receive(self, data: bytes, *, space_eventfd: int | None = None) -> int:
        """How many bytes of ``data`` were taken."""


class ScriptConsole(Owner):
    """Drives a guest through its console. Any thread; scripts in several threads take turns.

    ``fd``: where the guest's output comes from (a pipe, socket or terminal); the console's from
    here on, closed by :meth:`close`. ``receiver``: takes the input, None: no input. ``ended``:
    gives how the guest ended, for messages, once ``fd`` has come to its end. ``limit``: bytes of
    output to keep. ``log``: path of a file, or a descriptor, that gets all output, as it comes.

    >>> import os
    >>> reader, writer = os.pipe()
    >>> _ = os.write(writer, b"Welcome\\r\\nhost login: ")
    >>> with kvmpy.machine.ScriptConsole(reader) as console: console.expect(rb"(\\w+) login: ")[1]
    b'host'
    >>> os.close(writer)
    """

    def __init__(
        self,
        fd: int,
        receiver: Receiver | None = None,
        *,
        ended: Callable[[], str] | None = None,
        limit: int = KEEP_BYTES,
        log: str | os.PathLike[str] | int | None = None,
    ):
        if limit < TAIL_BYTES:
            raise ValueError(f"limit {limit} is below {TAIL_BYTES} bytes")
        self._log = None if log is None else _open_log(log)
        #: The error that writing the log file ended with, if any.
        self.log_error: OSError | None = None
        self._fd, self._receiver, self._ended = fd, receiver, ended
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._turn = threading.RLock()  # one script at a time, before _changed
        self._changed = threading.Condition()  # guards all below
        self._output = Output(limit)
        self._queue = bytearray()
        self._position = 0  # end of the last match
        self._at_end = self._closed = False
        self._last: Match | None = None
        self._process = os.getpid()
        hears_of_forks(self)
        self._thread = threading.Thread(target=self._pump, name="kvmpy-script", daemon=True)
        self._thread.start()

    def _in_child(self) -> None:
        self._turn, self._changed = threading.RLock(), threading.Condition()
        self._at_end = self._closed = True
        self._queue.clear()
        for fd in (self._wake, self._fd):
            if fd >= 0:
                os.close(fd)
        self._wake = self._fd = -1

    # -- the thread

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while not self._closed:
                ready = {fd for fd, _ in poll.poll()}
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    self._feed()
                if self._fd in ready and not self._take():
                    return
        finally:
            with self._changed:
                self._at_end = True
                self._queue.clear()
                self._changed.notify_all()

    def _take(self) -> bool:
        """Read what has come; False at the end."""
        try:
            data = os.read(self._fd, _READ_SIZE)
        except OSError:  # EIO: a terminal whose other side is gone
            data = b""
        if self._log is not None and self.log_error is None:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._log.write(rest) or 0 :]
            except OSError as error:
                self.log_error = error
        with self._changed:
            self._output.append(data)
            self._changed.notify_all()
        return bool(data)

    def _feed(self) -> None:
        """Give the guest what input it has room for; the rest when it signals room."""
        while self._receiver is not None:
            with self._changed:
                data = bytes(self._queue[:_READ_SIZE])
            if not data:
                return
            taken = self._receiver.receive(data, space_eventfd=self._wake)
            with self._changed:
                del self._queue[:taken]
                self._changed.notify_all()
            if taken < len(data):
                return

    # -- output

    def expect(
        self,
        pattern: Pattern | Sequence[Pattern],
        *,
        timeout: float | None = 30.0,
        exact: bool = False,
    ) -> Match:
        """Wait until the output after the previous match holds ``pattern``, or one of several.

        A bytes or str pattern is a regular expression, with ``^`` and ``$`` at every line, unless
        ``exact``; a compiled one is used as it is. :mod:`kvmpy.console.search` has the rules: how
        far a match can span, what several patterns and open ends do. ``timeout`` in seconds.

        Raises ExpectTimeout, or ExpectEof once the guest has ended; both show the pattern and the
        output's tail, and the next call looks at the same output again. ValueError for a pattern
        that matches the empty string.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"1..2\\nok 1\\nnot ok 2\\n")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect([rb"^not ok \\d", b"#"]).after
        b'not ok 2'
        >>> os.close(writer)
        """
        patterns = [pattern] if isinstance(pattern, (bytes, str, re.Pattern)) else list(pattern)
        limit, until = seconds(timeout), deadline(timeout)
        with self._alone(until), self._changed:
            search = Search(patterns, at=self._position, exact=exact)
            what = " or ".join(map(repr, search.sources))
            while True:
                found = search.look(self._output.kept, self._output.base)
                seen = self._output.end
                if not found and not self._more_than(seen, until, search.growing):
                    found = search.look(self._output.kept, self._output.base, quiet=True)
                    if not found:
                        self._give_up(what, limit, until, search.sources)
                if found:
                    return self._matched(found)

    def _more_than(self, seen: int, until: float, growing: bool) -> bool:
        """Wait for output beyond position ``seen``; False when it has not come in time."""
        self._changed.wait_for(
            lambda: self._output.end > seen or self._at_end,
            left(min(until, time.monotonic() + QUIET) if growing else until),
        )
        return self._output.end > seen and time.monotonic() < until

    def _matched(self, found: Found) -> Match:
        before = self._output.between(self._position, found.start)
        after = self._output.between(found.start, found.end)
        self._position = found.end
        self._last = Match(
            found.index, before, after, found.start, found.end, found.groups, found.names
        )
        return self._last

    def _give_up(
        self, what: str, limit: float, until: float, sources: Sequence[bytes] = ()
    ) -> None:
        """Raises, if there is nothing left to wait for."""
        if not self._at_end and time.monotonic() < until:
            return
        unseen = self._output.end - max(self._position, self._output.base)
        note = f"; {unseen} bytes came since the last match"
        special = [s for s in sources if s in self._output.between(self._position, 1 << 63)]
        if special:
            note += f"; {special[0]!r} appears as plain text: did you mean exact=True?"
        if self._at_end:
            raise self._error(ExpectEof, f"{self._ending()} before {what} appeared{note}")
        raise self._error(ExpectTimeout, f"no {what} within {limit:g} s{note}")

    def _ending(self) -> str:
        if self._closed:
            return "the console was closed"
        return self._ended() if self._ended else "the console's output ended"

    def _error(self, kind: type[ConsoleError], message: str) -> ConsoleError:
        tail = self.tail
        lines = "".join(f"  | {line}\n" for line in printable(tail).splitlines())
        return kind(f"{message}\n{self.tail_title}:\n{lines or '  (nothing)'}".rstrip(), tail)

    @property
    def tail(self) -> bytes:
        """The last 4 KiB of the output, whatever has been matched.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect("r").after, c.tail
        (b'r', b'ready> ')
        >>> os.close(writer)
        """
        with self._changed:
            return self._output.between(self._output.end - TAIL_BYTES, self._output.end)

    @property
    def tail_title(self) -> str:
        """What :attr:`tail` is, in words: how much came before it, and how much of that is gone.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect("> ").end, c.tail_title
        (7, 'all output, 7 bytes')
        >>> os.close(writer)
        """
        with self._changed:
            end, dropped = self._output.end, self._output.base
        if end <= TAIL_BYTES:
            return f"all output, {end} bytes"
        gone = f"; the first {dropped} are no longer kept" if dropped else ""
        return f"the last {TAIL_BYTES} of {end} bytes of output{gone}"

    @property
    def output(self) -> bytes:
        """All output that is kept.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect("> ").after, c.output
        (b'> ', b'ready> ')
        >>> os.close(writer)
        """
        with self._changed:
            return bytes(self._output.kept)

    @property
    def dropped(self) -> int:
        """Bytes of output that are no longer kept.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"x" * 5000 + b"end")
        >>> with kvmpy.machine.ScriptConsole(reader, limit=4096) as c: c.expect("e").end, c.dropped
        (5001, 907)
        >>> os.close(writer)
        """
        with self._changed:
            return self._output.base

    @property
    def position(self) -> int:
        """Where in all output the last match ended: the next search begins there.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect("ready").after, c.position
        (b'ready', 5)
        >>> os.close(writer)
        """
        return self._position

    @property
    def before(self) -> bytes:
        """The output between the last match and the one before it; b"" without a match.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect("> ").index, c.before
        (0, b'ready')
        >>> os.close(writer)
        """
        return self._last.before if self._last else b""

    @property
    def after(self) -> bytes:
        """The text of the last match; b"" without one.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> _ = os.write(writer, b"ready> ")
        >>> with kvmpy.machine.ScriptConsole(reader) as c: c.expect(rb"\\W+").index, c.after
        (0, b'> ')
        >>> os.close(writer)
        """
        return self._last.after if self._last else b""

    # -- input

    def send(self, data: bytes | str, *, timeout: float | None = 30.0) -> None:
        """Send input. Returns at once, unless the guest has left 1 MiB unread: then it waits, up to
        ``timeout`` seconds. The guest gets it in order and at its own pace, nothing is lost.

        Raises ExpectTimeout, ExpectEof once the guest has ended, UnsupportedError for a console
        without input.

        >>> echo = kvmpy.asm(
        ...     "1: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b;"
        ...     "mov dx, 0x3f8; in al, dx; out dx, al; jmp 1b", 16)
        >>> with kvmpy.Machine(echo, format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.console.send("root")
        ...     m.console.expect("root", timeout=60).after
        b'root'
        """
        if self._receiver is None:
            raise UnsupportedError("this console takes no input")
        data, limit, until = encoded(data), seconds(timeout), deadline(timeout)
        with self._alone(until):
            while data:
                data = self._enqueue(data, limit, until)

    def _enqueue(self, data: bytes, limit: float, until: float) -> bytes:
        """Gives what there was no room for."""
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._queue) < QUEUE_BYTES or self._at_end,
                left(until),
            )
            room = QUEUE_BYTES - len(self._queue)
            if self._at_end or room <= 0:
                self._give_up(f"room for {len(data)} bytes of input", limit, until)
            self._queue += data[:room]
            os.eventfd_write(self._wake, 1)
        return data[room:]

    def sendline(self, text: bytes | str = b"", *, timeout: float | None = 30.0) -> None:
        """:meth:`send` of ``text`` and a newline.

        >>> echo = kvmpy.asm(
        ...     "1: mov dx, 0x3fd; in al, dx; test al, 1; jz 1b;"
        ...     "mov dx, 0x3f8; in al, dx; out dx, al; jmp 1b", 16)
        >>> with kvmpy.Machine(echo, format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.console.sendline("root")
        ...     m.console.expect("root\\n", timeout=60).after
        b'root\\n'
        """
        self.send(encoded(text) + b"\n", timeout=timeout)

    def run(self, command: str, timeout: float | None = 60.0) -> CommandResult:
        """Run ``command`` in the guest's shell, which waits for input or soon will.

        Gives its output (standard output and error as the terminal shows them, newlines as ``\\n``)
        and exit status. See :func:`kvmpy.console.shell.run`. Here, a shell in a guest's stead:

        >>> import os, socket, subprocess, types
        >>> ours, its = socket.socketpair()
        >>> shell = subprocess.Popen("sh", stdin=its, stdout=its, stderr=its)
        >>> its.close()
        >>> keys = types.SimpleNamespace(receive=lambda data, space_eventfd=None: ours.send(data))
        >>> fd = os.dup(ours.fileno())
        >>> with kvmpy.machine.ScriptConsole(fd, keys) as c: c.run("echo hi; false")
        CommandResult(command='echo hi; false', output='hi\\n', status=1, complete=True)
        >>> ours.close()
        >>> shell.wait(60)
        0
        """
        from .shell import run

        with self._alone(deadline(timeout)):
            return run(self, command, timeout)

    # -- life

    def drain(self, timeout: float | None = 5.0) -> bool:
        """Wait until all output of a guest that has ended is here; False if it is not in time.

        >>> import os
        >>> reader, writer = os.pipe()
        >>> os.close(writer)
        >>> with kvmpy.machine.ScriptConsole(reader) as console: console.drain()
        True
        """
        until = deadline(timeout)
        with self._changed:
            return self._changed.wait_for(lambda: self._at_end, left(until))

    @contextmanager
    def _alone(self, until: float) -> Iterator[None]:
        wait = left(until)
        if not self._turn.acquire(timeout=-1 if wait is None else wait):
            raise self._error(ExpectTimeout, "another script held the console all the time")
        try:
            if self._closed:
                raise gone("console", self._process)
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        """End the thread and close the descriptor. Scripts that wait get ExpectEof; what is kept
        stays readable.

        >>> import os
        >>> console = kvmpy.machine.ScriptConsole(os.eventfd(0))
        >>> console.close()
        >>> console.output
        b''
        """
        with self._changed:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        if self._receiver is not None:
            self._receiver.receive(b"")  # forgets the eventfd
        with self._changed:
            os.close(self._wake)
            os.close(self._fd)
            self._wake = self._fd = -1
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> ScriptConsole:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_log(log: str | os.PathLike[str] | int) -> io.FileIO:
    """Unbuffered; a descriptor stays its owner's."""
    return io.FileIO(log, "wb", closefd=not isinstance(log, int))
