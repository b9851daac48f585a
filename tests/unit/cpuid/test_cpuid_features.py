"""CPUID features by name: the tables are consistent, masks leave a CPU that could exist."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy.cpuid import features as cf
from kvmpy.cpuid.cpuid import HAS_INDEX, Cpuid, Leaf

NAMES = sorted(cf.table())
SETS = st.lists(st.sampled_from(NAMES), max_size=12)

INTEL = Leaf(0, 0, 0, 0xD, 0x756E6547, 0x6C65746E, 0x49656E69)


def everything():
    """A CPU with every feature that has a name, and the XSAVE area of all its registers."""
    bits = {}
    for feature in cf.table().values():
        for function, index, register, bit in feature.places:
            registers = bits.setdefault((function, index), {})
            registers[register] = registers.get(register, 0) | 1 << bit
    bits.setdefault((0xD, 0), {}).update(eax=0x602E7, ebx=0x2B00, ecx=0x2B00)
    bits.setdefault((0xD, 1), {}).update(ebx=0x2A80, ecx=0x1900)
    bits[7, 0]["eax"] = 2  # the last subleaf
    leaves = [Leaf(*key, HAS_INDEX, **registers) for key, registers in bits.items()]
    areas = {
        2: (0x100, 0x240, 0), 5: (0x40, 0x440, 0), 6: (0x200, 0x480, 0), 7: (0x400, 0x680, 0),
        9: (8, 0xA80, 0), 17: (0x40, 0xAC0, 2), 18: (0x2000, 0xB00, 6), 8: (0x80, 0, 1),
        11: (0x10, 0, 1), 12: (0x18, 0, 1),
    }  # fmt: skip
    areas = [Leaf(0xD, i, HAS_INDEX, *registers) for i, registers in areas.items()]
    return Cpuid([INTEL, Leaf(0x8000_0000, eax=0x8000_0022), Leaf(0xA, eax=0x7300802), *leaves,
                  *areas])  # fmt: skip


EVERYTHING = everything()

# ---------------------------------------------------------------- the tables


def test_no_name_and_no_bit_twice():
    """In any spelling; groups included."""
    names = [name for f in cf.table().values() for name in (f.name, *f.aliases)]
    squeezed = [cf._squeeze(name) for name in [*names, *cf.GROUPS]]
    assert len(set(squeezed)) == len(squeezed)
    places = [place for f in cf.table().values() for place in f.places]
    assert len(set(places)) == len(places)
    assert all(0 <= bit < 32 and f.source for f in cf.table().values() for *_, bit in f.places)


def test_tables_name_only_features():
    """Dependencies, groups, leaves and XSAVE components speak of names that exist."""
    known = set(cf.table())
    assert known >= set(cf.REQUIRES)
    for text in (*cf.REQUIRES.values(), *cf.GROUPS.values(), *cf.XSAVE_COMPONENTS.values()):
        assert known >= set(text.split())
    assert known | set(cf.GROUPS) >= set(cf.LEAVES_OF)


def test_nothing_needs_itself():
    """The dependencies have no circle."""
    for name in cf.REQUIRES:
        assert name not in cf.with_requirements(cf.REQUIRES[name].split())


@given(SETS)
def test_dependents_are_closed(names):
    """What needs something that goes, goes; what is needed by something that comes, comes."""
    gone = set(cf.with_dependents(names))
    assert all(f in gone for f, needs in cf.REQUIRES.items() if gone & set(needs.split()))
    come = set(cf.with_requirements(names))
    assert all(come >= set(cf.REQUIRES.get(name, "").split()) for name in come)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("SSE4.1", "sse4_1"), ("sse4-2", "sse4_2"), ("sse3", "pni"), ("avx512vnni", "avx512_vnni"),
        ("AVX512-VNNI", "avx512_vnni"), ("tsc-deadline", "tsc_deadline_timer"), ("xd", "nx"),
        ("ffxsr", "fxsr_opt"), ("cr8legacy", "cr8_legacy"), ("kvm-pv-unhalt", "kvm_pv_unhalt"),
        ("svm-lock", "svm_lock"), ("pause-filter", "pausefilter"), ("i64", "lm"),
        ("amd-no-ssb", "amd_no_ssb"), ("sha-ni", "sha_ni"), ("spec-ctrl", "spec_ctrl"),
    ],
)  # fmt: skip
def test_spellings(spelling, name):
    """Linux's and QEMU's."""
    assert cf.find(spelling).name == name
    assert spelling in EVERYTHING


@pytest.mark.parametrize(("wrong", "likely"), [("avx51f", "avx512f"), ("x3apic", "x2apic")])
def test_unknown_names(wrong, likely):
    """ValueError that knows better; everywhere a name is taken."""
    for attempt in (
        lambda: wrong in EVERYTHING,
        lambda: EVERYTHING.without(wrong),
        lambda: EVERYTHING.with_features(wrong, supported=EVERYTHING),
        lambda: EVERYTHING.mask(f"-{wrong}"),
    ):
        with pytest.raises(ValueError, match=rf"{wrong}.*{likely}"):
            attempt()
    with pytest.raises(ValueError, match=r"no CPUID feature is called 'qqqqqqqqqq'$"):
        cf.find("qqqqqqqqqq")


@given(st.text(max_size=20))
def test_any_text_is_a_name_or_a_value_error(text):
    """Nothing else comes out."""
    try:
        found = cf.find(text)
    except ValueError:
        return
    assert cf._squeeze(text) in map(cf._squeeze, (found.name, *found.aliases))


# ---------------------------------------------------------------- masks


@given(SETS)
def test_masked_is_gone(names):
    """With all that needs it, and nothing else; the difference leads there and back."""
    masked = EVERYTHING.without(*names)
    gone = set(cf.with_dependents(names))
    in_leaves_gone = {
        f.name
        for f in cf.table().values()
        if any(f.function in cf.LEAVES_OF.get(name, ()) for name in gone)
    }
    assert set(masked.features) == set(EVERYTHING.features) - gone - in_leaves_gone
    difference = EVERYTHING.diff(masked)
    assert set(difference.removed) == set(EVERYTHING.features) - set(masked.features)
    assert difference.added == ()
    assert difference.apply(EVERYTHING) == masked
    assert masked.diff(EVERYTHING).apply(masked) == EVERYTHING
    assert bool(difference) == (masked != EVERYTHING)
    assert masked.without(*names) == masked


@given(SETS, SETS)
def test_put_back(names, again):
    """What is put back is there with what it needs, and the XSAVE area has its registers."""
    table = EVERYTHING.without(*names).with_features(*again, supported=EVERYTHING)
    assert all(table.has(name) for name in cf.with_requirements(again))
    check_xsave(table)


def check_xsave(table):
    """Each component has its feature and its subleaf; the sizes are what they add up to."""
    main, more = table[0xD], table[0xD, 1]
    user, supervisor = main.eax | main.edx << 32, more.ecx | more.edx << 32
    assert user & 3 == (3 if table.has("xsave") else 0)
    for component, features in cf.XSAVE_COMPONENTS.items():
        if component >= 2 and (user | supervisor) >> component & 1:
            assert any(table.has(name) for name in features.split())
            assert table[0xD, component].eax > 0
    described = {x.index for x in table if x.function == 0xD and x.index >= 2}
    assert described == {i for i in range(2, 63) if (user | supervisor) >> i & 1}
    ends = [table[0xD, i].ebx + table[0xD, i].eax for i in range(2, 63) if user >> i & 1]
    assert main.ebx == main.ecx == max([576 if user else 0, *ends])


@pytest.mark.parametrize(
    ("mask", "xcr0", "xss", "size", "compacted"),
    [
        ("-avx512f", 0x60207, 0x1900, 0x2B00, 576 + 256 + 128 + 8 + 16 + 24),
        ("-amx_tile", 0x2E7, 0x1900, 0xA88, 576 + 256 + 64 + 512 + 1024 + 128 + 8 + 16 + 24),
        ("-avx", 0x60203, 0x1900, 0x2B00, 576 + 128 + 8 + 16 + 24),
        ("-xsaves", 0x2E7, 0, 0xA88, 576 + 256 + 64 + 512 + 1024 + 8),
        ("-xsave", 0, 0, 0, 0),
    ],
)
def test_xsave_area(mask, xcr0, xss, size, compacted):
    """Leaf 0Dh follows (SDM vol. 1, "Enumeration of CPU Support for XSAVE")."""
    table = EVERYTHING.mask(mask)
    main, more = table[0xD], table[0xD, 1]
    assert (main.eax, main.ebx, main.ecx, main.edx) == (xcr0, size, size, 0)
    assert (more.ecx, more.edx) == (xss, 0)
    if "amx_tile" not in table:  # the tiles begin at multiples of 64: see the next test
        assert more.ebx == compacted
    check_xsave(table)


def test_compacted_area_is_aligned():
    """A component whose ECX bit 1 is set begins at a multiple of 64 bytes."""
    table = EVERYTHING.without("avx512f", "pku", "shstk", "ibt", "intel_pt")
    assert table[0xD, 1].ebx == 576 + 256 + 64 + 0x2000  # all multiples of 64 by themselves
    table = EVERYTHING.without("avx512f", "shstk", "ibt", "intel_pt")
    assert table[0xD, 1].ebx == 576 + 256 + 8 + 56 + 64 + 0x2000


def test_whole_leaves_go():
    """A leaf that describes one feature is zero without it; groups take theirs along."""
    full = EVERYTHING.with_leaf(Leaf(0x1D, 1, HAS_INDEX, 1, 2, 3, 4))
    full = full.with_leaf(Leaf(0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D564B, 0x564B4D56, 0x4D))
    assert full.without("avx")[0x1D, 1].eax == 1
    assert full.without("amx_tile")[0x1D, 1] == Leaf(0x1D, 1, HAS_INDEX)
    assert full.without("pmu")[0xA] == Leaf(0xA)
    assert full.hypervisor == "KVMKVMKVM"
    assert full.without("kvm").hypervisor == ""
    assert "hypervisor" in full.without("kvm")
    assert full.without("hypervisor").hypervisor is None
    assert full.mask("-pmu,-kvm").mask("+pmu,+kvm", supported=full) == full


def test_copies_follow():
    """AMD repeats bits of leaf 1 in 80000001h; KVM's clock has two bits."""
    table = EVERYTHING.without("mmx", "kvmclock")
    assert not table[0x8000_0001].edx >> 23 & 1
    assert not table[0x4000_0001].eax & 0b1001


