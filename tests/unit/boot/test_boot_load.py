"""What does not depend on the format: detection, arguments, and the image as an mmap."""

from __future__ import annotations

import mmap
import os
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
