"""CPUID on the real KVM: what the guest sees, and that names mean what Linux means by them."""

import json

import pytest

import kvmpy
from kvmpy.cpuid import features as cf
from kvmpy.cpuid.cpuid import Cpuid

# /proc/cpuinfo's words for what is no single bit of CPUID: the kernel's own summaries and
# conclusions, and VT-x properties, of which "vnmi" has a namesake of AMD's.
SUMMARIES = {
    "ibrs", "ibpb", "stibp", "ssbd", "vnmi", "mba", "rep_good", "cpuid", "kaiser", "pti",
    "constant_tsc", "nonstop_tsc", "user_shstk", "3dnowprefetch",
}  # fmt: skip
# Bits that CPUID shows and Linux does not list: no flag of its, turned off for an erratum or for
# lack of a use, or summed up in other words.
UNLISTED = {
    "osxsave", "shstk", "ibt", "rdseed", "erms", "tsc_deadline_timer", "la57", "pks", "pcommit",
    "zero_fcs_fds", "svme_addr_chk",
}  # fmt: skip


def cpuinfo_flags():
    with open("/proc/cpuinfo") as file:
        return set(next(line for line in file if line.startswith("flags")).split()[2:])


def test_names_mean_what_linux_means():
    """Each flag of /proc/cpuinfo that has a name here is set in this CPU's CPUID, by that name."""
    table = Cpuid.of_this_cpu()
    flags = cpuinfo_flags() - SUMMARIES
    known = {flag for flag in flags if cf._by_spelling().get(cf._squeeze(flag))}
    assert len(known) > 50
    assert {flag for flag in known if flag not in table} == set()
    assert {cf.find(flag).name for flag in known} == known  # the names are Linux's own


def test_bits_that_linux_lists():
    """The other way: what CPUID shows in the words that Linux lists bit by bit, it lists."""
    flags = cpuinfo_flags()
    listed = {
        (1, "ecx"), (1, "edx"), (7, "ebx"), (7, "ecx"), (0x8000_0001, "ecx"), (0x8000_0001, "edx"),
        (0x8000_000A, "edx"),
    }  # fmt: skip
    table = Cpuid.of_this_cpu()
    missing = {
        name
        for name in table.features
        if (cf.find(name).function, cf.find(name).register) in listed
        and cf.find(name).index == 0
        and name not in flags | UNLISTED
    }
    assert missing == set()


def test_supported_is_what_the_cpu_has():
    """KVM passes on what the CPU has, or emulates; the table's names find the same bits."""
    with kvmpy.KVM() as kvm:
        table, emulated = kvm.supported_cpuid(), kvm.emulated_cpuid()
    own = {"hypervisor", "x2apic", "tsc_deadline_timer", "tsc_adjust", "arch_capabilities", "umip",
           "arat", "cmp_legacy"}  # fmt: skip
    words = {(1, 0, "ecx"), (1, 0, "edx"), (7, 0, "ebx"), (7, 0, "ecx"), (0x8000_0001, 0, "ecx")}
    this = Cpuid.of_this_cpu()
    made_up = {
        name
        for name in table.features
        if (f := cf.find(name))
        and (f.function, f.index, f.register) in words
        and name not in this
        and name not in own
        and name not in emulated
    }
    assert made_up == set()
    assert {"hypervisor", "kvmclock", "lm", "apic"} <= set(table.features)
    assert table.hypervisor == "KVMKVMKVM"
    assert table.address_bits.physical >= 32
    assert table.address_bits.linear in (48, 57)
    assert table.vendor in repr(table)


def test_emulated():
    """KVM's emulator has MOVBE and RDPID, since 3.13 and 6.2."""
    with kvmpy.KVM() as kvm:
        assert "movbe" in kvm.emulated_cpuid()


READ = "cpuid; mov [0x20000], eax; mov [0x20004], ebx; mov [0x20008], ecx; mov [0x2000c], edx; hlt"


def cpuid_in_guest(table, function, index=0, vcpu_id=0, **vm_options):
    """What CPUID gives in ring 0 of a vCPU with this table."""
    with kvmpy.VM("1M", **vm_options) as vm:
        vm.load(
            kvmpy.asm(f"mov eax, {function:#x}; mov ecx, {index}; {READ}", org=0x1000), at=0x1000
        )
        cpu = vm.vcpu(vcpu_id, cpuid=table)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        cpu.expect(kvmpy.Hlt, timeout=60)
        return [cpu.regs.rax, cpu.regs.rbx, cpu.regs.rcx, cpu.regs.rdx]


