"""Multiboot Specification version 0.6.96 (Multiboot 1).

The header is searched as section 3.1 says; with flags[16] the image is loaded by the address
fields ("a.out kludge"), else it must be ELF. flags[0] (page-aligned modules) and flags[1] (memory
information) are always honoured; any other mandatory flag, flags[2] (video mode) included, is
refused as the specification demands. The machine starts as in section 3.2, with the information
structure of section 3.3 in low memory and the modules page-aligned above 1 MiB.

An initrd is handed over as the first module, with an empty string.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..values import dataclass
from ..x86 import layout
from ..x86.modes import Mode
from . import e820, elf
from .flat import check_entry
from .image import EntryState, Image, LoadedImage, Module, Request
from .placement import Placement

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

MULTIBOOT_SEARCH = 8192
MULTIBOOT_HEADER_ALIGN = 4
MULTIBOOT_HEADER_MAGIC = 0x1BADB002
MULTIBOOT_BOOTLOADER_MAGIC = 0x2BADB002
MULTIBOOT_MOD_ALIGN = 4096

# Flags of the header
MULTIBOOT_PAGE_ALIGN = 1 << 0
MULTIBOOT_MEMORY_INFO = 1 << 1
MULTIBOOT_AOUT_KLUDGE = 1 << 16
MANDATORY_FLAGS = 0xFFFF
SUPPORTED_FLAGS = MULTIBOOT_PAGE_ALIGN | MULTIBOOT_MEMORY_INFO

# Flags of the information structure
MULTIBOOT_INFO_MEMORY = 1 << 0
MULTIBOOT_INFO_CMDLINE = 1 << 2
MULTIBOOT_INFO_MODS = 1 << 3
MULTIBOOT_INFO_MEM_MAP = 1 << 6
MULTIBOOT_INFO_BOOT_LOADER_NAME = 1 << 9

# magic flags checksum
HEADER = struct.Struct("<III")
# header_addr load_addr load_end_addr bss_end_addr entry_addr
ADDRESS_FIELDS = struct.Struct("<IIIII")
# flags mem_lower mem_upper boot_device cmdline mods_count mods_addr syms mmap_length mmap_addr
# drives_length drives_addr config_table boot_loader_name, then nothing that flags enables
INFO = struct.Struct("<IIIIIII16sIIIIII48x")
# size base_addr length type
MMAP_ENTRY = struct.Struct("<IQQI")
# mod_start mod_end string reserved
MOD_ENTRY = struct.Struct("<IIII")

BOOT_LOADER_NAME = b"kvmpy\0"

FORMAT = "multiboot"


@dataclass(frozen=True)
class Header:
    """A Multiboot header: its file offset and its flags."""

    offset: int
    flags: int


def find_header(image: Image) -> Header | None:
    """The first header with a right checksum in the first 8 KiB."""
    start = image.prefix(MULTIBOOT_SEARCH)
    magic = struct.pack("<I", MULTIBOOT_HEADER_MAGIC)
    at = start.find(magic)
    while 0 <= at <= len(start) - HEADER.size:
        _, flags, checksum = HEADER.unpack_from(start, at)
        if at % MULTIBOOT_HEADER_ALIGN == 0 and _sum(flags, checksum) == 0:
            return Header(at, flags)
        at = start.find(magic, at + 1)
    return None


def _sum(flags: int, checksum: int) -> int:
    return (MULTIBOOT_HEADER_MAGIC + flags + checksum) & 0xFFFF_FFFF


def is_bootable(image: Image) -> bool:
    """Whether there is a header, and either address fields or ELF to load the image by."""
    header = find_header(image)
    return header is not None and (bool(header.flags & MULTIBOOT_AOUT_KLUDGE) or elf.is_elf(image))


def load(request: Request) -> LoadedImage:
    """Load a Multiboot image with its modules.

    Raises ImageError: no usable header, or something does not fit.
    """
    request.refuse_placement(FORMAT, Mode.PROTECTED_32)
    request.refuse_rng_seed(FORMAT)
    header = _require_header(request.image)
    placement = Placement.of(request, Mode.PROTECTED_32)
    if header.flags & MULTIBOOT_AOUT_KLUDGE:
        entry = _place_by_address_fields(request.image, header, placement)
        kind = "address fields"
    else:
        executable = elf.parse(request.image)
        elf.place(executable, placement)
        entry = elf.entry_gpa(executable)
        kind = f"ELF{executable.bits}"
    check_entry("the entry address", entry, Mode.PROTECTED_32)
    info = _place_info(request, placement)
    segments = placement.commit()
    state = EntryState(
        Mode.PROTECTED_32, entry, regs={"rax": MULTIBOOT_BOOTLOADER_MAGIC, "rbx": info}
    )
    return LoadedImage(FORMAT, f"Multiboot ({kind}), entry {entry:#x}", state, segments)


def _require_header(image: Image) -> Header:
    header = find_header(image)
    if header is None:
        raise ImageError(
            f"no Multiboot header: magic {MULTIBOOT_HEADER_MAGIC:#x} with a right checksum is "
            f"not in the first {MULTIBOOT_SEARCH} bytes at a multiple of {MULTIBOOT_HEADER_ALIGN}"
        )
    unsupported = header.flags & MANDATORY_FLAGS & ~SUPPORTED_FLAGS
    if unsupported:
        raise ImageError(
            f"flags of the Multiboot header is {header.flags:#x}: the mandatory bits "
            f"{unsupported:#x} are not supported, only {SUPPORTED_FLAGS:#x}"
        )
    return header


def _place_by_address_fields(image: Image, header: Header, placement: Placement) -> int:
    """Place an image by section 3.1.3; return entry_addr."""
    what = "the address fields of the Multiboot header"
    fields = image.unpack(what, ADDRESS_FIELDS, header.offset + HEADER.size)
    header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr = fields
    if not 0 <= header_addr - load_addr <= header.offset:
        raise ImageError(
            f"load_addr is {load_addr:#x}: with header_addr {header_addr:#x} and the header at "
            f"file offset {header.offset:#x} it must be in "
            f"{header_addr - header.offset:#x}..{header_addr:#x}"
        )
    offset = header.offset - (header_addr - load_addr)
    size = load_end_addr - load_addr if load_end_addr else image.size - offset
    if size <= 0:
        raise ImageError(
            f"load_end_addr is {load_end_addr:#x}: it must be above load_addr, {load_addr:#x}"
        )
    image.check("load_addr..load_end_addr", offset, size)
    end = load_addr + size
    if bss_end_addr and bss_end_addr < end:
        raise ImageError(f"bss_end_addr is {bss_end_addr:#x}: the data ends above it, at {end:#x}")
    if not load_addr <= entry_addr < end:
        raise ImageError(
            f"entry_addr is {entry_addr:#x}, outside the loaded {load_addr:#x}..{end - 1:#x}"
        )
    placement.claim("image", load_addr, max(end, bss_end_addr) - load_addr)
    placement.put_file(load_addr, image, offset, size)
    if bss_end_addr > end:
        placement.put_zeros(end, bss_end_addr - end)
    return int(entry_addr)


def _place_info(request: Request, placement: Placement) -> int:
    """Place modules and the information structure; return the latter's gpa."""
    modules = request.boot_modules
    mods = b"".join(_place_module(module, placement) for module in modules)
    mods_addr = placement.place_data("module list", mods) if mods else 0
    mmap = encode_map(request.memory)
    mmap_addr = placement.place_data("memory map", mmap)
    cmdline = placement.place_data("cmdline", request.cmdline + b"\0")
    name = placement.place_data("boot loader name", BOOT_LOADER_NAME)
    mem_lower, mem_upper = _memory_sizes(request.memory)
    flags = (
        MULTIBOOT_INFO_MEMORY
        | MULTIBOOT_INFO_CMDLINE
        | MULTIBOOT_INFO_MODS
        | MULTIBOOT_INFO_MEM_MAP
        | MULTIBOOT_INFO_BOOT_LOADER_NAME
    )
    boot_device = drives_length = drives_addr = config_table = 0
    info = INFO.pack(
        flags, mem_lower, mem_upper, boot_device, cmdline, len(modules), mods_addr, b"",
        len(mmap), mmap_addr, drives_length, drives_addr, config_table, name,
    )  # fmt: skip
    return placement.place_data("multiboot information", info)


def _place_module(module: Module, placement: Placement) -> bytes:
    """Place one module and its string; return its entry of the module list."""
    size = module.data.size
    start = placement.place(module.data.name, size, align=MULTIBOOT_MOD_ALIGN)
    placement.put_file(start, module.data, 0, size)
    string = placement.place_data(f"string of {module.data.name}", module.string + b"\0", align=1)
    return MOD_ENTRY.pack(start, start + size, string, 0)


def encode_map(memory: GuestMemory) -> bytes:
    """``mmap_*``: ``size`` does not count itself."""
    size = MMAP_ENTRY.size - 4
    return b"".join(
        MMAP_ENTRY.pack(size, entry.base, entry.size, entry.type)
        for entry in e820.memory_map(memory)
    )


def _memory_sizes(memory: GuestMemory) -> tuple[int, int]:
    """``mem_lower`` and ``mem_upper`` in KiB: RAM from 0 up, and from 1 MiB to the first hole."""
    ram = {e.base: e.end for e in e820.memory_map(memory) if e.type is e820.RangeType.RAM}
    one_mib = e820.LOW_HOLE[1]
    return ram.get(0, 0) // layout.KIB, (ram.get(one_mib, one_mib) - one_mib) // layout.KIB
