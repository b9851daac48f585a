"""What disturbs measurements, on made-up hosts: each has its own finding, a quiet host has none."""

from __future__ import annotations

from typing import Any

import pytest

from kvmpy.host.cpu import HostCpu
from kvmpy.probe import disturbance
from kvmpy.probe.disturbance import Disturbance, DisturbanceWatch, cpu_times, examine, look_around
from kvmpy.probe.modes import ModeResult
from kvmpy.probe.system import System
from kvmpy.probe.verdict import judge
from kvmpy.x86.modes import Mode

GOVERNOR = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"


def stat(*cpus: tuple[int, int, int]) -> str:
    """/proc/stat of pCPUs with (busy, idle, stolen) ticks."""
    lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 {steal} 0 0" for n, (busy, idle, steal)
             in enumerate(cpus)]  # fmt: skip
    return "\n".join(["cpu  1 2 3 4 5 6 7 8", *lines, "intr 5 0 0", "ctxt 7"])


QUIET = [stat((0, 0, 0), (0, 0, 0)), stat((0, 100, 0), (0, 100, 0))]


class FakeHost(System):
    """Two pCPUs; ``stats`` are what /proc/stat says, one after the other."""

    def __init__(self, stats: list[str] | None = None, **texts: str):
        self.stats = list(stats or QUIET)
        self.texts = {"/proc/loadavg": "0.10 0.2 0.3 1/100 5", **texts}
        self.cpus = frozenset({0, 1})

    def text(self, path: str) -> str | None:
        if path == "/proc/stat":
            return self.stats.pop(0) if self.stats else None
        return self.texts.get(path)

    def allowed_cpus(self) -> frozenset[int]:
        return self.cpus


@pytest.fixture(autouse=True)
def siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """pCPUs 0 and 1 share a core."""
    monkeypatch.setattr(disturbance, "smt_siblings", lambda cpu: frozenset({0, 1}))


def found(host: FakeHost, cpu: int | None = 0) -> dict[str, Disturbance]:
    return {item.name: item for item in look_around(cpu, host, wait=lambda seconds: None)}


def verdict(**changes: Any) -> Any:
    cpu = HostCpu("GenuineIntel", "Xeon", "VT-x", changes.pop("hypervisor", None),
                  changes.pop("emulator", None))  # fmt: skip
    ring0 = changes.pop("ring0", "native")
    parameters = {"ept": changes.pop("ept", "Y")}
    return judge("kvm_intel", parameters, cpu, ModeResult(Mode.LONG_64, 0, ring0, 600.0),
                 ModeResult(Mode.LONG_64, 3, "native", 0.3))  # fmt: skip


def test_a_quiet_host_disturbs_nothing() -> None:
    assert examine(verdict(), 0, FakeHost(), wait=lambda seconds: None) == ()


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"ring0": "emulated"}, "interpreted rings", "interprets 64-bit ring 0"),
        ({"hypervisor": "Xen"}, "nested", "under Xen"),
        ({"emulator": "Bochs"}, "emulated CPU", "time is virtual"),
        ({"ept": "N"}, "shadow paging", "EPT or NPT"),
    ],
)
def test_what_kvm_and_the_machine_are(changes: dict[str, Any], name: str, words: str) -> None:
    (item,) = examine(verdict(**changes), 0, FakeHost(), wait=lambda seconds: None)
    assert item.name == name
    assert words in str(item)


def test_a_busy_sibling() -> None:
    host = FakeHost([stat((0, 0, 0), (0, 0, 0)), stat((0, 20, 0), (8, 12, 0))])
    item = found(host)["SMT sibling busy"]
    assert "pCPU 1 shares the core of pCPU 0 and was 40% busy" in item.finding
    assert "cpu1/online" in item.remedy


def test_a_busy_pcpu() -> None:
    host = FakeHost([stat((0, 0, 0), (0, 0, 0)), stat((5, 15, 0), (0, 20, 0))])
    assert list(found(host)) == ["busy pCPU"]
    assert "25% of pCPU 0" in str(found(FakeHost([QUIET[0], stat((5, 15, 0))]))["busy pCPU"])


