"""Samples: what the kernel's files say, and what two readings make of it."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from typing import Any

import pytest
from hypothesis import given, strategies as st
from made_up_machine import MadeUpMachine

from kvmpy.watch import Watch, proc, watch as watch_module
from kvmpy.watch.proc import ThreadFiles, ThreadTimes
from kvmpy.watch.samples import Reading, difference

SECOND = 10**9


def stat(name: str, state: str, user: int, system: int, pcpu: int, guest: int) -> str:
    fields = ["0"] * 50
    fields[0], fields[11], fields[12], fields[36], fields[40] = state, *map(
        str, (user, system, pcpu, guest)
    )  # fmt: skip
    return f"77 ({name}) {' '.join(fields)}\n"


numbers = st.integers(0, (1 << 64) - 1)


@given(st.text(max_size=16), st.sampled_from("RSDTtXZI"), numbers, numbers, numbers, numbers)
def test_stat(name: str, state: str, user: int, system: int, pcpu: int, guest: int) -> None:
    """Whatever the thread calls itself."""
    found = proc.parse_stat(stat(name, state, user, system, pcpu, guest))
    assert found == (state, pcpu, user + system, guest)


@given(numbers, numbers, numbers)
def test_schedstat(run: int, delay: int, slices: int) -> None:
    assert proc.parse_schedstat(f"{run} {delay} {slices}\n") == (run, delay)


@pytest.mark.parametrize("parse", [proc.parse_stat, proc.parse_schedstat, proc.parse_sleeps])
@given(st.text())
def test_anything_else_is_refused(parse: Any, text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert isinstance(found, (int, tuple))


def test_sleeps() -> None:
    text = "Name:\tvoluntary_ctxt_switches:\t9\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt"
    assert proc.parse_sleeps(text) == 12


def test_a_thread_of_ours_and_its_end() -> None:
    before = len(os.listdir("/proc/self/fd"))
    go, ids = threading.Event(), []
    ready = threading.Event()

    def body() -> None:
        ids.append(threading.get_native_id())
        ready.set()
        go.wait(20)

    thread = threading.Thread(target=body)
    thread.start()
    ready.wait(20)
    files = ThreadFiles(os.getpid(), ids[0])
    times = files.read()
    assert times is not None
    assert times.pcpu in range(os.cpu_count() or 1)
    go.set()
    thread.join(20)
    while files.read() is not None:  # the kernel takes a moment to bury it
        pass
    files.close()
    with pytest.raises(FileNotFoundError):
        ThreadFiles(os.getpid(), ids[0])
    assert len(os.listdir("/proc/self/fd")) == before


def reading(at: float, times: ThreadTimes | None, **changes: Any) -> Reading:
    base = Reading(int(at * SECOND), 0, 77, 1, 1, (0,) * 64, (0,) * 64, times, "0-3", None)
    return dataclasses.replace(base, **changes)


def times(run: float, guest: float, delay: float | None, sleeps: int | None = None) -> ThreadTimes:
    ns = None if delay is None else int(delay * SECOND)
    return ThreadTimes(3, int(run * SECOND), int(guest * SECOND), ns, sleeps)


ZERO = times(0, 0, 0)
amounts = st.integers(0, 3 * SECOND)


@given(amounts, amounts, st.none() | amounts, st.integers(SECOND // 1000, SECOND), st.booleans())
def test_shares_add_up_to_the_whole(
    run: int, guest: int, delay: int | None, wall: int, awake: bool
) -> None:
    """Whatever the kernel's clocks say: they are not read at the same moment."""
    sleeps = 4 if awake else None
    first = reading(0, dataclasses.replace(ZERO, sleeps=sleeps, delay=None if delay is None else 0))
    second = reading(wall / SECOND, ThreadTimes(0, run, guest, delay, sleeps))
    sample = difference(first, second)
    parts = [sample.guest, sample.host, sample.steal or 0.0, sample.wait]
    assert all(part is not None and 0 <= part <= 1 for part in parts)
    assert sum(part or 0 for part in parts) == pytest.approx(1)


def test_a_halted_vcpu_waits_and_a_spinning_one_is_robbed() -> None:
    halted = difference(reading(0, ZERO), reading(1, times(0.1, 0.08, 0.2)))
    assert (halted.guest, halted.host, halted.steal) == pytest.approx((0.08, 0.02, 0.2))
    assert halted.wait == pytest.approx(0.7)
    awake = times(0, 0, 0, sleeps=5)
    spinning = difference(reading(0, awake), reading(1, times(0.1, 0.08, 0.2, sleeps=5)))
    assert (spinning.steal, spinning.wait) == pytest.approx((0.9, 0))
    woken = difference(reading(0, awake), reading(1, times(0.1, 0.08, 0.2, sleeps=6)))
    assert woken.wait == pytest.approx(0.7)


