"""ELF32 and ELF64 executables."""

from __future__ import annotations

import time

import pytest
from boot_images import CODE, MIB, Segment, elf

from kvmpy.boot import load
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86.modes import Mode


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory("4M")
    memory[0 : 4 * MIB] = b"\xa5" * (4 * MIB)
    return memory


@pytest.mark.parametrize(("bits", "mode"), [(32, Mode.PROTECTED_32), (64, Mode.LONG_64)])
def test_segments_bss_and_entry(memory: GuestMemory, bits: int, mode: Mode) -> None:
    segments = [Segment(MIB + 1, memsz=0x5003), Segment(2 * MIB, b"data"), Segment(0, b"")]
    loaded = load(elf(bits, segments, entry=MIB + 9), memory)
    assert loaded.format == "elf"
    assert (loaded.entry.mode, loaded.entry.rip) == (mode, MIB + 9)
    assert loaded.segments == (
        (MIB + 1, 0x5003, "PT_LOAD segment 0"),
        (2 * MIB, 4, "PT_LOAD segment 1"),
    )
    zeros = bytes(0x5003 - len(CODE))
    assert memory.read(MIB, 0x5003 + 2) == b"\xa5" + CODE + zeros + b"\xa5"
    assert memory.read(2 * MIB - 1, 6) == b"\xa5data\xa5"


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_large_bss_is_zeroed_to_the_byte(backing: str) -> None:
    with GuestMemory("8M", backing=backing) as memory:  # type: ignore[arg-type]
        memory[0 : 8 * MIB] = b"\xa5" * (8 * MIB)
        load(elf(64, [Segment(MIB + 5, memsz=5 * MIB)]), memory)
        expected = b"\xa5" + CODE + bytes(5 * MIB - len(CODE)) + b"\xa5"
        assert memory.read(MIB + 4, 5 * MIB + 2) == expected


def test_bss_across_adjacent_regions() -> None:
    with GuestMemory("4M") as memory:
        memory.add(4 * MIB, "4M")
        memory.add(8 * MIB, "4M")
        memory[4 * MIB : 8 * MIB] = b"\xa5" * (4 * MIB)
        memory[8 * MIB : 12 * MIB] = b"\xa5" * (4 * MIB)
        load(elf(64, [Segment(5 * MIB, memsz=4 * MIB)]), memory)
        assert memory.read(5 * MIB, 4 * MIB) == CODE + bytes(4 * MIB - len(CODE))
        assert memory.read(9 * MIB, 1) == b"\xa5"


def test_huge_bss_takes_no_time_and_no_memory() -> None:
    with GuestMemory("3G") as memory:
        start = time.monotonic()
        load(elf(64, [Segment(MIB, memsz=(3 << 30) - 2 * MIB)]), memory)
        assert time.monotonic() - start < 0.5


def test_high_segments_load_above_4_gib() -> None:
    with GuestMemory("4G") as memory:
        loaded = load(elf(64, [Segment((4 << 30) + 0x1000)]), memory)
        assert loaded.entry.rip == (4 << 30) + 0x1000
        assert memory.read((4 << 30) + 0x1000, len(CODE)) == CODE
        with pytest.raises(ImageError, match="outside the guest's writable RAM"):
            load(elf(64, [Segment((4 << 30) - 0x1000)]), memory)


def test_virtual_entry_becomes_physical(memory: GuestMemory) -> None:
    image = elf(32, [Segment(MIB, vaddr=0xC010_0000)], entry=0xC010_0008)
    assert load(image, memory).entry.rip == MIB + 8


@pytest.mark.parametrize(
    ("bits", "mode"), [(32, Mode.PAGED_32), (32, Mode.LONG_64), (64, Mode.PROTECTED_32)]
)
def test_mode_as_given(memory: GuestMemory, bits: int, mode: Mode) -> None:
    assert load(elf(bits, [Segment(MIB)]), memory, mode=mode).entry.mode is mode


