"""The 64-bit Linux boot protocol: setup header, zero page, placement of kernel and initrd."""

from __future__ import annotations

import struct
import typing

import pytest
from boot_images import CODE, MIB, START_KERNEL_MAP, Segment, bzimage, elf, field, vmlinux

from kvmpy.boot import LoadedImage, load
from kvmpy.boot.acpi import build_acpi
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout
from kvmpy.x86.modes import Mode


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory("4M")
    memory[0 : 4 * MIB] = b"\xa5" * (4 * MIB)
    return memory


def zero_page_of(memory: GuestMemory, loaded: LoadedImage) -> bytes:
    assert loaded.format == "linux"
    assert loaded.entry.mode is Mode.LONG_64
    assert set(loaded.entry.regs) == {"rsi"}
    assert loaded.entry.regs["rsi"] % 4096 == 0
    return memory.read(loaded.entry.regs["rsi"], 4096)


def e820_of(page: bytes) -> list[tuple[int, ...]]:
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]


def test_bzimage(memory: GuestMemory) -> None:
    image = bzimage()
    loaded = load(image, memory, cmdline="console=ttyS0 panic=-1")
    page = zero_page_of(memory, loaded)
    assert loaded.entry.rip == MIB + 0x200
    assert (MIB, 0x8000, "kernel") in loaded.segments
    assert memory.read(MIB, 0x401) == image[3 * 512 :] + b"\xa5"  # init_size is not written
    assert loaded.description == "Linux bzImage, boot protocol 2.15, 6.1.0-test"

    written = {
        "vid_mode": 0xFFFF,
        "type_of_loader": 0xFF,
        "code32_start": MIB,
        "ramdisk_image": 0,
        "ramdisk_size": 0,
        "setup_data": 0,
    }
    for name in ("boot_flag", "header", "version", "loadflags", "init_size", "kernel_alignment"):
        written[name] = typing.cast(int, field(image, name))
    assert {name: field(page, name) for name in written} == written
    cmd_line_ptr = field(page, "cmd_line_ptr")
    assert isinstance(cmd_line_ptr, int)
    assert memory.read(cmd_line_ptr, 23) == b"console=ttyS0 panic=-1\0"

    assert e820_of(page) == [
        (0, 0xA0000, 1),
        (0xA0000, 0x60000, 2),
        (0x10_0000, 0x2F_0000, 1),
        (0x3F_0000, 0x1_0000, 2),
        (0xFFFB_C000, 0x4000, 2),
    ]
    # Nothing but e820_entries before the header (the sentinel at 0x1ef included), nothing between
    # it and the table, nothing after the table.
    assert page[:0x1F1] == bytes(0x1E8) + b"\5" + bytes(8)
    assert page[0x26C:0x2D0] == bytes(0x2D0 - 0x26C)
    assert page[0x2D0 + 5 * 20 :] == bytes(4096 - 0x2D0 - 5 * 20)


def test_e820_above_4_gib() -> None:
    with GuestMemory("4G") as memory:
        page = zero_page_of(memory, load(bzimage(), memory))
        assert e820_of(page)[-1] == (4 << 30, 1 << 30, 1)


def test_unknown_header_fields_are_copied_up_to_its_end(memory: GuestMemory) -> None:
    image = bytearray(bzimage(jump=0x7FEB))
    image[0x26C:0x290] = bytes(range(0x24))
    page = zero_page_of(memory, load(bytes(image), memory))
    assert page[0x264:0x281] == image[0x264:0x281]
    assert page[0x281:0x290] == bytes(15)


def test_shortest_header(memory: GuestMemory) -> None:
    page = zero_page_of(memory, load(bzimage(jump=0x62EB, version=0x020C), memory))
    assert field(page, "init_size") == 0x8000
    assert page[0x264:0x2D0] == bytes(0x2D0 - 0x264)


def test_initrd_is_as_high_as_can_be(memory: GuestMemory) -> None:
    page = zero_page_of(memory, load(bzimage(), memory, initrd=b"I" * 5000))
    assert field(page, "ramdisk_size") == 5000
    assert field(page, "ramdisk_image") == 0x3F_0000 - 0x2000
    assert memory.read(0x3F_0000 - 0x2000, 5001) == b"I" * 5000 + b"\xa5"
    assert page[0xC0:0xCC] == bytes(12)  # ext_*: nothing is above 4 GiB


def test_initrd_addr_max_is_the_last_byte(memory: GuestMemory) -> None:
    exact = bzimage(initrd_addr_max=0x2F_FFFF)
    page = zero_page_of(memory, load(exact, memory, initrd=bytes(4096)))
    assert field(page, "ramdisk_image") == 0x2F_F000
    less = bzimage(initrd_addr_max=0x2F_FFFE)
    page = zero_page_of(memory, load(less, memory, initrd=bytes(4096)))
    assert field(page, "ramdisk_image") == 0x2F_E000


