"""How the host schedules a thread: policy, priority, nice, and a deadline scheduler's budget.

Sources: sched(7), sched_setattr(2), setrlimit(2) RLIMIT_RTPRIO and RLIMIT_NICE, Linux's
Documentation/scheduler/sched-deadline.rst.
"""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ..errors import KvmpyError
from ..shim import ffi, lib

Policy = Literal["other", "fifo", "rr", "batch", "idle", "deadline", "ext"]
_NUMBERS: Final[dict[Policy, int]] = {
    "other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5, "deadline": 6, "ext": 7,
}  # fmt: skip
_REAL_TIME = ("fifo", "rr")
_NICE = ("other", "batch", "ext")
_RESET_ON_FORK = 1
_LEAST_RUNTIME = 1024  # ns: the kernel's resolution of bandwidth
_CAP_SYS_NICE = 23


class SchedulingError(KvmpyError, OSError):
    """The kernel refused a thread's scheduling; the text says what would permit it."""


@dataclass(frozen=True, slots=True)
class Scheduling:
    """A thread's scheduling. ``str()`` names it as sched(7) does.

    ``policy``: "other" (the default of Linux), "batch", "idle"; "fifo", "rr" with ``priority``
    1..99; "deadline": ``runtime`` ns in each ``period``, all of it by ``deadline`` after its start
    (1024 <= runtime <= deadline <= period; 0 for the period: the deadline). ``nice`` -20..19 is for
    "other" and "batch". Raises ValueError for anything else.

    >>> print(kvmpy.host.scheduling.Scheduling("fifo", priority=10))
    SCHED_FIFO, priority 10
    """

    policy: Policy = "other"
    priority: int = 0
    nice: int = 0
    runtime: int = 0
    deadline: int = 0
    period: int = 0

    def __post_init__(self) -> None:
        policy = self.policy
        if policy not in _NUMBERS:
            raise ValueError(f"policy {policy!r} is not one of {', '.join(_NUMBERS)}")
        if policy in _REAL_TIME and not 1 <= self.priority <= 99:
            raise ValueError(f"priority {self.priority} of SCHED_{policy.upper()} is not in 1..99")
        if policy not in _REAL_TIME and self.priority:
            raise ValueError(f"priority {self.priority}: only SCHED_FIFO and SCHED_RR have one")
        if not -20 <= self.nice <= 19:
            raise ValueError(f"nice {self.nice} is not in -20..19")
        if policy not in _NICE and self.nice:
            raise ValueError(f"nice {self.nice}: SCHED_{policy.upper()} has none")
        self._check_budget()

    def _check_budget(self) -> None:
        budget = self.runtime, self.deadline, self.period
        if self.policy != "deadline":
            if any(budget):
                raise ValueError("runtime, deadline and period are SCHED_DEADLINE's")
            return
        if not all(isinstance(value, int) for value in budget):
            raise TypeError(f"runtime, deadline, period {budget}: give integers, in ns")
        if not _LEAST_RUNTIME <= self.runtime <= self.deadline <= (self.period or self.deadline):
            raise ValueError(
                f"runtime {self.runtime}, deadline {self.deadline}, period {self.period} ns: not "
                f"{_LEAST_RUNTIME} <= runtime <= deadline <= period"
            )
        if max(budget) >= 1 << 63:
            raise ValueError(f"{max(budget)} ns: the kernel takes less than 2**63")

    def __str__(self) -> str:
        text = f"SCHED_{self.policy.upper()}"
        if self.policy in _REAL_TIME:
            return f"{text}, priority {self.priority}"
        if self.policy == "deadline":
            period = self.period or self.deadline
            return f"{text}, {self.runtime} ns by {self.deadline} ns of each {period} ns"
        return f"{text}, nice {self.nice}" if self.policy in _NICE else text