def test_entry_out_of_reach_of_the_mode(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="e_entry is 0x100000: real mode reaches 0xfffff"):
        load(elf(32, [Segment(MIB)]), memory, mode=Mode.REAL_16)


def patched(image: bytes, offset: int, value: int) -> bytes:
    return image[:offset] + bytes((value,)) + image[offset + 1 :]


GOOD = elf(64, [Segment(MIB)])
ONE = [Segment(MIB)]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GOOD[:10], r"e_ident: 0x10 bytes at file offset 0x0 lie outside the image, .* 0xa bytes"),
        (GOOD[:40], r"the ELF header: 0x30 bytes at file offset 0x10"),
        (GOOD[:100], r"e_phoff, e_phnum: 0x38 bytes at file offset 0x40"),
        (GOOD[:130], r"p_offset, p_filesz of program header 0: 0x40 bytes at file offset 0x78"),
        (b"\x7fELG" + GOOD[4:], r"e_ident starts with 7f 45 4c 47"),
        (patched(GOOD, 4, 3), r"EI_CLASS is 3"),
        (patched(GOOD, 5, 2), r"EI_DATA is 2: only 1 is supported \(ELFDATA2LSB\)"),
        (patched(GOOD, 6, 0), r"EI_VERSION is 0"),
        (elf(64, ONE, e_type=3), r"e_type is 3: .*-static -no-pie"),
        (elf(64, ONE, e_machine=183), r"e_machine is 183: only 62"),
        (elf(32, ONE, e_machine=62), r"e_machine is 62: only 3 "),
        (elf(64, ONE, e_phentsize=32), r"e_phentsize is 32: only 56"),
        (elf(64, ONE, e_phnum=0), r"e_phnum is 0: 1 to 1024"),
        (elf(64, ONE, e_phnum=0xFFFF), r"e_phnum is 65535: 1 to 1024"),
        (elf(64, ONE, e_phnum=1000), r"e_phoff, e_phnum: "),
        (elf(64, ONE, e_phoff=1 << 63), r"file offset 0x8000000000000000"),
        (elf(64, [Segment(MIB, type=3)]), r"program header 0 is PT_INTERP"),
        (elf(64, [Segment(MIB, type=6)]), r"PT_LOAD: the program headers have 0"),
        (elf(64, [Segment(MIB, memsz=0, filesz=0)]), r"PT_LOAD: the program headers have 0"),
        (elf(64, [Segment(MIB, memsz=63)]), r"p_filesz of program header 0 is 0x40: .* 0x3f"),
        (elf(64, [Segment(MIB, filesz=65)]), r"p_filesz of program header 0: 0x41 bytes"),
        (elf(64, [Segment(MIB, offset=(1 << 64) - 32)]), r"0x40 bytes at file offset 0xf+e0"),
        (elf(64, [Segment(MIB, memsz=1 << 63)]), r"PT_LOAD segment 0: 0x100000\.\.0x8"),
        (elf(64, [Segment((1 << 64) - 32)]), r"segment 0: 0xf+e0\.\.0x1000000000000001f lies out"),
        (elf(64, [Segment(16 * MIB)]), r"outside the guest's writable RAM, 0x0\.\.0x3fffff"),
        (elf(64, [Segment(0x3F_0000)]), r"overlaps the supervisor area at 0x3f0000\.\.0x3fffff"),
        (
            elf(64, [Segment(MIB), Segment(MIB + 63)]),
            r"PT_LOAD segment 1: 0x10003f\.\.0x10007e overlaps PT_LOAD segment 0 at 0x100000",
        ),
        (elf(64, ONE, entry=MIB + 64), r"e_entry is 0x100040, outside .*0x100000\.\.0x10003f"),
        (elf(64, ONE, entry=0), r"e_entry is 0x0, outside"),
    ],
)
def test_refused(memory: GuestMemory, image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(image, memory, format="elf")
    assert memory.read(0, 4 * MIB) == b"\xa5" * (4 * MIB)