def test_what_kvm_lacks_cannot_be_added():
    """UnsupportedError names it, and what wanted it."""
    small = EVERYTHING.without("avx")
    with pytest.raises(kvmpy.UnsupportedError, match="feature avx2: KVM on this host"):
        small.mask("+avx2")
    inconsistent = EVERYTHING.with_leaf(replace(EVERYTHING[1], ecx=EVERYTHING[1].ecx & ~(1 << 26)))
    with pytest.raises(kvmpy.UnsupportedError, match="xsave, which avx2 needs"):
        small.with_features("avx2", supported=inconsistent)
    assert small.mask("+avx2", supported=EVERYTHING).has("avx")


def test_added_leaf_raises_the_limits():
    """A guest does not look for leaves above the highest one announced."""
    small = Cpuid([Leaf(0, eax=1), Leaf(1, edx=1)])
    table = small.with_features("fsrm", "rdtscp", supported=EVERYTHING)
    assert table[0].eax == 7
    table = small.with_features("lam", supported=EVERYTHING)
    assert table[7].eax == 1


@pytest.mark.parametrize("text", ["avx", "-", "+", "-avx,avx2", "- ,", "!avx"])
def test_malformed_masks(text):
    """ValueError quotes the part."""
    with pytest.raises(ValueError, match="write -feature or"):
        EVERYTHING.mask(text)


