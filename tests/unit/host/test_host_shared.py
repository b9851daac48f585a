"""What pCPUs share, read from sysfs: of machines of several kinds, and of trees that are odd."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kvmpy.host import topology
from kvmpy.host.topology import (
    HostCache,
    PinError,
    check_pins,
    check_pins_of,
    format_cpu_list,
    read,
    usable_cpus,
)  # fmt: skip


def tree(root: Path, files: dict[str, str]) -> Path:
    """/sys/devices/system/cpu below ``root``, with these files."""
    for name, text in files.items():
        path = root / "cpu" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (root / "cpu").mkdir(parents=True, exist_ok=True)
    return root / "cpu"


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    directory = f"cpu{cpu}/cache/index{index}"
    return {
        f"{directory}/level": f"{level}", f"{directory}/type": kind, f"{directory}/size": size,
        f"{directory}/coherency_line_size": "64", f"{directory}/shared_cpu_list": shared,
    }  # fmt: skip


def two_packages() -> dict[str, str]:
    """Two packages of two cores of two threads: siblings are n and n + 4; L3 per package."""
    files = {"online": "0-7", "present": "0-7"}
    for cpu in range(8):
        package = cpu % 4 // 2
        members = f"{2 * package}-{2 * package + 1},{2 * package + 4}-{2 * package + 5}"
        core = f"{cpu % 4},{cpu % 4 + 4}"
        files[f"cpu{cpu}/topology/core_cpus_list"] = core
        files[f"cpu{cpu}/topology/package_cpus_list"] = members
        files |= cache(cpu, 0, 1, "Data", "48K", core)
        files |= cache(cpu, 1, 1, "Instruction", "32K", core)
        files |= cache(cpu, 2, 2, "Unified", "2M", core)
        files |= cache(cpu, 3, 3, "Unified", "36864K", members)
    for node in range(2):
        files[f"../node/node{node}/cpulist"] = f"{2 * node}-{2 * node + 1},{2 * node + 4}-" + str(
            2 * node + 5
        )
    return files


def test_two_packages(tmp_path: Path) -> None:
    host = read(sysfs=tree(tmp_path, two_packages()))
    assert host.cpus == set(range(8))
    assert host.cores == ({0, 4}, {1, 5}, {2, 6}, {3, 7})
    assert host.packages == ({0, 1, 4, 5}, {2, 3, 6, 7})
    assert host.nodes == host.packages
    assert len(host.caches) == 3 * 4 + 2
    assert host.caches_of(6)[-1] == HostCache(3, "unified", 36 << 20, 64, frozenset({2, 3, 6, 7}))
    assert [(c.level, c.kind) for c in host.caches_of(0)] == [
        (1, "data"), (1, "instruction"), (2, "unified"), (3, "unified"),
    ]  # fmt: skip
    assert host.core(7) == {3, 7}
    assert host.package(1) == {0, 1, 4, 5}


@pytest.mark.parametrize(("other", "level"), [(4, 1), (1, 3), (2, None), (99, None)])
def test_the_lowest_shared_cache(tmp_path: Path, other: int, level: int | None) -> None:
    host = read(sysfs=tree(tmp_path, two_packages()))
    shared = host.shared_cache(0, other)
    assert (shared and shared.level) == level


def test_an_old_kernel(tmp_path: Path) -> None:
    """Before 5.3 the lists had other names."""
    files = {"online": "0-3"}
    for cpu in range(4):
        files[f"cpu{cpu}/topology/thread_siblings_list"] = f"{cpu & ~1}-{cpu | 1}"
        files[f"cpu{cpu}/topology/core_siblings_list"] = "0-3"
    host = read(sysfs=tree(tmp_path, files))
    assert host.cores == ({0, 1}, {2, 3})
    assert host.packages == ({0, 1, 2, 3},)


def test_offline_siblings_are_left_out(tmp_path: Path) -> None:
    files = two_packages() | {"online": "0-3,5"}
    host = read(sysfs=tree(tmp_path, files))
    assert host.cores == ({0}, {1, 5}, {2}, {3})
    assert host.caches_of(2)[0].cpus == {2}
    with pytest.raises(ValueError, match="pCPU 6 is not online: 0-3,5 are"):
        host.core(6)


def test_nothing_is_known(tmp_path: Path) -> None:
    """sysfs is hidden: what this process may use, each with a core of its own."""
    host = read(sysfs=tree(tmp_path, {}))
    assert host.cpus == topology.allowed_cpus()
    assert set(map(len, host.cores)) == {1}
    assert host.packages == host.nodes == (host.cpus,)
    assert host.caches == ()


ODD = st.sampled_from(
    ["", "-1", "0", "0-3", "0-1,3", "2-0", "9999999", "x", "\x00", "65535", "K", "512K", "1e3", "٣"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(st.sampled_from(sorted(two_packages())), ODD))
def test_odd_trees(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, str]) -> None:
    """Whatever a file holds, each pCPU is in one core, one package, one node."""
    host = read(sysfs=tree(tmp_path_factory.mktemp("odd"), two_packages() | changes))
    for parts in (host.cores, host.packages, host.nodes):
        assert sorted(cpu for part in parts for cpu in part) == sorted(host.cpus)
    for found in host.caches:
        assert found.cpus
        assert found.cpus <= host.cpus
        assert found.level > 0
        assert found.size is None or found.size > 0


def test_this_host() -> None:
    """As psutil sees it."""
    host = read()
    assert len(host.cpus) == psutil.cpu_count()
    cores = psutil.cpu_count(logical=False)
    assert cores is None or len(host.cores) == cores
    assert all(core <= host.package(min(core)) for core in host.cores)


# ---------------------------------------------------------------- pins


ALLOWED = frozenset({0, 1, 2, 3, 8})


@pytest.mark.parametrize(
    ("pin", "cpus"),
    [
        (3, {3}),
        ({0, 1}, {0, 1}),
        (range(2), {0, 1}),
        ("0-1", {0, 1}),
        ("0-3,8", {0, 1, 2, 3, 8}),
        ([8, 8, 0], {0, 8}),
        (iter((1,)), {1}),
        (frozenset({2}), {2}),
    ],
)
def test_pins(tmp_path: Path, pin: topology.Pin, cpus: set[int]) -> None:
    assert check_pins(pin, sysfs=tmp_path, allowed=ALLOWED) == cpus


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        (set(), "names no pCPU: give at least one"),
        ("", "names no pCPU"),
        ("0-4", "pCPU 4 is offline: use one of 0-3,8"),
        ({0, 99}, "pCPU 99 does not exist: this host has 0-9"),
        (-1, "pCPU -1 does not exist"),
        ([0, 9], "pCPU 9 is not allowed for this process .*: use one of 0-3,8"),
    ],
)
def test_pins_refused(tmp_path: Path, pin: topology.Pin, message: str) -> None:
    root = tree(tmp_path, {"present": "0-9", "online": "0-3,8-9"})
    with pytest.raises(PinError, match=message):
        check_pins(pin, sysfs=root, allowed=ALLOWED)


@pytest.mark.parametrize("pin", [1.5, None, True, [0, "1"], [None], {1.0}, b"\x00x"])
def test_no_pins(pin: object) -> None:
    with pytest.raises((TypeError, PinError), match=r"pin=|does not exist|not allowed"):
        check_pins(pin, allowed=ALLOWED)  # type: ignore[arg-type]


@pytest.mark.parametrize("pin", ["a", "1-", "3-1", "0,,1", "0-99999999"])
def test_no_lists(pin: str) -> None:
    with pytest.raises(ValueError, match="CPU list"):
        check_pins(pin, allowed=ALLOWED)


@given(st.sets(st.integers(0, 200), min_size=1))
def test_pins_in_all_notations(cpus: set[int]) -> None:
    allowed = frozenset(range(201))
    for pin in (cpus, sorted(cpus), iter(cpus), format_cpu_list(cpus)):
        assert check_pins(pin, allowed=allowed) == cpus


@given(st.text("0123456789-,: x", max_size=20))
def test_any_text(text: str) -> None:
    """A list, or a ValueError that says what is wrong."""
    try:
        expected = topology.parse_cpu_list(text)
    except ValueError:
        expected = frozenset()
    if expected:
        assert check_pins(text, allowed=frozenset(range(1 << 16))) == expected
        return
    with pytest.raises(ValueError, match=r"CPU list|names no pCPU"):
        check_pins(text, allowed=ALLOWED)


def test_pins_of_several_vcpus() -> None:
    one = min(usable_cpus())
    for pin in (one, {one}, f"{one}", iter([one])):
        assert check_pins_of(pin, 2) == ({one}, {one})
    assert check_pins_of([one, {one}, f"{one}"], 3) == ({one},) * 3
    with pytest.raises(ValueError, match="2 pins for 3 vCPUs: give one for all, or one for each"):
        check_pins_of([one, one], 3)
    with pytest.raises(PinError, match="does not exist"):
        check_pins_of([one, 8000], 2)


def test_a_bound_thread_can_be_bound_elsewhere() -> None:
    """What was usable before stays so: a pin is no limit."""
    before = usable_cpus()
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cpus() == before
    finally:
        os.sched_setaffinity(0, allowed)
