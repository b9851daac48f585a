"""CPUID as a guest sees it: a table of leaves (KVM API, "4.20 KVM_SET_CPUID2").

The table itself is in ``table.py``; ``features.py`` has the features' names, ``edit.py`` masks,
``topology.py`` makes a table one vCPU's own and decodes caches, ``diff.py`` compares. All but the
first are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .table import HAS_INDEX as HAS_INDEX, Leaf as Leaf, Table

if TYPE_CHECKING:
    from .diff import CpuidDiff
    from .edit import MaskedFeature
    from .topology import AddressBits, Cache, Topology


class Cpuid(Table):
    """An immutable table of leaves. ``table[7, 0].ebx``; ``table[1].ecx``; iteration gives leaves;
    ``"avx2" in table`` asks for a feature by name.

    Looking up a leaf that is not there raises KeyError; :meth:`get` gives None. Two tables are
    equal when they have the same leaves, in whatever order.

    >>> "msr" in cpu.cpuid, cpu.cpuid[1].edx >> 5 & 1
    (True, 1)
    """

    @classmethod
    def of_this_cpu(cls) -> Cpuid:
        """What the CPUID instruction gives this process, on the CPU it happens to run on.

        >>> kvmpy.Cpuid.of_this_cpu().has("lm")
        True
        """
        from ..host.cpu import every_leaf

        return cls(Leaf(*key, HAS_INDEX, *registers) for key, registers in every_leaf())

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

    def __repr__(self) -> str:
        vendor = f" {self.vendor}" if self.get(0) else ""
        model = (
            f" family {self.family:#x} model {self.model:#x} stepping {self.stepping}"
            if self.get(1)
            else ""
        )
        return f"<Cpuid{vendor}{model}, {len(self.features)} features, {len(self)} leaves>"
