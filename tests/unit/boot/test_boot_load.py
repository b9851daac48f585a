"""What does not depend on the format: detection, arguments, and the image as an mmap."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import pytest
from boot_images import (
    CODE,
    MIB,
    Segment,
    boot_sector,
    bzimage,
    elf,
    multiboot_elf,
    multiboot_header,
    multiboot_kludge,
    note,
    pvh,
    vmlinux,
)

from kvmpy.boot import FORMATS, detect, load
from kvmpy.errors import ClosedError, ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86.modes import Mode, prepare


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory("4M")


def multiboot_with_pvh_note() -> bytes:
    kernel = multiboot_elf()
    content = kernel[kernel.index(b"\x02\xb0\xad\x1b") :]
    notes = note(b"Xen", 18, MIB.to_bytes(4, "little"))
    return elf(32, [Segment(MIB, content), Segment(0, notes, memsz=0, type=4)], entry=MIB + 12)


@pytest.mark.parametrize(
    ("image", "format"),
    [
        (CODE, "flat"),
        (boot_sector(), "flat"),
        (b"MZ" + boot_sector()[2:], "flat"),
        (elf(32, [Segment(MIB)]), "elf"),
        (elf(64, [Segment(MIB)]), "elf"),
        (multiboot_elf(), "multiboot"),
        (multiboot_kludge(), "multiboot"),
        (multiboot_elf(bits=64), "multiboot"),
        (multiboot_with_pvh_note(), "multiboot"),
        (pvh(32), "pvh"),
        (pvh(64), "pvh"),
        (bzimage(), "linux"),
        (vmlinux(), "linux"),
        (vmlinux(with_pvh_note=False), "linux"),
    ],
)
def test_detection(memory: GuestMemory, image: bytes, format: str) -> None:
    assert detect(image) == format
    assert load(image, memory).format == format


def test_forced_format(memory: GuestMemory) -> None:
    assert load(vmlinux(), memory, format="pvh").entry.rip == MIB + 8
    assert load(multiboot_with_pvh_note(), memory, format="pvh").entry.rip == MIB
    assert load(pvh(), memory, format="elf").entry.mode is Mode.LONG_64
    assert load(multiboot_elf(), memory, format="flat").entry.mode is Mode.REAL_16


@pytest.mark.parametrize(
    "image",
    [
        *(CODE, boot_sector(), elf(32, [Segment(MIB)]), elf(64, [Segment(MIB)])),
        *(multiboot_elf(), pvh(), bzimage(), vmlinux()),
    ],
)
def test_entry_states_are_ones_a_cpu_can_start_in(memory: GuestMemory, image: bytes) -> None:
    loaded = load(image, memory)
    entry = loaded.entry
    before = [memory.read(gpa, size) for gpa, size, _ in loaded.segments]
    state = prepare(
        memory, entry.mode, rip=entry.rip, ring=entry.ring, rsp=entry.rsp, regs=entry.regs
    )
    assert state.regs["rip"] == entry.rip
    assert {name: state.regs[name] for name in entry.regs} == dict(entry.regs)
    # and its tables do not touch what was loaded
    assert [memory.read(gpa, size) for gpa, size, _ in loaded.segments] == before


def test_unknown_format(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match=r"format is 'a\.out': it must be one of flat, elf"):
        load(CODE, memory, format="a.out")
    assert FORMATS == ("flat", "elf", "multiboot", "pvh", "linux")


@pytest.mark.parametrize(
    ("image", "meaning"),
    [
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
        (b"MZ" + bytes(1000), "UEFI"),
        (bytes(0x8001) + b"CD001", "ISO 9660"),
    ],
)
def test_known_foreign_files(memory: GuestMemory, image: bytes, meaning: str) -> None:
    with pytest.raises(ImageError, match=f"format is unknown: the image is .*{meaning}"):
        load(image, memory)
    assert load(image, memory, format="flat").format == "flat"


def test_empty_files(memory: GuestMemory) -> None:
    for format in (None, *FORMATS):
        with pytest.raises(ImageError, match="the image is empty: size is 0"):
            load(b"", memory, format=format)
    with pytest.raises(ImageError, match="initrd is empty"):
        load(bzimage(), memory, initrd=b"")
    with pytest.raises(ImageError, match="module 1 is empty"):
        load(multiboot_elf(), memory, modules=[b"x", b""])


def test_strings_the_guest_could_not_read(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="cmdline has a NUL at byte 1"):
        load(bzimage(), memory, cmdline="a\0b")
    with pytest.raises(ImageError, match=r"string of module 0 has '\\ud800'"):
        load(multiboot_elf(), memory, modules=[(b"x", "\ud800")])


def test_no_memory() -> None:
    images = (CODE, elf(64, [Segment(MIB)]), multiboot_elf(), pvh(), bzimage(), vmlinux())
    with GuestMemory() as memory:
        for image in images:
            with pytest.raises(ImageError, match=r"no free RAM|RAM at guest-physical address 0"):
                load(image, memory)
    with pytest.raises(ClosedError):
        load(CODE, memory)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_bytes_like_images(memory: GuestMemory, wrap: type) -> None:
    assert load(wrap(bzimage()), memory, initrd=wrap(b"x")).format == "linux"


def test_mmap_can_be_closed_while_the_error_propagates(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    for image in (bzimage(syssize=0xFFFF), elf(64, [Segment(MIB), Segment(MIB)]), b"\x7fELF"):
        path.write_bytes(image)
        with (
            pytest.raises(ImageError),
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            load(mapped, memory)


def test_mmap_is_loaded_and_can_be_closed(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf(64, [Segment(MIB, memsz=0x1000)]))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        load(mapped, memory)
    assert memory.read(MIB, len(CODE)) == CODE


REAL_IMAGES = os.environ.get("KVMPY_TEST_IMAGES", "")


@pytest.mark.skipif(not REAL_IMAGES, reason="KVMPY_TEST_IMAGES names no directory of images")
def test_real_images() -> None:
    """Kernels from distributions, named FORMAT-*, each loads in the format of its name."""
    paths = sorted(Path(REAL_IMAGES).iterdir())
    assert paths
    for path in paths:
        with (
            GuestMemory("256M") as memory,
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            assert load(mapped, memory).format == path.name.split("-")[0], path


# ---- what other loaders take, and what is no kernel


def test_empty_segments_have_any_offset(memory: GuestMemory) -> None:
    """GNU ld gives a .bss segment an offset past the end of the file."""
    for bits in (32, 64):
        segments = [Segment(MIB), Segment(MIB + 0x4000, b"", memsz=0x1000, offset=1 << 30)]
        memory.write(MIB + 0x4000, b"x" * 16)
        assert load(elf(bits, segments), memory).format == "elf"
        assert memory.read(MIB + 0x4000, 16) == bytes(16)
    notes = Segment(0, b"", memsz=0, type=4, offset=1 << 30)
    assert detect(elf(64, [Segment(MIB), notes])) == "elf"


@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_with_an_interpreter(memory: GuestMemory, bits: int) -> None:
    """FreeBSD's carries "/red/herring"; a program with one needs it."""
    entry = struct.pack("<I", MIB + 8)
    interpreter = Segment(0, b"/red/herring\0", memsz=0, type=3)
    notes = Segment(0, note(b"Xen", 18, entry), memsz=0, type=4)
    kernel = elf(bits, [Segment(MIB), interpreter, notes])
    assert load(kernel, memory).format == "pvh"
    with pytest.raises(ImageError, match="PT_INTERP"):
        load(elf(bits, [Segment(MIB), interpreter]), memory)


