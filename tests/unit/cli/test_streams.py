"""The command with standard streams that are closed, full, a pipe nobody reads, or ASCII."""

import os
import re
import subprocess
import sys

import pytest

KVMPY = [sys.executable, "-m", "kvmpy"]
#: Each prints something, and needs no KVM.
COMMANDS = [["--help"], ["--version"], ["boot", "--help"], ["lab"], ["bench", "--help"], ["doctor"]]
LIMIT = 120


def run(command, **options):
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*KVMPY, *command], timeout=LIMIT, check=False, **options)


def closing(fd):
    """For preexec_fn: the command starts without that descriptor."""
    return lambda: os.close(fd)


def ids(command):
    return " ".join(command)


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_a_full_disk(command):
    """One line that says so, and a status that is no success."""
    with open("/dev/full", "wb") as full:
        result = run(command, stdout=full)
    assert result.returncode == 1
    assert result.stderr == b"kvmpy: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_standard_output_closed(command):
    """Nobody wants it: the status is what it would have been, and nothing lands elsewhere."""
    with_it, without = run(command, stdout=subprocess.PIPE), run(command, preexec_fn=closing(1))
    assert without.returncode == with_it.returncode
    assert without.stderr == with_it.stderr


@pytest.mark.parametrize("command", [*COMMANDS, ["frobnicate"], ["boot", "/nonexistent"]], ids=ids)
def test_standard_error_closed(command):
    """Messages do not land in the output instead."""
    with_it = run(command, stdout=subprocess.PIPE)
    without = run(command, stdout=subprocess.PIPE, stderr=None, preexec_fn=closing(2))
    assert without.returncode == with_it.returncode
    number = re.compile(rb"\d+")  # doctor measures
    assert number.sub(b"0", without.stdout) == number.sub(b"0", with_it.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_all_closed(command):
    def close_all():
        for fd in range(3):
            os.close(fd)

    assert run(command, preexec_fn=close_all).returncode in (0, 69)


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_standard_error_full(command):
    """What is said there is lost; no traceback is added to the output."""
    with open("/dev/full", "wb") as full:
        result = run(command, stdout=subprocess.PIPE, stderr=full)
    assert b"Traceback" not in result.stdout


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
def test_a_reader_that_has_gone(command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run(command, stdout=writer)
    finally:
        os.close(writer)
    assert result.stderr == b""
    assert result.returncode == 1


@pytest.mark.parametrize("command", COMMANDS, ids=ids)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_streams_that_lack_characters(command, encoding):
    """What they lack is escaped; nothing fails for it."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = run(command, stdout=subprocess.PIPE, env=environment)
    assert b"Traceback" not in result.stderr
    assert result.stdout.decode(encoding)
    assert result.returncode in (0, 69)
