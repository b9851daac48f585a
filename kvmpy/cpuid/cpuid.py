"""CPUID as a guest sees it: a table of leaves (KVM API, "4.20 KVM_SET_CPUID2").

Here is the table; ``cpuid_features.py`` has the features' names, ``cpuid_edit.py`` masks,
``cpuid_topology.py`` makes a table one vCPU's own and decodes caches, ``cpuid_diff.py`` compares.
They are imported when first used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..shim import ffi
from ..values import dataclass

if TYPE_CHECKING:
    from .diff import CpuidDiff
    from .edit import MaskedFeature
    from .topology import AddressBits, Cache, Topology


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

    @property
    def key(self) -> tuple[int, int]:
        """Function and index: what a table finds it by.

        >>> kvmpy.Leaf(7, 1).key
        (7, 1)
        """
        return self.function, self.index

    def __repr__(self) -> str:
        index = f".{self.index:x}" if self.flags & HAS_INDEX else ""
        return (
            f"<CPUID {self.function:08x}{index} eax {self.eax:08x} ebx {self.ebx:08x} "
            f"ecx {self.ecx:08x} edx {self.edx:08x}>"
        )


class Cpuid:
    """An immutable table of leaves. ``table[7, 0].ebx``; ``table[1].ecx``; iteration gives leaves;
    ``"avx2" in table`` asks for a feature by name.

    Looking up a leaf that is not there raises KeyError; :meth:`get` gives None. Two tables are
    equal when they have the same leaves, in whatever order.

    >>> "msr" in cpu.cpuid, cpu.cpuid[1].edx >> 5 & 1
    (True, 1)
    """

    def __init__(self, leaves: Iterable[Leaf]):
        self._leaves = tuple(leaves)
        self._by_key = {leaf.key: leaf for leaf in reversed(self._leaves)}
        self._c: Any = None

    @classmethod
    def of_this_cpu(cls) -> Cpuid:
        """What the CPUID instruction gives this process, on the CPU it happens to run on.

        >>> kvmpy.Cpuid.of_this_cpu().has("lm")
        True
        """
        from ..host.cpu import every_leaf

        return cls(Leaf(*key, HAS_INDEX, *registers) for key, registers in every_leaf())

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __contains__(self, item: object) -> bool:
        return self.has(item) if isinstance(item, str) else item in self._leaves

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cpuid) and self._by_key == other._by_key

    def __hash__(self) -> int:
        return hash(frozenset(self._by_key.values()))

    def get(self, function: int, index: int = 0) -> Leaf | None:
        """The leaf, or None.

        >>> cpu.cpuid.get(0x1234) is None
        True
        """
        return self._by_key.get((function, index))

    def __getitem__(self, key: int | tuple[int, int]) -> Leaf:
        function, index = key if isinstance(key, tuple) else (key, 0)
        leaf = self.get(function, index)
        if leaf is None:
            raise KeyError(f"no CPUID leaf {function:#x}.{index:x}")
        return leaf

    def with_leaf(self, leaf: Leaf) -> Cpuid:
        """A copy in which ``leaf`` stands in for the one of its number, or is added.

        >>> kvmpy.Cpuid([]).with_leaf(kvmpy.Leaf(1, eax=0x306C3)).model
        60
        """
        if leaf.key not in self._by_key:
            return Cpuid((*self._leaves, leaf))
        return Cpuid(leaf if x.key == leaf.key else x for x in self._leaves)

    # -- features by name

    def has(self, feature: str) -> bool:
        """Whether the feature's bit is set. Names as in /proc/cpuinfo or QEMU, in any spelling.

        Raises ValueError, with close matches, for a name that no feature has.

        >>> cpu.cpuid.has("SSE2"), "tsc" in cpu.cpuid
        (True, True)
        """
        from .features import find

        return self._shows(find(feature))

    def _shows(self, feature: Any) -> bool:
        leaf = self._by_key.get((feature.function, feature.index))
        return leaf is not None and bool(getattr(leaf, feature.register) >> feature.bit & 1)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of all features whose bit is set, in the order of the leaves.

        >>> cpu.cpuid.features[0]
        'fpu'
        """
        from .features import table

        return tuple(name for name, feature in table().items() if self._shows(feature))

    def without(self, *features: str) -> Cpuid:
        """A copy without these features, and without what cannot exist without them: AVX-512 goes
        with AVX, and so do its registers in leaf 0Dh. What is not there already stays away.

        "pmu" and "kvm" stand for all of the performance counters, and of KVM's paravirtual
        interface with its signature. Raises ValueError for an unknown name.

        >>> "avx2" in kvm.supported_cpuid().without("avx")
        False
        """
        from .edit import without

        return without(self, features)

    def with_features(self, *features: str, supported: Cpuid) -> Cpuid:
        """A copy with these features, and with what they need, as in ``supported``, which is
        KVM.supported_cpuid().

        Raises UnsupportedError, which names it, for a feature that ``supported`` does not have,
        ValueError for an unknown name.

        >>> full = kvm.supported_cpuid()
        >>> full.without("cx8").with_features("cx8", supported=full) == full.without("cx16")
        True
        """
        from .edit import with_features

        return with_features(self, features, supported)

    def mask(self, changes: str, supported: Cpuid | None = None) -> Cpuid:
        """A copy changed as ``-feature,+feature`` says, from left to right: :meth:`without` and
        :meth:`with_features`. ``supported``: what can be added; this table if not given.

        Raises ValueError for what is not of that form and for unknown names, UnsupportedError for
        a feature that cannot be added.

        >>> masked = kvm.supported_cpuid().mask("-sse2,+apic")
        >>> "sse2" in masked, "apic" in masked
        (False, True)
        """
        from .edit import mask

        return mask(self, changes, self if supported is None else supported)

    def diff(self, other: Cpuid) -> CpuidDiff:
        """What changes from this table to ``other``: features, and registers of leaves.

        >>> cpu.cpuid.diff(cpu.cpuid.without("mca")).removed
        ('mca',)
        """
        from .diff import diff

        return diff(self, other)

    # -- what it says

    @property
    def vendor(self) -> str:
        """The vendor string of leaf 0: "GenuineIntel", "AuthenticAMD".

        >>> cpu.cpuid.vendor in ("GenuineIntel", "AuthenticAMD")
        True
        """
        leaf = self[0]
        return _text(leaf.ebx, leaf.edx, leaf.ecx).rstrip("\0")

    @property
    def hypervisor(self) -> str | None:
        """The signature in leaf 40000000h; None if leaf 1 announces no hypervisor.

        >>> cpu.cpuid.hypervisor
        'KVMKVMKVM'
        """
        first, leaf = self.get(1), self.get(0x4000_0000)
        if first is None or not first.ecx >> 31:
            return None
        return _text(leaf.ebx, leaf.ecx, leaf.edx).rstrip("\0") if leaf else ""

    @property
    def brand(self) -> str:
        """The brand string of leaves 80000002h to 80000004h; "" where KVM leaves it to its user.

        >>> cpu.cpuid.with_brand("A virtual CPU").brand
        'A virtual CPU'
        """
        leaves = [self.get(function) for function in _BRAND]
        text = "".join(_text(x.eax, x.ebx, x.ecx, x.edx) for x in leaves if x)
        return " ".join(text.rstrip("\0").split())

    def with_brand(self, brand: str) -> Cpuid:
        """A copy with this brand string, of at most 47 ASCII characters.

        >>> cpu.cpuid = cpu.cpuid.with_brand("kvmpy")
        """
        if len(brand) > 47 or not brand.isascii():
            raise ValueError(f"brand string {brand!r}: not 47 ASCII characters or fewer")
        words = struct.unpack("<12I", brand.encode().ljust(48, b"\0"))
        table = self
        for number, function in enumerate(_BRAND):
            registers = words[4 * number : 4 * number + 4]
            table = table.with_leaf(Leaf(function, 0, 0, *registers))
        return table

    @property
    def family(self) -> int:
        """The family, extended family included (SDM vol. 2, "CPUID", leaf 01h).

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).family
        26
        """
        eax = self[1].eax
        family = eax >> 8 & 0xF
        return family + (eax >> 20 & 0xFF) if family == 0xF else family

    @property
    def model(self) -> int:
        """The model, extended model included.

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).model
        2
        """
        eax = self[1].eax
        model = eax >> 4 & 0xF
        return model | (eax >> 16 & 0xF) << 4 if eax >> 8 & 0xF in (0x6, 0xF) else model

    @property
    def stepping(self) -> int:
        """The stepping.

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).stepping
        1
        """
        return self[1].eax & 0xF

    @property
    def address_bits(self) -> AddressBits:
        """Widths of physical and linear addresses (leaf 80000008h).

        >>> cpu.cpuid.address_bits.linear in (48, 57)
        True
        """
        from .topology import address_bits

        return address_bits(self)

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The caches: of leaf 4, 8000001Dh, or 80000005h and 80000006h.

        >>> all(cache.size and cache.line for cache in cpu.cpuid.caches)
        True
        """
        from .topology import caches

        return caches(self)

    @property
    def topology(self) -> Topology:
        """Threads, cores and the APIC id: of leaf 1Fh or 0Bh, else of leaves 1, 4 and 80000008h.

        >>> kvm.supported_cpuid().for_vcpu(2, vcpus=4).topology
        <APIC id 2: package 0, core 2 of 4, 1 thread a core>
        """
        from .topology import topology

        return topology(self)

    # -- for whom

    def for_vcpu(self, vcpu_id: int, vcpus: int = 1, *, lapic: bool = True) -> Cpuid:
        """A copy for vCPU ``vcpu_id`` of ``vcpus``: what KVM_GET_SUPPORTED_CPUID copies from the
        CPU it happened to run on becomes this vCPU's own.

        APIC ids and topology (SDM, "CPUID": leaves 01h, 0Bh, 1Fh; APM vol. 3, appendix E:
        80000008h, 8000001Eh): one package, a core per vCPU, no SMT; caches (04h, 8000001Dh) are
        the vCPU's own, L3 is everybody's; no power management but the timer's (06h).
        ``lapic=False``, for a VM without KVM's local APIC: nothing that needs one. (The APIC's own
        bit is KVM's: it follows IA32_APIC_BASE.)

        Raises UnsupportedError for an id above 254 if the table lacks x2APIC.

        >>> kvm.supported_cpuid().for_vcpu(3, vcpus=4)[1].ebx >> 24
        3
        """
        from .topology import for_vcpu

        return Cpuid(for_vcpu(self, vcpu_id, vcpus, lapic))

    def for_module(self, module: str) -> tuple[Cpuid, tuple[MaskedFeature, ...]]:
        """A copy without what a kernel in ring 0 would use and the KVM module ``module`` cannot
        run, and what that is and why: nothing on kvm_intel and kvm_amd.

        On kvm_pvm it cannot be all: in ring 0 that shows most of the host's leaves 1 and 7, and in
        ring 3 all of the host's CPUID, whatever was set.

        >>> kvm.supported_cpuid().for_module("kvm_intel")[1]
        ()
        """
        from .edit import for_module

        return for_module(self, module)

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
        table = ffi.new("struct kvm_cpuid2 *", {"entries": len(self._leaves)})
        table.nent = len(self._leaves)
        for entry, leaf in zip(table.entries, self._leaves, strict=True):
            entry.function, entry.index, entry.flags = leaf.function, leaf.index, leaf.flags
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        return table

    def __repr__(self) -> str:
        vendor = f" {self.vendor}" if self.get(0) else ""
        model = (
            f" family {self.family:#x} model {self.model:#x} stepping {self.stepping}"
            if self.get(1)
            else ""
        )
        return f"<Cpuid{vendor}{model}, {len(self.features)} features, {len(self)} leaves>"


_BRAND = (0x8000_0002, 0x8000_0003, 0x8000_0004)


def _text(*registers: int) -> str:
    return struct.pack(f"<{len(registers)}I", *registers).decode("latin-1")
