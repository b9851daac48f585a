"""A limit on the CPU time of some of this process's threads: cpu.max of a cgroup v2 of their own.

A threaded cgroup below the one this process is in: that takes nothing but the right to write there,
as root has it, and whoever runs in a cgroup delegated to him (``systemd-run --user --scope -p
Delegate=yes``). The other threads stay where they are.

Source: Documentation/admin-guide/cgroup-v2.rst, "Threads", "Delegation", "CPU".
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import time
from pathlib import Path

from ..errors import UnsupportedError

_PROC = Path("/proc/self")
_numbers = itertools.count(1)
_LEAST_QUOTA = 1000  # us: what the kernel takes
_LAST_THREADS = 2.0  # seconds


def own_cgroup(proc: Path = _PROC) -> Path:
    """Where the cgroup v2 of this process is mounted.

    Raises UnsupportedError if it is nowhere, which says why.
    """
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mounts").read_text().splitlines()
    except OSError as error:
        raise UnsupportedError(f"no cgroup v2: {error}") from None
    path = next((line[3:] for line in groups if line.startswith("0::/")), None)
    fields = [line.split() for line in mounts]
    mount = next((field[1] for field in fields if len(field) > 2 and field[2] == "cgroup2"), None)
    if path is None or mount is None:
        raise UnsupportedError("no cgroup v2 hierarchy is mounted: there is no cpu.max")
    if "/../" in f"{path}/":
        raise UnsupportedError(f"this process's cgroup {path} is outside of what is mounted")
    return Path(mount.encode().decode("unicode_escape") + path)


class ThreadGroup:
    """A threaded cgroup, below that of this process. :meth:`close` puts its threads back and takes
    it away; as a context manager it does so itself.

    Raises UnsupportedError where this process may not have one; the text says why.
    """

    def __init__(self, parent: Path | None = None):
        self._parent = parent or own_cgroup()
        self._enabled = False  # the controller, by this object
        self.path = self._parent / f"kvmpy-{os.getpid()}-{next(_numbers)}"
        self._check_controller()
        try:
            self.path.mkdir()
        except OSError as error:
            raise self._refused("make a cgroup in", self._parent, error) from None
        try:
            self._write(self.path / "cgroup.type", "threaded")
            if not self._has_controller("cgroup.subtree_control"):
                self._write(self._parent / "cgroup.subtree_control", "+cpu")
                self._enabled = True
        except BaseException:
            self.close()
            raise

    def _has_controller(self, name: str) -> bool:
        try:
            return "cpu" in (self._parent / name).read_text().split()
        except OSError:
            return False

    def _check_controller(self) -> None:
        if self._has_controller("cgroup.controllers"):
            return
        raise UnsupportedError(
            f"the cpu controller is not available in {self._parent}: cgroup v1 has it, or the "
            "cgroup above does not pass it on (cgroup.subtree_control; with systemd, Delegate=yes)"
        )

    def _refused(self, what: str, path: Path, error: OSError) -> UnsupportedError:
        reason = os.strerror(error.errno or 0)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason += (
                ": the cgroup is not delegated to this user. 'systemd-run --user --scope -p "
                "Delegate=yes COMMAND' gives COMMAND one that is"
            )
        elif error.errno in (errno.EOPNOTSUPP, errno.EBUSY):
            reason += (
                ": a cgroup that passes on controllers of whole processes (memory, io), or has "
                "children with processes, cannot have threaded ones"
            )
        return UnsupportedError(f"this process cannot {what} {path}: {reason}")

    def _write(self, path: Path, text: str) -> None:
        try:
            path.write_text(text)
        except OSError as error:
            raise self._refused(f"write '{text}' to", path, error) from None

    def limit(self, cpus: float, period: float = 0.1) -> None:
        """Give its threads together ``cpus`` pCPUs' time (0.5: half of one) in each ``period``,
        0.001 to 1 s, and no more.
        """
        if not 0.001 <= period <= 1:
            raise ValueError(f"period {period!r} is not in 0.001..1 s")
        if not (cpus > 0 and math.isfinite(cpus)):
            raise ValueError(f"cpus {cpus!r} is not a number of pCPUs above 0")
        microseconds = round(period * 1e6)
        quota = round(cpus * microseconds)
        if quota < _LEAST_QUOTA:
            raise ValueError(
                f"{cpus} of a period of {period} s is {quota} us: the kernel takes 1000 or more"
            )
        self._write(self.path / "cpu.max", f"{quota} {microseconds}")

    def add(self, thread: int) -> None:
        """Put a thread of this process into it, by its kernel id; one that has ended is left."""
        self._move(self.path, str(thread))

    def _move(self, group: Path, thread: str) -> None:
        try:
            (group / "cgroup.threads").write_text(thread)
        except OSError as error:
            if error.errno != errno.ESRCH:
                raise self._refused(f"put thread {thread} into", group, error) from None

    def statistics(self) -> dict[str, int]:
        """cpu.stat: ``nr_periods``, ``nr_throttled``, ``throttled_usec`` and more."""
        pairs = (line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return {name: int(value) for name, value in pairs}

    def close(self) -> None:
        """Put the threads back to the others, and take the cgroup away. What was enabled for it is
        disabled again, unless another cgroup of this package is there.
        """
        if not self.path.exists():
            return
        deadline = time.monotonic() + _LAST_THREADS
        while True:
            for thread in self._threads():
                self._move(self._parent, thread)
            try:
                self.path.rmdir()
                break
            except OSError as error:
                # A thread that is just ending cannot be moved, and is there for a moment longer.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
        if self._enabled and not any(self._parent.glob("kvmpy-*")):
            self._write(self._parent / "cgroup.subtree_control", "-cpu")

    def _threads(self) -> list[str]:
        try:
            return (self.path / "cgroup.threads").read_text().split()
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOENT):  # it has not become threaded
                return []
            raise

    def __enter__(self) -> ThreadGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
