"""The Linux/x86 Boot Protocol, 64-bit (Documentation/arch/x86/boot.rst and zero-page.rst).

A bzImage of protocol 2.12 or later with XLF_KERNEL_64 is loaded at pref_address, or above it if it
is relocatable and does not fit there, and entered 0x200 bytes in. A vmlinux, the ELF64 file that a
bzImage carries compressed, is loaded by its segments and entered at e_entry with the same zero
page, for which the setup header is made up: that file has none.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ..errors import ImageError
from ..x86 import layout
from ..x86.modes import Mode
from . import e820, elf
from .image import EntryState, Image, LoadedImage, Request
from .placement import LIMIT_4G, LOW_MEMORY, Placement

SECTOR_SIZE = 512
DEFAULT_SETUP_SECTS = 4
BOOT_FLAG = 0xAA55
HDRS = 0x53726448  # "HdrS"
JMP_SHORT = 0xEB
MIN_VERSION = 0x020C  # 2.12, the first with xloadflags
ENTRY_64 = 0x200
SYSSIZE_UNIT = 16

TYPE_OF_LOADER_UNDEFINED = 0xFF
VID_MODE_NORMAL = 0xFFFF
LOADED_HIGH = 1 << 0
XLF_KERNEL_64 = 1 << 0
BZIMAGE_ADDRESS = 0x10_0000

# struct boot_params. All else of it is zero: no screen, no APM, no EFI, no EDD, and a sentinel that
# says so (Documentation/arch/x86/zero-page.rst).
BOOT_PARAMS_SIZE = 4096
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
HDR = 0x1F1
HDR_BASE = 0x202  # what the jump at 0x200 is relative to, and so the end of the header
JUMP_MAX = 0x7F  # reach of the jump, and so of the header
INIT_SIZE_END = 0x264
E820_TABLE = 0x2D0
E820_MAX_ENTRIES_ZEROPAGE = 128
BOOT_E820_ENTRY = struct.Struct("<QQI")

# next, type, len, then the data
SETUP_DATA = struct.Struct("<QII")
SETUP_RNG_SEED = 9

# What Linux has in its own header; a vmlinux comes without one.
VMLINUX_CMDLINE_SIZE = 2047
VMLINUX_INITRD_ADDR_MAX = 0x7FFF_FFFF
VMLINUX_VERSION = 0x020F
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000

FORMAT = "linux"


class SetupHeader(NamedTuple):
    """struct setup_header, from offset 0x1f1."""

    setup_sects: int
    root_flags: int
    syssize: int
    ram_size: int
    vid_mode: int
    root_dev: int
    boot_flag: int
    jump: int
    header: int
    version: int
    realmode_swtch: int
    start_sys_seg: int
    kernel_version: int
    type_of_loader: int
    loadflags: int
    setup_move_size: int
    code32_start: int
    ramdisk_image: int
    ramdisk_size: int
    bootsect_kludge: int
    heap_end_ptr: int
    ext_loader_ver: int
    ext_loader_type: int
    cmd_line_ptr: int
    initrd_addr_max: int
    kernel_alignment: int
    relocatable_kernel: int
    min_alignment: int
    xloadflags: int
    cmdline_size: int
    hardware_subarch: int
    hardware_subarch_data: int
    payload_offset: int
    payload_length: int
    setup_data: int
    pref_address: int
    init_size: int
    handover_offset: int
    kernel_info_offset: int


SETUP_HEADER = struct.Struct("<BHIHHHHHIHIHHBBHIIIIHBBIIIBBHIIQIIQQIII")


def is_bzimage(image: Image) -> bool:
    """Whether boot_flag and header are those of a Linux kernel."""
    return image.matches(0x1FE, b"\x55\xaa") and image.matches(0x202, b"HdrS")


def is_vmlinux(executable: elf.Elf) -> bool:
    """Whether an ELF file is linked as vmlinux is.

    That is: 64 bits, and e_entry the physical address of code in a segment whose virtual address
    is the physical one plus __START_KERNEL_map.
    """
    return executable.bits == 64 and any(
        header.vaddr == header.paddr + START_KERNEL_MAP
        and header.paddr <= executable.entry < header.paddr + header.filesz
        for header in executable.loads
    )


def load(request: Request) -> LoadedImage:
    """Load a bzImage or a vmlinux with its command line and initrd.

    Raises ImageError: not a kernel with a 64-bit entry, or something does not fit.
    """
    request.refuse_placement(FORMAT, Mode.LONG_64)
    if request.modules:
        raise ImageError(
            f"modules: {len(request.modules)} were given, the Linux boot protocol has none; "
            "an initrd is what it takes"
        )
    if elf.is_elf(request.image):
        return _load_vmlinux(request)
    return _load_bzimage(request)


# --- bzImage --------------------------------------------------------------------------------------


def _load_bzimage(request: Request) -> LoadedImage:
    image = request.image
    header = read_setup_header(image)
    offset, size = _protected_mode_part(image, header)
    placement = Placement.of(request, Mode.LONG_64)
    header, gpa = _place_kernel(header, size, placement)
    placement.put_file(gpa, image, offset, size)
    raw = image.read("the setup header", HDR, HDR_BASE + (header.jump >> 8) - HDR)
    zero_page = _place_boot_params(request, placement, header, raw)
    segments = placement.commit()
    state = EntryState(Mode.LONG_64, gpa + ENTRY_64, regs={"rsi": zero_page})
    description = f"Linux bzImage, boot protocol {_version(header)}{_release(image, header)}"
    return LoadedImage(FORMAT, description, state, segments)


def read_setup_header(image: Image) -> SetupHeader:
    """Read the setup header and check that it offers the 64-bit boot protocol.

    Raises ImageError: it does not.
    """
    header = SetupHeader(*image.unpack("the setup header", SETUP_HEADER, HDR))
    if header.boot_flag != BOOT_FLAG:
        raise ImageError(f"boot_flag is {header.boot_flag:#x}: a Linux kernel has {BOOT_FLAG:#x}")
    if header.header != HDRS:
        raise ImageError(f"header is {header.header:#x}: a Linux kernel has {HDRS:#x}, 'HdrS'")
    if header.version < MIN_VERSION:
        raise ImageError(
            f"version is {_version(header)}: the 64-bit boot protocol starts with 2.12; "
            "this image needs a PC's firmware or a 32-bit loader"
        )
    opcode, reach = header.jump & 0xFF, header.jump >> 8
    if opcode != JMP_SHORT or not INIT_SIZE_END <= HDR_BASE + reach <= HDR_BASE + JUMP_MAX:
        raise ImageError(
            f"jump is {header.jump:#06x}: it must be {JMP_SHORT:#x} and a header end of "
            f"{INIT_SIZE_END - HDR_BASE:#x}..{JUMP_MAX:#x}"
        )
    if not header.loadflags & LOADED_HIGH:
        raise ImageError(f"loadflags is {header.loadflags:#x}: a zImage (LOADED_HIGH, 0x1, clear)")
    if not header.xloadflags & XLF_KERNEL_64:
        raise ImageError(
            f"xloadflags is {header.xloadflags:#x}: no 64-bit entry point (XLF_KERNEL_64, 0x1)"
        )
    return header


def _protected_mode_part(image: Image, header: SetupHeader) -> tuple[int, int]:
    """File offset and size of what is loaded high."""
    offset = ((header.setup_sects or DEFAULT_SETUP_SECTS) + 1) * SECTOR_SIZE
    size = header.syssize * SYSSIZE_UNIT
    if size <= ENTRY_64:
        raise ImageError(
            f"syssize is {header.syssize:#x} paragraphs: the entry is at {ENTRY_64:#x}"
        )
    # syssize is rounded up to paragraphs of 16 bytes; not every file is.
    rest = image.size - offset
    if rest <= size - SYSSIZE_UNIT:
        raise ImageError(
            f"syssize is {header.syssize:#x} paragraphs ({size:#x} bytes): after "
            f"{offset:#x} bytes of setup the image has {max(rest, 0):#x}"
        )
    return offset, min(size, rest)


def _place_kernel(header: SetupHeader, size: int, placement: Placement) -> tuple[SetupHeader, int]:
    """Claim what the kernel needs; return the header as modified for it, and the address."""
    need = max(header.init_size, size)
    align = header.kernel_alignment if header.relocatable_kernel else 1
    if not _is_power_of_two(align):
        raise ImageError(f"kernel_alignment is {align:#x}: it must be a power of two")
    gpa = header.pref_address or BZIMAGE_ADDRESS
    try:
        if header.relocatable_kernel:
            # Never below pref_address: a kernel loaded there moves itself up to it.
            gpa = placement.place("kernel", need, align=align, window=(gpa, LIMIT_4G))
        else:
            placement.claim("kernel", gpa, need)
    except ImageError as error:
        raise ImageError(
            f"pref_address is {header.pref_address:#x}, init_size is {header.init_size:#x}: {error}"
            + _ram_advice(gpa + need)
        ) from None
    return header._replace(code32_start=gpa & 0xFFFF_FFFF), gpa


def _ram_advice(end: int) -> str:
    """How much RAM puts the supervisor area above ``end``, if any does."""
    need = end + layout.SUPERVISOR_SIZE
    if need > layout.HOLE_START:
        return ""
    return f"; this kernel needs at least {-(-need // layout.MIB)} MiB of RAM"


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _version(header: SetupHeader) -> str:
    return f"{header.version >> 8}.{header.version & 0xFF:02d}"


def _release(image: Image, header: SetupHeader) -> str:
    """The kernel_version string, if the image has one, cut and made printable."""
    limit = SECTOR_SIZE * (header.setup_sects or DEFAULT_SETUP_SECTS)
    if not 0 < header.kernel_version < limit:
        return ""
    text = image.prefix(header.kernel_version + 0x200 + 128)[header.kernel_version + 0x200 :]
    release = text.split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
    return f", {release}" if release.isascii() and release.isprintable() and release else ""


# --- vmlinux --------------------------------------------------------------------------------------


def _load_vmlinux(request: Request) -> LoadedImage:
    executable = elf.parse(request.image)
    if executable.bits != 64:
        raise ImageError(f"EI_CLASS is ELFCLASS{executable.bits}: a 64-bit vmlinux is ELFCLASS64")
    placement = Placement.of(request, Mode.LONG_64)
    elf.place(executable, placement)
    entry = elf.entry_gpa(executable)
    header = SetupHeader(*(0 for _ in SetupHeader._fields))._replace(
        boot_flag=BOOT_FLAG,
        header=HDRS,
        version=VMLINUX_VERSION,
        loadflags=LOADED_HIGH,
        initrd_addr_max=VMLINUX_INITRD_ADDR_MAX,
        cmdline_size=VMLINUX_CMDLINE_SIZE,
        xloadflags=XLF_KERNEL_64,
    )
    zero_page = _place_boot_params(request, placement, header, SETUP_HEADER.pack(*header))
    segments = placement.commit()
    state = EntryState(Mode.LONG_64, entry, regs={"rsi": zero_page})
    return LoadedImage(FORMAT, f"Linux vmlinux, entry {entry:#x}", state, segments)


# --- zero page ------------------------------------------------------------------------------------


def _place_boot_params(
    request: Request, placement: Placement, header: SetupHeader, raw: bytes
) -> int:
    """Place command line, initrd and struct boot_params; return the latter's gpa.

    ``raw`` is the header as in the file: fields that this module does not know stay as they are.
    """
    zero_page = placement.place(
        "zero page", BOOT_PARAMS_SIZE, align=layout.PAGE_SIZE, window=LOW_MEMORY
    )
    if len(request.cmdline) > header.cmdline_size:
        raise ImageError(
            f"cmdline has {len(request.cmdline)} bytes: cmdline_size, the kernel's limit, "
            f"is {header.cmdline_size}"
        )
    cmd_line_ptr = placement.place_data("cmdline", request.cmdline + b"\0")
    ramdisk_image = ramdisk_size = 0
    if request.initrd:
        ramdisk_size = request.initrd.size
        ramdisk_image = _place_initrd(request.initrd, header.initrd_addr_max, placement)
    setup_data = 0
    if request.rng_seed:
        entry = SETUP_DATA.pack(0, SETUP_RNG_SEED, len(request.rng_seed)) + request.rng_seed
        setup_data = placement.place_data("rng seed", entry)
    header = header._replace(
        vid_mode=VID_MODE_NORMAL,
        type_of_loader=TYPE_OF_LOADER_UNDEFINED,
        ext_loader_ver=0,
        ext_loader_type=0,
        cmd_line_ptr=cmd_line_ptr,
        ramdisk_image=ramdisk_image,
        ramdisk_size=ramdisk_size,
        hardware_subarch=0,
        setup_data=setup_data,
    )
    params = bytearray(BOOT_PARAMS_SIZE)
    params[HDR : HDR + len(raw)] = raw
    known = min(len(raw), SETUP_HEADER.size)
    params[HDR : HDR + known] = SETUP_HEADER.pack(*header)[:known]
    struct.pack_into("<Q", params, ACPI_RSDP_ADDR, request.acpi_rsdp or 0)
    _write_e820_table(params, e820.memory_map(request.memory))
    placement.put(zero_page, bytes(params))
    return zero_page


def _place_initrd(initrd: Image, initrd_addr_max: int, placement: Placement) -> int:
    """As high as initrd_addr_max, the last byte it may occupy, allows."""
    window = (e820.LOW_HOLE[1], min(initrd_addr_max + 1, LIMIT_4G))
    gpa = placement.place("initrd", initrd.size, align=layout.PAGE_SIZE, window=window, top=True)
    placement.put_file(gpa, initrd, 0, initrd.size)
    return gpa


def _write_e820_table(params: bytearray, entries: tuple[e820.MapEntry, ...]) -> None:
    if len(entries) > E820_MAX_ENTRIES_ZEROPAGE:
        raise ImageError(
            f"e820_entries would be {len(entries)}: the zero page holds {E820_MAX_ENTRIES_ZEROPAGE}"
        )
    params[E820_ENTRIES] = len(entries)
    for index, entry in enumerate(entries):
        offset = E820_TABLE + index * BOOT_E820_ENTRY.size
        BOOT_E820_ENTRY.pack_into(params, offset, entry.base, entry.size, entry.type)
