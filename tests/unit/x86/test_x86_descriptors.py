"""Descriptors, gates and TSS: known values, round trips, refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, strategies as some

from kvmpy.x86 import descriptors as d
from kvmpy.x86.descriptors import Descriptor, Gate, Tss32, Tss64

u32 = some.integers(0, 0xFFFF_FFFF)
u64 = some.integers(0, (1 << 64) - 1)
limits = some.integers(0, 0xFFFFF) | some.integers(0x100, 0xFFFFF).map(lambda n: n << 12 | 0xFFF)


def word(descriptor: Descriptor) -> int:
    return int.from_bytes(descriptor.encode(), "little")


@pytest.mark.parametrize(
    ("selector", "long", "value"),
    [
        # As Linux has them (arch/x86/include/asm/segment.h), with the accessed bit.
        (d.KERNEL_CODE32, True, 0x00CF9B000000FFFF),
        (d.KERNEL_CODE, True, 0x00AF9B000000FFFF),
        (d.KERNEL_CODE, False, 0x00CF9B000000FFFF),
        (d.KERNEL_DATA, True, 0x00CF93000000FFFF),
        (d.USER_CODE32, True, 0x00CFFB000000FFFF),
        (d.USER_DATA, True, 0x00CFF3000000FFFF),
        (d.USER_CODE64, True, 0x00AFFB000000FFFF),
        (d.USER_CODE64, False, 0x00CFFB000000FFFF),
        (d.USER_DATA_SYSEXIT, True, 0x00CFF3000000FFFF),
        (d.CODE16, False, 0x00009B000000FFFF),
        (d.DATA16, False, 0x000093000000FFFF),
        (d.RING1_CODE, True, 0x00AFBB000000FFFF),
        (d.RING2_DATA, False, 0x00CFD3000000FFFF),
    ],
)
def test_shared_gdt_entries(selector: int, long: bool, value: int) -> None:
    assert word(d.gdt_entries(long=long)[selector & ~3]) == value
    table = d.build_gdt(long=long, tss_base=0, tss_limit=0x67)
    assert int.from_bytes(table[selector & ~7 :][:8], "little") == value


def test_gdt_has_a_null_entry_and_a_busy_tss() -> None:
    table = d.build_gdt(long=False, tss_base=0x12345678, tss_limit=0x67)
    assert len(table) == d.GDT_SIZE
    assert table[:8] == bytes(8)
    assert table[0x40:0x48] == (0x12008B3456780067).to_bytes(8, "little")
    assert table[0x48:0x50] == bytes(8)
    table = d.build_gdt(long=True, tss_base=0x9_1234_5678, tss_limit=0x67)
    assert table[0x40:0x50] == struct.pack("<QII", 0x12008B3456780067, 9, 0)


def test_selectors_fit_the_fast_system_calls() -> None:
    """SYSCALL, SYSRET, SYSENTER and SYSEXIT add constants to an MSR; the GDT must agree."""
    assert d.KERNEL_DATA == d.KERNEL_CODE + 8  # SYSCALL, SYSENTER
    assert d.USER_CODE32 == d.KERNEL_CODE + 16 | 3  # SYSEXIT
    assert d.USER_DATA == d.USER_CODE32 + 8  # SYSEXIT, SYSRET
    assert d.USER_CODE64 == d.USER_CODE32 + 16  # SYSRET with REX.W
    assert d.USER_CODE64 == d.KERNEL_CODE + 32 | 3  # SYSEXIT with REX.W
    assert d.USER_DATA_SYSEXIT == d.KERNEL_CODE + 40 | 3
    assert d.ring_selectors(3, long=True) == (0x33, 0x2B)
    assert d.ring_selectors(3, long=False) == (0x23, 0x2B)
    assert d.ring_selectors(0, long=True) == (0x10, 0x18)


@given(u32, limits, some.integers(0, 15), some.integers(0, 3), *(some.booleans() for _ in range(5)))
def test_descriptor_round_trip(
    base: int,
    limit: int,
    kind: int,
    dpl: int,
    system: bool,
    present: bool,
    avl: bool,
    long: bool,
    big: bool,
) -> None:
    original = Descriptor(base, limit, kind, system, dpl, present, avl, long, big)
    assert Descriptor.decode(original.encode()) == original


@given(u64, limits, some.integers(0, 3))
def test_long_system_descriptor_round_trip(base: int, limit: int, dpl: int) -> None:
    original = Descriptor(base, limit, d.TSS_BUSY, system=True, dpl=dpl)
    encoded = original.encode_long_system()
    assert len(encoded) == 16
    assert Descriptor.decode(encoded) == original


@given(some.binary(min_size=8, max_size=8))
def test_any_descriptor_decodes_and_says_the_same(data: bytes) -> None:
    once = Descriptor.decode(data)
    assert Descriptor.decode(once.encode()) == once


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        (Descriptor(base=1 << 32), "base is 0x100000000"),
        (Descriptor(limit=0x100000), "not expressible in 4 KiB units"),
        (Descriptor(limit=1 << 32), "limit is 0x100000000"),
        (Descriptor(type=16), "type is 0x10"),
        (Descriptor(dpl=4), "dpl is 0x4"),
        (Descriptor(base=-1), "base is -0x1"),
    ],
)
def test_descriptor_fields_must_fit(descriptor: Descriptor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        descriptor.encode()


def test_only_system_descriptors_have_sixteen_bytes() -> None:
    with pytest.raises(ValueError, match="only system descriptors"):
        d.code_segment(0, long=True).encode_long_system()
    with pytest.raises(ValueError, match="only system descriptors"):
        Descriptor.decode(d.code_segment(0, long=True).encode() + bytes(8))
    with pytest.raises(ValueError, match="8 or 16 bytes, not 7"):
        Descriptor.decode(bytes(7))


def test_known_gates() -> None:
    gate = Gate(0xFFFF_8123_4567_89AB, selector=0x10, dpl=3, ist=2)
    assert gate.encode_long().hex() == "ab89100002ee67452381ffff00000000"
    gate = Gate(0x1234_5678, selector=0x08, type=d.TRAP_GATE)
    assert gate.encode_legacy().hex() == "78560800008f3412"
    gate = Gate(0x1234_5678, selector=0x60, type=d.CALL_GATE, dpl=2, parameters=5)
    assert gate.encode_legacy().hex() == "7856600005cc3412"


@given(
    u64,
    some.integers(0, 0xFFFF),
    some.sampled_from([d.CALL_GATE, d.INTERRUPT_GATE, d.TRAP_GATE]),
    some.integers(0, 3),
    some.integers(0, 7),
    some.booleans(),
)
def test_long_gate_round_trip(
    offset: int, selector: int, kind: int, dpl: int, ist: int, present: bool
) -> None:
    gate = Gate(offset, selector, kind, dpl, ist=ist, present=present)
    assert Gate.decode(gate.encode_long()) == gate


@given(
    u32,
    some.integers(0, 0xFFFF),
    some.sampled_from([d.TASK_GATE, d.CALL_GATE, d.INTERRUPT_GATE, d.TRAP_GATE]),
    some.integers(0, 3),
    some.integers(0, 31),
)
def test_legacy_gate_round_trip(
    offset: int, selector: int, kind: int, dpl: int, parameters: int
) -> None:
    gate = Gate(offset, selector, kind, dpl, parameters=parameters)
    assert Gate.decode(gate.encode_legacy()) == gate


def test_gates_refuse_what_their_format_lacks() -> None:
    with pytest.raises(ValueError, match="no IST outside long mode"):
        Gate(0, ist=1).encode_legacy()
    with pytest.raises(ValueError, match="offset is 0x100000000"):
        Gate(1 << 32).encode_legacy()
    with pytest.raises(ValueError, match="copy no parameters"):
        Gate(0, type=d.CALL_GATE, parameters=1).encode_long()
    with pytest.raises(ValueError, match="0x5 is not a long-mode gate"):
        Gate(0, type=d.TASK_GATE).encode_long()
    with pytest.raises(ValueError, match="0xb is not a gate"):
        Gate(0, type=d.TSS_BUSY).encode_legacy()
    with pytest.raises(ValueError, match="ist is 0x8"):
        Gate(0, ist=8).encode_long()
    with pytest.raises(ValueError, match="not that of a gate"):
        Gate.decode(d.code_segment(0, long=True).encode())
    with pytest.raises(ValueError, match="8 or 16 bytes"):
        Gate.decode(bytes(12))


@given(some.tuples(u64, u64, u64), some.tuples(*[u64] * 7), some.integers(0, 0xFFFF))
def test_tss64_round_trip(
    rsp: tuple[int, int, int], ist: tuple[int, int, int, int, int, int, int], io: int
) -> None:
    tss = Tss64(rsp, ist, io)
    data = tss.encode()
    assert len(data) == d.TSS_SIZE
    assert Tss64.decode(data) == tss
    assert int.from_bytes(data[4:12], "little") == rsp[0]
    assert int.from_bytes(data[36:44], "little") == ist[0]
    assert int.from_bytes(data[102:104], "little") == io


@given(
    some.tuples(u32, u32, u32),
    some.tuples(*[some.integers(0, 0xFFFF)] * 3),
    u32,
    some.integers(0, 0xFFFF),
)
def test_tss32_round_trip(
    esp: tuple[int, int, int], ss: tuple[int, int, int], cr3: int, io: int
) -> None:
    tss = Tss32(esp, ss, cr3, io)
    data = tss.encode()
    assert len(data) == d.TSS_SIZE
    assert Tss32.decode(data) == tss
    assert int.from_bytes(data[4:8], "little") == esp[0]
    assert int.from_bytes(data[8:10], "little") == ss[0]


@given(some.sets(some.integers(0, 0xFFFF), max_size=20), some.integers(0, 0xFFFF))
def test_io_bitmap_clears_just_the_allowed_ports(allowed: set[int], port: int) -> None:
    bitmap = d.io_bitmap(allowed)
    assert len(bitmap) == 8193
    assert bitmap[-1] == 0xFF
    for probe in (*allowed, port):
        assert (not bitmap[probe // 8] >> probe % 8 & 1) == (probe in allowed)


def test_io_bitmap_refuses_a_port_beyond_16_bits() -> None:
    with pytest.raises(ValueError, match="port is 0x10000"):
        d.io_bitmap([0x10000])
