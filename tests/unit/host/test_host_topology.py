"""CPU lists, and what a thread may be pinned to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from kvmpy.host import topology
from kvmpy.host.topology import PinError, check_pin, format_cpu_list, parse_cpu_list


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,7", {0, 1, 2, 3, 7}),
        ("0\n", {0}),
        ("", set()),
        ("  \n", set()),
        ("0-6:2", {0, 2, 4, 6}),
        ("5-5", {5}),
        ("3,1,1-2", {1, 2, 3}),
    ],
)
def test_parse(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text", ["a", "1-", "-1", "3-1", "1,,2", "1;2", "0-99999999999", "0-3:0", "²", "1 2", "0x1"]
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="CPU list"):
        parse_cpu_list(text)


def test_format() -> None:
    assert format_cpu_list([7, 3, 2, 1, 0]) == "0-3,7"
    assert format_cpu_list([]) == ""
    assert format_cpu_list({4}) == "4"


@given(st.sets(st.integers(0, 300)))
def test_round_trip(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


def sysfs(tmp_path: Path) -> Path:
    (tmp_path / "present").write_text("0-7\n")
    (tmp_path / "online").write_text("0-5\n")
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
    (tmp_path / "cpu0" / "topology" / "core_cpus_list").write_text("0,4\n")
    (tmp_path / "cpu1" / "topology" / "thread_siblings_list").write_text("1,5\n")
    return tmp_path


def test_pin_allowed(tmp_path: Path) -> None:
    assert check_pin(3, sysfs=sysfs(tmp_path), allowed=frozenset({2, 3})) == 3


@pytest.mark.parametrize(
    ("cpu", "message"),
    [
        (9, "pCPU 9 does not exist: this host has 0-7"),
        (-1, "pCPU -1 does not exist: this host has 0-7"),
        (6, "pCPU 6 is offline: use one of 2-3"),
        (1, "pCPU 1 is not allowed for this process .*: use one of 2-3"),
    ],
)
def test_pin_refused(tmp_path: Path, cpu: int, message: str) -> None:
    with pytest.raises(PinError, match=message):
        check_pin(cpu, sysfs=sysfs(tmp_path), allowed=frozenset({2, 3}))


def test_pin_without_sysfs(tmp_path: Path) -> None:
    with pytest.raises(PinError, match="not allowed"):
        check_pin(1, sysfs=tmp_path, allowed=frozenset({0}))


def test_siblings(tmp_path: Path) -> None:
    root = sysfs(tmp_path)
    assert topology.smt_siblings(0, sysfs=root) == {0, 4}
    assert topology.smt_siblings(1, sysfs=root) == {1, 5}
    assert topology.smt_siblings(2, sysfs=root) == {2}


def test_this_process() -> None:
    allowed = topology.allowed_cpus()
    assert check_pin(min(allowed)) == min(allowed)