def test_what_the_kernel_does_not_say() -> None:
    sample = difference(reading(0, times(0, 0, None)), reading(1, times(0.25, 0, None)))
    assert (sample.steal, sample.wait, sample.halt_poll, sample.exits) == (None, 0.75, None, None)


def test_exits_by_reason_and_what_they_cost() -> None:
    before = [0] * 64
    after, spent = [0] * 64, [0] * 64
    after[2], after[5], after[63], spent[2] = 30, 8, 1, 90_000
    sample = difference(
        reading(0, ZERO, exits=tuple(before)),
        reading(2, ZERO, exits=tuple(after), handling=tuple(spent)),
    )
    assert list(sample.reasons.items()) == [("IO", 15), ("HLT", 4), ("63", 0.5)]
    assert dict(sample.handling_us) == {"IO": 3}


def test_kvms_statistics() -> None:
    names = ("exits", "io_exits", "halt_poll_success_ns", "halt_poll_fail_ns", "halt_wait_ns", "x")
    first = dict.fromkeys(names, 10)
    added = (200, 20, SECOND // 5, SECOND // 5, SECOND, 0)
    second = {name: 10 + more for name, more in zip(names, added, strict=True)}
    sample = difference(reading(0, ZERO, kvm=first), reading(2, ZERO, kvm=second))
    assert (sample.exits, dict(sample.kvm)) == (100, {"io_exits": 10})
    assert (sample.halt_poll, sample.halt_wait) == (0.2, 0.5)


def test_states() -> None:
    idle = {"running": 0}
    sample = difference(reading(0, ZERO, **idle), reading(1, times(1, 0, 0), **idle))
    assert (sample.state, sample.pcpu, sample.host) == ("stopped", None, None)
    assert difference(reading(0, ZERO), reading(1, None)).state == "ended"
    never = {"running": 0, "thread": 0, "runs": 0}
    assert difference(reading(0, None, **never), reading(1, None, **never)).state == "stopped"
    briefly = difference(reading(0, ZERO, **idle), reading(1, ZERO, **idle, runs=2))
    assert briefly.state == "running"
    assert difference(reading(0, ZERO), reading(1, ZERO, running=2)).state == "paused"
    moved = difference(reading(0, ZERO), reading(1, times(1, 0, 0), thread=78))
    assert (moved.state, moved.thread, moved.pcpu, moved.host) == ("running", 78, 3, None)
    too_soon = difference(reading(0, ZERO), reading(0.0001, ZERO))
    assert (too_soon.host, dict(too_soon.reasons)) == (None, {})


def test_a_watch_of_a_machine() -> None:
    with MadeUpMachine(2) as machine, Watch(socket=machine.socket) as watch:
        machine.cpus[1].exits[2] += 5
        machine.cpus[0].running = 0
        while not watch.sample().machines[0].seconds:
            pass
        machine.cpus[1].exits[2] += 5
        sample = watch.sample()
        (seen,) = sample.machines
        assert [vcpu.id for vcpu in seen.vcpus] == [0, 1]
        assert seen.vcpus[0].state == "stopped"
        assert seen.vcpus[1].thread == threading.get_native_id()
        assert any("no statistics" in note for note in seen.notes)
        assert seen.total("exits") is None
        again = json.loads(json.dumps(sample.as_json()))
        assert again["machines"][0]["vcpus"][1]["state"] == "running"
        machine.close()
        sample = watch.sample()
        assert (sample.machines, [info.socket for info in sample.ended]) == ((), [machine.socket])


def test_no_descriptor_left_for_one_more_vcpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """That machine is told of, the others are watched."""

    def refuse(pid: int, thread: int) -> None:
        raise OSError(24, "Too many open files")

    before = len(os.listdir("/proc/self/fd"))
    with MadeUpMachine(2), Watch(os.getpid()) as watch, MadeUpMachine():
        monkeypatch.setattr(watch_module, "ThreadFiles", refuse)
        sample = watch.sample()
        assert len(sample.machines) == 1
        assert dict(sample.refused) == {os.getpid(): "[Errno 24] Too many open files"}
    assert len(os.listdir("/proc/self/fd")) == before


def test_machines_come_while_it_watches() -> None:
    with Watch(os.getpid()) as watch, MadeUpMachine() as machine:
        assert watch.machines == ()
        (seen,) = watch.sample().machines
        assert seen.info.socket == machine.socket
        assert watch.machines == (seen.info,)
        assert watch.sample().machines[0].seconds > 0
