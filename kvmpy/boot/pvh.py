"""Xen's x86/HVM direct boot ABI, "PVH" (docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h).

An ELF file with a XEN_ELFNOTE_PHYS32_ENTRY note is entered there in 32-bit protected mode without
paging, EBX pointing to a version 1 hvm_start_info. An initrd is the first module, as Linux wants
it; modules go as high as possible below 4 GiB.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ..errors import ImageError
from ..x86 import layout
from ..x86.modes import Mode
from . import e820, elf
from .image import EntryState, LoadedImage, Module, Request
from .placement import LIMIT_4G, Placement

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

XEN_NOTE_NAME = b"Xen"
XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_HVM_START_MAGIC_VALUE = 0x336EC578
START_INFO_VERSION = 1

# magic version flags nr_modules modlist_paddr cmdline_paddr rsdp_paddr
# memmap_paddr memmap_entries reserved
HVM_START_INFO = struct.Struct("<IIIIQQQQII")
# paddr size cmdline_paddr reserved
HVM_MODLIST_ENTRY = struct.Struct("<QQQQ")
# addr size type reserved
HVM_MEMMAP_TABLE_ENTRY = struct.Struct("<QQII")

FORMAT = "pvh"


def find_entry(executable: elf.Elf, problems: list[str] | None = None) -> int | None:
    """The address in the XEN_ELFNOTE_PHYS32_ENTRY note, if there is one that can be read. What
    cannot be is added to ``problems``.
    """
    problems = [] if problems is None else problems
    for name, n_type, desc in elf.notes(executable, problems):
        if name == XEN_NOTE_NAME and n_type == XEN_ELFNOTE_PHYS32_ENTRY:
            # 4 bytes say the ABI and Xen; Linux writes a word of its ELF class
            if len(desc) in (4, 8):
                return int.from_bytes(desc, "little")
            problems.append(
                f"n_descsz of XEN_ELFNOTE_PHYS32_ENTRY is {len(desc)}: it must be 4 or 8"
            )
    return None


def load(request: Request) -> LoadedImage:
    """Load an ELF file by its PVH entry point.

    Raises ImageError: no such note, or something does not fit.
    """
    request.refuse_placement(FORMAT, Mode.PROTECTED_32)
    request.refuse_rng_seed(FORMAT)
    executable = elf.parse(request.image)
    problems: list[str] = []
    entry = find_entry(executable, problems)
    if entry is None and problems:
        raise ImageError(problems[0])
    if entry is None:
        raise ImageError("PT_NOTE: no XEN_ELFNOTE_PHYS32_ENTRY (18) note of Xen, PVH needs one")
    if entry >= LIMIT_4G:
        raise ImageError(f"XEN_ELFNOTE_PHYS32_ENTRY is {entry:#x}: the limit is {LIMIT_4G - 1:#x}")
    elf.check_loaded(executable, "XEN_ELFNOTE_PHYS32_ENTRY", entry)
    placement = Placement.of(request, Mode.PROTECTED_32)
    elf.place(executable, placement)
    start_info = _place_start_info(request, placement)
    segments = placement.commit()
    state = EntryState(Mode.PROTECTED_32, entry, regs={"rbx": start_info})
    description = f"PVH (ELF{executable.bits}), entry {entry:#x}"
    return LoadedImage(FORMAT, description, state, segments)


def _place_start_info(request: Request, placement: Placement) -> int:
    """Place the modules and hvm_start_info; return the latter's gpa."""
    modules = request.boot_modules
    modlist = b"".join(_place_module(module, placement) for module in modules)
    modlist_paddr = placement.place_data("module list", modlist) if modlist else 0
    memmap = encode_map(request.memory)
    memmap_paddr = placement.place_data("memory map", memmap)
    cmdline_paddr = placement.place_data("cmdline", request.cmdline + b"\0")
    flags = reserved = 0
    rsdp_paddr = request.acpi_rsdp or 0
    start_info = HVM_START_INFO.pack(
        XEN_HVM_START_MAGIC_VALUE, START_INFO_VERSION, flags, len(modules), modlist_paddr,
        cmdline_paddr, rsdp_paddr, memmap_paddr, len(memmap) // HVM_MEMMAP_TABLE_ENTRY.size,
        reserved,
    )  # fmt: skip
    return placement.place_data("hvm_start_info", start_info)


def _place_module(module: Module, placement: Placement) -> bytes:
    """Place one module and its command line; return its entry of the module list."""
    size = module.data.size
    paddr = placement.place(module.data.name, size, align=layout.PAGE_SIZE, top=True)
    placement.put_file(paddr, module.data, 0, size)
    cmdline = placement.place_data(f"cmdline of {module.data.name}", module.string + b"\0")
    return HVM_MODLIST_ENTRY.pack(paddr, size, cmdline, 0)


def encode_map(memory: GuestMemory) -> bytes:
    """The hvm_memmap_table_entry array."""
    return b"".join(
        HVM_MEMMAP_TABLE_ENTRY.pack(entry.base, entry.size, entry.type, 0)
        for entry in e820.memory_map(memory)
    )
