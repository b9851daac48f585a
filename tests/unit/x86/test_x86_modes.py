"""The state that each mode and ring starts with, checked against the rules of VM entry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmpy.memory.guest import GuestMemory
from kvmpy.state import Segment
from kvmpy.x86 import descriptors as d, layout, state as st
from kvmpy.x86.bits import GENERAL
from kvmpy.x86.descriptors import Descriptor, Gate, Tss32, Tss64
from kvmpy.x86.layout import KIB, MIB
from kvmpy.x86.modes import Mode, prepare
from kvmpy.x86.paging import is_canonical
from kvmpy.x86.state import CpuState, loaded_segment
from kvmpy.x86.walk import Paging, walk

ENTRIES = [(Mode.REAL_16, 0)] + [
    (mode, ring) for mode in (Mode.PROTECTED_32, Mode.PAGED_32, Mode.LONG_64) for ring in range(4)
]
PROTECTED = [entry for entry in ENTRIES if entry[0] is not Mode.REAL_16]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as ram:
        yield ram


def check_granularity(segment: Segment) -> None:
    if segment.limit & 0xFFF != 0xFFF:
        assert segment.g == 0
    if segment.limit >> 20:
        assert segment.g == 1


def check_vm_entry(state: CpuState) -> None:
    """SDM vol. 3, "Checks on the Guest State Area", with unrestricted guest."""
    s = state.sregs
    pe, pg, lma = s.cr0 & 1, s.cr0 >> 31, s.efer >> 10 & 1
    assert s.cr0 & st.CR0_NE
    assert not pg or pe
    assert (s.efer >> 8 & 1 and pg) == lma
    assert not lma or s.cr4 & st.CR4_PAE
    assert s.cr3 < 1 << 36
    assert s.cr3 % 4096 == 0
    assert state.regs["rflags"] & 0x3F_7FD7 | 2 == state.regs["rflags"]
    assert not state.regs["rflags"] & 1 << 17
    assert all(is_canonical(state.msrs[msr]) for msr in (st.MSR_SYSENTER_ESP, st.MSR_SYSENTER_EIP))
    for table in (s.gdt, s.idt):
        assert table.limit <= 0xFFFF
        assert is_canonical(table.base)
    if not (lma and s.cs.l):
        assert state.regs["rip"] < 1 << 32

    data = (s.ss, s.ds, s.es, s.fs, s.gs)
    for segment in (s.cs, *data):
        assert segment.s == segment.present == 1
        assert not segment.unusable
        assert segment.base < 1 << 32
        check_granularity(segment)
    assert s.cs.type in (9, 11, 13, 15)
    assert s.cs.dpl == s.ss.dpl
    assert not (lma and s.cs.l and s.cs.db)
    assert s.ss.type in (3, 7)
    if pe:
        assert s.cs.selector & 3 == s.ss.selector & 3 == s.ss.dpl
    else:
        assert s.ss.dpl == 0
        for segment in (s.cs, *data):
            assert (segment.base, segment.limit) == (segment.selector * 16, 0xFFFF)
    for segment in data[1:]:
        assert segment.type & 1
        assert segment.dpl >= segment.selector & 3
    assert s.tr.type == 11 or (s.tr.type == 3 and not lma)
    assert (s.tr.s, s.tr.present, s.tr.unusable) == (0, 1, 0)
    assert not s.tr.selector & 4
    check_granularity(s.tr)
    assert s.ldt.unusable == 1
    assert s.ldt.present == 0  # SVM has only this bit


@pytest.mark.parametrize(("mode", "ring"), ENTRIES)
def test_state_satisfies_vm_entry(memory: GuestMemory, mode: Mode, ring: int) -> None:
    state = prepare(memory, mode, rip=0x1000, ring=ring)
    check_vm_entry(state)
    assert state.sregs.ss.dpl == ring
    assert state.regs["rip"] == 0x1000
    assert set(state.regs) == set(GENERAL)
    assert (state.fcw, state.mxcsr) == (0x37F, 0x1F80)


@pytest.mark.parametrize(("mode", "ring"), PROTECTED)
def test_segment_caches_are_what_the_gdt_says(memory: GuestMemory, mode: Mode, ring: int) -> None:
    sregs = prepare(memory, mode, rip=0x1000, ring=ring).sregs
    assert sregs.gdt.limit == d.GDT_SIZE - 1
    for segment in (sregs.cs, sregs.ss, sregs.ds, sregs.es, sregs.fs, sregs.gs):
        entry = memory.read(sregs.gdt.base + (segment.selector & ~7), 8)
        assert loaded_segment(segment.selector, Descriptor.decode(entry)) == segment
    size = 16 if mode is Mode.LONG_64 else 8
    tss = Descriptor.decode(memory.read(sregs.gdt.base + sregs.tr.selector, size))
    assert (tss.base, tss.limit, tss.type) == (sregs.tr.base, sregs.tr.limit, sregs.tr.type)


def test_control_registers_and_efer(memory: GuestMemory) -> None:
    def control(mode: Mode) -> tuple[int, int, int]:
        sregs = prepare(memory, mode, rip=0x1000).sregs
        return sregs.cr0, sregs.cr4, sregs.efer

    assert control(Mode.REAL_16) == (0x30, 0, 0)
    assert control(Mode.PROTECTED_32) == (0x33, 0x600, 0x1)
    assert control(Mode.PAGED_32) == (0x8001_0033, 0x610, 0x1)
    assert control(Mode.LONG_64) == (0x8001_0033, 0x620, 0xD01)


@pytest.mark.parametrize(
    ("mode", "ring", "code", "data"),
    [
        (Mode.LONG_64, 0, 0x10, 0x18),
        (Mode.LONG_64, 1, 0x61, 0x69),
        (Mode.LONG_64, 2, 0x72, 0x7A),
        (Mode.LONG_64, 3, 0x33, 0x2B),
        (Mode.PROTECTED_32, 0, 0x10, 0x18),
        (Mode.PAGED_32, 3, 0x23, 0x2B),
    ],
)
def test_selectors(memory: GuestMemory, mode: Mode, ring: int, code: int, data: int) -> None:
    sregs = prepare(memory, mode, rip=0x1000, ring=ring).sregs
    assert (sregs.cs.selector, sregs.ss.selector) == (code, data)
    assert (sregs.cs.l, sregs.cs.db) == ((1, 0) if mode is Mode.LONG_64 else (0, 1))


def test_system_call_msrs(memory: GuestMemory) -> None:
    area = layout.supervisor_area(memory)
    msrs = prepare(memory, Mode.LONG_64, rip=0x1000).msrs
    assert msrs == {
        0xC0000081: 0x0023_0010_0000_0000,
        0xC0000082: area.stub(layout.SYSCALL_SLOT),
        0xC0000083: area.stub(layout.SYSCALL32_SLOT),
        0xC0000084: 0x47700,
        0x174: 0x10,
        0x175: area.ring0_stack_top,
        0x176: area.stub(layout.SYSENTER_SLOT),
        0xC0000100: 0,
        0xC0000101: 0,
        0xC0000102: 0,
    }
    msrs = prepare(
        memory, Mode.LONG_64, rip=0x1000, syscall=0x2000, syscall32=0x3000, sysenter=0x4000
    ).msrs
    assert (msrs[0xC0000082], msrs[0xC0000083], msrs[0x176]) == (0x2000, 0x3000, 0x4000)
    msrs = prepare(memory, Mode.PROTECTED_32, rip=0x1000, syscall=0x2000).msrs
    assert msrs[0xC0000081] == 0x0023_0010_0000_2000
    assert set(prepare(memory, Mode.REAL_16, rip=0x1000).msrs.values()) == {0}


@pytest.mark.parametrize("mode", [Mode.PROTECTED_32, Mode.PAGED_32, Mode.LONG_64])
def test_idt(memory: GuestMemory, mode: Mode) -> None:
    area = layout.supervisor_area(memory)
    handlers: dict[int, int | Gate] = {0x80: Gate(0x5000, dpl=3), 14: 0x6000}
    sregs = prepare(memory, mode, rip=0x1000, handlers=handlers).sregs
    size = 16 if mode is Mode.LONG_64 else 8
    assert sregs.idt.limit == 256 * size - 1
    table = memory.read(sregs.idt.base, 256 * size)
    for vector in range(256):
        raw = table[vector * size : (vector + 1) * size]
        if vector >= 32 and vector != 0x80:
            assert raw == bytes(size)
            continue
        gate = Gate.decode(raw)
        expected = {14: 0x6000, 0x80: 0x5000}.get(vector, area.stub(vector))
        assert (gate.offset, gate.selector, gate.type) == (expected, 0x10, d.INTERRUPT_GATE)
        assert gate.dpl == (3 if vector in (3, 4, 0x80) else 0)
        assert gate.ist == (1 if vector == 8 and size == 16 else 0)
    for slot in range(layout.STUB_SLOTS):
        assert memory.read(area.stub(slot), 8) == layout.STUB


def test_tss_and_stacks(memory: GuestMemory) -> None:
    area = layout.supervisor_area(memory)
    state = prepare(memory, Mode.LONG_64, rip=0x1000)
    tss = Tss64.decode(memory.read(state.sregs.tr.base, d.TSS_SIZE))
    assert (tss.rsp[0], tss.ist[0]) == (area.ring0_stack_top, area.ist_stack_top)
    assert state.sregs.tr.limit == d.TSS_SIZE - 1 < tss.io_map_base  # no port allowed
    assert state.regs["rsp"] == area.end
    state = prepare(memory, Mode.PROTECTED_32, rip=0x1000, ring=3)
    legacy = Tss32.decode(memory.read(state.sregs.tr.base, d.TSS_SIZE))
    assert (legacy.ss[0], legacy.esp[0]) == (0x18, area.ring0_stack_top)
    assert state.regs["rsp"] == area.base  # ring 3 does not reach the supervisor area
    assert prepare(memory, Mode.LONG_64, rip=0x1000, ring=3, rsp=0x9000).regs["rsp"] == 0x9000


def test_io_permissions(memory: GuestMemory) -> None:
    state = prepare(memory, Mode.LONG_64, rip=0x1000, ring=3, io_ports=[0xE9], iopl=2)
    assert state.regs["rflags"] == 0x2002
    assert state.sregs.tr.limit == d.TSS_SIZE + d.IO_BITMAP_SIZE - 1
    bitmap = memory.read(state.sregs.tr.base + d.TSS_SIZE, d.IO_BITMAP_SIZE)
    assert bitmap == d.io_bitmap([0xE9])


@pytest.mark.parametrize(
    ("mode", "paging"), [(Mode.PAGED_32, Paging.LEGACY), (Mode.LONG_64, Paging.LEVEL4)]
)
def test_paging_is_on_and_guards_the_area(memory: GuestMemory, mode: Mode, paging: Paging) -> None:
    sregs = prepare(memory, mode, rip=0x1000).sregs
    assert Paging.of(sregs.cr0, sregs.cr4, sregs.efer) is paging
    assert walk(memory, sregs.cr3, 0x1000, paging).user
    for address in (sregs.gdt.base, sregs.idt.base, sregs.tr.base, sregs.cr3):
        found = walk(memory, sregs.cr3, address, paging)
        assert (found.gpa, found.user) == (address, False)


def test_real_mode(memory: GuestMemory) -> None:
    state = prepare(memory, Mode.REAL_16, rip=0x1_2345, handlers={0x21: 0x2_0010, 5: Gate(0x700)})
    assert (state.sregs.cs.selector, state.sregs.cs.base) == (0x1000, 0x1_0000)
    assert (state.regs["rip"], state.regs["rsp"]) == (0x2345, 0x7C00)
    assert state.sregs.idt.limit == 0x3FF
    assert memory.read(4 * 0x21, 4).hex() == "10000020"
    assert memory.read(4 * 5, 4).hex() == "00070000"
    for vector in range(256):
        if vector in (5, 0x21):
            continue
        pointer = int.from_bytes(memory.read(4 * vector, 4), "little")
        address = (pointer >> 16) * 16 + (pointer & 0xFFFF)
        assert memory.read(address, 5) == layout.STUB[:5]
    assert memory.read(layout.REAL_RESERVED_END, 64) == bytes(64)


def test_real_mode_needs_little_memory() -> None:
    with GuestMemory(4096) as tiny:
        assert prepare(tiny, Mode.REAL_16, rip=0x800).regs["rsp"] == 4096
        with pytest.raises(ValueError, match="need at least 128 KiB of RAM"):
            prepare(tiny, Mode.LONG_64, rip=0x800)
    with GuestMemory(128 * KIB) as small:
        for mode in Mode:
            check_vm_entry(prepare(small, mode, rip=0x1000))


def test_registers_by_either_name(memory: GuestMemory) -> None:
    regs = {"rdi": 1 << 63, "r15": 7, "eax": 0x2BADB002, "rflags": 0x40}
    state = prepare(memory, Mode.LONG_64, rip=0x1000, regs=regs)
    assert state.regs["rdi"] == 1 << 63
    assert state.regs["r15"] == 7
    assert state.regs["rax"] == 0x2BADB002
    assert state.regs["rflags"] == 0x42
    state = prepare(memory, Mode.PROTECTED_32, rip=0x1000, regs={"ebx": 9500})
    assert state.regs["rbx"] == 9500


def test_another_area_for_another_vcpu(memory: GuestMemory) -> None:
    first = prepare(memory, Mode.LONG_64, rip=0x1000)
    before = memory.read(2 * MIB - 64 * KIB, 64 * KIB)
    second = prepare(memory, Mode.LONG_64, rip=0x1000, base=MIB)
    assert memory.read(2 * MIB - 64 * KIB, 64 * KIB) == before
    check_vm_entry(second)
    assert second.regs["rsp"] == MIB + 64 * KIB != first.regs["rsp"]
    assert second.sregs.tr.base != first.sregs.tr.base
    assert second.stub_table.stubs != first.stub_table.stubs


@pytest.mark.parametrize(
    ("mode", "arguments", "message"),
    [
        (Mode.REAL_16, {"ring": 3}, "real mode has ring 0 only"),
        (Mode.REAL_16, {"syscall": 0x1000}, "real mode has ring 0 only"),
        (Mode.REAL_16, {"base": 0x1000}, "real mode has ring 0 only"),
        (Mode.REAL_16, {"rip": 1 << 20}, "rip is 0x100000, real mode reaches below 1 MiB"),
        (Mode.REAL_16, {"rsp": 0x1_0000}, "must fit in 16 bits"),
        (Mode.REAL_16, {"handlers": {1: 1 << 20}}, "the handler of vector 1 is 0x100000"),
        (Mode.LONG_64, {"ring": 4}, "ring 4"),
        (Mode.LONG_64, {"ring": -1}, "ring -1"),
        (Mode.LONG_64, {"iopl": 4}, "iopl 4"),
        (Mode.LONG_64, {"rip": 1 << 47}, "rip is 0x800000000000, not a canonical"),
        (Mode.LONG_64, {"rip": -1}, "rip is -0x1"),
        (Mode.LONG_64, {"rsp": 1 << 64}, "rsp is 0x10000000000000000"),
        (Mode.LONG_64, {"rip": 2 * MIB - 64 * KIB}, "is in the supervisor area"),
        (Mode.LONG_64, {"sysenter": 1 << 47}, "sysenter is 0x800000000000"),
        (Mode.LONG_64, {"handlers": {256: 0}}, "handlers has vector 256"),
        (Mode.LONG_64, {"handlers": {1: 1 << 47}}, "the handler of vector 1 is 0x8000"),
        (Mode.LONG_64, {"io_ports": [-1]}, "port is -0x1"),
        (Mode.LONG_64, {"regs": {"rip": 0}}, "rip has a parameter of its own"),
        (Mode.LONG_64, {"regs": {"esp": 0}}, "esp has a parameter of its own"),
        (Mode.LONG_64, {"regs": {"xmm0": 0}}, "'xmm0' is not a general register"),
        (Mode.LONG_64, {"regs": {"eax": 1 << 32}}, "eax is 0x100000000, it must fit in 32 bits"),
        (Mode.LONG_64, {"regs": {"rax": -1}}, "rax is -0x1"),
        (Mode.LONG_64, {"base": 0x1001}, "base 0x1001 is not page-aligned"),
        (Mode.LONG_64, {"base": 2 * MIB - 68 * KIB}, "overlaps the first supervisor area"),
        (Mode.LONG_64, {"base": 1 << 40}, "outside guest memory"),
        (Mode.PAGED_32, {"rip": 1 << 32}, "it must be below 4 GiB in paged mode"),
        (Mode.PAGED_32, {"syscall32": 0x1000}, "exists in long mode only"),
        (Mode.PAGED_32, {"regs": {"r8": 0}}, "'r8' is not a general register of paged mode"),
        (Mode.PROTECTED_32, {"regs": {"rax": 1 << 32}}, "it must fit in 32 bits"),
        (Mode.PROTECTED_32, {"handlers": {1: Gate(0, ist=1)}}, "no IST outside long mode"),
    ],
)
def test_impossible_arguments_are_refused(
    memory: GuestMemory, mode: Mode, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(memory, mode, **{"rip": 0x1000, **arguments})  # type: ignore[arg-type]
    assert memory.read(0, 2 * MIB) == bytes(2 * MIB)  # nothing written


def test_mode_widths() -> None:
    assert [mode.bits for mode in Mode] == [16, 32, 32, 64]