def broken_note() -> bytes:
    return struct.pack("<III", 1 << 20, 4, 1) + bytes(16)


def test_notes_that_cannot_be_read(memory: GuestMemory) -> None:
    """They refuse no image that needs none, and hide no entry in another segment, or behind a bad
    one."""
    broken = Segment(0, broken_note(), memsz=0, type=4)
    good = Segment(0, note(b"Xen", 18, struct.pack("<I", MIB + 8)), memsz=0, type=4)
    short = Segment(0, note(b"Xen", 18, b"xyz") + good.content, memsz=0, type=4)
    many = Segment(0, note(b"a", 1, b"") * 1100, memsz=0, type=4)
    assert load(elf(64, [Segment(MIB), broken]), memory).format == "elf"
    for first in (broken, many):
        assert load(elf(64, [Segment(MIB), first, good]), memory).entry.rip == MIB + 8
    assert load(elf(64, [Segment(MIB), short]), memory).entry.rip == MIB + 8
    with pytest.raises(ImageError, match="exceed PT_NOTE segment 1"):
        load(elf(64, [Segment(MIB), broken]), memory, format="pvh")


def test_other_kernels_of_the_higher_half(memory: GuestMemory) -> None:
    """Their virtual addresses are those of Linux, and they are not."""
    high = 0xFFFF_FFFF_8000_0000
    header = multiboot_header() + CODE
    kernel = elf(64, [Segment(MIB, header, vaddr=high + MIB)], entry=MIB + 12)
    assert load(kernel, memory).format == "multiboot"
    notes = Segment(0, note(b"Xen", 18, struct.pack("<I", MIB)), memsz=0, type=4)
    kernel = elf(64, [Segment(MIB, vaddr=high + MIB), notes], entry=MIB)
    assert load(kernel, memory).format == "pvh"


def at(offset: int, magic: bytes, size: int = 0x1_1000) -> bytes:
    return (bytes([0xF4]) * offset + magic).ljust(size, b"\xf4")


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (b"#!/bin/sh\necho no kernel\n", "a script"),
        (b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/\n", "text"),
        (at(0, b"QFI\xfb\0\0\0\3"), "QCOW2"),
        (at(0, b"vhdxfile"), "VHDX"),
        (at(0, b"conectix"), "VHD"),
        (at(0, b"KDMV"), "VMDK"),
        (at(0x40, b"\x7f\x10\xda\xbe"), "VDI"),
        (at(0x200, b"EFI PART"), "a partitioned disk"),
        (at(0x438, b"\x53\xef"), "ext4"),
        (at(0, b"hsqs"), "SquashFS"),
        (at(0, b"\x55\xaa\x80"), "an option ROM"),
        (b"\x90" * 0xFFF0 + b"\xea\x5b\xe0\0\xf0".ljust(16, b"\0"), "firmware"),
        (at(0, b"PK\3\4"), "ZIP"),
        (at(257, b"ustar"), "tar"),
        (at(0x38, b"ARM\x64"), "64-bit ARM"),
        (at(0x38, b"RSC\5"), "RISC-V"),
        (at(0, b"\x27\5\x19\x56"), "U-Boot"),
        (at(0, b"ANDROID!"), "Android"),
        (at(0, b"\xcf\xfa\xed\xfe"), "Mach-O"),
        (at(0, b"\0asm\1"), "WebAssembly"),
    ],
)
def test_an_unknown_file_is_not_code(image: bytes, what: str) -> None:
    with pytest.raises(ImageError, match=what):
        detect(image)


def test_code_is_code() -> None:
    """However short, and with whatever in it."""
    for code in (b"\xf4", b"hlt", b"\xeb\xfe", CODE, bytes(4096), b"A" * 31, b"A" * 31 + b"\xf4"):
        assert detect(code) == "flat"
