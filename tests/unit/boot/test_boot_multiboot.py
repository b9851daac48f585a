"""Multiboot 1: the header, both ways of loading, and the information structure byte by byte."""

from __future__ import annotations

import struct

import pytest
from boot_images import CODE, MIB, Segment, elf, multiboot_elf, multiboot_header, multiboot_kludge

from kvmpy.boot import LoadedImage, load
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86.modes import Mode


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory("4M")
    memory[0 : 4 * MIB] = b"\xa5" * (4 * MIB)
    return memory


def info_words(memory: GuestMemory, loaded: LoadedImage) -> tuple[int, ...]:
    assert loaded.entry.mode is Mode.PROTECTED_32
    assert set(loaded.entry.regs) == {"rax", "rbx"}
    assert loaded.entry.regs["rax"] == 0x2BADB002
    return struct.unpack("<29I", memory.read(loaded.entry.regs["rbx"], 116))


def string_at(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 256).split(b"\0")[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_elf(memory: GuestMemory, bits: int) -> None:
    loaded = load(multiboot_elf(bits=bits), memory)
    assert loaded.format == "multiboot"
    assert loaded.entry.rip == MIB + 12
    assert memory.read(MIB, 0x3000) == (multiboot_header() + CODE).ljust(0x3000, b"\0")


def test_address_fields(memory: GuestMemory) -> None:
    image = multiboot_kludge()
    loaded = load(image, memory)
    assert loaded.format == "multiboot"
    assert loaded.entry.rip == MIB + 48
    assert memory.read(MIB, len(image) + 0x1001) == image + bytes(0x1000) + b"\xa5"


def test_address_fields_may_skip_the_start_and_take_all_the_rest(memory: GuestMemory) -> None:
    image = multiboot_kludge(
        before=64, load_addr=MIB, header_addr=MIB + 4, load_end_addr=0, bss_end_addr=0,
        entry_addr=MIB + 36,
    )  # fmt: skip
    loaded = load(image, memory)
    assert (MIB, len(image) - 60, "image") in loaded.segments
    assert memory.read(MIB, len(image) - 59) == image[60:] + b"\xa5"


def test_address_fields_win_over_elf_headers(memory: GuestMemory) -> None:
    fields = (2 * MIB + 84, 2 * MIB, 0, 0, 2 * MIB + 84 + 32)
    content = multiboot_header(0x10003, fields) + CODE
    image = elf(32, [Segment(MIB, content)])
    loaded = load(image, memory)
    assert loaded.entry.rip == 2 * MIB + 84 + 32
    assert memory.read(2 * MIB, len(image)) == image


def test_information(memory: GuestMemory) -> None:
    loaded = load(multiboot_elf(), memory, cmdline="root=/dev/x quiet")
    words = info_words(memory, loaded)
    assert words[0] == 0b10_0100_1101  # mem, cmdline, mods, mmap, boot_loader_name
    assert words[1] == 640
    assert words[2] == (0x3F_0000 - MIB) // 1024
    assert string_at(memory, words[4]) == b"root=/dev/x quiet"
    assert words[5:7] == (0, 0)
    assert string_at(memory, words[16]) == b"kvmpy"
    assert words[3] == 0
    assert words[7:11] == (0,) * 4
    assert words[13:16] == (0,) * 3
    assert words[17:] == (0,) * 12

    mmap = memory.read(words[12], words[11])
    assert list(struct.iter_unpack("<IQQI", mmap)) == [
        (20, 0, 0xA0000, 1),
        (20, 0xA0000, 0x60000, 2),
        (20, 0x10_0000, 0x2F_0000, 1),
        (20, 0x3F_0000, 0x1_0000, 2),
        (20, 0xFFFB_C000, 0x4000, 2),
    ]


def test_modules_are_page_aligned_and_named(memory: GuestMemory) -> None:
    loaded = load(
        multiboot_elf(), memory, initrd=b"I" * 5000, modules=[(b"M" * 4096, "mod arg"), b"N"]
    )
    words = info_words(memory, loaded)
    entries = struct.unpack("<12I", memory.read(words[6], 48))
    assert words[5] == 3
    starts, ends, strings, reserved = (entries[i::4] for i in range(4))
    assert starts == (MIB + 0x3000, MIB + 0x5000, MIB + 0x6000)
    assert [end - start for start, end in zip(starts, ends, strict=True)] == [5000, 4096, 1]
    assert [string_at(memory, gpa) for gpa in strings] == [b"", b"mod arg", b""]
    assert reserved == (0, 0, 0)
    assert memory.read(starts[0], 5001) == b"I" * 5000 + b"\xa5"
    assert memory.read(starts[1], 4097) == b"M" * 4096 + b"N"


def test_mem_upper_stops_at_the_first_hole() -> None:
    with GuestMemory("5G") as memory:
        words = info_words(memory, load(multiboot_elf(), memory))
        supervisor = 3 * 1024 * 1024 - 64 - 2 * 4  # two GiB above 4 GiB: two page directories
        assert words[2] == supervisor - 1024


def test_header_is_found_anywhere_in_8_kib(memory: GuestMemory) -> None:
    last = 8192 - 32
    assert load(multiboot_kludge(before=last), memory).format == "multiboot"
    beyond = multiboot_kludge(before=8192 - 8)
    with pytest.raises(ImageError, match="no Multiboot header: magic 0x1badb002"):
        load(beyond, memory, format="multiboot")


def test_misaligned_and_wrong_headers_are_skipped(memory: GuestMemory) -> None:
    decoys = b"\0\0" + multiboot_header() + b"\0\0" + multiboot_header()[:8] + b"\1\0\0\0"
    decoys += bytes(-len(decoys) % 4)
    image = decoys + multiboot_kludge(
        before=0, header_addr=MIB + len(decoys), load_end_addr=0, bss_end_addr=0,
        entry_addr=MIB + len(decoys) + 32,
    )  # fmt: skip
    assert load(image, memory).entry.rip == MIB + len(decoys) + 32


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (multiboot_elf(flags=0x7), r"flags of the Multiboot header is 0x7: the mandatory bits 0x4"),
        (multiboot_elf(flags=0x8003), r"mandatory bits 0x8000 are not supported"),
        (multiboot_header() + CODE, r"e_ident starts with 02 b0 ad 1b"),
        (multiboot_kludge()[:40], r"the address fields of the Multiboot header"),
        (multiboot_kludge(header_addr=MIB - 1), r"load_addr is 0x100000: with header_addr 0xfffff"),
        (multiboot_kludge(header_addr=MIB + 17), r"must be in 0x100001\.\.0x100011"),
        (multiboot_kludge(load_end_addr=MIB), r"load_end_addr is 0x100000: it must be above"),
        (multiboot_kludge(load_end_addr=2 * MIB), r"load_addr\.\.load_end_addr: 0x100000 bytes"),
        (multiboot_kludge(bss_end_addr=MIB + 1), r"bss_end_addr is 0x100001: .* 0x100070"),
        (
            multiboot_kludge(bss_end_addr=0xFFFF_FFFF),
            r"image: 0x100000\.\.0xfffffffe overlaps the s",
        ),
        (multiboot_kludge(entry_addr=MIB + 112), r"entry_addr is 0x100070, outside"),
        (multiboot_kludge(load_addr=0xF000_0000), r"image: 0xf0000000\.\..*lies outside"),
    ],
)
def test_refused(memory: GuestMemory, image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(image, memory, format="multiboot")
    assert memory.read(0, 4 * MIB) == b"\xa5" * (4 * MIB)


def test_modules_and_cmdline_that_do_not_fit(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"module 1 needs 0x2f0000 bytes aligned to 0x1000"):
        load(multiboot_elf(), memory, modules=[b"x", bytes(0x2F_0000)])
    with pytest.raises(ImageError, match=r"cmdline needs 0x90001 bytes .* in 0x10000\.\.0x9ffff"):
        load(multiboot_elf(), memory, cmdline="x" * 0x9_0000)