def test_initrd_stays_off_init_size(memory: GuestMemory) -> None:
    image = bzimage(init_size=0x2E_0000)
    page = zero_page_of(memory, load(image, memory, initrd=bytes(0x1_0000)))
    assert field(page, "ramdisk_image") == 0x3E_0000
    with pytest.raises(ImageError, match=r"initrd needs 0x10001 bytes .* 0x100000\.\.0x7fffffff"):
        load(image, memory, initrd=bytes(0x1_0001))


def test_relocatable_kernel_goes_to_the_next_aligned_place() -> None:
    with GuestMemory("2M") as memory:  # its supervisor area is in the way
        memory.add(2 * MIB, "6M")
        loaded = load(bzimage(pref_address=MIB, init_size=2 * MIB), memory)
        assert loaded.entry.rip == 2 * MIB + 0x200
        page = zero_page_of(memory, loaded)
        assert field(page, "code32_start") == 2 * MIB
        with pytest.raises(ImageError, match=r"kernel: 0x100000\.\.0x2fffff overlaps the superv"):
            load(bzimage(init_size=2 * MIB, relocatable_kernel=0), memory)


def test_kernel_alignment(memory: GuestMemory) -> None:
    image = bzimage(pref_address=MIB + 0x1000, kernel_alignment=0x20_0000)
    assert load(image, memory).entry.rip == 2 * MIB + 0x200


def test_kernel_without_pref_address(memory: GuestMemory) -> None:
    for relocatable in (0, 1):
        image = bzimage(pref_address=0, relocatable_kernel=relocatable)
        assert load(image, memory).entry.rip == MIB + 0x200


def test_syssize_rounded_up_beyond_the_file(memory: GuestMemory) -> None:
    image = bzimage(0x3F9)
    load(image, memory)
    assert memory.read(MIB, 0x3FA) == image[3 * 512 :] + b"\xa5"
    with pytest.raises(
        ImageError, match=r"syssize is 0x40 paragraphs \(0x400 bytes\): after 0x600"
    ):
        load(image[:-9], memory)


def test_what_follows_syssize_is_not_loaded(memory: GuestMemory) -> None:
    load(bzimage() + b"signature", memory)
    assert memory.read(MIB + 0x400, 1) == b"\xa5"


def test_cmdline_size(memory: GuestMemory) -> None:
    load(bzimage(cmdline_size=5), memory, cmdline="12345")
    with pytest.raises(ImageError, match=r"cmdline has 6 bytes: cmdline_size, .* is 5"):
        load(bzimage(cmdline_size=5), memory, cmdline="123456")


def test_vmlinux(memory: GuestMemory) -> None:
    loaded = load(vmlinux(), memory, cmdline="quiet", initrd=b"I" * 4096)
    page = zero_page_of(memory, loaded)
    assert loaded.entry.rip == MIB
    assert memory.read(MIB, 0x1000) == CODE.ljust(0x1000, b"\0")
    assert memory.read(MIB + 0x2000, 0x9000) == CODE.ljust(0x9000, b"\0")
    expected = {
        "boot_flag": 0xAA55,
        "header": b"HdrS",
        "version": 0x020F,
        "type_of_loader": 0xFF,
        "loadflags": 1,
        "ramdisk_image": 0x3E_F000,
        "ramdisk_size": 4096,
    }
    assert {name: field(page, name) for name in expected} == expected
    cmd_line_ptr = field(page, "cmd_line_ptr")
    assert isinstance(cmd_line_ptr, int)
    assert memory.read(cmd_line_ptr, 6) == b"quiet\0"
    assert len(e820_of(page)) == 5


