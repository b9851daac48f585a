"""`kvmpy bench` with made-up engines and saved records: exit status, files, stdout and stderr."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_up
import pytest

from kvmpy import cli
from kvmpy.bench.document import Report
from kvmpy.cli.bench_progress import Progress
from kvmpy.host import topology
from kvmpy.probe import disturbance

CPU = max(topology.allowed_cpus())


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Engines that give a made-up report; returns what they were called with."""
    calls: list[dict[str, Any]] = []

    def make(benchmark: str) -> types.ModuleType:
        def run(
            *,
            quick: bool,
            cpu: int | None,
            progress: Callable[..., None],
            warned: Callable[..., None],
        ) -> Report:
            calls.append({"quick": quick, "cpu": cpu})
            warned([disturbance.Disturbance("load", "the load average is 9 on 1 pCPU.")])
            progress(0.5, "SYSCALL H0")
            return made_up.report(benchmark=benchmark)

        module = types.ModuleType(benchmark)
        module.run = run  # type: ignore[attr-defined]
        return module

    monkeypatch.setitem(sys.modules, "kvmpy.bench.syscall", make("syscall"))
    monkeypatch.setitem(sys.modules, "kvmpy.bench.exits", make("exit"))
    return calls


@pytest.fixture
def saved(tmp_path: Path) -> list[str]:
    """Two records in files."""
    paths = []
    for name, report in (("A", made_up.report()), ("B", made_up.report(1, 0.97))):
        path = tmp_path / f"{name}.json"
        path.write_text(report.to_json())
        paths.append(str(path))
    return paths


