"""Pictures, tables and traces of scheduling: what they show, in how much room."""

import dataclasses
import io
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from made_up import sched_result

from kvmpy.sched import gantt, html, lanes, metrics, screen, summary, trace
from kvmpy.sched.lanes import Lane, Part
from kvmpy.sched.metrics import SwitchCost
from kvmpy.sched.result import Gap, Slice

RECORDED = Path(__file__).parents[1] / "recorded"
COSTS = (SwitchCost(1, 4096, 1000, 900.0, 1500.0), SwitchCost(16, 4096, 900, 950.0, 2100.0))
NAMESPACE = "{http://www.w3.org/2000/svg}"


def busy(slices):
    """A result with so many slices on each of its vCPUs."""
    result = sched_result(wall=slices * 10_000, slice_us=1e6)
    vcpus = []
    for vcpu in result.vcpus:
        begins = range(5_000 * vcpu.id, slices * 10_000, 10_000)
        vcpus.append(
            dataclasses.replace(
                vcpu,
                start=0,
                end=slices * 10_000,
                slices=tuple(Slice(at, at + 4_900, 0) for at in begins),
                gaps=tuple(Gap(at + 4_900, at + 10_000, "descheduled", 5_000) for at in begins),
            )
        )
    return dataclasses.replace(result, vcpus=tuple(vcpus))


# ---------------------------------------------------------------- as text


def test_all_that_is_printed():
    """The picture and the tables of two vCPUs that take turns, as recorded."""
    stream = io.StringIO()
    screen.show(sched_result(), COSTS, stream)
    assert stream.getvalue() == (RECORDED / "sched.txt").read_text()


def test_a_picture_fits_80_columns():
    """With lanes of all levels."""
    text = gantt.picture(sched_result()).text
    assert max(map(len, text.splitlines())) < 80


def test_columns_show_what_fills_them():
    """One that is mostly empty is empty; but what is short is not lost."""
    lane = Lane("pCPU 0", 0, 0, (Part(0, 640, 0), Part(640, 660, 1), Part(1000, 1280, 1)))
    bar = gantt._bar(lane, 0, 6400)
    assert bar == "0" * 6 + "1" + "." * 3 + "111" + "." * 51


def test_a_thread_without_its_vcpu_is_told_apart():
    """It has the vCPU, and does not run."""
    text = gantt.picture(sched_result()).text
    thread = text.splitlines()[2]
    assert thread.startswith("   thread 0")
    assert "#-" in thread
    assert "-#" in thread


def test_on_a_terminal_there_is_colour():
    """And the same characters as in a pipe."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    screen._in_colour(sched_result(), gantt.picture(sched_result()), stream)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    for line in gantt.picture(sched_result()).text.splitlines():
        assert line in plain


def test_what_a_guest_wrote_cannot_drive_the_terminal():
    """Escape sequences are printed as text."""
    stream = io.StringIO()
    screen.show(sched_result(written="\x1b[2Jboo\n"), (), stream)
    assert "\x1b" not in stream.getvalue()
    assert "boo" in stream.getvalue()


# ---------------------------------------------------------------- as SVG and HTML


def test_an_svg_is_a_document_of_its_own():
    """Well-formed, with a bar for each slice in the window and a lane's name for each lane."""
    root = ET.fromstring(gantt.picture(sched_result()).svg)
    assert root.tag == f"{NAMESPACE}svg"
    words = [element.text for element in root.iter(f"{NAMESPACE}text")]
    assert words.count("thread 0") == words.count("thread 1") == 2
    assert "pCPU 0" in words
    titles = [element.text for element in root.iter(f"{NAMESPACE}title")]
    assert sum("pCPU 0" in title for title in titles) == 7


def test_files_stay_small():
    """60,000 slices are joined, not drawn: an SVG and a page of less than 2 MB."""
    result = busy(30_000)
    whole = gantt.picture(result, (0, result.wall))
    assert len(whole.svg) < 2_000_000
    assert len(html.to_html(result)) < 2_000_000


def test_joined_parts_cover_what_they_replace():
    """Their first begin and their last end."""
    parts = [Part(at, at + 1, at % 2) for at in range(1000)]
    found = gantt.joined(parts, 100)
    assert len(found) == 20
    assert (found[0].start, max(part.end for part in found)) == (0, 1000)


def test_shares_add_up():
    """4 of 8 ms each: 16 and 12 of 31 ms."""
    lines = gantt.shares(sched_result()).text.splitlines()
    assert [line.split()[-1] for line in lines] == ["51.6%", "38.7%"]


def test_the_page_loads_nothing():
    """And escapes what is not its own."""
    page = html.to_html(sched_result(verdict="a <script> & more"), COSTS)
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!#)', page)
    for title in ("Who ran when", "The whole run", "Figures"):
        assert f">{title}</h2>" in page


# ---------------------------------------------------------------- as a trace


def test_the_trace_is_what_viewers_take():
    """Metadata that names every process and thread there is, then complete events in order."""
    found = json.loads(trace.to_json(sched_result()))
    events = found["traceEvents"]
    names = [event for event in events if event["ph"] == "M"]
    slices = [event for event in events if event["ph"] == "X"]
    assert events == names + slices
    assert [event["ts"] for event in slices] == sorted(event["ts"] for event in slices)
    named = {(e["pid"], e["tid"]) for e in names if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in slices} <= named
    processes = {e["pid"]: e["args"]["name"] for e in names if e["name"] == "process_name"}
    assert processes == {1: "pCPUs", 100: "vCPU 0", 101: "vCPU 1"}
    for event in slices:
        assert event["dur"] >= 0
        assert isinstance(event["name"], str)


def test_events_of_one_thread_do_not_overlap():
    """Viewers would stack them."""
    by_thread: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace.events(sched_result()):
        if event["ph"] == "X":
            times = (event["ts"], event["ts"] + event["dur"])
            by_thread.setdefault((event["pid"], event["tid"]), []).append(times)
    for times in by_thread.values():
        assert all(second[0] >= first[1] for first, second in itertools.pairwise(times))


# ---------------------------------------------------------------- figures


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=20))
def test_jains_index_is_between_1_n_and_1(shares):
    """Whatever the scale."""
    index = metrics.jain(shares)
    if max(shares) == 0:
        assert math.isnan(index)
    else:
        assert 1 / len(shares) - 1e-9 <= index <= 1 + 1e-9


@given(st.integers(1, 16), st.floats(1e-3, 1e9))
def test_equal_shares_are_fair(count, share):
    """However many, and however large."""
    assert metrics.jain([share] * count) == pytest.approx(1)


@given(st.lists(st.integers(0, 1000), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values(values, share):
    """So many are not above it."""
    found = metrics.quantile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_nothing_seen_gives_no_figures():
    """A run of no length: dashes, no division by zero."""
    empty = dataclasses.replace(
        sched_result().vcpus[0],
        start=0, end=0, slices=(), gaps=(), thread_slices=(), switches=(), threads=(), steal=None,
        host=dataclasses.replace(
            sched_result().vcpus[0].host, run=None, delay=None, turns=None, stats={}
        ),
    )  # fmt: skip
    result = sched_result(vcpus=(empty,), wall=0)
    for table in summary.tables(result, COSTS):
        for row in table.rows:
            assert len(row) == len(table.header)
    assert lanes.window(result) == (0, 1)
    stream = io.StringIO()
    screen.show(result, (), stream)
    assert "nan" not in stream.getvalue()
    assert html.to_html(result)
    assert trace.to_json(result)
