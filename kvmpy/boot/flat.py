"""Flat binaries: code without headers.

Not a published format, so these are the rules:

- Mode: what the caller says, else 16-bit real mode.
- Load address: what the caller says, else 0x7C00 in real mode (where a PC's firmware loads a boot
  sector, BIOS Boot Specification) and 1 MiB in the others. Execution starts there.
- Stack: in real mode below the load address, as is the custom for boot sectors, if that leaves it
  room and is within 64 KiB; else as ``cpu.enter`` has it.
- A boot sector (0x55 0xAA at offset 510) for which the caller gives neither is loaded as firmware
  loads it: the first 512 bytes only, with DL = 0x80, the first hard disk.
"""

from __future__ import annotations

from ..errors import ImageError
from ..x86 import layout
from ..x86.modes import Mode
from .image import EntryState, Image, LoadedImage, Request
from .placement import Placement

BOOT_SECTOR_ADDRESS = 0x7C00
BOOT_SECTOR_SIZE = 512
BOOT_SIGNATURE = b"\x55\xaa"
BOOT_SIGNATURE_OFFSET = 510
FIRST_HARD_DISK = 0x80  # BIOS drive number, in DL

PROTECTED_ADDRESS = 1 * layout.MIB
REAL_MODE_END = 1 * layout.MIB
MIN_STACK = 0x1000
"""Lowest load address below which a real-mode stack has room, above the vectors and stubs."""

FORMAT = "flat"


def is_boot_sector(image: Image) -> bool:
    return image.matches(BOOT_SIGNATURE_OFFSET, BOOT_SIGNATURE)


def load(request: Request) -> LoadedImage:
    """Load a flat binary.

    Raises ImageError: it does not fit where it is to go.
    """
    request.refuse_boot_information(FORMAT)
    image = request.image
    if request.mode is None and request.load_address is None and is_boot_sector(image):
        return _load_boot_sector(request)
    mode = request.mode or Mode.REAL_16
    gpa = request.load_address
    if gpa is None:
        gpa = BOOT_SECTOR_ADDRESS if mode is Mode.REAL_16 else PROTECTED_ADDRESS
    check_entry("load_address", gpa, mode)
    if mode is Mode.REAL_16 and gpa + image.size > REAL_MODE_END:
        raise ImageError(
            f"the image has {image.size:#x} bytes: loaded at {gpa:#x}, it exceeds what real mode "
            f"reaches, {REAL_MODE_END - 1:#x}; give a mode or a format"
        )
    segments = _place(request, mode, gpa, image.size)
    description = f"flat binary, {image.size} bytes at {gpa:#x}, {mode.value} mode"
    own_stack = mode is Mode.REAL_16 and MIN_STACK <= gpa < 64 * layout.KIB
    entry = EntryState(mode, gpa, rsp=gpa if own_stack else None)
    return LoadedImage(FORMAT, description, entry, segments)


def _load_boot_sector(request: Request) -> LoadedImage:
    image = request.image
    segments = _place(request, Mode.REAL_16, BOOT_SECTOR_ADDRESS, BOOT_SECTOR_SIZE)
    description = "boot sector"
    if image.size > BOOT_SECTOR_SIZE:
        description += f" of a disk image (the first {BOOT_SECTOR_SIZE} of {image.size} bytes)"
    entry = EntryState(
        Mode.REAL_16,
        BOOT_SECTOR_ADDRESS,
        rsp=BOOT_SECTOR_ADDRESS,
        regs={"rdx": FIRST_HARD_DISK},
    )
    return LoadedImage(FORMAT, description, entry, segments)


def _place(request: Request, mode: Mode, gpa: int, size: int) -> tuple[tuple[int, int, str], ...]:
    placement = Placement.of(request, mode)
    placement.claim("image", gpa, size)
    placement.put_file(gpa, request.image, 0, size)
    return placement.commit()


def check_entry(what: str, rip: int, mode: Mode) -> None:
    """Raise ImageError if no code can run at guest-physical ``rip`` in ``mode``."""
    limit = {Mode.REAL_16: REAL_MODE_END, Mode.LONG_64: layout.MAX_RAM_END}.get(
        mode, 4 * layout.GIB
    )
    if not 0 <= rip < limit:
        raise ImageError(f"{what} is {rip:#x}: {mode.value} mode reaches {limit - 1:#x} at most")
