"""``kvmpy sched``: what it refuses, before it runs anything."""

import dataclasses
import json

import pytest
from made_up import sched_result

import kvmpy.sched
from kvmpy import cli
from kvmpy.host import topology
from kvmpy.sched.metrics import SwitchCost

COSTS = (SwitchCost(1, 4096, 1000, 900.0, 1500.0),)


@pytest.fixture
def asked(monkeypatch):
    """What the engine was asked for; it gives the made-up result."""
    calls = []

    def run(*args, **options):
        calls.append((args, options))
        return sched_result()

    monkeypatch.setattr(kvmpy.sched, "run", run)
    monkeypatch.setattr(kvmpy.sched, "switch_costs", lambda pcpu: COSTS)
    return calls


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--vcpus", "0", "0 is not in 1..64"),
        ("--vcpus", "65", "65 is not in 1..64"),
        ("--vcpus", "two", "'two' is not a number"),
        ("--threads", "17", "17 is not in 1..16"),
        ("--seconds", "-1", "-1 is not in 0..600"),
        ("--seconds", "nan", "nan is not in 0..600"),
        ("--slice", "0", "0 is not in 0.01..1000"),
        ("--gap", "inf", "inf is not in 1..10000"),
        ("--pcpus", "65000", "pCPU 65000 does not exist: this host has"),
        ("--pcpus", "3-1", "'3-1' in the CPU list '3-1' is not a range"),
        ("--pcpus", "", "no pCPU in the list"),
        ("--program", "sleep", "invalid choice"),
        ("--nice=0,20", None, "20 is not in -20..19"),
        ("--nice=0,", None, "'' is not a number"),
    ],
)
def test_what_cannot_be(option, value, says, capsys, asked):
    """Status 2, with what is wrong; nothing is run."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sched", *(text for text in (option, value) if text is not None)])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert asked == []


@pytest.mark.parametrize("option", ["--html", "--svg", "--trace"])
def test_a_file_that_cannot_be_written(option, tmp_path, capsys, asked):
    """Is found before the run, not after it."""
    assert cli.main(["sched", option, str(tmp_path / "none" / "file")]) == 1
    assert "there is no directory" in capsys.readouterr().err
    assert asked == []


def test_the_first_pcpu_by_default(capsys, asked):
    """Two vCPUs, three threads, five seconds, on one pCPU."""
    assert cli.main(["sched"]) == 0
    ((args, options),) = asked
    assert args == (2, (min(topology.allowed_cpus()),), 3, 5.0)
    assert options == {"slice_ms": 10.0, "gap_us": 20.0, "program": "spin", "nice": ()}
    assert capsys.readouterr().out.startswith("2 vCPUs on pCPU 0")


def test_files_and_json(tmp_path, capsys, asked):
    """Each in its own format; stdout has nothing but the JSON."""
    names = {option: tmp_path / f"out.{option}" for option in ("html", "svg", "trace")}
    options = [text for option, path in names.items() for text in (f"--{option}", str(path))]
    assert cli.main(["sched", "--json", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.pop("switch_costs") == [dataclasses.asdict(cost) for cost in COSTS]
    assert found == json.loads(sched_result().to_json())
    assert names["html"].read_text().startswith("<!DOCTYPE html>")
    assert names["svg"].read_text().startswith("<svg")
    assert "traceEvents" in json.loads(names["trace"].read_text())
