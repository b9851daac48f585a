"""CPUID tables: lookup, editing, and what becomes a vCPU's own (correctness 10, 11)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmpy.cpuid import HAS_INDEX, Cpuid, Leaf

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


def test_apic_id_and_hypervisor_bit():
    """Leaf 1: initial APIC id, logical processors, HTT, hypervisor."""
    table = Cpuid([Leaf(1, ebx=0xAB_CD_EF_12, ecx=0, edx=1 << 28)])
    one = table.for_vcpu(5)[1]
    assert (one.ebx, one.ecx >> 31, one.edx >> 28 & 1) == (5 << 24 | 1 << 16 | 0xEF00, 1, 0)
    four = table.for_vcpu(3, 4)[1]
    assert (four.ebx >> 24, four.ebx >> 16 & 0xFF, four.edx >> 28 & 1) == (3, 4, 1)


def test_topology_leaves():
    """0xB: level 0 threads, level 1 cores, then the end; EDX is the x2APIC id everywhere."""
    table = Cpuid([Leaf(0xB, i, HAS_INDEX, 7, 7, 7, 7) for i in range(3)]).for_vcpu(2, 4)
    assert [leaf.edx for leaf in table] == [2, 2, 2]
    assert [leaf.ecx for leaf in table] == [0x100, 0x201, 2]
    assert [leaf.eax for leaf in table] == [0, 2, 0]
    assert [leaf.ebx & 0xFFFF for leaf in table] == [1, 4, 0]


def test_caches():
    """Leaf 4: L1 and L2 are the vCPU's own, L3 everybody's; no cache, no change."""
    caches = [Leaf(4, i, HAS_INDEX, eax=0xFFFF_C000 | level << 5 | 1) for i, level in
              enumerate((1, 1, 2, 3))]  # fmt: skip
    table = Cpuid([*caches, Leaf(4, 4, HAS_INDEX)]).for_vcpu(1, 8)
    assert [leaf.eax >> 14 & 0xFFF for leaf in table][:3] == [0, 0, 0]
    assert table[4, 3].eax >> 14 & 0xFFF >= 7
    assert table[4, 4] == Leaf(4, 4, HAS_INDEX)


@given(LEAVES, st.integers(0, 4095), st.integers(1, 4096))
def test_any_table_for_any_vcpu(leaves, vcpu, vcpus):
    """No leaf is lost or doubled, every register stays 32 bits, and KVM could take the table."""
    table = Cpuid(leaves).for_vcpu(vcpu, vcpus)
    assert [(x.function, x.index, x.flags) for x in table] == [
        (x.function, x.index, x.flags) for x in leaves
    ]
    for leaf in table:
        assert all(0 <= value <= 0xFFFF_FFFF for value in (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
    assert table._to_c().nent == len(leaves)


@given(LEAVES)
def test_through_the_c_structure_and_back(leaves):
    """Nothing changes; trailing empty entries, which KVM_GET_CPUID2 leaves, are cut off."""
    table = Cpuid([*leaves, Leaf(0x11, eax=1)])
    assert Cpuid._from_c(table._to_c()) == table
    padded = Cpuid([*table, Leaf(0), Leaf(0)])
    assert Cpuid._from_c(padded._to_c()) == table
