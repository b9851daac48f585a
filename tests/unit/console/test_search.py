"""Patterns in a stream: the result does not depend on the pieces, and time is linear."""

import re

import pytest
from hypothesis import given, settings, strategies as st

from kvmpy.console import search
from kvmpy.console.search import Search

PATTERNS = (
    b"ab", rb"a+b", rb"a|bc", rb"(a)(b)?", rb"[ab]c*", rb"b\n", rb"^ab", rb"c.*\n", rb"(?s)a.*c",
    rb"(ab)+c", rb"\w+:", rb"a(?=b)", rb"(?<=b)a", rb"a\s+", b"aab", b"\n\n",
)  # fmt: skip


PARTS = st.sampled_from([b"x" * 3000, b"a" * 900, b"ab\n", b"c\n", b"b", b" "])


def feed(patterns, pieces, *, limit=1000):
    """What is found in a stream of ``pieces``, and where: its first ``limit`` matches."""
    kept, base, at, found = bytearray(), 0, 0, []
    looking = Search(patterns, at=0)
    for number, piece in enumerate([*pieces, b""]):
        kept += piece
        while match := looking.look(kept, base, quiet=number == len(pieces)):
            found.append((match.index, match.start, match.end, match.groups))
            if len(found) == limit:
                return found
            at = max(match.end, at + 1)  # past matches of no width, too
            looking = Search(patterns, at=at)
    return found


@st.composite
def cut(draw, streams):
    """A stream, and two ways to cut it in pieces."""
    stream = draw(streams)
    ways = []
    for _ in range(2):
        cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=12)))
        ways.append([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)])
    return stream, ways