def scheduling(thread: int = 0) -> Scheduling:
    """How a thread is scheduled. ``thread``: its id (:attr:`VCPU.thread_id`), 0 for the caller's.

    Raises OSError: ESRCH if there is no such thread.

    >>> kvmpy.host.scheduling.scheduling().policy
    'other'
    """
    words = _words(thread)
    policy, _, nice, priority, runtime, deadline, period = words
    name = next((name for name, number in _NUMBERS.items() if number == policy), None)
    if name is None:
        raise SchedulingError(errno.ENOTSUP, f"thread {thread} has policy {policy}: unknown here")
    if name == "deadline":
        return Scheduling(name, runtime=runtime, deadline=deadline, period=period)
    return Scheduling(
        name,
        priority=priority if name in _REAL_TIME else 0,
        nice=nice if name in _NICE else 0,
    )


def _words(thread: int) -> tuple[int, ...]:
    words = ffi.new("int64_t[7]")
    error = lib.shim_get_scheduling(thread, words)
    if error:
        raise SchedulingError(-error, f"thread {thread}: {os.strerror(-error)}")
    return tuple(ffi.unpack(words, 7))


def schedule(wanted: Scheduling, thread: int = 0) -> None:
    """Have a thread scheduled so, from now on. ``thread``: as for :func:`scheduling`. What a
    real-time or deadline thread starts (fork, new threads) is SCHED_OTHER again.

    Raises SchedulingError, which names the capability or the resource limit that is missing.

    >>> kvmpy.host.scheduling.schedule(kvmpy.host.scheduling.Scheduling("other"))
    """
    flags = _words(thread)[1] & _RESET_ON_FORK  # to take it away needs a privilege
    if wanted.policy in (*_REAL_TIME, "deadline"):
        flags |= _RESET_ON_FORK
    words = ffi.new(
        "int64_t[]",
        [
            _NUMBERS[wanted.policy], flags, wanted.nice, wanted.priority,
            wanted.runtime, wanted.deadline, wanted.period or wanted.deadline,
        ],
    )  # fmt: skip
    error = lib.shim_set_scheduling(thread, words)
    if error:
        raise SchedulingError(-error, f"{wanted} for thread {thread}: {_why(wanted, -error)}")


def _why(wanted: Scheduling, code: int) -> str:
    if code == errno.EPERM:
        return f"not permitted. {_missing(wanted)}"
    if code == errno.EBUSY and wanted.policy == "deadline":
        return (
            "the pCPUs have no room for this budget (admission control: all SCHED_DEADLINE "
            "threads together get sched_rt_runtime_us of each sched_rt_period_us)"
        )
    if code == errno.EINVAL and wanted.policy == "deadline":
        return (
            "the kernel takes periods from sched_deadline_period_min_us to "
            "sched_deadline_period_max_us (/proc/sys/kernel), and must be built for SCHED_DEADLINE"
        )
    if code == errno.EINVAL:
        return "this kernel does not have the policy"
    return os.strerror(code)


def _missing(wanted: Scheduling) -> str:
    """What EPERM is for. The kernel does not say; these are its rules, in order."""
    has_capability = _may_nice()
    if wanted.policy == "deadline":
        if not has_capability:
            return "SCHED_DEADLINE takes CAP_SYS_NICE, and no resource limit replaces it."
        return (
            "A SCHED_DEADLINE thread must be allowed on all pCPUs of its cpuset: do not pin it "
            "(and CAP_SYS_NICE counts only outside of user namespaces)."
        )
    if has_capability:
        return (
            "CAP_SYS_NICE is there: it counts only outside of user namespaces, and the cgroup "
            "needs a cpu.rt_runtime_us where the kernel has CONFIG_RT_GROUP_SCHED."
        )
    if wanted.policy in _REAL_TIME:
        limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[0]
        return (
            f"RLIMIT_RTPRIO is {limit} (ulimit -r), and there is no CAP_SYS_NICE: raise the limit "
            f"to {wanted.priority} ('rtprio' in /etc/security/limits.conf), or give the capability."
        )
    limit = resource.getrlimit(resource.RLIMIT_NICE)[0]
    return (
        f"RLIMIT_NICE is {limit} (ulimit -e), and there is no CAP_SYS_NICE: raise the limit to "
        f"{20 - wanted.nice}, 20 - nice ('nice' in /etc/security/limits.conf), or give the "
        "capability."
    )


def _may_nice(status: Path = Path("/proc/thread-self/status")) -> bool:
    try:
        text = status.read_text()
    except OSError:
        return False
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) >> _CAP_SYS_NICE & 1)
    return False
