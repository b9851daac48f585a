"""Patterns in a stream that arrives in pieces.

A result depends on the stream alone, not on the pieces it came in, and time is linear in it:

- A literal matches where its last byte has come. After a miss the search goes on from where the
  literal could still begin: its length less one from the end.
- A regular expression matches at the first byte with which ``search()`` finds something, looking
  back over the block of SPAN bytes before (blocks lie at multiples of SPAN in the stream). So a
  match of up to SPAN bytes is always found, and no byte is looked at for more than two blocks.
- If that match could grow with a further byte (``version (\\S+)``), it is given the rest of its
  line: what the expression matches there once the newline has come, SPAN bytes have, or nothing
  more comes for QUIET seconds.
- Of several patterns the one whose match is complete first wins; of equals, the first listed.

``$``, ``\\Z``, ``\\b`` and lookaheads at a pattern's end see the end of what has come so far: end
it with what must follow instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Bytes that a match of a regular expression may span.
SPAN = 4096
#: Seconds without output after which an unfinished line counts as all that comes.
QUIET = 0.1

_SPECIAL = set(rb"\.^$*+?{}[]|()")

Pattern = bytes | str | re.Pattern[bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """A match: ``index`` of its pattern, its place in the stream, and its groups, 0 the whole."""

    index: int
    start: int
    end: int
    groups: tuple[bytes | None, ...]
    names: dict[str, int]


@dataclass(slots=True)
class _Hit:
    """``start`` and ``end`` in the stream of a match that has just become complete."""

    start: int
    end: int
    grows: bool


class _Literal:
    """Looks for fixed bytes."""

    def __init__(self, text: bytes):
        self.text = text
        self.source = text
        self.scanned = 0
        self._next = 0

    def begin(self, at: int) -> None:
        """Search from stream position ``at`` on."""
        self._next = at

    def find(self, kept: bytearray, base: int, end: int) -> _Hit | None:
        """The first match that ends at ``end`` or before. ``kept`` is the stream from ``base``."""
        start = max(self._next, base)
        self.scanned += max(end - start, 0)
        at = kept.find(self.text, start - base, end - base)
        if at >= 0:
            return _Hit(base + at, base + at + len(self.text), False)
        self._next = max(start, end - len(self.text) + 1)
        return None

    def settle(self, kept: bytearray, base: int, hit: _Hit, end: int) -> Found:
        """The match as a value."""
        return Found(0, hit.start, hit.end, (self.text,), {})


class _Regex:
    """Looks for a regular expression."""

    def __init__(self, pattern: re.Pattern[bytes]):
        self.source = pattern.pattern
        self.scanned = 0
        self._pattern = pattern
        self._begin = self._next = 0

    def begin(self, at: int) -> None:
        """Search from stream position ``at`` on."""
        self._begin = self._next = at

    def find(self, kept: bytearray, base: int, end: int) -> _Hit | None:
        """The first match that is complete at ``end`` or before."""
        self._next = max(self._next, base)
        while self._next < end:
            block = self._next // SPAN
            left = max(self._begin, (block - 1) * SPAN, base)
            right = min(end, (block + 1) * SPAN)
            match = self._search(kept, left - base, right - base)
            if match:
                return self._earliest(kept, base, match, right)
            self._next = right
        return None

    def _search(self, kept: bytearray, start: int, end: int) -> re.Match[bytes] | None:
        self.scanned += end - start
        return self._pattern.search(kept, start, end)

    def _earliest(self, kept: bytearray, base: int, match: re.Match[bytes], right: int) -> _Hit:
        """The shortest piece of the stream that holds a match, by bisection: none does up to
        ``low``, one does at ``high``."""
        low, high = self._next - base, match.end()
        if self._search(kept, match.start(), high) is None:  # it looks ahead
            high = right - base
        first = match.start()
        while high - low > 1:
            middle = (low + high) // 2
            shorter = self._search(kept, first, middle)
            if shorter:
                match, high = shorter, middle
            else:
                low = middle
        shortest = self._search(kept, first, high) or match
        hit = _Hit(base + shortest.start(), base + shortest.end(), False)
        hit.grows = self._grows(kept, base, hit)
        return hit

    def _grows(self, kept: bytearray, base: int, hit: _Hit) -> bool:
        """Whether some next byte would make the match longer: asked of the expression itself."""
        left = max(base, hit.start - SPAN)
        probe = kept[left - base : hit.end - base]
        probe.append(0)
        for byte in range(256):
            probe[-1] = byte
            match = self._pattern.match(probe, hit.start - left)
            if match and match.end() == len(probe):
                return True
        return False

    def settle(self, kept: bytearray, base: int, hit: _Hit, end: int) -> Found:
        """The match as far as it goes up to ``end``."""
        match = self._pattern.match(kept, hit.start - base, end - base)
        if match is None:  # it looked beyond its end
            match = self._pattern.match(kept, hit.start - base)
        if match is None:
            text = bytes(kept[hit.start - base : hit.end - base])
            return Found(0, hit.start, hit.end, (text,), {})
        groups = (match.group(), *match.groups())
        return Found(0, hit.start, base + match.end(), groups, dict(self._pattern.groupindex))


def _finder(pattern: Pattern, exact: bool) -> _Literal | _Regex:
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, str):
            raise TypeError(f"{pattern.pattern!r}: a guest's output is bytes: re.compile(rb'...')")
        compiled = pattern
    else:
        source = pattern.encode() if isinstance(pattern, str) else bytes(pattern)
        if not source:
            raise ValueError("an empty pattern matches before any output")
        if exact or not set(source) & _SPECIAL:
            return _Literal(source)
        compiled = re.compile(source, re.MULTILINE)
    if compiled.search(b""):
        raise ValueError(
            f"{compiled.pattern!r} matches the empty string, so it would match before any output"
        )
    return _Regex(compiled)


class Search:
    """Looks for the first of several patterns in a stream from position ``at`` on.

    A bytes or str pattern is a regular expression (``^`` and ``$`` at every line) unless ``exact``;
    one without special characters is searched for as it stands. Raises ValueError for a pattern
    that matches the empty string, re.error for an invalid regular expression.

    >>> search = kvmpy.console.search.Search([rb"login: ", rb"panic"], at=0)
    >>> search.look(bytearray(b"host login: "), 0).groups
    (b'login: ',)
    """

    def __init__(self, patterns: Sequence[Pattern], *, at: int, exact: bool = False):
        if not patterns:
            raise ValueError("no pattern to look for")
        self._finders = [_finder(pattern, exact) for pattern in patterns]
        for finder in self._finders:
            finder.begin(at)
        self._hit: tuple[int, _Hit] | None = None
        self._line_from = 0

    @property
    def sources(self) -> list[bytes]:
        """The patterns' texts.

        >>> kvmpy.console.search.Search(["login: ", rb"pani[c]"], at=0).sources
        [b'login: ', b'pani[c]']
        """
        return [finder.source for finder in self._finders]

    @property
    def scanned(self) -> int:
        """Bytes looked at so far, repetitions included.

        >>> search = kvmpy.console.search.Search(["login: "], at=0)
        >>> search.look(bytearray(100), 0), search.look(bytearray(150), 0), search.scanned
        (None, None, 156)
        """
        return sum(finder.scanned for finder in self._finders)

    @property
    def growing(self) -> bool:
        """Whether there is a match whose end depends on what comes next.

        >>> search = kvmpy.console.search.Search([rb"\\d+"], at=0)
        >>> search.look(bytearray(b"10"), 0), search.growing
        (None, True)
        """
        return self._hit is not None

    def look(self, kept: bytearray, base: int, *, quiet: bool = False) -> Found | None:
        """The match, if it is there. ``kept`` holds the stream from position ``base`` to what has
        come so far; ``quiet``: nothing more is coming for now.

        >>> search = kvmpy.console.search.Search([rb"\\d+"], at=0)
        >>> search.look(bytearray(b"uid 10 "), 0, quiet=True).start
        4
        """
        end = base + len(kept)
        if self._hit is None:
            self._find(kept, base, end)
        if self._hit is None:
            return None
        index, hit = self._hit
        if hit.start < base:  # dropped meanwhile: all that is known of it is where it was
            return Found(index, hit.start, hit.end, (None,), {})
        until = self._extent(kept, base, hit, end, quiet) if hit.grows else hit.end
        if until is None:
            return None
        found = self._finders[index].settle(kept, base, hit, until)
        return Found(index, found.start, found.end, found.groups, found.names)

    def _find(self, kept: bytearray, base: int, end: int) -> None:
        for index, finder in enumerate(self._finders):
            hit = finder.find(kept, base, end)
            if hit and (self._hit is None or hit.end < self._hit[1].end):
                self._hit, end = (index, hit), hit.end
        if self._hit:
            self._line_from = max(self._hit[1].end - 1, base)

    def _extent(self, kept: bytearray, base: int, hit: _Hit, end: int, quiet: bool) -> int | None:
        """Where what may belong to a growing match ends; None: not known yet."""
        limit = hit.end + SPAN
        newline = kept.find(b"\n", max(self._line_from - base, 0), limit - base)
        self._line_from = end
        if newline >= 0:
            return base + newline + 1
        if end >= limit or quiet:
            return min(end, limit)
        return None
