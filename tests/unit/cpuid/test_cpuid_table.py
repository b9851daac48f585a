"""CPUID tables: lookup, editing, and what becomes a vCPU's own (correctness 10, 11)."""

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy.cpuid.cpuid import HAS_INDEX, Cpuid, Leaf

U32 = st.integers(0, 0xFFFF_FFFF)
FUNCTIONS = st.sampled_from([0, 1, 4, 6, 7, 0xA, 0xB, 0xD, 0x1F, 0x4000_0000, 0x8000_0008,
                             0x8000_001D, 0x8000_001E]) | U32  # fmt: skip
LEAVES = st.lists(
    st.builds(
        Leaf, FUNCTIONS, st.integers(0, 4), st.sampled_from([0, HAS_INDEX]), U32, U32, U32, U32
    ),
    max_size=30,
)


def test_lookup():
    """By function, or by function and index."""
    table = Cpuid([Leaf(0, eax=7), Leaf(7, 0, HAS_INDEX, ebx=1), Leaf(7, 1, HAS_INDEX, eax=2)])
    assert table[0].eax == 7
    assert table[7].ebx == table[7, 0].ebx == 1
    assert table[7, 1].eax == 2
    assert table.get(7, 2) is None
    with pytest.raises(KeyError, match=r"7\.2"):
        table[7, 2]
    assert len(table) == 3
    assert "00000007.1" in repr(table[7, 1])


def test_vendor():
    """EBX, EDX, ECX: in that order."""
    table = Cpuid([Leaf(0, ebx=0x756E6547, edx=0x49656E69, ecx=0x6C65746E)])
    assert table.vendor == "GenuineIntel"
    assert "GenuineIntel" in repr(table)


def test_with_leaf_replaces_or_adds():
    """A copy; the original stays."""
    table = Cpuid([Leaf(0, eax=1), Leaf(1, eax=2)])
    assert table.with_leaf(Leaf(1, eax=9))[1].eax == 9
    assert len(table.with_leaf(Leaf(2))) == 3
    assert table[1].eax == 2
    assert table == Cpuid([Leaf(0, eax=1), Leaf(1, eax=2)])
    assert hash(table) == hash(Cpuid(list(table)))
    assert table != "table"


def test_apic_id_and_count():
    """Leaf 1: initial APIC id, logical processors, HTT."""
    table = Cpuid([Leaf(1, ebx=0xAB_CD_EF_12, ecx=0, edx=1 << 28)])
    one = table.for_vcpu(5)[1]
    assert (one.ebx, one.edx >> 28 & 1) == (5 << 24 | 1 << 16 | 0xEF00, 0)
    four = table.for_vcpu(3, 4)[1]
    assert (four.ebx >> 24, four.ebx >> 16 & 0xFF, four.edx >> 28 & 1) == (3, 4, 1)


def test_topology_leaves():
    """0xB, made if the CPU has it: level 0 threads, level 1 cores; EDX is the x2APIC id."""
    for old in ([], [Leaf(0xB, i, HAS_INDEX, 7, 7, 7, 7) for i in range(3)]):
        table = Cpuid([Leaf(0, eax=0xD), *old]).for_vcpu(2, 4)
        levels = [leaf for leaf in table if leaf.function == 0xB]
        assert [leaf.index for leaf in levels] == [0, 1]
        assert [leaf.edx for leaf in levels] == [2, 2]
        assert [leaf.ecx for leaf in levels] == [0x100, 0x201]
        assert [leaf.eax for leaf in levels] == [0, 2]
        assert [leaf.ebx for leaf in levels] == [1, 4]
        assert table.get(0x1F) is None
    both = Cpuid([Leaf(0, eax=0x1F)]).for_vcpu(0)
    assert both[0xB, 1].ecx == both[0x1F, 1].ecx
    assert Cpuid([Leaf(0, eax=0xA)]).for_vcpu(0).get(0xB) is None


def test_apic_ids_that_take_x2apic():
    """255 is everybody in xAPIC mode."""
    table = Cpuid([Leaf(0, eax=0xD), Leaf(1, ecx=1 << 21)])
    assert table.for_vcpu(300, 400)[0xB].edx == 300
    assert table.for_vcpu(300, 400)[0xB, 1].eax == 9
    assert table.for_vcpu(300, 400)[1].ebx >> 24 == 300 & 0xFF
    no_x2apic = Cpuid([Leaf(0, eax=0xD), Leaf(1)])
    no_leaf = Cpuid([Leaf(0, eax=1), Leaf(1, ecx=1 << 21)])
    for poor in (no_x2apic, no_leaf):
        assert poor.for_vcpu(254, 255)
        with pytest.raises(kvmpy.UnsupportedError, match=r"vCPU 255.*x2APIC"):
            poor.for_vcpu(255, 256)


