"""What a guest has put out: the part that is kept, matches in it, and how people get to see it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

#: Bytes of output kept; beyond that the oldest goes.
KEEP_BYTES = 64 << 20
#: Bytes of the output's end that errors and reports show.
TAIL_BYTES = 4096


def printable(data: bytes) -> str:
    """A guest's output for people: no carriage returns, control characters and what is not UTF-8
    as escapes.

    >>> from kvmpy.console.output import printable
    >>> printable(b"caf\\xc3\\xa9\\r\\n\\x1b[1m\\xff")
    'café\\n\\\\x1b[1m\\\\xff'
    """
    text = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", text)


@dataclass(frozen=True, slots=True)
class Match:
    """What :meth:`ScriptConsole.expect` found.

    ``index`` says which of several patterns; ``before`` is the output between the previous match
    and this one, ``after`` what matched; ``start`` and ``end`` are offsets in all output.

    >>> match = kvmpy.machine.Match(0, b"", b"eth0 up", 0, 7, (b"eth0 up", b"eth0"), {"nic": 1})
    >>> match[1], match["nic"]
    (b'eth0', b'eth0')
    """

    index: int
    before: bytes
    after: bytes
    start: int
    end: int
    _groups: tuple[bytes | None, ...] = field(repr=False)
    _names: Mapping[str, int] = field(repr=False)

    def group(self, which: int | str = 0) -> bytes | None:
        """A group by number or name; 0 is the whole match. Raises IndexError for none such.

        >>> kvmpy.machine.Match(0, b"", b"ok 1", 0, 4, (b"ok 1", b"1"), {}).group(1)
        b'1'
        """
        number = self._names.get(which, -1) if isinstance(which, str) else which
        if not 0 <= number < len(self._groups):
            raise IndexError(f"no such group: {which!r}")
        return self._groups[number]

    __getitem__ = group

    def groups(self) -> tuple[bytes | None, ...]:
        """All groups but the whole.

        >>> kvmpy.machine.Match(0, b"", b"ok 1", 0, 4, (b"ok 1", b"ok", b"1"), {}).groups()
        (b'ok', b'1')
        """
        return self._groups[1:]

    def groupdict(self) -> dict[str, bytes | None]:
        """The named groups.

        >>> kvmpy.machine.Match(0, b"", b"ok 1", 0, 4, (b"ok 1", b"1"), {"n": 1}).groupdict()
        {'n': b'1'}
        """
        return {name: self._groups[number] for name, number in self._names.items()}


class Output:
    """The last ``limit`` bytes of a guest's output, by position in all of it. Its user locks."""

    def __init__(self, limit: int):
        self.kept, self.base, self._limit = bytearray(), 0, limit

    @property
    def end(self) -> int:
        """Bytes in all that have come.

        >>> from kvmpy.console.output import Output
        >>> Output(100).end
        0
        """
        return self.base + len(self.kept)

    def append(self, data: bytes) -> None:
        """More output; the oldest goes if there is too much.

        >>> from kvmpy.console.output import Output
        >>> output = Output(4)
        >>> output.append(b"abcdef")
        >>> output.base, output.kept
        (2, bytearray(b'cdef'))
        """
        self.kept += data
        excess = len(self.kept) - self._limit
        if excess > 0:
            del self.kept[:excess]
            self.base += excess

    def between(self, start: int, end: int) -> bytes:
        """What is kept of the output from position ``start`` to before ``end``.

        >>> from kvmpy.console.output import Output
        >>> output = Output(4)
        >>> output.append(b"abcdef")
        >>> output.between(0, 4)
        b'cd'
        """
        with memoryview(self.kept) as view:
            return bytes(view[max(start - self.base, 0) : max(end - self.base, 0)])
