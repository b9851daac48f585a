"""The arithmetic of `kvmpy lab timeline`, and its drawing, without a guest."""

import dataclasses
from xml.etree import ElementTree

import pytest

from kvmpy.lab import timeline
from kvmpy.lab.show import timeline as timeline_shown
from kvmpy.report.blocks import Picture

STEPS = len(timeline.STEPS)
#: Host 0 and 1000, guest 300 to 900: what a turn may look like, and the one more stamp.
TURN = (0, 300, 400, 500, 600, 700, 800, 900, 1000, 390)


def later(turn, ticks, guest=0):
    """The turn some ticks later; the guest's clock off by as many as ``guest``."""
    before, *inside, after = turn[:STEPS]
    return (
        before + ticks, *(stamp + ticks + guest for stamp in inside), after + ticks,
        *(stamp + ticks + guest for stamp in turn[STEPS:]),
    )  # fmt: skip


def made_up(**changes):
    found = timeline.Result(
        module="kvm_intel", verdict="", emulator=None, nested=False, ring0_interpreted=False,
        call="syscall", failure="", tsc_khz=2_000_000, offset_set=True, shared=True, rate=1.0,
        turns=9, turn=TURN[:STEPS], medians=(300.0, *[100.0] * 7), stamp_kernel=10.0,
        stamp_program=10.0, many=200, exits_of_one=1, exits_of_many=1, host_call=200.0,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def test_one_clock():
    rate, shared = timeline._shared([later(TURN, 100_000 * i) for i in range(5)])
    assert (rate, shared) == (1.0, True)


def test_turns_that_were_disturbed_do_not_count():
    """An interrupt before the guest's first stamp is no faster clock."""
    late = (0, *(stamp + 50_000 for stamp in TURN[1:]))
    turns = [later(late, 0), *(later(TURN, 100_000 * i) for i in range(1, 5)), later(late, 500_000)]
    assert timeline._shared(turns) == (1.0, True)


def test_another_rate_is_not_one_clock():
    turns = [later(TURN, 100_000 * i, guest=10_000 * i) for i in range(5)]
    assert timeline._shared(turns) == (pytest.approx(1.1), False)


def test_an_offset_is_not_one_clock():
    turns = [later(TURN, 100_000 * i, guest=5000) for i in range(5)]
    assert timeline._shared(turns) == (1.0, False)


def test_without_one_clock_the_guest_stands_in_the_middle():
    middle = timeline._centred(later(TURN, 0, guest=12_345))
    assert (middle[0], middle[STEPS - 1]) == (0, 1000)
    assert middle[1] - middle[0] == middle[STEPS - 1] - middle[STEPS - 2] == 200
    assert timeline._steps(middle)[1:-1] == timeline._steps(TURN)[1:-1]
    assert middle[2] - middle[STEPS] == 10


def test_the_turn_shown_is_the_nearest_to_the_medians():
    steps = [(10, 10, 10), (11, 9, 10), (30, 10, 10), (10, 10, 90)]
    assert timeline._typical(steps, (10, 10, 10)) == 0
    assert timeline._typical(steps, (11, 9, 10)) == 1


@pytest.mark.parametrize(
    ("one", "many", "expected"),
    [(1, 1, 0), (1, 200, 1), (5, 403, 2), (2, 1, 0), (None, None, None)],
)
def test_exits_a_call(one, many, expected):
    assert made_up(exits_of_one=one, exits_of_many=many).exits_a_call == expected


def test_times_are_by_the_tsc():
    assert made_up().ns(2000) == 1000


def text_of(result):
    return "\n".join(
        block if isinstance(block, str) else block.text if isinstance(block, Picture) else ""
        for block in timeline_shown.blocks(result)
    )


def test_the_diagram():
    """Each stamp in its own lane, arrows from lane to lane."""
    lines = "\n".join(timeline_shown._diagram_text(made_up())).splitlines()[2:]
    lanes = [line[18 : 18 + 16] for line in lines]
    assert [lane.index("*") // 5 for lane in lanes] == [
        timeline.ROOMS.index(room) for room, _ in timeline.STEPS
    ]
    assert lanes[0] == "*    :    :    :"
    assert lanes[1] == "'----+--->*    :"
    assert lanes[2] == ":    :    '--->*"
    assert lanes[3] == ":    :    *<---'"
    assert lanes[8] == "*<---+----'    :"
    assert [line[:18].split() for line in lines[:2]] == [["0"], ["150", "150"]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "It never leaves non-root mode"),
        ({"exits_of_many": 399}, "It leaves the guest 2.0 times a call"),
        ({"exits_of_one": None}, "nothing here proves"),
        ({"shared": False}, "The clock is not one here"),
        ({"shared": True}, "All times are of one clock"),
        ({"emulator": "Bochs"}, "time is virtual"),
        ({"ring0_interpreted": True, "call": "int3", "failure": "#XX"}, "SYSCALL cannot do here"),
    ],
)
def test_what_is_said(changes, words):
    assert words in text_of(made_up(**changes))


@pytest.mark.parametrize("scale", [1, 1000, 100_000])
def test_pictures_fit(scale):
    """79 columns and well-formed SVG, from nanoseconds to seconds."""
    result = made_up(turn=tuple(scale * ticks for ticks in TURN[:STEPS]))
    for block in timeline_shown.blocks(result):
        if isinstance(block, Picture):
            assert max(map(len, block.text.splitlines())) <= 79
            ElementTree.fromstring(block.svg)