def test_without_local_apic():
    """Nothing that needs one, neither the CPU's nor KVM's."""
    full = Cpuid([Leaf(0, eax=1), Leaf(1, ecx=0xFFFF_FFFF), Leaf(0x4000_0001, eax=0xFFFF_FFFF)])
    bare = full.for_vcpu(0, lapic=False)
    gone = set(full.for_vcpu(0).features) - set(bare.features)
    assert gone == {
        "x2apic", "tsc_deadline_timer", "kvm_pv_eoi", "kvm_pv_unhalt", "kvm_pv_ipi",
        "kvm_asyncpf_int", "kvm_msi_ext_dest_id",
    }  # fmt: skip


def test_power_management():
    """Of leaf 6 only the timer that never stops is true in a guest."""
    assert Cpuid([Leaf(6, eax=0xFF, ebx=2, ecx=9)]).for_vcpu(0)[6] == Leaf(6, eax=4)


def test_amd_core_counts():
    """80000008h, CmpLegacy and 8000001Eh; Intel's reserved fields stay as they are."""
    leaves = [Leaf(0x8000_0001), Leaf(0x8000_0008, ecx=0x1_7001), Leaf(0x8000_001E, ebx=0x101)]
    amd = Cpuid([Leaf(0, 0, 0, 1, 0x68747541, 0x444D4163, 0x69746E65), *leaves])
    assert amd.for_vcpu(2, 6)[0x8000_0008].ecx == 0x1_3005
    assert "cmp_legacy" in amd.for_vcpu(2, 6)
    assert "cmp_legacy" not in amd.for_vcpu(0, 1)
    assert amd.for_vcpu(2, 6)[0x8000_001E] == Leaf(0x8000_001E, eax=2, ebx=2)
    intel = Cpuid([Leaf(0, 0, 0, 1, 0x756E6547, 0x6C65746E, 0x49656E69), *leaves])
    assert intel.for_vcpu(2, 6)[0x8000_0008] == leaves[1]
    assert "cmp_legacy" not in intel.for_vcpu(2, 6)


def test_caches():
    """Leaf 4: L1 and L2 are the vCPU's own, L3 everybody's; no cache, no change."""
    caches = [Leaf(4, i, HAS_INDEX, eax=0xFFFF_C000 | level << 5 | 1) for i, level in
              enumerate((1, 1, 2, 3))]  # fmt: skip
    table = Cpuid([*caches, Leaf(4, 4, HAS_INDEX)]).for_vcpu(1, 8)
    assert [leaf.eax >> 14 & 0xFFF for leaf in table][:3] == [0, 0, 0]
    assert table[4, 3].eax >> 14 & 0xFFF >= 7
    assert table[4, 4] == Leaf(4, 4, HAS_INDEX)


@given(LEAVES, st.integers(0, 254), st.integers(1, 4096), st.booleans())
def test_any_table_for_any_vcpu(leaves, vcpu, vcpus, lapic):
    """Leaves outside the topology are neither lost nor doubled, every register stays 32 bits, and
    KVM could take the table."""
    table = Cpuid(leaves).for_vcpu(vcpu, vcpus, lapic=lapic)

    def keys(leaves):
        return [(*x.key, x.flags) for x in leaves if x.function not in (0xB, 0x1F)]

    assert keys(table) == keys(leaves)
    for leaf in table:
        assert all(0 <= value <= 0xFFFF_FFFF for value in (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
    assert table._to_c().nent == len(table)


@given(LEAVES)
def test_through_the_c_structure_and_back(leaves):
    """Nothing changes; trailing empty entries, which KVM_GET_CPUID2 leaves, are cut off."""
    table = Cpuid([*leaves, Leaf(0x11, eax=1)])
    assert Cpuid._from_c(table._to_c()) == table
    padded = Cpuid([*table, Leaf(0), Leaf(0)])
    assert Cpuid._from_c(padded._to_c()) == table