@given(
    cut(st.text("abc\n: ", max_size=60).map(str.encode)),
    st.lists(st.sampled_from([p for p in PATTERNS if b"(?=" not in p]), min_size=1, max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_the_pieces_make_no_difference(cut, patterns):
    stream, (one, other) = cut
    whole = feed(patterns, [stream])
    assert feed(patterns, one) == whole
    assert feed(patterns, other) == whole
    assert feed(patterns, [stream[i : i + 1] for i in range(len(stream))]) == whole


@given(
    cut(
        st.lists(PARTS, max_size=12).map(b"".join)
    ),
    st.lists(st.sampled_from(PATTERNS[:11]), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_the_pieces_make_no_difference_across_blocks(cut, patterns):
    stream, (one, other) = cut
    whole = feed(patterns, [stream], limit=5)
    assert feed(patterns, one, limit=5) == whole
    assert feed(patterns, other, limit=5) == whole


@given(st.text("abc\n", max_size=40).map(str.encode), st.sampled_from(PATTERNS[:9]))
@settings(deadline=None)
def test_first_match_is_complete_as_early_as_the_model_says(stream, pattern):
    """The model: search() in every beginning of the stream, the shortest that has a match."""
    expression = re.compile(pattern, re.MULTILINE)
    lengths = [n for n in range(len(stream) + 1) if expression.search(stream[:n])]
    first = feed([pattern], [stream])[:1]
    assert bool(first) == bool(lengths)
    if first:
        _, start, end, groups = first[0]
        assert start == expression.search(stream[: lengths[0]]).start()
        assert end >= lengths[0]  # it may have grown, to the end of its line
        assert stream[lengths[0] : end].count(b"\n") <= 1
        assert groups[0] == stream[start:end]


@pytest.mark.parametrize(
    ("pattern", "stream", "groups"),
    [
        (rb"login: ", b"host login: ", (b"login: ",)),
        (rb"version (\S+)", b"Linux version 6.1.0-18 (gcc)\n", (b"version 6.1.0-18", b"6.1.0-18")),
        (rb"(\d+(\.\d+)+)", b"addr 10.0.2.15/24\n", (b"10.0.2.15", b"10.0.2.15", b".15")),
        (rb"uid=(\d+)", b"uid=1000", (b"uid=1000", b"1000")),
        (rb"^(\w+):.*", b"a b\nname: v  w\r\nx", (b"name: v  w\r", b"name")),
        ("é", "café".encode(), ("é".encode(),)),
        (re.compile(rb"A(?i:b)"), b"ab Ab", (b"Ab",)),
        (rb"# $", b"root # ", (b"# ",)),
    ],
)
def test_what_people_write(pattern, stream, groups):
    """Open ends get the rest of their line, byte by byte or in one piece."""
    for pieces in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        assert feed([pattern], pieces)[0][3] == groups


def test_an_open_end_waits_for_its_line_or_for_quiet():
    kept = bytearray(b"uid=10")
    looking = Search([rb"uid=(\d+)"], at=0)
    assert looking.look(kept, 0) is None
    assert looking.growing
    kept += b"00"
    assert looking.look(kept, 0) is None
    assert looking.look(kept, 0, quiet=True).groups[1] == b"1000"


def test_an_open_end_without_newline_ends_after_a_span():
    stream = b"x=" + b"1" * 3 * search.SPAN
    (first, *_) = feed([rb"x=(\d+)"], [stream])
    assert first[2] == 3 + search.SPAN


def test_of_several_the_first_to_be_complete_wins_then_the_first_listed():
    assert feed([b"abcd", b"bc"], [b"abcd"])[0][0] == 1
    assert feed([b"bc", b"abc"], [b"abc"])[0][0] == 0
    assert feed([rb"b.", rb"abc"], [b"abc"])[0][0] == 0


def test_a_match_of_a_span_is_found_wherever_it_lies():
    for before in (0, 1, search.SPAN - 1, search.SPAN, 3 * search.SPAN - 7):
        text = b"<" + b"m" * (search.SPAN - 2) + b">"
        stream = b"." * before + text + b"."
        found = feed([rb"<m+>"], [stream[i : i + 100] for i in range(0, len(stream), 100)])
        assert [f[1:3] for f in found] == [(before, before + search.SPAN)]


@pytest.mark.parametrize("pattern", [b"", "", rb"a*", rb"$", rb"(x)?", re.compile(b"")])
def test_a_pattern_that_matches_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match="before any output"):
        Search([pattern], at=0)


def test_patterns_that_are_none():
    with pytest.raises(ValueError, match="no pattern"):
        Search([], at=0)
    with pytest.raises(TypeError, match="rb'"):
        Search([re.compile("text")], at=0)
    with pytest.raises(re.error):
        Search([rb"("], at=0)


def test_exact_takes_special_characters_as_they_stand():
    stream = bytearray(b"a $ (b) [c]")
    assert Search(["$ (b) ["], at=0, exact=True).look(stream, 0).start == 2


# ---------------------------------------------------------------- linear time, counted in bytes

LINE = b"[   12.345678] eth0: aaaaaaaaaaaaaaaaaaaaaaaaa link is up, 1000 Mbps\r\n"


def scanned(pattern, size, piece):
    """Bytes looked at for ``size`` bytes of output that never match, in pieces."""
    text = LINE * (size // len(LINE))
    kept, looking = bytearray(), Search([pattern], at=0)
    for at in range(0, len(text), piece):
        kept += text[at : at + piece]
        assert looking.look(kept, 0) is None
    return looking.scanned / len(text)


@pytest.mark.parametrize("pattern", [b"login: ", rb"log[i]n: ", rb"(?s)up.*down\b", rb"a+b|\d{9}"])
def test_each_byte_is_looked_at_a_bounded_number_of_times(pattern):
    """In pieces as the console reads them: at most twice, for 2 and for 8 MiB."""
    assert scanned(pattern, 2 << 20, 1 << 16) <= 2.01
    assert scanned(pattern, 8 << 20, 1 << 16) <= 2.01


@pytest.mark.parametrize("pattern", [b"login: ", rb"log[i]n: "])
def test_a_line_at_a_time_costs_two_blocks_a_line_at_most(pattern):
    """However much has come before: the cost per line is the same in the first MiB and later."""
    bound = 1.2 if pattern == b"login: " else 2 * search.SPAN / len(LINE) + 1
    assert scanned(pattern, 1 << 20, len(LINE)) <= bound
    assert scanned(pattern, 2 << 20, len(LINE)) <= bound


def test_a_backlog_of_megabytes_is_searched_once():
    looking = Search([rb"log[i]n: "], at=0)
    text = bytearray(LINE * ((32 << 20) // len(LINE)))
    assert looking.look(text, 0) is None
    assert looking.scanned <= 2.01 * len(text)
    text += b"login: "
    assert looking.look(text, 0).end == len(text)
    assert looking.scanned <= 2.01 * len(text) + 100 * search.SPAN


def test_a_dropped_beginning_is_no_trouble():
    """Output that is no longer kept: the search goes on in what is."""
    looking = Search([b"ab", rb"c\w"], at=0)
    assert looking.look(bytearray(b"xxx"), 0) is None
    assert looking.look(bytearray(b"zcab"), 1000).start == 1001
    growing = Search([rb"x\d+"], at=0)
    assert growing.look(bytearray(b"x1"), 0) is None
    assert growing.look(bytearray(b"22\n"), 100).groups == (None,)
