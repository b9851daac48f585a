"""`kvmpy lab` with made-up experiments: lists, runs, says what is not available; files, stdout."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kvmpy import cli, lab
from kvmpy.errors import UnsupportedError
from kvmpy.host import topology
from kvmpy.report import svg, terminal
from kvmpy.report.blocks import Picture
from kvmpy.report.table import Table

CPU = max(topology.allowed_cpus())


@dataclasses.dataclass(frozen=True)
class Found:
    """An experiment's result."""

    module: str
    values: tuple[int, ...]


class Made:
    """A made-up experiment: what it was called with, and what it raises."""

    def __init__(self) -> None:
        self.pins: list[int | None] = []
        self.error: Exception | None = None

    def run(self, pin: int | None = None) -> Found:
        self.pins.append(pin)
        if self.error is not None:
            raise self.error
        return Found("kvm_<made-up>", (1, 2))

    def blocks(self, result: Found) -> Any:
        yield f"On {result.module}."
        yield Table("What was seen", ("", "ring 0"), (("CLI", "runs"), ("HLT", "#GP")), 2)
        drawn = svg.drawing(10, 10, "a picture", [svg.box(0, 0, 5, 5, kind="lane0")])
        yield Picture(drawn, "[#]", "A box.")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Made]:
    """All experiments, made up."""
    found = {}
    for name in lab.EXPERIMENTS:
        experiment = found[name] = Made()
        for room, does in (("", experiment.run), ("show.", experiment.blocks)):
            module = types.ModuleType(name)
            setattr(module, does.__name__, does)
            place = f"kvmpy.lab.{room}{name.replace('-', '_')}"
            monkeypatch.setitem(sys.modules, place, module)
    monkeypatch.setattr("kvmpy.cli.lab._host", lambda: "kvm_<made-up>: a host")
    return found


def test_without_a_name_it_lists(made: Any, capsys: Any) -> None:
    """Name and title of each, in the order of the story; nothing is run."""
    assert cli.main(["lab"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(lab.EXPERIMENTS)
    assert not any(experiment.pins for experiment in made.values())


def test_one_experiment(made: Any, capsys: Any) -> None:
    """The host, its title, and its blocks as text."""
    assert cli.main(["lab", "rings", "--cpu", str(CPU)]) == 0
    out = capsys.readouterr().out
    for part in ("kvm_<made-up>: a host", lab.EXPERIMENTS["rings"], "CLI  runs", "[#]", "A box."):
        assert part in out
    assert made["rings"].pins == [CPU]
    assert made["traps"].pins == []


def test_unknown_name(made: Any, capsys: Any) -> None:
    """A wrong use."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["lab", "ring"])
    assert caught.value.code == 2
    assert "rings" in capsys.readouterr().err


def test_json(made: Any, capsys: Any) -> None:
    """One document: the host, and by name the results with their seconds."""
    assert cli.main(["lab", "all", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["host"] == "kvm_<made-up>: a host"
    assert list(record["experiments"]) == list(lab.EXPERIMENTS)
    rings = record["experiments"]["rings"]
    assert rings["result"] == {"module": "kvm_<made-up>", "values": [1, 2]}
    assert rings["seconds"] >= 0


def test_all_goes_on_where_one_cannot_be_had(made: Any, capsys: Any) -> None:
    """Its section, and its record, say why."""
    made["vmx"].error = UnsupportedError("no nesting here")
    assert cli.main(["lab", "all"]) == 0
    out = capsys.readouterr().out
    assert "Cannot be shown here: no nesting here" in out
    assert out.count("CLI  runs") == len(lab.EXPERIMENTS) - 1
    assert cli.main(["lab", "all", "--json"]) == 0
    vmx = json.loads(capsys.readouterr().out)["experiments"]["vmx"]
    assert vmx["unsupported"] == "no nesting here"


def test_one_that_cannot_be_had_fails(made: Any, capsys: Any) -> None:
    """The reason goes to stderr."""
    made["vmx"].error = UnsupportedError("no nesting here")
    assert cli.main(["lab", "vmx"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no nesting here" in captured.err


def test_page(made: Any, tmp_path: Path, capsys: Any) -> None:
    """One file: links to the sections, tables, pictures, everything escaped; stdout is empty."""
    path = tmp_path / "report.html"
    assert cli.main(["lab", "all", "--html", str(path)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, str(path) in captured.err) == ("", True)
    page = path.read_text()
    for name in lab.EXPERIMENTS:
        assert f'href="#{name}"' in page
        assert f'id="{name}"' in page
    assert page.count("<svg") == page.count("<figcaption>A box.") == len(lab.EXPERIMENTS)
    assert "kvm_&lt;made-up&gt;" in page
    assert '<td class="words bad">#GP</td>' in page
    assert "<script" not in page


def test_on_a_terminal_blocks_stand_apart() -> None:
    """An empty line between any two, and never two of them."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    terminal.show(["One.", *Made().blocks(Found("kvm", ())), "Last."], stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    lines = [line.rstrip() for line in text.splitlines()]
    before = [lines[lines.index(each) - 1] for each in ("On kvm.", "What was seen", "[#]", "Last.")]
    assert before == [""] * 4
    assert "\n\n\n" not in "\n".join(lines)


def test_a_file_that_cannot_be_written(made: Any, tmp_path: Path, capsys: Any) -> None:
    """Is said before anything is run."""
    assert cli.main(["lab", "rings", "--html", str(tmp_path / "no" / "report.html")]) != 0
    assert made["rings"].pins == []
    assert "report.html" in capsys.readouterr().err
