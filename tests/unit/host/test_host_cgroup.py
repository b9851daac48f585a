"""Why this process may have no cpu.max for its threads: each reason has its text. What the kernel
does with one that it may have is in tests/kvm/run/test_vcpu_cgroup.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvmpy.errors import UnsupportedError
from kvmpy.host.cgroup import ThreadGroup, own_cgroup


def proc(root: Path, cgroup: str, mounts: str) -> Path:
    (root / "cgroup").write_text(cgroup)
    (root / "mounts").write_text(mounts)
    return root


def test_where_it_is(tmp_path: Path) -> None:
    mounts = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/c\\040group cgroup2 rw,nosuid 0 0\n"
    own = own_cgroup(proc(tmp_path, "4:memory:/old\n0::/user.slice/run-7.scope\n", mounts))
    assert own == Path("/sys/fs/c group/user.slice/run-7.scope")


@pytest.mark.parametrize(
    ("cgroup", "mounts", "reason"),
    [
        ("4:cpu:/\n", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", "no cgroup v2 hierarchy"),
        ("0::/\n", "", "no cgroup v2 hierarchy"),
        ("", "", "no cgroup v2 hierarchy"),
        ("0::/../x\n", "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "outside of what is mounted"),
        ("0::/\n", "odd\n\n", "no cgroup v2 hierarchy"),
    ],
)
def test_nowhere(tmp_path: Path, cgroup: str, mounts: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        own_cgroup(proc(tmp_path, cgroup, mounts))


def test_without_proc(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no cgroup v2"):
        own_cgroup(tmp_path / "none")


@pytest.mark.parametrize("controllers", [None, "", "cpuset memory\n"])
def test_the_controller_is_elsewhere(tmp_path: Path, controllers: str | None) -> None:
    if controllers is not None:
        (tmp_path / "cgroup.controllers").write_text(controllers)
    with pytest.raises(UnsupportedError, match="cgroup v1 has it, or the cgroup above"):
        ThreadGroup(tmp_path)
    assert not list(tmp_path.glob("kvmpy-*"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EACCES, "not delegated to this user. 'systemd-run --user"),
        (errno.EROFS, "not delegated"),
        (errno.EOPNOTSUPP, "cannot have threaded ones"),
        (errno.ENOSPC, "No space left"),
    ],
)
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, reason: str) -> None:
    """At each write that makes it: with the reason, and nothing is left."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")

    def refuse(path: Path, *_: object) -> None:
        raise OSError(code, "refused")

    for step in ("mkdir", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, step, refuse)
            with pytest.raises(UnsupportedError, match=reason):
                ThreadGroup(tmp_path)
    assert not list(tmp_path.glob("kvmpy-*"))


@pytest.mark.parametrize(
    ("cpus", "period"), [(0, 0.1), (-1, 0.1), (float("nan"), 0.1), (1, 0), (1, 2), (0.0001, 0.1)]
)
def test_limits_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: float, period: float
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    monkeypatch.setattr(Path, "write_text", lambda path, text: len(text))
    with ThreadGroup(tmp_path) as group, pytest.raises(ValueError, match=r"period|cpus|kernel"):
        group.limit(cpus, period)