@pytest.mark.parametrize("governor", ["powersave", "schedutil", "ondemand\n"])
def test_governor(governor: str) -> None:
    host = FakeHost(**{GOVERNOR.format(0): governor, GOVERNOR.format(1): "performance"})
    assert repr(governor.strip()) in found(host)["governor"].finding
    assert "governor" not in found(FakeHost(**host.texts), cpu=1)


@pytest.mark.parametrize(
    ("path", "on", "off"), [("intel_pstate/no_turbo", "0\n", "1\n"), ("cpufreq/boost", "1", "0")]
)
def test_turbo(path: str, on: str, off: str) -> None:
    for text, expected in ((on, True), (off, False)):
        host = FakeHost(**{f"/sys/devices/system/cpu/{path}": text})
        assert ("turbo" in found(host)) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", None), ("150000 100000\n", "1.5 CPUs"), ("5 0", None), ("odd", None)],
)
def test_quota(text: str, expected: str | None) -> None:
    item = found(FakeHost(**{"/sys/fs/cgroup/cpu.max": text})).get("CPU quota")
    assert (item is not None) == (expected is not None)
    assert expected is None or expected in str(item)


@pytest.mark.parametrize(
    ("text", "loaded"), [("0.9 0 0", False), ("1.7 0 0", True), ("", False), ("odd", False)]
)
def test_load(text: str, loaded: bool) -> None:
    assert ("load" in found(FakeHost(**{"/proc/loadavg": text}))) is loaded


def test_pinning() -> None:
    assert "may move among pCPUs 0-1" in str(found(FakeHost(), cpu=None)["not pinned"])
    host = FakeHost()
    host.cpus = frozenset({1})
    assert "pCPU 1 alone" in str(found(host, cpu=1)["one pCPU"])


class TestWatch:
    def test_steal_is_the_share_of_the_run(self) -> None:
        stats = [QUIET[0], stat((0, 100, 0), (0, 60, 40))]
        assert DisturbanceWatch(1, FakeHost(stats)).steal() == 0.4
        assert DisturbanceWatch(0, FakeHost(stats)).steal() == 0
        assert DisturbanceWatch(None, FakeHost(stats)).steal() == 0.4
        assert DisturbanceWatch(0, FakeHost([QUIET[0]])).steal() is None

    def test_steal_and_sibling_during_the_run(self) -> None:
        host = FakeHost([stat((0, 0, 0), (0, 0, 0)), stat((900, 50, 50), (300, 700, 0))])
        seen = {item.name: item.finding for item in DisturbanceWatch(0, host).seen()}
        assert "5.0% of pCPU 0" in seen["steal"]
        assert "30% busy during the run" in seen["SMT sibling busy"]

    def test_steal_on_any_pcpu_counts_where_nothing_is_pinned(self) -> None:
        host = FakeHost([stat((0, 0, 0), (0, 0, 0)), stat((0, 100, 0), (0, 99, 1))])
        (item,) = DisturbanceWatch(None, host).seen()
        assert "pCPU 1" in item.finding

    def test_quiet(self) -> None:
        assert (
            DisturbanceWatch(0, FakeHost([QUIET[0], stat((100, 0, 0), (0, 100, 0))])).seen() == ()
        )


class TestProcStat:
    @pytest.mark.parametrize(
        "text", ["", "cpu0", "cpu0 1 2 3", "cpux 1 2 3 4 5 6 7 8", "cpu0 a b c d e f g h", "\n\n"]
    )
    def test_odd_lines_are_passed_over(self, text: str) -> None:
        assert cpu_times(text) == {}

    def test_this_host_s(self) -> None:
        times = cpu_times(System().text("/proc/stat") or "")
        assert times
        assert all(0 <= time.steal <= time.total >= time.busy for time in times.values())

    def test_a_pcpu_that_goes_away_or_stands_still_is_left_out(self) -> None:
        before, after = cpu_times(stat((1, 1, 0), (1, 1, 0))), cpu_times(stat((1, 1, 0)))
        assert disturbance.shares(before, after) == {}
