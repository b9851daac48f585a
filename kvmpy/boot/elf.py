"""ELF executables: System V ABI, chapter "Object Files", with the i386 and x86-64 supplements.

Static executables only (ET_EXEC). ET_DYN, static PIE included, is refused: it needs relocations
applied, which no boot protocol here asks a loader to do. PT_INTERP is refused where the ELF header
alone says what to run; kernels with a boot protocol may carry one (FreeBSD's does).

Each PT_LOAD segment goes to p_paddr; the rest of p_memsz is zeroed. e_entry is a virtual address
in ELF, and a physical one in what kernels make of it. It is taken as virtual if a segment's
p_vaddr range has it, and turned into that segment's physical address; else as physical.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from ..errors import ImageError
from ..values import dataclass
from ..x86.modes import Mode
from .flat import check_entry
from .image import EntryState, Image, LoadedImage, Request
from .placement import Placement

ELFMAG = b"\x7fELF"
EI_CLASS, EI_DATA, EI_VERSION, EI_NIDENT = 4, 5, 6, 16
ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB = 1
EV_CURRENT = 1
ET_EXEC = 2
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4

# e_type e_machine e_version e_entry e_phoff e_shoff e_flags
# e_ehsize e_phentsize e_phnum e_shentsize e_shnum e_shstrndx
ELF32_EHDR = struct.Struct("<HHIIIIIHHHHHH")
ELF64_EHDR = struct.Struct("<HHIQQQIHHHHHH")
# p_type p_offset p_vaddr p_paddr p_filesz p_memsz p_flags p_align
ELF32_PHDR = struct.Struct("<IIIIIIII")
# p_type p_flags p_offset p_vaddr p_paddr p_filesz p_memsz p_align
ELF64_PHDR = struct.Struct("<IIQQQQQQ")
# n_namesz n_descsz n_type
NHDR = struct.Struct("<III")

MAX_PROGRAM_HEADERS = 1024
"""About what Linux accepts (64 KiB of them); kernels have fewer than ten."""

MAX_NOTES = 1024
MAX_NOTE_FIELD = 64  # bytes of a note's name and descriptor that are read

FORMAT = "elf"


@dataclass(frozen=True)
class ProgramHeader:
    """Elf32_Phdr or Elf64_Phdr, with its place in the table."""

    index: int
    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True)
class Elf:
    """The parts of an ELF file that loading needs. ``bits`` is 32 or 64."""

    image: Image
    bits: int
    entry: int
    headers: tuple[ProgramHeader, ...]

    @property
    def loads(self) -> tuple[ProgramHeader, ...]:
        return tuple(h for h in self.headers if h.type == PT_LOAD and h.memsz)


def is_elf(image: Image) -> bool:
    return image.matches(0, ELFMAG)


def parse(image: Image) -> Elf:
    """Read and check the ELF header and the program headers.

    Raises ImageError: a header is truncated, lies, or asks for what is not supported.
    """
    ident = image.read("e_ident", 0, EI_NIDENT)
    if ident[:4] != ELFMAG:
        raise ImageError(f"e_ident starts with {ident[:4].hex(' ')}: ELF starts with 7f 45 4c 46")
    _expect("EI_DATA", ident[EI_DATA], ELFDATA2LSB, "ELFDATA2LSB")
    _expect("EI_VERSION", ident[EI_VERSION], EV_CURRENT, "EV_CURRENT")
    if ident[EI_CLASS] == ELFCLASS32:
        bits, ehdr, phdr, machine = 32, ELF32_EHDR, ELF32_PHDR, (EM_386, "EM_386")
    elif ident[EI_CLASS] == ELFCLASS64:
        bits, ehdr, phdr, machine = 64, ELF64_EHDR, ELF64_PHDR, (EM_X86_64, "EM_X86_64")
    else:
        raise ImageError(f"EI_CLASS is {ident[EI_CLASS]}: ELFCLASS32 is 1, ELFCLASS64 is 2")

    header = image.unpack("the ELF header", ehdr, EI_NIDENT)
    e_type, e_machine, _, e_entry, e_phoff, _, _, _, e_phentsize, e_phnum = header[:10]
    _expect("e_type", e_type, ET_EXEC, "ET_EXEC, a static executable: link with -static -no-pie")
    _expect("e_machine", e_machine, *machine)
    _expect("e_phentsize", e_phentsize, phdr.size, f"the size of Elf{bits}_Phdr")
    if not 0 < e_phnum <= MAX_PROGRAM_HEADERS:
        raise ImageError(f"e_phnum is {e_phnum}: 1 to {MAX_PROGRAM_HEADERS} are accepted")
    image.check("e_phoff, e_phnum", e_phoff, e_phnum * phdr.size)
    headers = tuple(_program_header(image, bits, e_phoff, index) for index in range(e_phnum))
    return Elf(image, bits, e_entry, headers)


def _expect(field: str, value: int, wanted: int, meaning: str) -> None:
    if value != wanted:
        raise ImageError(f"{field} is {value}: only {wanted} is supported ({meaning})")


def _program_header(image: Image, bits: int, e_phoff: int, index: int) -> ProgramHeader:
    what = f"program header {index}"
    if bits == 32:
        fields = image.unpack(what, ELF32_PHDR, e_phoff + index * ELF32_PHDR.size)
        p_type, offset, vaddr, paddr, filesz, memsz, _, align = fields
    else:
        fields = image.unpack(what, ELF64_PHDR, e_phoff + index * ELF64_PHDR.size)
        p_type, _, offset, vaddr, paddr, filesz, memsz, align = fields
    if p_type in (PT_LOAD, PT_NOTE) and filesz:  # ld gives an empty one any offset
        image.check(f"p_offset, p_filesz of {what}", offset, filesz)
    if p_type == PT_LOAD and filesz > memsz:
        raise ImageError(f"p_filesz of {what} is {filesz:#x}: p_memsz, its limit, is {memsz:#x}")
    return ProgramHeader(index, p_type, offset, vaddr, paddr, filesz, memsz, align)


def place(elf: Elf, placement: Placement) -> None:
    """Claim and fill the memory of every PT_LOAD segment.

    Raises ImageError: there is none, or one does not fit.
    """
    if not elf.loads:
        raise ImageError("PT_LOAD: the program headers have 0 such segments, at least 1 is needed")
    for header in elf.loads:
        placement.claim(f"PT_LOAD segment {header.index}", header.paddr, header.memsz)
        if header.filesz:
            placement.put_file(header.paddr, elf.image, header.offset, header.filesz)
        if header.memsz > header.filesz:
            zeros = header.memsz - header.filesz
            placement.put_zeros(header.paddr + header.filesz, zeros)


def entry_gpa(elf: Elf) -> int:
    """Guest-physical address of e_entry.

    Raises ImageError: no segment has file content there.
    """
    for header in elf.loads:
        if header.vaddr <= elf.entry < header.vaddr + header.filesz:
            return elf.entry - header.vaddr + header.paddr
    check_loaded(elf, "e_entry", elf.entry)
    return elf.entry


def check_loaded(elf: Elf, what: str, gpa: int) -> None:
    """Raise ImageError unless ``gpa`` lies in the file content of a segment."""
    if not any(header.paddr <= gpa < header.paddr + header.filesz for header in elf.loads):
        ranges = ", ".join(f"{h.paddr:#x}..{h.paddr + h.filesz - 1:#x}" for h in elf.loads[:4])
        raise ImageError(f"{what} is {gpa:#x}, outside the content of the segments ({ranges})")


def notes(elf: Elf, problems: list[str]) -> Iterator[tuple[bytes, int, bytes]]:
    """Name, type and descriptor of the notes in all PT_NOTE segments, 1024 in each at most.

    Names and descriptors are cut to 64 bytes. What cannot be read is no reason to refuse an image
    that does not need it: it is said in ``problems``, and ends its segment alone.
    """
    for header in elf.headers:
        if header.type != PT_NOTE:
            continue
        what = f"PT_NOTE segment {header.index}"
        # 4-byte words in both classes; only segments of GNU properties say p_align 8.
        align = 8 if header.align == 8 else 4
        offset, end = header.offset, header.offset + header.filesz
        left = MAX_NOTES
        while end - offset >= NHDR.size:
            if not left:
                problems.append(f"{what}: more than {MAX_NOTES} notes, the limit")
                break
            left -= 1
            n_namesz, n_descsz, n_type = elf.image.unpack(what, NHDR, offset)
            name = offset + NHDR.size
            desc = offset + -(-(NHDR.size + n_namesz) // align) * align
            if desc + n_descsz > end:
                problems.append(
                    f"n_namesz {n_namesz:#x}, n_descsz {n_descsz:#x} of a note at file offset "
                    f"{offset:#x} exceed {what}, which ends at {end:#x}"
                )
                break
            content = elf.image.read(what, desc, min(n_descsz, MAX_NOTE_FIELD))
            owner = elf.image.read(what, name, min(n_namesz, MAX_NOTE_FIELD))
            yield owner.rstrip(b"\0"), n_type, content
            offset = desc + -(-n_descsz // align) * align


def load(request: Request) -> LoadedImage:
    """Load an ELF executable: ELF32 starts in protected mode, ELF64 in long mode.

    The caller may ask for another mode, for instance ``Mode.PAGED_32``.

    Raises ImageError: see ``parse``, ``place`` and ``entry_gpa``.
    """
    request.refuse_boot_information(FORMAT)
    request.refuse_load_address(FORMAT)
    elf = parse(request.image)
    for header in elf.headers:
        if header.type == PT_INTERP:
            raise ImageError(
                f"program header {header.index} is PT_INTERP: only static executables are supported"
            )
    mode = request.mode or (Mode.PROTECTED_32 if elf.bits == 32 else Mode.LONG_64)
    placement = Placement.of(request, mode)
    place(elf, placement)
    entry = entry_gpa(elf)
    check_entry("e_entry", entry, mode)
    segments = placement.commit()
    count = len(elf.loads)
    description = f"ELF{elf.bits} executable, {count} segment{'s' * (count != 1)}, entry {entry:#x}"
    return LoadedImage(FORMAT, description, EntryState(mode, entry), segments)
