"""CPUID as a guest sees it: a table of leaves (KVM API, "4.20 KVM_SET_CPUID2")."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from . import _native

_ffi = _native.ffi

#: KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf has subleaves.
HAS_INDEX = 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """What CPUID gives for EAX = ``function`` (and ECX = ``index``, if flag HAS_INDEX is set)."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    def __repr__(self) -> str:
        index = f".{self.index:x}" if self.flags & HAS_INDEX else ""
        return (
            f"<CPUID {self.function:08x}{index} eax {self.eax:08x} ebx {self.ebx:08x} "
            f"ecx {self.ecx:08x} edx {self.edx:08x}>"
        )


class Cpuid:
    """An immutable table of leaves. ``table[7, 0].ebx``; ``table[1].ecx``; iteration gives leaves.

    Looking up a leaf that is not there raises KeyError; :meth:`get` gives None.
    """

    def __init__(self, leaves: Iterable[Leaf]):
        self._leaves = tuple(leaves)
        self._by_key = {(leaf.function, leaf.index): leaf for leaf in reversed(self._leaves)}
        self._c: Any = None

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cpuid) and self._leaves == other._leaves

    def __hash__(self) -> int:
        return hash(self._leaves)

    def get(self, function: int, index: int = 0) -> Leaf | None:
        """The leaf, or None."""
        return self._by_key.get((function, index))

    def __getitem__(self, key: int | tuple[int, int]) -> Leaf:
        function, index = key if isinstance(key, tuple) else (key, 0)
        leaf = self.get(function, index)
        if leaf is None:
            raise KeyError(f"no CPUID leaf {function:#x}.{index:x}")
        return leaf

    def with_leaf(self, leaf: Leaf) -> Cpuid:
        """A copy in which ``leaf`` stands in for the one of its number, or is added."""
        key = (leaf.function, leaf.index)
        if key not in self._by_key:
            return Cpuid((*self._leaves, leaf))
        return Cpuid(leaf if (x.function, x.index) == key else x for x in self._leaves)

    @property
    def vendor(self) -> str:
        """The vendor string of leaf 0: "GenuineIntel", "AuthenticAMD"."""
        leaf = self[0]
        return struct.pack("<3I", leaf.ebx, leaf.edx, leaf.ecx).decode("latin-1")

    def for_vcpu(self, vcpu_id: int, vcpus: int = 1) -> Cpuid:
        """A copy for vCPU ``vcpu_id`` of ``vcpus``: what KVM_GET_SUPPORTED_CPUID copies from the
        CPU it happened to run on becomes this vCPU's own.

        APIC ids (SDM, "CPUID": leaves 01h, 0Bh, 1Fh; APM vol. 3, appendix E: 8000001Eh), one
        core per vCPU and no SMT, caches shared by nobody but the vCPU (leaves 04h, 8000001Dh,
        L3 by all), and the hypervisor bit, which is true.
        """
        return Cpuid(_normalised(leaf, vcpu_id, vcpus) for leaf in self._leaves)

    # -- struct kvm_cpuid2

    @staticmethod
    def _from_c(table: Any) -> Cpuid:
        leaves = [
            Leaf(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
            for e in (table.entries[i] for i in range(table.nent))
        ]
        # KVM_GET_CPUID2 can leave empty entries at the end; leaf 0 itself is never all zero.
        while leaves and leaves[-1] == Leaf(0):
            leaves.pop()
        return Cpuid(leaves)

    def _to_c(self) -> Any:
        """For KVM_SET_CPUID2, which only reads it: made once, for every vCPU that shows it."""
        if self._c is None:
            self._c = self._encode()
        return self._c

    def _encode(self) -> Any:
        table = _ffi.new("struct kvm_cpuid2 *", {"entries": len(self._leaves)})
        table.nent = len(self._leaves)
        for entry, leaf in zip(table.entries, self._leaves, strict=True):
            entry.function, entry.index, entry.flags = leaf.function, leaf.index, leaf.flags
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        return table

    def __repr__(self) -> str:
        vendor = f" {self.vendor}" if self.get(0) else ""
        return f"<Cpuid{vendor}, {len(self)} leaves>"


def _normalised(leaf: Leaf, vcpu_id: int, vcpus: int) -> Leaf:
    match leaf.function:
        case 0x1:
            ebx = leaf.ebx & 0xFF00 | (vcpu_id & 0xFF) << 24 | min(vcpus, 255) << 16
            multi_thread = (1 << 28) if vcpus > 1 else 0  # HTT: the count above is valid
            edx = leaf.edx & ~(1 << 28) | multi_thread
            return replace(leaf, ebx=ebx, ecx=leaf.ecx | 1 << 31, edx=edx)
        case 0x4 if leaf.eax & 0x1F:
            level = leaf.eax >> 5 & 7
            sharing = (vcpus - 1 if level >= 3 else 0) << 14
            eax = leaf.eax & 0x3FFF | sharing & 0x3FFC000 | min(vcpus - 1, 63) << 26
            return replace(leaf, eax=eax)
        case 0x8000001D if leaf.eax & 0x1F:
            level = leaf.eax >> 5 & 7
            sharing = (vcpus - 1 if level >= 3 else 0) << 14
            return replace(leaf, eax=leaf.eax & 0x3FFF | sharing & 0x3FFC000)
        case 0xB | 0x1F:
            return _topology(leaf, vcpu_id, vcpus)
        case 0x80000008 if leaf.ecx:
            bits = max(vcpus - 1, 0).bit_length()
            return replace(leaf, ecx=leaf.ecx & ~0xF0FF | bits << 12 | min(vcpus - 1, 255))
        case 0x8000001E:
            return replace(leaf, eax=vcpu_id, ebx=vcpu_id & 0xFF, ecx=0)
        case _:
            return leaf


def _topology(leaf: Leaf, vcpu_id: int, vcpus: int) -> Leaf:
    """Level 0: threads of a core, one. Level 1: cores of the package, all vCPUs."""
    match leaf.index:
        case 0:
            return replace(leaf, eax=0, ebx=1, ecx=0x100, edx=vcpu_id)
        case 1:
            bits = max(vcpus - 1, 0).bit_length()
            return replace(leaf, eax=bits, ebx=vcpus, ecx=0x201, edx=vcpu_id)
        case _:
            return replace(leaf, eax=0, ebx=0, ecx=leaf.index, edx=vcpu_id)