class TestMeasure:
    def test_prints_tables_and_says_what_disturbs(self, engine: Any, capsys: Any) -> None:
        assert cli.main(["bench", "syscall"]) == 0
        assert engine == [{"quick": False, "cpu": None}]
        out, err = capsys.readouterr()
        assert "Ring 3 -> ring 0 -> ring 3" in out
        assert "! SMT sibling" in out
        assert "figures may be disturbed by: load" in err

    def test_options_reach_the_engine(self, engine: Any, capsys: Any) -> None:
        assert cli.main(["bench", "exit", "--quick", "--cpu", str(CPU)]) == 0
        assert engine == [{"quick": True, "cpu": CPU}]
        assert "Where the time goes" in capsys.readouterr().out

    def test_json_is_the_full_record(self, engine: Any, capsys: Any) -> None:
        assert cli.main(["bench", "syscall", "--json"]) == 0
        report = Report.from_json(capsys.readouterr().out)
        assert report.rows == made_up.report().rows
        assert report.warnings == made_up.report().warnings

    def test_files(self, engine: Any, capsys: Any, tmp_path: Path) -> None:
        arguments = [f"--{kind}={tmp_path}/out.{kind}" for kind in ("save", "html", "pyperf")]
        assert cli.main(["bench", "syscall", *arguments]) == 0
        assert Report.from_json((tmp_path / "out.save").read_text()).rows == made_up.rows()
        assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
        written = {path.name for path in tmp_path.glob("*.pyperf")}
        assert written == {
            "out.pyperf", "out.host.pyperf", "out.calibration.pyperf", "out.interpreted.pyperf",
        }  # fmt: skip
        err = capsys.readouterr().err
        assert all(str(tmp_path / name) in err for name in written)

    @pytest.mark.parametrize("path", ["missing/x", "."])
    def test_where_nothing_can_be_written_nothing_is_measured(
        self, engine: Any, path: str, tmp_path: Path, capsys: Any
    ) -> None:
        assert cli.main(["bench", "syscall", f"--html={tmp_path / path}"]) == 1
        assert engine == []
        assert str(tmp_path) in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [[], ["nothing"], ["syscall", "--cpu", "x"], ["syscall", "--cpu", "99999"], ["compare"]],
    )
    def test_wrong_usage(self, engine: Any, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as error:
            cli.main(["bench", *arguments])
        assert error.value.code == 2
        assert engine == []


class TestSaved:
    def test_show(self, saved: list[str], tmp_path: Path, capsys: Any) -> None:
        assert cli.main(["bench", "show", saved[0], f"--html={tmp_path}/a.html"]) == 0
        assert "Native" in capsys.readouterr().out
        assert (tmp_path / "a.html").exists()

    def test_compare(self, saved: list[str], capsys: Any) -> None:
        assert cli.main(["bench", "compare", *saved]) == 0
        out = capsys.readouterr().out
        assert "faster" in out
        assert "no difference shown" in out

    def test_compare_as_json(self, saved: list[str], capsys: Any) -> None:
        assert cli.main(["bench", "compare", "--json", *saved]) == 0
        first = json.loads(capsys.readouterr().out)["deltas"][0]
        assert first["finding"] == "faster"
        assert first["shift"]["low"] < first["shift"]["value"] < first["shift"]["high"] < 0

    def test_a_pipe_gets_plain_text(self, saved: list[str]) -> None:
        result = subprocess.run(
            [sys.executable, "-m", "kvmpy", "bench", "show", saved[0]],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        assert b"\x1b" not in result.stdout
        assert result.stderr == b""

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "not valid JSON"),
            (b"\xff\xfe\x00", "not valid JSON"),
            (b"[]", "not a kvmpy benchmark record"),
            (b'{"format": 99}', "not a kvmpy benchmark record"),
            (b'{"format": 1}', "lacks"),
            (b"[" * 100_000, "nested too deeply"),
            (b'{"format": 1, "seconds": NaN}', "NaN"),
            (b'{"format": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ],
    )
    @pytest.mark.parametrize("command", ["show", "compare"])
    def test_what_is_no_record_is_refused_by_name(
        self,
        saved: list[str],
        tmp_path: Path,
        content: bytes,
        words: str,
        command: str,
        capsys: Any,
    ) -> None:
        bad = tmp_path / "bad.json"
        bad.write_bytes(content)
        others = [saved[0]] if command == "compare" else []
        assert cli.main(["bench", command, *others, str(bad)]) == 1
        err = capsys.readouterr().err
        assert f"kvmpy: {bad}: " in err
        assert words in err
        assert len(err) < 1000

    def test_files_that_cannot_be_read(self, saved: list[str], tmp_path: Path, capsys: Any) -> None:
        for path, words in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
            assert cli.main(["bench", "compare", saved[0], str(path)]) == 1
            assert words in capsys.readouterr().err

    def test_a_file_without_end_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.setattr("kvmpy.cli.bench._LARGEST", 1 << 20)
        assert cli.main(["bench", "show", "/dev/zero"]) == 1
        assert "more than 1 MiB" in capsys.readouterr().err

    def test_reports_that_do_not_compare(
        self, saved: list[str], tmp_path: Path, capsys: Any
    ) -> None:
        other = tmp_path / "exit.json"
        other.write_text(made_up.report(benchmark="exit").to_json())
        assert cli.main(["bench", "compare", saved[0], str(other)]) == 1
        assert "'bench exit'" in capsys.readouterr().err


class _Stream(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


class TestProgress:
    def test_a_terminal_sees_one_line_with_the_time_left(self) -> None:
        stream, times = _Stream(True), iter([0.0, 0.0, 30.0, 30.05, 60.0])
        with Progress("syscall", stream, clock=lambda: next(times)) as progress:
            progress(0)
            progress(0.25, "SYSCALL H2")
            progress(0.26, "too soon after")
            progress(0.5)
        lines = stream.getvalue().split("\r")
        assert lines[1:4] == [
            "bench syscall    0%\x1b[K",
            "bench syscall   25%  1:30 left  SYSCALL H2\x1b[K",
            "bench syscall   50%  1:00 left\x1b[K",
        ]
        assert lines[4] == "\x1b[K"  # cleared

    def test_a_pipe_gets_a_line_now_and_then(self) -> None:
        stream, times = _Stream(False), iter([0.0, 1.0, 11.0, 12.0, 21.5])
        with Progress("exit", stream, clock=lambda: next(times)) as progress:
            for done in (1, 11, 12, 21):
                progress(done / 42)
        assert stream.getvalue() == (
            "kvmpy: bench exit   26%  31 s left\nkvmpy: bench exit   50%  22 s left\n"
        )

    def test_odd_shares(self) -> None:
        stream = _Stream(True)
        times = iter(float(n) for n in range(9))
        progress = Progress("exit", stream, clock=lambda: next(times))
        progress(-1)
        progress(3)
        assert "0%" in stream.getvalue()
        assert "100%  0 s left" in stream.getvalue()