@pytest.fixture(scope="module")
def supported():
    with kvmpy.KVM() as kvm:
        return kvm.supported_cpuid()


@pytest.mark.parametrize("feature", ["cx16", "lahf_lm", "kvmclock", "x2apic", "hypervisor"])
def test_masked_in_the_guest(supported, feature):
    """It sees the bit, and no longer when it is masked."""
    place = cf.find(feature)
    register = ("eax", "ebx", "ecx", "edx").index(place.register)
    for table, there in ((supported, 1), (supported.without(feature), 0)):
        values = cpuid_in_guest(table.for_vcpu(0), place.function, place.index)
        assert values[register] >> place.bit & 1 == there


@pytest.mark.not_on("kvm_pvm", reason="shows the host's bits of leaves 1 and 7 in ring 0")
@pytest.mark.parametrize("feature", ["sse4_2", "avx", "avx2", "xsave", "popcnt", "rdrand", "bmi1"])
def test_masked_in_the_guest_where_the_module_honours_it(supported, feature):
    """So it is with the rest, and with all that needs it."""
    masked = supported.without(feature)
    assert feature in supported
    removed = supported.diff(masked).removed
    seen = {}
    for name in removed:
        place = cf.find(name)
        key = place.function, place.index
        if key not in seen:
            seen[key] = cpuid_in_guest(masked.for_vcpu(0), *key)
        assert not seen[key][("eax", "ebx", "ecx", "edx").index(place.register)] >> place.bit & 1


@pytest.mark.not_on("kvm_pvm", reason="shows the host's leaf 0Dh in ring 0")
def test_xsave_area_in_the_guest(supported):
    """KVM shows the size of the XSAVE area that the mask leaves, and the smaller one of now."""
    for table in (supported, supported.without("avx")):
        eax, ebx, ecx, _ = cpuid_in_guest(table.for_vcpu(0), 0xD)
        assert (eax, ecx) == (table[0xD].eax, table[0xD].ecx)
        assert ebx == 576  # XCR0 is 1: x87 only


@pytest.mark.parametrize(("vcpu", "vcpus"), [(0, 1), (1, 2), (2, 3), (5, 8)])
def test_topology_in_the_guest(supported, vcpu, vcpus):
    """KVM shows the levels of leaf 0Bh, and past the last one the id and no type."""
    table = supported.for_vcpu(vcpu, vcpus)
    bits = (vcpus - 1).bit_length()
    expected = [[0, 1, 0x100, vcpu], [bits, vcpus, 0x201, vcpu], [0, 0, 2, vcpu]]
    for index, registers in enumerate(expected):
        assert cpuid_in_guest(table, 0xB, index, vcpu) == registers
    assert cpuid_in_guest(table, 1, 0, vcpu)[1] >> 24 == vcpu
    with kvmpy.VM("1M") as vm:
        assert vm.vcpu(vcpu, cpuid=table).cpuid.topology == table.topology


def test_x2apic_ids(supported):
    """Ids above 254, where KVM has them: leaf 0Bh tells the whole id."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        highest = vm.check_extension("KVM_CAP_MAX_VCPU_ID")
        assert highest > 255
        cpu = vm.vcpu(300, cpuid=supported.for_vcpu(300, 301))
        assert cpu.cpuid.topology.apic_id == 300
        assert cpu.cpuid.topology.package == 0


def test_without_local_apic_in_the_guest():
    """A VM without irqchip shows no x2APIC and no deadline timer: KVM has none for it."""
    with kvmpy.VM("1M") as vm, kvmpy.VM("1M", irqchip=True) as full:
        bare, complete = vm.vcpu().cpuid, full.vcpu().cpuid
    assert not bare.has("x2apic")
    assert not bare.has("tsc_deadline_timer")
    assert complete.has("x2apic")
    assert complete.diff(bare).added == ()


def test_for_this_module(supported, module):
    """On kvm_pvm the guest no longer sees what its kernel would use and the emulator lacks."""
    table, masked = supported.for_module(module)
    assert bool(masked) == (module == "kvm_pvm")
    for feature, reason in masked:
        assert reason
        place = cf.find(feature)
        values = cpuid_in_guest(table.for_vcpu(0), place.function, place.index)
        assert not values[("eax", "ebx", "ecx", "edx").index(place.register)] >> place.bit & 1


def test_tables_are_plain_data(supported):
    """A table and a difference survive as JSON."""
    masked = supported.without("sse2")
    text = json.dumps([(*x.key, x.flags, x.eax, x.ebx, x.ecx, x.edx) for x in masked])
    assert Cpuid(kvmpy.Leaf(*row) for row in json.loads(text)) == masked
