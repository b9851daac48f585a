"""What the kernel says of a thread: stat, schedstat and status in /proc/PID/task/TID (proc(5); the
kernel's Documentation/scheduler/sched-stats.rst)."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

#: ns that one tick of stat's times stands for.
TICK = 10**9 // os.sysconf("SC_CLK_TCK")
_ENDED = ("Z", "X")
_MOST = 4096  # bytes of each file
_SLEEPS = re.compile(r"^voluntary_ctxt_switches:\s*(\d{1,20})$", re.ASCII | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """A thread's times so far, in ns. ``run``: on a pCPU; ``guest``: of it, in a guest, in whole
    ticks; ``delay``: ready and waiting for a pCPU, None if the kernel does not say. ``pcpu``: where
    it is, or was last. ``sleeps``: how often it has gone to sleep; None if it sleeps now.

    A wait for a pCPU is in ``delay`` only when it is over, so ``sleeps`` has to tell whether a
    thread that was not on a pCPU wanted one.
    """

    pcpu: int
    run: int
    guest: int
    delay: int | None
    sleeps: int | None = None


def parse_stat(text: str) -> tuple[str, int, int, int]:
    """(state, pCPU, ticks in user and kernel mode, ticks in a guest) from a thread's ``stat``.

    Raises ValueError for any other file.

    >>> kvmpy.watch.proc.parse_stat("7 (a) b) R" + " 0" * 10 + " 5 2" + " 0" * 23 + " 3 0 0 0 4")
    ('R', 3, 7, 4)
    """
    # The name is in parentheses, and may have some itself.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 41 or len(fields[0]) != 1:
        raise ValueError(f"not the stat of a thread: {text[:80]!r}")
    user, system, pcpu, guest = (int(fields[i]) for i in (11, 12, 36, 40))
    return fields[0], pcpu, user + system, guest


def parse_schedstat(text: str) -> tuple[int, int]:
    """(ns on a pCPU, ns ready and waiting for one) from a thread's ``schedstat``.

    Raises ValueError for any other file.

    >>> kvmpy.watch.proc.parse_schedstat("1200 300 7")
    (1200, 300)
    """
    fields = text.split()
    if len(fields) != 3:
        raise ValueError(f"not the schedstat of a thread: {text[:80]!r}")
    return int(fields[0]), int(fields[1])


def parse_sleeps(text: str) -> int:
    """How often a thread has given up its pCPU of its own accord, from its ``status``.

    Raises ValueError for any other file.

    >>> kvmpy.watch.proc.parse_sleeps("Name: a\\nvoluntary_ctxt_switches:\\t12\\n")
    12
    """
    found = _SLEEPS.search(text)
    if not found:
        raise ValueError(f"not the status of a thread: {text[:80]!r}")
    return int(found[1])


class ThreadFiles:
    """A thread's files, kept open: a reading is three system calls, and never another thread's.

    Raises OSError when there is no such thread.

    >>> import os, threading
    >>> files = kvmpy.watch.proc.ThreadFiles(os.getpid(), threading.get_native_id())
    >>> files.read().run > 0
    True
    >>> files.close()
    """

    def __init__(self, pid: int, thread: int):
        #: The thread's id.
        self.thread = thread
        self._schedstat = self._status = -1
        folder = f"/proc/{pid}/task/{thread}"
        self._stat = os.open(f"{folder}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._status = os.open(f"{folder}/status", os.O_RDONLY | os.O_CLOEXEC)
            with contextlib.suppress(FileNotFoundError):  # a kernel without CONFIG_SCHED_INFO
                self._schedstat = os.open(f"{folder}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def read(self) -> ThreadTimes | None:
        """The thread's times now; None when it has ended.

        >>> import os
        >>> files = kvmpy.watch.proc.ThreadFiles(os.getpid(), os.getpid())
        >>> files.read().pcpu in range(1 << 16)
        True
        >>> files.close()
        """
        try:
            state, pcpu, ticks, guest = parse_stat(_read(self._stat))
            run, delay, sleeps = ticks * TICK, None, None
            if self._schedstat >= 0:
                run, delay = parse_schedstat(_read(self._schedstat))
            if state == "R":
                sleeps = parse_sleeps(_read(self._status))
        except ProcessLookupError:
            return None
        return None if state in _ENDED else ThreadTimes(pcpu, run, guest * TICK, delay, sleeps)

    def close(self) -> None:
        """Close the files.

        >>> import os
        >>> kvmpy.watch.proc.ThreadFiles(os.getpid(), os.getpid()).close()
        """
        for fd in (self._stat, self._schedstat, self._status):
            if fd >= 0:
                os.close(fd)
        self._stat = self._schedstat = self._status = -1


def _read(fd: int) -> str:
    return os.pread(fd, _MOST, 0).decode("latin-1")
