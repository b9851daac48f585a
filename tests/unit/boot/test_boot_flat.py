"""Flat binaries and boot sectors."""

from __future__ import annotations

import pytest
from boot_images import CODE, MIB, boot_sector

from kvmpy.boot import load
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout
from kvmpy.x86.modes import Mode


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory("4M")


def test_boot_sector(memory: GuestMemory) -> None:
    image = boot_sector()
    loaded = load(image, memory)
    assert loaded.format == "flat"
    assert (loaded.entry.mode, loaded.entry.rip, loaded.entry.rsp) == (Mode.REAL_16, 0x7C00, 0x7C00)
    assert loaded.entry.regs == {"rdx": 0x80}
    assert loaded.segments == ((0x7C00, 512, "image"),)
    assert memory.read(0x7C00, 512) == image


def test_of_a_disk_image_only_the_boot_sector_is_loaded(memory: GuestMemory) -> None:
    image = boot_sector(size=2 * MIB)[:512] + b"\xee" * (2 * MIB)
    loaded = load(image, memory)
    assert loaded.segments == ((0x7C00, 512, "image"),)
    assert memory.read(0x7C00, 514) == image[:512] + b"\0\0"
    assert str(len(image)) in loaded.description


def test_without_signature_all_of_it_goes_to_7c00(memory: GuestMemory) -> None:
    image = CODE * 20
    loaded = load(image, memory)
    assert loaded.entry.mode is Mode.REAL_16
    assert (loaded.entry.rip, dict(loaded.entry.regs)) == (0x7C00, {})
    assert memory.read(0x7C00, len(image)) == image


@pytest.mark.parametrize("mode", [Mode.PROTECTED_32, Mode.PAGED_32, Mode.LONG_64])
def test_other_modes_start_at_1_mib(memory: GuestMemory, mode: Mode) -> None:
    loaded = load(CODE, memory, mode=mode)
    assert (loaded.entry.mode, loaded.entry.rip, loaded.entry.rsp) == (mode, MIB, None)
    assert memory.read(MIB, len(CODE)) == CODE


def test_address_and_mode_as_given(memory: GuestMemory) -> None:
    loaded = load(boot_sector(1024), memory, load_address=0x2_0000, mode=Mode.LONG_64)
    assert (loaded.entry.mode, loaded.entry.rip) == (Mode.LONG_64, 0x2_0000)
    assert loaded.segments == ((0x2_0000, 1024, "image"),)


@pytest.mark.parametrize(
    ("address", "stack"), [(0x1000, 0x1000), (0xF000, 0xF000), (0x800, None), (0x1_0000, None)]
)
def test_real_mode_stack(memory: GuestMemory, address: int, stack: int | None) -> None:
    assert load(CODE, memory, load_address=address).entry.rsp == stack


def test_real_mode_needs_no_room_for_a_supervisor_area() -> None:
    with GuestMemory("32K") as memory:
        assert load(b"\xf4", memory).segments == ((0x7C00, 1, "image"),)
        with pytest.raises(ImageError, match="128 KiB"):
            load(b"\xf4", memory, mode=Mode.LONG_64, load_address=0x1000)


def test_real_mode_keeps_off_a_supervisor_area_that_exists() -> None:
    with GuestMemory("256K") as memory:
        assert load(CODE, memory, load_address=0x3_0000 - 64).entry.rip == 0x3_0000 - 64
        with pytest.raises(ImageError, match="overlaps the supervisor area at 0x30000"):
            load(CODE, memory, load_address=0x3_0000 - 63)


def test_up_to_the_supervisor_area_and_no_further(memory: GuestMemory) -> None:
    base = layout.supervisor_area(memory).base
    last = base - len(CODE)
    assert load(CODE, memory, load_address=last, mode=Mode.LONG_64).entry.rip == last
    with pytest.raises(ImageError, match=r"image: .* overlaps the supervisor area at 0x3f0000"):
        load(CODE, memory, load_address=last + 1, mode=Mode.LONG_64)


@pytest.mark.parametrize(
    ("address", "mode", "message"),
    [
        (0x5FF, Mode.REAL_16, r"0x5ff\.\.0x63e overlaps the real-mode vector table and stubs"),
        (0x10_0000, Mode.REAL_16, r"load_address is 0x100000: real mode reaches 0xfffff"),
        (0xF_FFF0, Mode.REAL_16, r"exceeds what real mode reaches, 0xfffff"),
        (1 << 32, Mode.PROTECTED_32, r"load_address is 0x100000000: protected mode reaches"),
        (-1, Mode.LONG_64, r"load_address is -0x1"),
        (1 << 70, Mode.LONG_64, r"load_address is 0x4"),
        (4 * MIB - 32, Mode.LONG_64, r"overlaps the supervisor area"),
        (4 * MIB, Mode.LONG_64, r"outside the guest's writable RAM, 0x0\.\.0x3fffff"),
    ],
)
def test_refused_addresses(memory: GuestMemory, address: int, mode: Mode, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(CODE, memory, format="flat", load_address=address, mode=mode)


def test_read_only_memory_is_refused(memory: GuestMemory) -> None:
    memory.add(16 * MIB, "64K", read_only=True)
    with pytest.raises(ImageError, match="writable RAM"):
        load(CODE, memory, load_address=16 * MIB, mode=Mode.LONG_64)


def test_boot_information_is_refused(memory: GuestMemory) -> None:
    with pytest.raises(ImageError, match="cmdline was given, but a flat image takes none"):
        load(CODE, memory, cmdline="x")
    with pytest.raises(ImageError, match="initrd was given"):
        load(CODE, memory, initrd=b"x")
    with pytest.raises(ImageError, match="modules was given"):
        load(CODE, memory, modules=[b"x"])
