"""Small valid images of every boot format, made by hand for the loader tests."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1 << 20
CODE = bytes(range(1, 65))  # what stands for code: no byte repeats, none is zero


@dataclass(frozen=True)
class Segment:
    """One program header and its content. None leaves a field to its natural value."""

    paddr: int
    content: bytes = CODE
    memsz: int | None = None
    filesz: int | None = None
    vaddr: int | None = None
    offset: int | None = None
    type: int = 1  # PT_LOAD
    align: int = 4


def elf(
    bits: int,
    segments: Sequence[Segment],
    *,
    entry: int | None = None,
    e_type: int = 2,
    e_machine: int | None = None,
    e_phnum: int | None = None,
    e_phoff: int | None = None,
    e_phentsize: int | None = None,
) -> bytes:
    """An ELF executable: header, program headers, then the segments' contents."""
    ehdr_size, phdr_size = (52, 32) if bits == 32 else (64, 56)
    machine = e_machine if e_machine is not None else {32: 3, 64: 62}[bits]
    ident = b"\x7fELF" + bytes((bits // 32, 1, 1)) + bytes(9)
    header = struct.pack(
        "<HHIIIIIHHHHHH" if bits == 32 else "<HHIQQQIHHHHHH",
        e_type,
        machine,
        1,
        segments[0].paddr if entry is None else entry,
        ehdr_size if e_phoff is None else e_phoff,
        0,
        0,
        ehdr_size,
        phdr_size if e_phentsize is None else e_phentsize,
        len(segments) if e_phnum is None else e_phnum,
        0,
        0,
        0,
    )
    table, contents = b"", b""
    start = ehdr_size + phdr_size * len(segments)
    for segment in segments:
        offset = start + len(contents) if segment.offset is None else segment.offset
        vaddr = segment.paddr if segment.vaddr is None else segment.vaddr
        filesz = len(segment.content) if segment.filesz is None else segment.filesz
        memsz = filesz if segment.memsz is None else segment.memsz
        if bits == 32:
            fields = (segment.type, offset, vaddr, segment.paddr, filesz, memsz, 7, segment.align)
            table += struct.pack("<8I", *fields)
        else:
            fields = (segment.type, 7, offset, vaddr, segment.paddr, filesz, memsz, segment.align)
            table += struct.pack("<II6Q", *fields)
        contents += segment.content
    return ident + header + table + contents


def note(name: bytes, n_type: int, desc: bytes) -> bytes:
    padded = [part + bytes(-len(part) % 4) for part in (name + b"\0", desc)]
    return struct.pack("<III", len(name) + 1, len(desc), n_type) + b"".join(padded)


def pvh(bits: int = 64, *, entry: int = MIB + 16, desc: bytes | None = None) -> bytes:
    """An ELF executable with a PVH note after another note."""
    desc = struct.pack("<I" if bits == 32 else "<Q", entry) if desc is None else desc
    notes = note(b"GNU", 3, bytes(20)) + note(b"Xen", 18, desc)
    return elf(bits, [Segment(MIB, memsz=0x2000), Segment(0, notes, memsz=0, type=4)])


def multiboot_header(flags: int = 3, fields: Sequence[int] = ()) -> bytes:
    checksum = -(0x1BADB002 + flags) & 0xFFFF_FFFF
    return struct.pack(f"<III{len(fields)}I", 0x1BADB002, flags, checksum, *fields)


def multiboot_elf(flags: int = 3, bits: int = 32) -> bytes:
    """A Multiboot kernel as ELF, its header at the start of the only segment."""
    content = multiboot_header(flags) + CODE
    return elf(bits, [Segment(MIB, content, memsz=0x3000)], entry=MIB + 12)


def multiboot_kludge(
    *,
    flags: int = 0x10003,
    before: int = 16,
    load_addr: int = MIB,
    header_addr: int | None = None,
    load_end_addr: int | None = None,
    bss_end_addr: int | None = None,
    entry_addr: int | None = None,
) -> bytes:
    """A Multiboot kernel by address fields; `before` bytes precede its header."""
    size = before + 32 + len(CODE)
    fields = (
        load_addr + before if header_addr is None else header_addr,
        load_addr,
        load_addr + size if load_end_addr is None else load_end_addr,
        load_addr + size + 0x1000 if bss_end_addr is None else bss_end_addr,
        load_addr + before + 32 if entry_addr is None else entry_addr,
    )
    return bytes(before) + multiboot_header(flags, fields) + CODE


# Offsets in struct boot_params and in a bzImage, from boot.rst, with their widths.
HEADER_FIELDS: dict[str, tuple[int, str]] = {
    "setup_sects": (0x1F1, "B"),
    "syssize": (0x1F4, "I"),
    "vid_mode": (0x1FA, "H"),
    "boot_flag": (0x1FE, "H"),
    "jump": (0x200, "H"),
    "header": (0x202, "4s"),
    "version": (0x206, "H"),
    "kernel_version": (0x20E, "H"),
    "type_of_loader": (0x210, "B"),
    "loadflags": (0x211, "B"),
    "code32_start": (0x214, "I"),
    "ramdisk_image": (0x218, "I"),
    "ramdisk_size": (0x21C, "I"),
    "cmd_line_ptr": (0x228, "I"),
    "initrd_addr_max": (0x22C, "I"),
    "kernel_alignment": (0x230, "I"),
    "relocatable_kernel": (0x234, "B"),
    "min_alignment": (0x235, "B"),
    "xloadflags": (0x236, "H"),
    "cmdline_size": (0x238, "I"),
    "setup_data": (0x250, "Q"),
    "pref_address": (0x258, "Q"),
    "init_size": (0x260, "I"),
    "handover_offset": (0x264, "I"),
    "kernel_info_offset": (0x268, "I"),
}


def field(data: bytes | memoryview, name: str) -> int | bytes:
    """A field of the setup header, in a bzImage or in a zero page."""
    offset, code = HEADER_FIELDS[name]
    value: int | bytes = struct.unpack_from("<" + code, data, offset)[0]
    return value


def bzimage(size: int = 0x400, **changes: int | bytes) -> bytes:
    """A bzImage with two setup sectors and `size` bytes of protected-mode code.

    `changes` are fields of the setup header.
    """
    image = bytearray(b"\xaa" * (3 * 512))
    image[0x1F1:0x26C] = bytes(0x26C - 0x1F1)
    fields: dict[str, int | bytes] = {
        "setup_sects": 2,
        "syssize": -(-size // 16),
        "boot_flag": 0xAA55,
        "jump": 0x6AEB,
        "header": b"HdrS",
        "version": 0x020F,
        "kernel_version": 0x200,
        "loadflags": 1,
        "code32_start": 0x100000,
        "initrd_addr_max": 0x7FFF_FFFF,
        "kernel_alignment": 0x10_0000,
        "relocatable_kernel": 1,
        "min_alignment": 12,
        "xloadflags": 3,
        "cmdline_size": 255,
        "setup_data": 0xDEAD_0000,
        "pref_address": MIB,
        "init_size": 0x8000,
        "handover_offset": 0x190,
        "kernel_info_offset": 0x30,
    }
    for name, value in (fields | changes).items():
        offset, code = HEADER_FIELDS[name]
        struct.pack_into("<" + code, image, offset, value)
    release = b"6.1.0-test (builder@host) #1\0"
    image[0x400 : 0x400 + len(release)] = release
    return bytes(image) + (CODE * (size // len(CODE) + 1))[:size]


START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000


def vmlinux(*, with_pvh_note: bool = True) -> bytes:
    """An ELF64 file linked as vmlinux is, per-CPU segment and all."""
    segments = [
        Segment(MIB, vaddr=START_KERNEL_MAP + MIB, memsz=0x1000),
        Segment(MIB + 0x1000, vaddr=0, memsz=0x800),
        Segment(MIB + 0x2000, vaddr=START_KERNEL_MAP + MIB + 0x2000, memsz=0x9000),
    ]
    if with_pvh_note:
        notes = note(b"Xen", 18, struct.pack("<Q", MIB + 8))
        segments.append(Segment(0, notes, memsz=0, type=4))
    return elf(64, segments, entry=MIB)


def boot_sector(size: int = 512) -> bytes:
    return (CODE * 8)[:510] + b"\x55\xaa" + bytes(size - 512)
