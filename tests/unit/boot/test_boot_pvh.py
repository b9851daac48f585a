"""PVH: the note, and hvm_start_info byte by byte."""

from __future__ import annotations

import struct

import pytest
from boot_images import CODE, MIB, Segment, elf, note, pvh

from kvmpy.boot import load
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86.modes import Mode


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory("4M")
    memory[0 : 4 * MIB] = b"\xa5" * (4 * MIB)
    return memory


def string_at(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, 256).split(b"\0")[0]


@pytest.mark.parametrize("bits", [32, 64])
def test_start_info(memory: GuestMemory, bits: int) -> None:
    loaded = load(
        pvh(bits), memory, cmdline="console=ttyS0", initrd=b"I" * 5000, modules=[(b"M", "arg")]
    )
    assert loaded.format == "pvh"
    assert (loaded.entry.mode, loaded.entry.rip) == (Mode.PROTECTED_32, MIB + 16)
    assert memory.read(MIB, 0x2000) == CODE.ljust(0x2000, b"\0")

    assert set(loaded.entry.regs) == {"rbx"}
    start_info = memory.read(loaded.entry.regs["rbx"], 56)
    magic, version, flags, nr_modules = struct.unpack_from("<4I", start_info)
    assert (magic, version, flags, nr_modules) == (0x336EC578, 1, 0, 2)
    modlist, cmdline, rsdp, memmap = struct.unpack_from("<4Q", start_info, 16)
    assert string_at(memory, cmdline) == b"console=ttyS0"
    assert rsdp == 0
    entries, reserved = struct.unpack_from("<2I", start_info, 48)
    assert (entries, reserved) == (5, 0)

    assert list(struct.iter_unpack("<QQII", memory.read(memmap, 5 * 24))) == [
        (0, 0xA0000, 1, 0),
        (0xA0000, 0x60000, 2, 0),
        (0x10_0000, 0x2F_0000, 1, 0),
        (0x3F_0000, 0x1_0000, 2, 0),
        (0xFFFB_C000, 0x4000, 2, 0),
    ]
    first, second = struct.iter_unpack("<QQQQ", memory.read(modlist, 64))
    assert (first[0], first[1], first[3]) == (0x3E_E000, 5000, 0)
    assert memory.read(first[0], 5001) == b"I" * 5000 + b"\xa5"
    assert string_at(memory, first[2]) == b""
    assert (second[0], second[1], second[3]) == (0x3E_D000, 1, 0)
    assert string_at(memory, second[2]) == b"arg"


def test_without_modules(memory: GuestMemory) -> None:
    start_info = memory.read(load(pvh(), memory).entry.regs["rbx"], 56)
    nr_modules, modlist, cmdline = struct.unpack_from("<IQQ", start_info, 12)
    assert (nr_modules, modlist) == (0, 0)
    assert memory.read(cmdline, 1) == b"\0"


def test_4_byte_note_in_elf64(memory: GuestMemory) -> None:
    assert load(pvh(64, desc=struct.pack("<I", MIB)), memory).entry.rip == MIB


def with_notes(notes: bytes, align: int = 4) -> bytes:
    return elf(64, [Segment(MIB), Segment(0, notes, memsz=0, type=4, align=align)])


def test_note_of_another_owner_or_type_is_none(memory: GuestMemory) -> None:
    entry = struct.pack("<I", MIB)
    assert load(with_notes(note(b"Xem", 18, entry)), memory).format == "elf"
    assert load(with_notes(note(b"Xen", 17, entry)), memory).format == "elf"


def test_notes_aligned_to_8(memory: GuestMemory) -> None:
    first = struct.pack("<III", 4, 4, 5) + b"GNU\0" + bytes(4)  # 20 bytes, padded to 24
    image = with_notes(first + bytes(4) + note(b"Xen", 18, struct.pack("<Q", MIB)), align=8)
    assert load(image, memory).format == "pvh"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (elf(64, [Segment(MIB)]), r"PT_NOTE: no XEN_ELFNOTE_PHYS32_ENTRY"),
        (pvh(desc=bytes(6)), r"n_descsz of XEN_ELFNOTE_PHYS32_ENTRY is 6: it must be 4 or 8"),
        (pvh(entry=1 << 32), r"XEN_ELFNOTE_PHYS32_ENTRY is 0x100000000: the limit is 0xffffffff"),
        (pvh(entry=MIB + 64), r"XEN_ELFNOTE_PHYS32_ENTRY is 0x100040, outside the content"),
        (with_notes(struct.pack("<III", 4, 0x7FFF_FFFF, 18) + b"Xen\0"), r"n_descsz 0x7fffffff"),
        (with_notes(struct.pack("<III", 0xFFFF_FFFF, 4, 18) + b"Xen\0"), r"n_namesz 0xffffffff"),
        (with_notes(bytes(12 * 1025)), r"PT_NOTE segment 1: more than 1024 notes"),
    ],
)
def test_refused(memory: GuestMemory, image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(image, memory, format="pvh")
    assert memory.read(0, 4 * MIB) == b"\xa5" * (4 * MIB)


def test_modules_that_do_not_fit(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"initrd needs 0x2f0000 bytes"):
        load(pvh(), memory, initrd=bytes(0x2F_0000))
