"""What `kvmpy lab sharing` makes of a run, without a guest."""

import dataclasses

import made_up
import pytest

from kvmpy.lab import sharing
from kvmpy.lab.show import sharing as words


def of_run(**changes):
    found = made_up.sched_result()
    result = sharing.Result(
        module=found.module, emulator=None, nested=False, ring0_interpreted=False, pcpu=0,
        levels=tuple(map(sharing._level, found.vcpus)), start=0, end=found.wall, run=found,
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def text_of(result):
    return "\n".join(block for block in words.blocks(result) if isinstance(block, str))


def test_a_level():
    """Shares as the host has them; what is charged is all of a thread's slices."""
    (first, _) = made_up.sched_result().vcpus
    level = sharing._level(first)
    whole = first.host.end - first.host.begin
    assert level.share == first.host.run / whole
    assert level.neither == max(0, 1 - (first.host.run + first.host.delay) / whole)
    assert level.charged_ns == sum(part.end - part.start for part in first.thread_slices)
    assert level.had_ns == sum(thread.cpu_ns for thread in first.threads)
    assert level.turns == len(first.slices)
    assert sum(level.thread_shares) == pytest.approx(1)


def test_a_level_by_the_guest_alone():
    """Where the host has no schedstat."""
    (first, _) = made_up.sched_result().vcpus
    silent = dataclasses.replace(first, host=dataclasses.replace(first.host, run=None))
    level = sharing._level(silent)
    assert level.neither is None
    assert level.share == pytest.approx(
        sum(part.end - part.start for part in first.slices) / (first.end - first.start)
    )


def test_time_that_nobody_accounts_for_is_said():
    busy = dataclasses.replace(of_run().levels[0], neither=0.2)
    assert "For 20% of the time" in text_of(of_run(levels=(busy,)))
    calm = dataclasses.replace(busy, neither=0.01)
    assert "neither ran nor waited" not in text_of(of_run(levels=(calm,)))


def test_the_part_that_is_kept():
    """Whatever reaches into the window, and nothing else; the threads' sums stay."""
    (first, _) = made_up.sched_result().vcpus
    middle = (first.start + first.end) // 2
    part = sharing._part(first, first.start, middle)
    assert all(each.start < middle for each in (*part.slices, *part.gaps, *part.thread_slices))
    assert 0 < len(part.slices) < len(first.slices)
    assert part.threads == first.threads
    assert sharing._part(first, first.start - 1, first.end + 1) == first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"emulator": "Bochs"}, "time is virtual"),
        ({"nested": True}, "third scheduler"),
        ({"ring0_interpreted": True}, "interprets ring 0"),
        ({"levels": ()}, "No guest thread"),
    ],
)
def test_what_is_said(changes, words):
    assert words in text_of(of_run(**changes))
    assert words not in text_of(of_run())
