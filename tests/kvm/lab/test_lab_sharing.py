"""`kvmpy lab sharing`: two vCPUs on one pCPU, two guest threads in each."""

import dataclasses
import json
import sys
from xml.etree import ElementTree

import pytest

from kvmpy import lab
from kvmpy.host import topology
from kvmpy.lab import sharing
from kvmpy.report import terminal
from kvmpy.report.blocks import Picture


@pytest.fixture(scope="module")
def result():
    return sharing.run(max(topology.allowed_cpus()))


def test_both_vcpus_had_the_pcpu_in_turns(result):
    """One pCPU runs one thread at a time, and Linux lets none of two that are alike starve."""
    assert result.pcpu == max(topology.allowed_cpus())
    assert [level.vcpu for level in result.levels] == [0, 1]
    for level in result.levels:
        assert level.turns >= 1
        assert 0 < level.share < 1
    assert sum(level.share for level in result.levels) < 1.05
    assert result.start < result.end <= result.run.wall


def test_the_guests_kernels_charge_what_their_threads_did_not_have(result):
    """A tick counts whether the vCPU was there or not."""
    assert sum(level.switches for level in result.levels) > 0
    for level in result.levels:
        assert 0 < level.had_ns <= level.charged_ns
        assert len(level.thread_shares) == 2
        assert sum(level.thread_shares) == pytest.approx(1)


def test_what_it_shows(result, module, capsys):
    section = lab.section("sharing", result)
    terminal.section(section, sys.stdout)
    text = capsys.readouterr().out
    (picture,) = (block for block in section.blocks if isinstance(block, Picture))
    assert all(len(line) <= 79 for line in picture.text.splitlines())
    ElementTree.fromstring(picture.svg)
    for lane in ("pCPU", "vCPU 0", "vCPU 1", "thread 0", "thread 1"):
        assert lane in picture.text
    assert "was not theirs" in text
    assert module in json.dumps(dataclasses.asdict(result))
    neither = max(level.neither or 0 for level in result.levels)
    assert (neither > 0.05) == ("neither ran nor waited" in text)
    assert bool(result.emulator) == ("time is virtual" in text)
