"""`kvmpy top`: what it shows, as text and on a terminal, and what it gives to scripts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from made_up_machine import Handout, MadeUpMachine, greeting

from kvmpy import cli
from kvmpy.cli import top_view
from kvmpy.watch import MachineInfo, MachineSample, Sample, VcpuSample, find

RECORDED = Path(__file__).parents[1] / "recorded"
TOP = [sys.executable, "-m", "kvmpy", "top"]
LIMIT = 40  # below the limit of a test


def machine(pid: int, name: str, cpus: int, **changes: object) -> MachineSample:
    """With vCPUs that spin, ask the host for much, halt, and stand still, in turn."""
    kinds = [
        {"guest": 0.982, "host": 0.018, "steal": 0.0, "wait": 0.0, "exits": 251.0,
         "kvm": {"irq_exits": 250.0}},
        {"guest": 0.21, "host": 0.74, "steal": 0.05, "wait": 0.0, "exits": 81234.0,
         "reasons": {"IO": 79000.4, "MMIO": 2233.6}, "kvm": {"io_exits": 79000.0},
         "handling_us": {"IO": 1.25}},
        {"guest": 0.003, "host": 0.021, "steal": 0.326, "wait": 0.65, "halt_poll": 0.011,
         "exits": 512.0, "kvm": {"halt_exits": 240.0, "irq_exits": 12.0, "halt_wakeup": 240.0}},
    ]  # fmt: skip
    vcpus = []
    for number in range(cpus):
        if number % 4 == 3:
            vcpus.append(VcpuSample(number, "stopped", allowed="0-63"))
            continue
        kind = {"halt_poll": 0.0} | kinds[number % 4]
        allowed = "0,2,4,6,8,10" if number % 4 else str(number)
        vcpus.append(VcpuSample(number, "running", 100, number, allowed, **kind))
    info = MachineInfo(pid, name, 256 << 20, cpus, f"kvmpy.machine/{pid}/0a0b0c0d")
    return MachineSample(info, 1.0, tuple(vcpus), **changes)  # type: ignore[arg-type]


def sample(*machines: MachineSample, **changes: object) -> Sample:
    return Sample(1_700_000_000.0, machines, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_as_recorded() -> None:
    """One, four and many vCPUs, what has ended and what is not known: 80 characters wide."""
    notes = ("steal: the kernel has no schedstat (CONFIG_SCHED_INFO); wait includes it",)
    gone = MachineInfo(77, "demo", 256 << 20, 1, "kvmpy.machine/77/00000000")
    lines = top_view.View().plain(
        sample(
            machine(1234, "vmlinuz-6.1.0-41-cloud-amd64", 4),
            machine(23456, "flat binary, 4 bytes at 0x7c00, real mode, and more", 1, notes=notes),
            ended=(gone,),
            refused={99: "it runs another version of kvmpy"},
        )
    )
    assert "\n".join(lines) + "\n" == (RECORDED / "top.txt").read_text()
    assert max(map(len, lines)) <= 80


def test_a_machine_found_just_now() -> None:
    info = MachineInfo(77, "demo", (256 << 20) + 1, 1, "kvmpy.machine/77/00000000")
    seen = MachineSample(info, 0.0, (VcpuSample(0, "running", 5, 1, "0-1"),))
    lines = top_view.View().plain(sample(seen))
    assert lines[2] == "process 77  demo, 268435457 bytes, 1 vCPU"
    assert lines[3] == "   0    1 0-1         -     -     -     -     -       -"


def test_what_has_ended_is_named_for_a_while() -> None:
    view = top_view.View()
    gone = MachineInfo(77, "demo", 256 << 20, 1, "kvmpy.machine/77/00000000")
    assert view.plain(sample(ended=(gone,)))[-1] == "process 77  demo: ended"
    rest = [view.plain(sample()) for _ in range(20)]
    assert rest[0][-1] == "process 77  demo: ended"
    assert "ended" not in rest[-1][-1]


@given(st.floats(0, 1e12))
def test_rates(value: float) -> None:
    text = top_view.rate(value)
    assert len(text) <= 5
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}
    shown = float(text.rstrip("kMG")) * unit.get(text[-1], 1)
    assert shown == pytest.approx(value, rel=0.051, abs=0.05)


@given(st.integers(1, 200), st.integers(1, 9))
def test_every_line_fits(width: int, cpus: int) -> None:
    view, seen = top_view.View(), sample(machine(1234, "n" * 200, cpus, notes=("x" * 100,)))
    lines = [view.title(seen, width), view.columns(width), *view.body(seen, width)]
    least = 62  # the columns
    assert all(sum(len(text) for text, _ in line) <= max(width, least) for line in lines)


# ---------------------------------------------------------------- the command


def test_samples_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    with MadeUpMachine(2):
        status = cli.main(["top", str(os.getpid()), "--json", "--count", "2", "--interval", "0.1"])
    assert status == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(records) == 2
    for record in records:
        (seen,) = record["machines"]
        assert seen["pid"] == os.getpid()
        assert seen["seconds"] > 0.01
        assert [vcpu["id"] for vcpu in seen["vcpus"]] == [0, 1]
        assert seen["vcpus"][0]["exits"] is None


def test_a_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with MadeUpMachine(name=b"vmlinuz"):
        assert cli.main(["top", str(os.getpid()), "--count", "1", "--interval", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["vCPU", "pCPU"]
    assert lines[2] == f"process {os.getpid()}  vmlinuz, 256M, 1 vCPU"
    assert lines[3].startswith("   0 ")


def test_the_end_of_what_it_watches() -> None:
    with MadeUpMachine(name=b"vmlinuz") as machine:
        command = [*TOP, str(os.getpid()), "--json", "--interval", "0.1"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["machines"]
            machine.close()
            _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert errors == f"kvmpy: vmlinuz of process {os.getpid()} has ended\n"


def test_no_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sockets = tmp_path / "unix"
    sockets.write_text("Num RefCount Protocol Flags Type St Inode Path\n")
    monkeypatch.setattr(find, "SOCKETS", str(sockets))
    assert cli.main(["top"]) == 1
    assert "no machine of this user is running ('kvmpy boot IMAGE'" in capsys.readouterr().err
    assert cli.main(["top", str(os.getpid())]) == 1
    assert f"process {os.getpid()} runs no kvmpy machine" in capsys.readouterr().err
    assert cli.main(["top", str((1 << 31) - 1)]) == 1
    assert "there is no process 2147483647" in capsys.readouterr().err
    sockets.unlink()
    assert cli.main(["top"]) == 1
    assert "cannot look for machines" in capsys.readouterr().err


def test_why_a_machine_cannot_be_watched(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Handout(greeting(format=9))
    try:
        assert cli.main(["top", str(os.getpid())]) == 1
    finally:
        peer.close()
    assert "it runs another version of kvmpy" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--interval", "0"], ["--interval", "nan"], ["--count", "0"], ["-1"], ["x"]]
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["top", *arguments])
    assert error.value.code == 2
    assert capsys.readouterr().err


# ---------------------------------------------------------------- a terminal


class Terminal:
    """`kvmpy top` in a terminal of 80x24."""

    def __init__(self, *arguments: str):
        self.output = b""
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [*TOP, *arguments], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=os.environ | {"TERM": "xterm"}, preexec_fn=_take_terminal,
        )  # fmt: skip
        self.slave = slave

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("=4H", rows, columns, 0, 0))

    def until(self, text: bytes, times: int = 1) -> None:
        """Read on until ``text`` has come that often from here on."""
        start, deadline = len(self.output), time.monotonic() + LIMIT
        while self.output.count(text, start) < times:
            assert time.monotonic() < deadline, self.output[start:]
            self._read(0.2)

    def _read(self, timeout: float) -> None:
        if select.select([self.master], [], [], timeout)[0]:
            with contextlib.suppress(OSError):
                self.output += os.read(self.master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        """The exit status; the rest of the output is read."""
        deadline = time.monotonic() + LIMIT
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._read(0.05)
        self._read(0)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    one = Terminal(str(os.getpid()), "--interval", "0.2", *arguments)
    try:
        yield one
    finally:
        one.close()


ENTER, LEAVE, CLEAR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[2J"


@pytest.mark.parametrize(("key", "status"), [(b"q", 0), (b"\x03", 0)])
def test_it_is_drawn_over_and_leaves_no_trace(key: bytes, status: int) -> None:
    """No flicker: the screen is not cleared between samples."""
    with MadeUpMachine(4), terminal() as top:
        top.until(ENTER)
        top.until(b"kvmpy top", 3)
        assert termios.tcgetattr(top.slave)[3] & (termios.ECHO | termios.ICANON) == 0
        top.type(key)
        assert top.end() == status
        assert termios.tcgetattr(top.slave) == top.before
        _, _, drawn = top.output.partition(ENTER)
        drawn, _, rest = drawn.partition(LEAVE)
        assert CLEAR not in drawn
        assert b"kvmpy top" not in rest
        assert b"q quits" in drawn


def test_many_vcpus_are_scrolled() -> None:
    with MadeUpMachine(64), terminal() as top:
        top.until(b"lines 1-21 of 67")
        top.type(b"\x1b[B")
        top.until(b"lines 2-22 of 67")
        top.type(b"\x1b[6~")
        top.until(b"lines 23-43 of 67")
        top.type(b"G")
        top.until(b"lines 47-67 of 67")
        top.type(b"\x1b[A")
        top.until(b"lines 46-66 of 67")
        top.type(b"g")
        top.until(b"lines 1-21 of 67")
        top.resize(40, 120)
        top.until(b"lines 1-37 of 67")
        top.resize(3, 20)
        top.until(b"kvmpy top")
        top.type(b"q")
        assert top.end() == 0


def test_suspended_and_taken_up_again() -> None:
    with MadeUpMachine(), terminal() as top:
        top.until(b"q quits")
        top.type(b"\x1a")
        top.until(LEAVE)
        deadline = time.monotonic() + LIMIT
        while (state := _state(top.process.pid)) != "T":
            assert time.monotonic() < deadline, state
        assert termios.tcgetattr(top.slave)[3] & termios.ECHO
        os.kill(top.process.pid, signal.SIGCONT)
        top.until(ENTER)
        top.until(b"kvmpy top", 2)
        top.type(b"q")
        assert top.end() == 0
        assert termios.tcgetattr(top.slave) == top.before


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_terminated() -> None:
    with MadeUpMachine(), terminal() as top:
        top.until(b"q quits")
        top.process.terminate()
        assert top.end() == 128 + signal.SIGTERM
        assert LEAVE in top.output
        assert termios.tcgetattr(top.slave) == top.before


def test_the_machine_ends_while_it_is_shown() -> None:
    with MadeUpMachine(name=b"vmlinuz") as machine, terminal() as top:
        top.until(b"vmlinuz")
        machine.close()
        assert top.end() == 0
        assert f"vmlinuz of process {os.getpid()} has ended".encode() in top.output


def test_as_many_samples_as_wanted() -> None:
    with MadeUpMachine(), terminal("--count", "2") as top:
        assert top.end() == 0
        assert top.output.count(b"kvmpy top") >= 2
