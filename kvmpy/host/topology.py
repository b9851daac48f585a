"""Which pCPUs there are, which of them this process may use, and which share a core.

Sources: sysfs (Documentation/admin-guide/cputopology.rst), sched_getaffinity(2).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import KvmpyError

SYSFS = Path("/sys/devices/system/cpu")
#: CPU numbers are below this: the kernel's largest CONFIG_NR_CPUS is 8192.
MAX_CPUS = 1 << 16


class PinError(KvmpyError, ValueError):
    """A pCPU that a thread of this process cannot be bound to."""


def parse_cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a list in the kernel's notation: ``"0-3,7"``; ``"0-30:2"`` takes every second.

    Raises ValueError naming the part that is wrong.

    >>> sorted(kvmpy.host.topology.parse_cpu_list("0-2,8"))
    [0, 1, 2, 8]
    """
    cpus: set[int] = set()
    for part in text.strip().split(",") if text.strip() else []:
        span, _, stride = part.partition(":")
        first, dash, last = span.partition("-")
        numbers = [first, last if dash else first, stride or "1"]
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            raise ValueError(f"{part!r} in the CPU list {text!r} is not a number or a range")
        low, high, step = map(int, numbers)
        if high < low or step < 1 or high >= MAX_CPUS:
            raise ValueError(
                f"{part!r} in the CPU list {text!r} is not a range of CPUs below {MAX_CPUS}"
            )
        cpus.update(range(low, high + 1, step))
    return frozenset(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """``{0, 1, 2, 3, 7}`` as ``"0-3,7"``; "" for none.

    >>> kvmpy.host.topology.format_cpu_list({0, 1, 2, 8})
    '0-2,8'
    """
    parts: list[str] = []
    ordered = sorted(set(cpus))
    while ordered:
        length = 1
        while length < len(ordered) and ordered[length] == ordered[0] + length:
            length += 1
        first, last = ordered[0], ordered[length - 1]
        parts.append(f"{first}" if first == last else f"{first}-{last}")
        ordered = ordered[length:]
    return ",".join(parts)


def allowed_cpus() -> frozenset[int]:
    """The pCPUs that the calling thread may run on: affinity and cpuset taken together.

    >>> len(kvmpy.host.topology.allowed_cpus()) > 0
    True
    """
    return frozenset(os.sched_getaffinity(0))


def _listed(path: Path) -> frozenset[int] | None:
    try:
        return parse_cpu_list(path.read_text())
    except (OSError, ValueError):
        return None


def check_pin(cpu: int, *, sysfs: Path = SYSFS, allowed: frozenset[int] | None = None) -> int:
    """``cpu``, if a thread of this process can be bound to that pCPU.

    ``allowed``: by default :func:`allowed_cpus`.

    Raises PinError, which says why not and what can be used.

    >>> cpu_number = min(kvmpy.host.topology.allowed_cpus())
    >>> kvmpy.host.topology.check_pin(cpu_number) == cpu_number
    True
    """
    usable = allowed_cpus() if allowed is None else allowed
    if cpu in usable:
        return cpu
    choice = f"use one of {format_cpu_list(usable)}"
    present = _listed(sysfs / "present")
    if present is not None and cpu not in present:
        raise PinError(f"pCPU {cpu} does not exist: this host has {format_cpu_list(present)}")
    online = _listed(sysfs / "online")
    if online is not None and cpu not in online:
        raise PinError(f"pCPU {cpu} is offline: {choice}")
    raise PinError(
        f"pCPU {cpu} is not allowed for this process (taskset, or a cgroup's cpuset): {choice}"
    )


def smt_siblings(cpu: int, *, sysfs: Path = SYSFS) -> frozenset[int]:
    """The pCPUs that share ``cpu``'s core, itself included; itself alone if sysfs does not say.

    >>> cpu_number = min(kvmpy.host.topology.allowed_cpus())
    >>> cpu_number in (kvmpy.host.topology.smt_siblings(cpu_number) or {cpu_number})
    True
    """
    topology = sysfs / f"cpu{cpu}" / "topology"
    siblings = _listed(topology / "core_cpus_list") or _listed(topology / "thread_siblings_list")
    return (siblings or frozenset()) | {cpu}
