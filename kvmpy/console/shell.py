"""Commands through a guest's shell, over a console that echoes, prompts and wraps lines.

The shell is asked to print a mark, run the command, and print a second mark with its status. It
assembles each mark from pieces, so no echo, trace or listing of what was typed holds one. The
command travels quoted, through ``eval``: what is wrong with its syntax is its own failure, and
``cd`` or a variable stays in effect. Any POSIX shell will do (busybox ash, dash, bash).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from ..arguments import deadline, left
from ..values import dataclass

if TYPE_CHECKING:
    from .output import Match
    from .search import Pattern

#: Characters of a command per typed line: line editors take 1024 at most, terminals 4095.
_PIECE = 400
_MARK = "kvmpy"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command printed and the status it ended with, 0..255.

    ``complete`` is False when there was more output than the console keeps: its beginning is lost.
    """

    command: str
    output: str
    status: int
    complete: bool = True


class Conversation(Protocol):
    """What a command goes through: a :class:`kvmpy.machine.ScriptConsole`."""

    @property
    def before(self) -> bytes: ...
    @property
    def dropped(self) -> int: ...
    @property
    def position(self) -> int: ...
    def expect(self, pattern: Pattern, *, timeout: float | None, exact: bool = False) -> Match: ...
    def sendline(self, text: str) -> None: ...


def run(console: Conversation, command: str, timeout: float | None) -> CommandResult:
    """Run ``command``. The shell need not have shown its prompt yet.

    Output that is not UTF-8 comes as ``\\xNN``. A command that reads standard input reads the
    console; one that ends the shell (``exit``, ``exec``) never gives a status. After a timeout the
    command still runs: ``console.send(b"\\x03")`` interrupts it.

    Raises ExpectTimeout, ExpectEof; ValueError for a NUL byte in ``command``.

    >>> import os, socket, subprocess, types
    >>> ours, its = socket.socketpair()
    >>> shell = subprocess.Popen("sh", stdin=its, stdout=its, stderr=its)
    >>> its.close()
    >>> keys = types.SimpleNamespace(receive=lambda data, space_eventfd=None: ours.send(data))
    >>> with kvmpy.machine.ScriptConsole(os.dup(ours.fileno()), keys) as c: c.run("(exit 3)").status
    3
    >>> ours.close()
    >>> shell.wait(60)
    0
    """
    raw = command.encode()
    if b"\0" in raw:
        raise ValueError("a NUL byte cannot be part of a command")
    until = deadline(timeout)
    token = os.urandom(4).hex()

    def mark(name: str) -> bytes:
        console.expect(f"<{_MARK}-{token}-{name}", timeout=left(until), exact=True)
        return console.before

    argument = _quoted(command)
    if not _is_plain(raw):
        # Line by line, each acknowledged: a terminal's input buffer is small.
        for number, piece in enumerate(_pieces(raw)):
            start = "$_kvmpy" if number else ""
            console.sendline(f" _kvmpy={start}'{piece}'; {_print(token, str(number))}")
            mark(f"{number}>")
        argument = '"$(printf %b "$_kvmpy")"'
    console.sendline(
        f" {_print(token, 'begin')}; command eval {argument}; {_print(token, 'end', '$?')}"
    )
    mark("begin>")
    console.expect(r"\n", timeout=left(until))
    begin = console.position
    output = mark("end ").removesuffix(b"\n").removesuffix(b"\r")
    status = console.expect(rb"(\d+)>\r?\n", timeout=left(until))
    text = output.replace(b"\r\n", b"\n").decode("utf-8", "backslashreplace")
    return CommandResult(command, text, int(status[1] or 0), console.dropped <= begin)


def _print(token: str, name: str, value: str = "") -> str:
    """Shell text that prints a mark on a line of its own."""
    if value:
        return f"printf '\\n<%s-%s %s>\\n' {_MARK} {token}-{name} \"{value}\""
    return f"printf '\\n<%s-%s>\\n' {_MARK} {token}-{name}"


def _is_plain(raw: bytes) -> bool:
    """Whether it can be typed as it is: no tab that completes, no newline, not too long."""
    return len(raw) + 3 * raw.count(b"'") <= _PIECE and all(0x20 <= b < 0x7F for b in raw)


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"


def _pieces(raw: bytes) -> Iterator[str]:
    """``raw`` for printf's %b, in printable ASCII without quotes, a piece per line."""
    piece = ""
    for byte in raw:
        if 0x20 <= byte < 0x7F and byte not in b"'\\":
            piece += chr(byte)
        else:
            piece += f"\\0{byte:03o}"
        if len(piece) >= _PIECE:
            yield piece
            piece = ""
    if piece:
        yield piece
