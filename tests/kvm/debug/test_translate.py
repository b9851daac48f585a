"""Virtual addresses: KVM's translation, ours with every step, and memory by them."""

import struct

import pytest

import kvmpy
from kvmpy import GuestMemoryError
from kvmpy.x86.walk import Paging

PG, PE, WP = 1 << 31, 1, 1 << 16
PSE, PAE, LA57 = 1 << 4, 1 << 5, 1 << 12
LME, LMA, NXE = 1 << 8, 1 << 10, 1 << 11
P, RW, US, PS = 1, 2, 4, 1 << 7
XD = 1 << 63
ROOT, A, B, C, D = 0x10000, 0x11000, 0x12000, 0x13000, 0x14000


def put(vm, table, index, entry, size=8):
    vm.load(struct.pack("<Q" if size == 8 else "<I", entry), at=table + size * index)


def four_level(vm, root=ROOT):
    put(vm, root, 0, A | P | RW | US)
    put(vm, A, 0, B | P | RW | US)
    put(vm, A, 1, 0x4000_0000 | P | RW | PS)  # 1 GiB, supervisor
    put(vm, B, 0, C | P | RW | US)
    put(vm, B, 1, 0x20_0000 | P | US | PS)  # 2 MiB, read-only
    put(vm, C, 5, 0x7000 | P | RW | US | XD)
    return [0x5000, 0x5FFF, 0x20_0000, 0x3F_FFFF, 0x6000, 0x40_0000, 1 << 39, 0x4000_0123]


def legacy(vm):
    put(vm, ROOT, 0, C | P | RW | US, 4)
    put(vm, ROOT, 1, 0x40_0000 | P | PS, 4)  # 4 MiB
    put(vm, C, 5, 0x7000 | P | RW | US, 4)
    return [0x5000, 0x5FFF, 0x40_0000, 0x7F_FFFF, 0x6000, 0x80_0000]


def pae(vm):
    put(vm, ROOT, 0, B | P)
    put(vm, B, 0, C | P | RW | US)
    put(vm, B, 1, 0x20_0000 | P | PS)
    put(vm, C, 5, 0x7000 | P | RW | US)
    return [0x5000, 0x20_1234, 0x6000, 0x40_0000, 0x4000_0000]


def five_level(vm):
    put(vm, D, 0, ROOT | P | RW | US)
    return four_level(vm)


def paged(vm, cr3, cr4, efer):
    """A vCPU with paging on, that has not run."""
    cpu = vm.vcpu()
    mode = kvmpy.LONG_MODE if efer & LMA else kvmpy.PROTECTED_MODE
    cpu.enter(mode, rip=0x1000)
    sregs = cpu.sregs
    sregs.cr3, sregs.cr4, sregs.efer = cr3, cr4, efer
    sregs.cr0 = sregs.cr0 | PG | PE
    return cpu


CASES = {
    "4-level": (four_level, ROOT, PAE | PSE, LME | LMA | NXE, Paging.LEVEL4),
    "32-bit": (legacy, ROOT, PSE, 0, Paging.LEGACY),
    "PAE": (pae, ROOT, PAE, 0, Paging.PAE),
}


@pytest.mark.parametrize("name", CASES)
def test_agree(vm, name, module):
    """KVM_TRANSLATE and walk(): the same address or none, for every page size."""
    build, cr3, cr4, efer, paging = CASES[name]
    if module == "kvm_pvm" and paging is not Paging.LEVEL4:
        pytest.skip("kvm_pvm: no 32-bit paging and no PAE")
    addresses = build(vm)
    cpu = paged(vm, cr3, cr4, efer)
    assert Paging.of(cpu.sregs.cr0, cpu.sregs.cr4, cpu.sregs.efer) is paging
    gigabyte = cpu.cpuid[0x80000001].edx >> 26 & 1
    found = {}
    for gva in addresses:
        if gva == 0x4000_0123 and not gigabyte:
            continue
        walked, translated = cpu.walk(gva), cpu.translate(gva)
        assert walked.gpa == translated.gpa, str(walked)
        assert translated.linear_address == gva
        found[gva] = walked
    assert found[0x5000].gpa == 0x7000
    assert found[0x6000].gpa is None
    assert found[0x5000].page_size == 4096
    assert len({walk.page_size for walk in found.values() if walk.gpa is not None}) >= 2


@pytest.mark.not_on("kvm_pvm", reason="no LA57")
def test_five_levels(vm):
    """The same tables below a PML5."""
    if not vm.vcpu().cpuid[7].ecx >> 16 & 1:
        pytest.skip("this processor has no LA57")
    addresses = five_level(vm)
    cpu = paged(vm, D, PAE | LA57, LME | LMA | NXE)
    for gva in addresses[:-1]:
        assert cpu.walk(gva).gpa == cpu.translate(gva).gpa


def test_walk_shows_its_steps(vm):
    """Each level's entry, where it is, its flags; the permissions together."""
    four_level(vm)
    cpu = paged(vm, ROOT, PAE | PSE, LME | LMA | NXE)
    found = cpu.walk(0x5123)
    assert [(level.name, level.entry_gpa) for level in found.levels] == [
        ("PML4", ROOT), ("PDPT", A), ("PD", B), ("PT", C + 5 * 8),
    ]  # fmt: skip
    assert found.levels[3].flags == ("P", "RW", "US", "XD")
    assert cpu.walk(0x20_0000).levels[2].flags == ("P", "US", "PS")
    assert (found.writable, found.user, found.executable) == (True, True, False)
    assert "gva 0x5123 -> gpa 0x7123" in str(found)
    assert cpu.walk(0x6000).fault == "PT entry is not present"
    for bad in (-1, 1 << 64):
        with pytest.raises(ValueError, match="is not in"):
            cpu.walk(bad)
        with pytest.raises(ValueError, match="is not in"):
            cpu.translate(bad)


def test_no_paging(vm, start):
    """Linear is physical then."""
    cpu = start("hlt", kvmpy.PROTECTED_MODE)
    assert cpu.walk(0x1234).gpa == cpu.translate(0x1234).gpa == 0x1234
    assert cpu.walk(0x1234).levels == ()


def test_memory_by_virtual_address(vm):
    """Across pages that are not neighbours; all of it or nothing."""
    four_level(vm)
    put(vm, C, 6, 0x9000 | P | RW | US)
    put(vm, C, 7, 0x100_0000 | P | RW | US)  # beyond RAM
    cpu = paged(vm, ROOT, PAE | PSE, LME | LMA | NXE)
    cpu.write_virtual(0x5FFE, b"abcd")
    assert vm.memory.read(0x7FFE, 2) == b"ab"
    assert vm.memory.read(0x9000, 2) == b"cd"
    assert cpu.read_virtual(0x5FFE, 4) == b"abcd"
    for gva in (0x6FFE, 0x8000):
        with pytest.raises(GuestMemoryError):
            cpu.read_virtual(gva, 4)
        with pytest.raises(GuestMemoryError):
            cpu.write_virtual(gva, b"wxyz")
    assert vm.memory.read(0x9FFE, 2) == b"\0\0"
    assert cpu.read_virtual(0x5000, 0) == b""
    with pytest.raises(ValueError, match="are not in"):
        cpu.read_virtual((1 << 64) - 1, 2)
