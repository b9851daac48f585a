"""Which pCPUs there are, which of them this process may use, and what they share: cores, packages,
NUMA nodes, caches.

Sources: sysfs (Documentation/admin-guide/cputopology.rst, Documentation/ABI/testing/
sysfs-devices-system-cpu and sysfs-devices-node), sched_getaffinity(2).
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from ..errors import KvmpyError

SYSFS = Path("/sys/devices/system/cpu")
#: CPU numbers are below this: the kernel's largest CONFIG_NR_CPUS is 8192.
MAX_CPUS = 1 << 16

#: One pCPU by number, several, or a list in the kernel's notation.
Pin: TypeAlias = int | str | Iterable[int]


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


_usable: frozenset[int] = frozenset()


def usable_cpus() -> frozenset[int]:
    """The pCPUs that threads of this process can be bound to: what :func:`allowed_cpus` gave the
    first time this was asked, before threads were bound to fewer, and what it gives by now to the
    calling thread and to the main one.

    >>> kvmpy.host.topology.usable_cpus() >= kvmpy.host.topology.allowed_cpus()
    True
    """
    global _usable
    _usable |= allowed_cpus() | frozenset(os.sched_getaffinity(os.getpid()))
    return _usable


def _listed(path: Path) -> frozenset[int] | None:
    try:
        return parse_cpu_list(path.read_text())
    except (OSError, ValueError):
        return None


def check_pin(cpu: int, *, sysfs: Path = SYSFS, allowed: frozenset[int] | None = None) -> int:
    """``cpu``, if a thread of this process can be bound to that pCPU.

    ``allowed``: by default :func:`usable_cpus`.

    Raises PinError, which says why not and what can be used.

    >>> cpu_number = min(kvmpy.host.topology.allowed_cpus())
    >>> kvmpy.host.topology.check_pin(cpu_number) == cpu_number
    True
    """
    usable = usable_cpus() if allowed is None else allowed
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


def check_pins(
    pin: Pin, *, sysfs: Path = SYSFS, allowed: frozenset[int] | None = None
) -> frozenset[int]:
    """The pCPUs that ``pin`` means, if a thread of this process can be bound to them: a number, a
    list in the kernel's notation, or numbers.

    Raises PinError as :func:`check_pin`, for the first that cannot be used or for none at all;
    ValueError for a malformed list; TypeError for anything else.

    >>> first = min(kvmpy.host.topology.allowed_cpus())
    >>> kvmpy.host.topology.check_pins(f"{first}") == {first}
    True
    """
    if isinstance(pin, str):
        cpus: Iterable[int] = parse_cpu_list(pin)
    else:
        cpus = (pin,) if isinstance(pin, int) else pin
    checked: set[int] = set()
    try:
        for cpu in cpus:
            if isinstance(cpu, bool):
                raise TypeError
            checked.add(check_pin(operator.index(cpu), sysfs=sysfs, allowed=allowed))
    except TypeError:
        raise TypeError(
            f"pin={pin!r}: give the number of a pCPU, several of them, or a list like '0-3,8'"
        ) from None
    if not checked:
        raise PinError(f"pin={pin!r} names no pCPU: give at least one")
    return frozenset(checked)


def check_pins_of(pin: Pin | Sequence[Pin], vcpus: int) -> Sequence[frozenset[int]]:
    """:func:`check_pins` for several vCPUs: a list or tuple has one for each, anything else is for
    all of them. Raises ValueError for a list of another length.

    >>> first = min(kvmpy.host.topology.allowed_cpus())
    >>> kvmpy.host.topology.check_pins_of(first, vcpus=2) == ({first}, {first})
    True
    """
    if not isinstance(pin, (list, tuple)):
        return (check_pins(cast(Pin, pin)),) * vcpus
    if len(pin) != vcpus:
        raise ValueError(f"{len(pin)} pins for {vcpus} vCPUs: give one for all, or one for each")
    return tuple(check_pins(each) for each in pin)


def smt_siblings(cpu: int, *, sysfs: Path = SYSFS) -> frozenset[int]:
    """The pCPUs that share ``cpu``'s core, itself included; itself alone if sysfs does not say.

    >>> cpu_number = min(kvmpy.host.topology.allowed_cpus())
    >>> cpu_number in (kvmpy.host.topology.smt_siblings(cpu_number) or {cpu_number})
    True
    """
    topology = sysfs / f"cpu{cpu}" / "topology"
    siblings = _listed(topology / "core_cpus_list") or _listed(topology / "thread_siblings_list")
    return (siblings or frozenset()) | {cpu}


@dataclass(frozen=True, slots=True)
class HostCache:
    """A cache: ``level`` 1 and on, ``size`` and ``line`` in bytes (None if the kernel does not
    say), and the pCPUs that share it."""

    level: int
    kind: Literal["data", "instruction", "unified"]
    size: int | None
    line: int | None
    cpus: frozenset[int]


@dataclass(frozen=True, slots=True)
class HostTopology:
    """The online pCPUs and what they share. ``cores`` (SMT siblings together), ``packages`` and
    ``nodes`` part them, in the order of their first pCPUs; ``caches`` by level.
    """

    cpus: frozenset[int]
    cores: tuple[frozenset[int], ...]
    packages: tuple[frozenset[int], ...]
    nodes: tuple[frozenset[int], ...]
    caches: tuple[HostCache, ...]

    def core(self, cpu: int) -> frozenset[int]:
        """The pCPUs on ``cpu``'s core, itself included. ValueError if it is not online.

        >>> host = kvmpy.host.topology.read()
        >>> cpu_number = min(host.cpus)
        >>> cpu_number in host.core(cpu_number)
        True
        """
        return self._part(self.cores, cpu)

    def package(self, cpu: int) -> frozenset[int]:
        """The pCPUs in ``cpu``'s package, itself included. ValueError if it is not online.

        >>> host = kvmpy.host.topology.read()
        >>> cpu_number = min(host.cpus)
        >>> host.core(cpu_number) <= host.package(cpu_number)
        True
        """
        return self._part(self.packages, cpu)

    def _part(self, parts: Iterable[frozenset[int]], cpu: int) -> frozenset[int]:
        for part in parts:
            if cpu in part:
                return part
        raise ValueError(f"pCPU {cpu} is not online: {format_cpu_list(self.cpus)} are")

    def caches_of(self, cpu: int) -> tuple[HostCache, ...]:
        """The caches that ``cpu`` uses, by level.

        >>> host = kvmpy.host.topology.read()
        >>> all(0 in cache.cpus for cache in host.caches_of(0))
        True
        """
        return tuple(cache for cache in self.caches if cpu in cache.cpus)

    def shared_cache(self, one: int, other: int) -> HostCache | None:
        """The lowest cache that two pCPUs share, None for none: what data that goes from one to the
        other goes through.

        >>> host = kvmpy.host.topology.read()
        >>> host.shared_cache(-1, -2)
        """
        shared = (c for c in self.caches_of(one) if other in c.cpus and c.kind != "instruction")
        return next(shared, None)


def read(*, sysfs: Path = SYSFS) -> HostTopology:
    """The host's topology, as far as sysfs tells: a pCPU of which nothing is known has a core of
    its own, and shares the package and the node with others of that kind.

    >>> host = kvmpy.host.topology.read()
    >>> sum(map(len, host.cores)) == len(host.cpus)
    True
    """
    cpus = _listed(sysfs / "online") or _listed(sysfs / "present") or allowed_cpus()

    def siblings(cpu: int) -> frozenset[int]:
        return smt_siblings(cpu, sysfs=sysfs)

    def package(cpu: int) -> frozenset[int]:
        topology = sysfs / f"cpu{cpu}" / "topology"
        return (
            _listed(topology / "package_cpus_list")
            or _listed(topology / "core_siblings_list")
            or cpus
        )

    nodes = [
        _listed(path) or frozenset()
        for path in sorted(sysfs.parent.glob("node/node[0-9]*/cpulist"))
    ]

    def node(cpu: int) -> frozenset[int]:
        return next((node for node in nodes if cpu in node), cpus)

    return HostTopology(
        cpus, _parts(cpus, siblings), _parts(cpus, package), _parts(cpus, node),
        _caches(cpus, sysfs),
    )  # fmt: skip


def _parts(
    cpus: frozenset[int], group: Callable[[int], frozenset[int]]
) -> tuple[frozenset[int], ...]:
    """Each pCPU in one part, also where the kernel's lists contradict each other."""
    parts: list[frozenset[int]] = []
    left = set(cpus)
    for cpu in sorted(cpus):
        if cpu in left:
            part = frozenset(group(cpu) & left | {cpu})
            parts.append(part)
            left -= part
    return tuple(parts)


_KINDS: dict[str, Literal["data", "instruction", "unified"]] = {
    "Data": "data",
    "Instruction": "instruction",
    "Unified": "unified",
}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _caches(cpus: frozenset[int], sysfs: Path) -> tuple[HostCache, ...]:
    found = set()
    for cpu in cpus:
        for directory in (sysfs / f"cpu{cpu}" / "cache").glob("index[0-9]*"):
            level, kind = _number(directory / "level"), _KINDS.get(_text(directory / "type"))
            if not level or kind is None:
                continue
            shared = (_listed(directory / "shared_cpu_list") or frozenset()) & cpus | {cpu}
            line = _number(directory / "coherency_line_size")
            found.add(HostCache(level, kind, _number(directory / "size"), line, shared))
    return tuple(sorted(found, key=lambda cache: (cache.level, cache.kind, sorted(cache.cpus))))


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    """A number above 0, with a unit or without; None for anything else."""
    text = _text(path)
    unit = text[-1:] if text[-1:] in ("K", "M", "G") else ""
    digits = text.removesuffix(unit)
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        return None
    return int(digits) * _UNITS[unit] or None