def test_masks_are_read_from_left_to_right():
    """Spaces and empty parts do not matter."""
    assert EVERYTHING.mask("") == EVERYTHING
    table = EVERYTHING.mask(" -avx , +f16c,", supported=EVERYTHING)
    assert "f16c" in table
    assert "avx2" not in table


def test_for_module():
    """Where everything runs, nothing is masked; each that is has a reason."""
    assert EVERYTHING.for_module("kvm_intel") == (EVERYTHING, ())
    assert EVERYTHING.for_module("kvm_amd") == (EVERYTHING, ())
    table, masked = EVERYTHING.for_module("kvm_pvm")
    assert ("cx16", "kvm_pvm emulates ring 0, and its emulator lacks CMPXCHG16B") in masked
    assert not any(table.has(item.feature) for item in masked)
    assert table.for_module("kvm_pvm") == (table, ())


# ---------------------------------------------------------------- differences


def test_difference():
    """Features by name, registers by leaf; readable."""
    before = Cpuid([INTEL, Leaf(1, edx=1), Leaf(7, 0, HAS_INDEX, ebx=1 << 5)])
    after = Cpuid([INTEL, Leaf(1, edx=1 | 1 << 25), Leaf(0x19, ebx=4)])
    difference = before.diff(after)
    assert (difference.added, difference.removed) == (("sse",), ("avx2",))
    assert next((f.function, f.register, f.before, f.after) for f in difference) == (
        1, "edx", 1, 1 | 1 << 25,
    )  # fmt: skip
    assert "+sse -avx2\n00000001.0 edx: 00000001 -> 02000001" in str(difference)
    assert "00000019.0 ebx: (no leaf) -> 00000004" in repr(difference)
    assert difference.apply(before) == after
    assert not before.diff(before)
    assert repr(before.diff(before)) == "<CPUID diff: none>"


def test_equal_in_any_order():
    """KVM does not care for the order either."""
    assert Cpuid(reversed(list(EVERYTHING))) == EVERYTHING
    assert len({EVERYTHING, Cpuid(reversed(list(EVERYTHING)))}) == 1


# ---------------------------------------------------------------- what a table says


