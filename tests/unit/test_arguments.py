"""What callers hand in, checked by one rule wherever it is taken."""

from __future__ import annotations

import math
import os
import time

import pytest

import kvmpy
from kvmpy import arguments
from kvmpy.devices.virtio import VirtioConsole
from kvmpy.run.thread import arrive, pause_all


@pytest.mark.parametrize(
    "none", [None, math.inf, 1e9, 1e300, 10**400, 2**62], ids=lambda n: f"{n!r:.12}"
)
def test_no_limit(none: float | None) -> None:
    assert arguments.seconds(none) == math.inf
    assert arguments.deadline(none) == math.inf
    assert arguments.left(math.inf) is None
    assert arguments.nanoseconds(none) == -1


@pytest.mark.parametrize(
    "bad", [-1, -0.001, math.nan, -math.inf, -(10**400)], ids=lambda n: f"{n!r:.12}"
)
def test_no_time(bad: float) -> None:
    with pytest.raises(ValueError, match=r"timeout .* is not a number of seconds >= 0"):
        arguments.seconds(bad)


@pytest.mark.parametrize("bad", ["5", b"5", [], object(), 1j])
def test_no_number(bad: object) -> None:
    with pytest.raises(TypeError, match=r"timeout .* is not a number of seconds"):
        arguments.seconds(bad)  # type: ignore[arg-type]


def test_time() -> None:
    assert arguments.seconds(2) == 2.0
    assert arguments.nanoseconds(0.25) == 250_000_000
    assert arguments.nanoseconds(0) == 0
    until = arguments.deadline(100)
    assert 99 < until - time.monotonic() <= 100
    assert 99 < (arguments.left(until) or 0) <= 100
    assert arguments.left(time.monotonic() - 1) == 0.0


@pytest.fixture
def console():
    reader, writer = os.pipe()
    keys = type("Keys", (), {"receive": lambda self, data, space_eventfd=None: len(data)})()
    with kvmpy.machine.ScriptConsole(reader, keys) as console:
        yield console
    os.close(writer)


@pytest.mark.parametrize("bad", [-1, math.nan, "5"])
def test_every_wait_without_kvm(bad, console) -> None:
    for wait in (
        lambda: console.expect("x", timeout=bad),
        lambda: console.send("x", timeout=bad),
        lambda: console.sendline("x", timeout=bad),
        lambda: console.run("true", timeout=bad),
        lambda: console.drain(bad),
        lambda: VirtioConsole().flush(bad),
        lambda: pause_all([], bad),
        lambda: arrive([], bad),
    ):
        with pytest.raises((ValueError, TypeError), match="not a number of seconds"):
            wait()


@pytest.mark.parametrize("none", [None, math.inf])
def test_waits_without_a_limit(none, console) -> None:
    console.send("x", timeout=none)
    assert VirtioConsole().flush(none) is True
    assert pause_all([], none) is True
    arrive([], none)


@pytest.mark.parametrize("bad", [5, 5.0, None, ["x"]])
def test_what_is_sent_is_text_or_bytes(bad, console) -> None:
    """``bytes(5)`` would be five zeros."""
    for send in (console.send, console.sendline):
        with pytest.raises(TypeError, match="neither text nor a buffer"):
            send(bad)


@pytest.mark.parametrize("data", [b"ab", bytearray(b"ab"), memoryview(b"ab"), "ab"])
def test_any_buffer_is_bytes(data, console) -> None:
    assert arguments.encoded(data) == b"ab"
    console.send(data)