def test_vmlinux_cmdline_limit(memory: GuestMemory) -> None:
    load(vmlinux(), memory, cmdline="x" * 2047)
    with pytest.raises(ImageError, match=r"cmdline has 2048 bytes: .* 2047"):
        load(vmlinux(), memory, cmdline="x" * 2048)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (bzimage()[:0x200], r"the setup header: 0x7b bytes at file offset 0x1f1"),
        (bzimage(boot_flag=0x55AA), r"boot_flag is 0x55aa: a Linux kernel has 0xaa55"),
        (bzimage(header=b"HdrT"), r"header is 0x54726448"),
        (bzimage(version=0x020B), r"version is 2\.11: the 64-bit boot protocol starts with 2\.12"),
        (bzimage(jump=0x61EB), r"jump is 0x61eb"),
        (bzimage(jump=0x80EB), r"jump is 0x80eb"),
        (bzimage(jump=0x6AE9), r"jump is 0x6ae9"),
        (bzimage(loadflags=0), r"loadflags is 0x0: a zImage"),
        (bzimage(xloadflags=2), r"xloadflags is 0x2: no 64-bit entry"),
        (bzimage(syssize=0x20), r"syssize is 0x20 paragraphs: the entry is at 0x200"),
        (bzimage(syssize=0xFFFF_FFFF), r"syssize is 0xffffffff paragraphs"),
        (bzimage(setup_sects=255), r"after 0x20000 bytes of setup the image has 0x0"),
        (bzimage(kernel_alignment=0), r"kernel_alignment is 0x0: it must be a power of two"),
        (bzimage(kernel_alignment=0x3000), r"kernel_alignment is 0x3000"),
        (bzimage(kernel_alignment=1 << 31), r"init_size is 0x8000: kernel needs 0x8000 bytes al"),
        (bzimage(init_size=0xFFFF_FFFF), r"init_size is 0xffffffff: kernel needs 0xffffffff"),
        (bzimage(pref_address=1 << 40), r"init_size is 0x8000: kernel needs"),
        (bzimage(pref_address=(1 << 64) - 1), r"init_size is 0x8000: kernel needs"),
        (bzimage(pref_address=1 << 40, relocatable_kernel=0), r"kernel: 0x10000000000\.\."),
        (elf(32, [Segment(MIB)]), r"EI_CLASS is ELFCLASS32"),
        (elf(64, [Segment(16 * MIB, vaddr=START_KERNEL_MAP)]), r"PT_LOAD segment 0: 0x1000000"),
    ],
)
def test_refused(memory: GuestMemory, image: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(image, memory, format="linux")
    assert memory.read(0, 4 * MIB) == b"\xa5" * (4 * MIB)


def test_setup_sects_0_means_4(memory: GuestMemory) -> None:
    image = bzimage(setup_sects=0)
    longer = image[: 3 * 512] + bytes(2 * 512) + image[3 * 512 :]
    load(longer, memory)
    assert memory.read(MIB, 0x400) == longer[5 * 512 :]


def test_more_ranges_than_the_zero_page_holds(memory: GuestMemory) -> None:
    for index in range(130):
        memory.add(16 * MIB + index * 0x2000, 0x1000)
    with pytest.raises(ImageError, match="e820_entries would be 135: the zero page holds 128"):
        load(bzimage(), memory)


def test_unprintable_release_is_left_out(memory: GuestMemory) -> None:
    image = bytearray(bzimage())
    image[0x400:0x404] = b"\x1b[2J"
    assert load(bytes(image), memory).description == "Linux bzImage, boot protocol 2.15"


def test_modules_and_placement_are_refused(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="modules: 1 were given, the Linux boot protocol has none"):
        load(bzimage(), memory, modules=[b"x"])
    with pytest.raises(ImageError, match="load_address is 0x100000, but a linux image"):
        load(bzimage(), memory, load_address=MIB)
    with pytest.raises(ImageError, match=r"mode is Mode\.REAL_16, but the boot protocol"):
        load(bzimage(), memory, mode=Mode.REAL_16)


def test_32_mib() -> None:
    """A kernel linked at 16 MiB, its initrd and ACPI tables share 32 MiB with kvmpy's own area."""
    with GuestMemory("32M") as memory:
        rsdp = build_acpi(memory, range(1)).rsdp
        image = bzimage(pref_address=16 * MIB, kernel_alignment=2 * MIB, init_size=14 * MIB)
        loaded = load(image, memory, initrd=b"I" * MIB, acpi_rsdp=rsdp, rng_seed=b"s" * 32)
        names = {name: (gpa, gpa + size) for gpa, size, name in loaded.segments}
        assert names["kernel"] == (16 * MIB, 30 * MIB)
        assert names["initrd"][1] <= layout.supervisor_area(memory).base
        assert names["initrd"][0] >= 30 * MIB


def test_too_little_memory_says_how_much_is_enough() -> None:
    image = bzimage(pref_address=16 * MIB, kernel_alignment=2 * MIB, init_size=50 * MIB)
    with (
        GuestMemory("64M") as memory,
        pytest.raises(ImageError, match=r"init_size is 0x3200000.*needs at least 67 MiB of RAM"),
    ):
        load(image, memory)
    with GuestMemory("67M") as memory:
        load(image, memory)


def test_ram_above_4_gib() -> None:
    """The map goes on behind the hole; all that is handed over by 32-bit address stays below it."""
    with GuestMemory("5G") as memory:
        loaded = load(bzimage(), memory, initrd=b"I" * MIB)
        page = zero_page_of(memory, loaded)
        assert e820_of(page)[-1] == (4 << 30, 2 << 30, 1)
        assert all(gpa + size <= 3 << 30 for gpa, size, _ in loaded.segments)