@pytest.mark.parametrize(
    ("eax", "family", "model", "stepping"),
    [(0x306C3, 6, 0x3C, 3), (0xB00F21, 0x1A, 2, 1), (0x60FB1, 0xF, 0x6B, 1), (0x543, 5, 4, 3)],
)
def test_family_model_stepping(eax, family, model, stepping):
    """Haswell, Zen 5, Athlon 64 X2, Pentium MMX."""
    table = Cpuid([INTEL, Leaf(1, eax=eax)])
    assert (table.family, table.model, table.stepping) == (family, model, stepping)
    assert f"GenuineIntel family {family:#x} model {model:#x} stepping {stepping}" in repr(table)


def test_brand():
    """Both ways; too long is refused."""
    table = Cpuid([INTEL]).with_brand("Some CPU @ 1 GHz")
    assert table.brand == "Some CPU @ 1 GHz"
    assert len(table) == 4
    assert table.with_brand("").brand == ""
    for wrong in ("x" * 48, "ü"):
        with pytest.raises(ValueError, match="47 ASCII"):
            table.with_brand(wrong)


def test_address_bits():
    """Leaf 80000008h, or what the manual says of CPUs without it."""
    assert Cpuid([Leaf(0x8000_0008, eax=0x3928)]).address_bits == (40, 57)
    assert Cpuid([Leaf(1, edx=1 << 6)]).address_bits == (36, 32)
    assert Cpuid([Leaf(1)]).address_bits == (32, 32)


def test_intel_caches():
    """Leaf 4 of an i7-4770."""
    table = Cpuid([INTEL, Leaf(4, 0, HAS_INDEX, 0x1C004121, 0x01C0003F, 0x3F),
                   Leaf(4, 3, HAS_INDEX, 0x1C03C163, 0x03C0003F, 0x1FFF, 6),
                   Leaf(4, 4, HAS_INDEX)])  # fmt: skip
    first, last = table.caches
    assert (first.level, first.kind, first.size, first.ways, first.line) == (
        1,
        "data",
        32768,
        8,
        64,
    )
    assert repr(last) == "<L3 unified 8 MiB, 16-way, 64 B lines, shared by 16>"


def test_old_amd_caches():
    """Leaves 80000005h and 80000006h."""
    table = Cpuid([Leaf(0, 0, 0, 1, 0x68747541, 0x444D4163, 0x69746E65),
                   Leaf(0x8000_0005, ecx=0x40020140, edx=0x40FF0140),
                   Leaf(0x8000_0006, ecx=0x02008140, edx=0x00808140)])  # fmt: skip
    assert [repr(cache) for cache in table.caches] == [
        "<L1 data 64 KiB, 2-way, 64 B lines>",
        "<L1 instruction 64 KiB, fully associative, 64 B lines>",
        "<L2 unified 512 KiB, 16-way, 64 B lines>",
        "<L3 unified 16 MiB, 16-way, 64 B lines>",
    ]


@pytest.mark.parametrize("vcpus", [1, 2, 3, 4, 7, 8, 65, 128, 255, 300])
@pytest.mark.parametrize("leaves", ["levels", "legacy"])
def test_topology_is_one_package(vcpus, leaves):
    """By leaf 0Bh and without it: all in package 0, a core each."""
    basic = [Leaf(0, 0, 0, 0xD if leaves == "levels" else 4, *(INTEL.ebx, INTEL.ecx, INTEL.edx)),
             Leaf(1, ecx=1 << 21), Leaf(4, 0, HAS_INDEX, 0x121, 0x01C0003F, 0x3F)]  # fmt: skip
    ids = range(vcpus if leaves == "levels" else min(vcpus, 64))
    topologies = [Cpuid(basic).for_vcpu(i, len(ids)).topology for i in ids]
    assert {t.package for t in topologies} == {0}
    assert [t.core for t in topologies] == [t.apic_id for t in topologies] == list(ids)
    assert {t.threads for t in topologies} == {1}


LEAVES = st.builds(
    Leaf,
    st.sampled_from([0, 1, 4, 7, 0xB, 0xD, 0x1F, 0x4000_0000, 0x8000_0005, 0x8000_0006,
                     0x8000_0008, 0x8000_001D]),
    st.integers(0, 70), st.just(HAS_INDEX), *[st.integers(0, 0xFFFF_FFFF)] * 4,
)  # fmt: skip


@given(st.lists(LEAVES, max_size=20), SETS)
def test_any_table_can_be_read_and_masked(leaves, names):
    """Nonsense in, values out: no register leaves 32 bits, nothing raises."""
    table = Cpuid([INTEL, Leaf(1, 0, 0, 1, 2, 3, 4), *leaves])
    assert repr(table)
    assert isinstance(repr((table.caches, table.topology, table.address_bits, table.brand)), str)
    masked = table.without(*names)
    assert not any(masked.has(name) for name in names)
    for leaf in masked:
        assert all(0 <= value <= 0xFFFF_FFFF for value in (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
    assert table.diff(masked).apply(table) == masked
