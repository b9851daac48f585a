"""Which CPU of how many: the leaves of CPUID that differ between vCPUs, and those that tell of
caches, cores and addresses.

Sources: SDM vol. 2, "CPUID" and SDM vol. 3, "Hierarchical Mapping of Shared Resources";
APM vol. 3, appendix E; what Linux makes of them (arch/x86/kernel/cpu/topology*, cacheinfo.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..errors import UnsupportedError
from ..values import dataclass, replace
from .table import HAS_INDEX, Leaf, Table

#: The highest id of a local APIC in xAPIC mode; 255 is "all" (SDM vol. 3, "Local APIC ID").
HIGHEST_XAPIC_ID = 254

_X2APIC, _TSC_DEADLINE = 1 << 21, 1 << 24  # leaf 1, ECX
_HTT = 1 << 28  # leaf 1, EDX
_CMP_LEGACY = 1 << 1  # leaf 80000001h, ECX
_ARAT = 1 << 2  # leaf 6, EAX
#: Leaf 40000001h, EAX: EOI, unhalt, IPI, asynchronous page faults by interrupt, 15-bit MSI ids.
_KVM_LAPIC = 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14 | 1 << 15
_AMD = ("AuthenticAMD", "HygonGenuine")


def for_vcpu(table: Table, vcpu_id: int, vcpus: int, lapic: bool) -> list[Leaf]:
    """The leaves of :meth:`Cpuid.for_vcpu`."""
    basic = table.get(0)
    highest = basic.eax if basic else 0
    first = table.get(1)
    x2apic = highest >= 0xB and first is not None and first.ecx & _X2APIC
    if lapic and vcpu_id > HIGHEST_XAPIC_ID and not x2apic:
        raise UnsupportedError(
            f"vCPU {vcpu_id}: APIC ids above {HIGHEST_XAPIC_ID} take x2APIC and CPUID leaf 0Bh, "
            "and this table lacks one of them"
        )
    amd = basic is not None and table.vendor in _AMD
    leaves = [
        _own(leaf, vcpu_id, vcpus, amd, lapic) for leaf in table if leaf.function not in (0xB, 0x1F)
    ]
    for function in (0xB, 0x1F):
        if highest >= function:
            leaves.extend(_levels(function, vcpu_id, vcpus))
    return leaves


def _bits(count: int) -> int:
    """How many APIC id bits tell ``count`` things apart."""
    return max(count - 1, 0).bit_length()


def _own(leaf: Leaf, vcpu_id: int, vcpus: int, amd: bool, lapic: bool) -> Leaf:
    match leaf.function:
        case 0x1:
            return _version(leaf, vcpu_id, vcpus, lapic)
        case 0x4 if leaf.eax & 0x1F:
            return replace(leaf, eax=_sharing(leaf.eax, vcpus) | min(vcpus - 1, 63) << 26)
        case 0x6:  # of power management a guest has a timer that never stops, nothing else
            return replace(leaf, eax=leaf.eax & _ARAT, ebx=0, ecx=0, edx=0)
        case 0x4000_0001 if not lapic:
            return replace(leaf, eax=leaf.eax & ~_KVM_LAPIC)
        case 0x8000_0001 if amd:
            many = _CMP_LEGACY if vcpus > 1 else 0  # the count in leaf 1 is of cores, not threads
            return replace(leaf, ecx=leaf.ecx & ~_CMP_LEGACY | many)
        case 0x8000_0008 if amd:
            ecx = leaf.ecx & ~0xF0FF | _bits(vcpus) << 12 | min(vcpus - 1, 255)
            return replace(leaf, ecx=ecx)
        case 0x8000_001D if leaf.eax & 0x1F:
            return replace(leaf, eax=_sharing(leaf.eax, vcpus))
        case 0x8000_001E:  # core id; one thread a core; node 0 of one
            return replace(leaf, eax=vcpu_id, ebx=vcpu_id & 0xFF, ecx=0, edx=0)
        case _:
            return leaf


def _version(leaf: Leaf, vcpu_id: int, vcpus: int, lapic: bool) -> Leaf:
    ebx = leaf.ebx & 0xFF00 | (vcpu_id & 0xFF) << 24 | min(vcpus, 255) << 16
    edx = leaf.edx & ~_HTT | (_HTT if vcpus > 1 else 0)  # HTT: the count in EBX is valid
    ecx = leaf.ecx if lapic else leaf.ecx & ~(_X2APIC | _TSC_DEADLINE)
    return replace(leaf, ebx=ebx, ecx=ecx, edx=edx)


def _sharing(eax: int, vcpus: int) -> int:
    """EAX of a cache leaf: L1 and L2 are the vCPU's own, L3 is everybody's."""
    level = eax >> 5 & 7
    return eax & 0x3FFF | (min(vcpus - 1, 0xFFF) if level >= 3 else 0) << 14


def _levels(function: int, vcpu_id: int, vcpus: int) -> Iterator[Leaf]:
    """Level 0: threads of a core, one. Level 1: cores of the package, all vCPUs. KVM answers for
    further levels: none, and the same id (EDX)."""
    yield Leaf(function, 0, HAS_INDEX, eax=0, ebx=1, ecx=0x100, edx=vcpu_id)
    yield Leaf(function, 1, HAS_INDEX, _bits(vcpus), min(vcpus, 0xFFFF), 0x201, vcpu_id)


# ---------------------------------------------------------------- what a table tells


class AddressBits(NamedTuple):
    """Widths of addresses, in bits."""

    physical: int
    linear: int


def address_bits(table: Table) -> AddressBits:
    """See :attr:`Cpuid.address_bits`."""
    leaf = table.get(0x8000_0008)
    if leaf is not None and leaf.eax & 0xFF:
        return AddressBits(leaf.eax & 0xFF, leaf.eax >> 8 & 0xFF)
    wide = table.has("pae") or table.has("pse36")
    return AddressBits(36 if wide else 32, 48 if table.has("lm") else 32)


@dataclass(frozen=True, slots=True)
class Cache:
    """One cache: ``size`` and ``line`` in bytes; ``ways`` 0 means fully associative.

    ``sharing``: how many logical CPUs share it at most; 0 where the leaf does not say.
    """

    level: int
    kind: str
    size: int
    line: int
    ways: int
    sharing: int

    def __repr__(self) -> str:
        size = f"{self.size >> 20} MiB" if not self.size & 0xFFFFF else f"{self.size >> 10} KiB"
        ways = f"{self.ways}-way" if self.ways else "fully associative"
        shared = f", shared by {self.sharing}" if self.sharing > 1 else ""
        return f"<L{self.level} {self.kind} {size}, {ways}, {self.line} B lines{shared}>"


_KINDS = {1: "data", 2: "instruction", 3: "unified"}


def caches(table: Table) -> tuple[Cache, ...]:
    """See :attr:`Cpuid.caches`."""
    for function in (0x4, 0x8000_001D):
        found = tuple(
            _cache(leaf)
            for leaf in table
            if leaf.function == function and (leaf.eax & 0x1F) in _KINDS
        )
        if found:
            return found
    return tuple(_legacy_caches(table)) if table.get(0) and table.vendor in _AMD else ()


def _cache(leaf: Leaf) -> Cache:
    line, partitions, ways = (
        (leaf.ebx & 0xFFF) + 1,
        (leaf.ebx >> 12 & 0x3FF) + 1,
        (leaf.ebx >> 22) + 1,
    )
    return Cache(
        level=leaf.eax >> 5 & 7,
        kind=_KINDS[leaf.eax & 0x1F],
        size=line * partitions * ways * (leaf.ecx + 1),
        line=line,
        ways=0 if leaf.eax >> 9 & 1 else ways,
        sharing=(leaf.eax >> 14 & 0xFFF) + 1,
    )


#: Associativity codes of leaf 80000006h (APM vol. 3, "Function 8000_0006h").
_WAYS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 16, 0xA: 32, 0xB: 48, 0xC: 64, 0xD: 96, 0xE: 128}


def _legacy_caches(table: Table) -> Iterator[Cache]:
    first = table.get(0x8000_0005)
    if first is not None:
        for kind, value in (("data", first.ecx), ("instruction", first.edx)):
            ways = value >> 16 & 0xFF
            if value >> 24:
                ways = 0 if ways == 0xFF else ways
                yield Cache(1, kind, (value >> 24) << 10, value & 0xFF, ways, 0)
    rest = table.get(0x8000_0006)
    if rest is not None:
        if rest.ecx >> 16:
            ways = _WAYS.get(rest.ecx >> 12 & 0xF, 0)
            yield Cache(2, "unified", (rest.ecx >> 16) << 10, rest.ecx & 0xFF, ways, 0)
        if rest.edx >> 18:
            ways = _WAYS.get(rest.edx >> 12 & 0xF, 0)
            yield Cache(3, "unified", (rest.edx >> 18) << 19, rest.edx & 0xFF, ways, 0)


@dataclass(frozen=True, slots=True)
class Topology:
    """Where a logical CPU sits. ``threads``: per core, ``cores``: per package (ids reserved).

    ``leaf``: which leaf says so.
    """

    apic_id: int
    threads: int
    cores: int
    leaf: int

    @property
    def package(self) -> int:
        """The number of its package.

        >>> from kvmpy.cpuid.topology import Topology
        >>> Topology(apic_id=5, threads=1, cores=4, leaf=0xB).package
        1
        """
        return self.apic_id >> _bits(self.threads) + _bits(self.cores)

    @property
    def core(self) -> int:
        """The number of its core in the package.

        >>> from kvmpy.cpuid.topology import Topology
        >>> Topology(apic_id=5, threads=1, cores=4, leaf=0xB).core
        1
        """
        return (self.apic_id >> _bits(self.threads)) & ((1 << _bits(self.cores)) - 1)

    def __repr__(self) -> str:
        return (
            f"<APIC id {self.apic_id}: package {self.package}, core {self.core} of "
            f"{self.cores}, {self.threads} thread{'s' * (self.threads != 1)} a core>"
        )


def topology(table: Table) -> Topology:
    """See :attr:`Cpuid.topology`."""
    for function in (0x1F, 0xB):
        found = _by_levels(table, function)
        if found is not None:
            return found
    first = table.get(1)
    if first is None:
        return Topology(0, 1, 1, 1)
    logical = first.ebx >> 16 & 0xFF if first.edx & _HTT else 1
    logical, cores, leaf = max(logical, 1), 1, 1
    caches = table.get(4)
    sizes = table.get(0x8000_0008)
    if caches is not None and caches.eax & 0x1F:
        cores, leaf = (caches.eax >> 26) + 1, 4
    elif sizes is not None and table.get(0) and table.vendor in _AMD:
        cores, leaf = (sizes.ecx & 0xFF) + 1, 0x8000_0008
    return Topology(first.ebx >> 24, max(logical // cores, 1), cores, leaf)


def _by_levels(table: Table, function: int) -> Topology | None:
    shift, threads, x2apic_id = 0, 1, None
    for index in range(256):
        level = table.get(function, index)
        if level is None or not level.ecx >> 8 & 0xFF:
            break
        x2apic_id, shift = level.edx, level.eax & 0x1F
        if level.ecx >> 8 & 0xFF == 1:
            threads = 1 << shift
    if x2apic_id is None:
        return None
    return Topology(x2apic_id, threads, max((1 << shift) // threads, 1), function)
