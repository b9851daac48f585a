"""Boot protocols: an image becomes loaded guest memory and an entry state.

One module per protocol (``flat``, ``elf``, ``multiboot``, ``pvh``, ``linux``), one for the memory
map that three of them hand to the guest (``e820``), two that all share (``image``, ``placement``);
and the tables that tell a kernel of its machine (``acpi`` with ``aml``, ``mptable``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ClosedError, ImageError
from ..host import disks
from ..x86.modes import Mode
from . import acpi, aml, elf, flat, linux, mptable, multiboot, pvh
from .e820 import MapEntry, RangeType, memory_map
from .image import BytesLike, EntryState, Image, LoadedImage, Module, Request

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

__all__ = [
    "FORMATS",
    "EntryState",
    "LoadedImage",
    "MapEntry",
    "RangeType",
    "acpi",
    "aml",
    "detect",
    "load",
    "memory_map",
    "mptable",
]

ModuleLike: TypeAlias = "BytesLike | tuple[BytesLike, str]"

_LOADERS: dict[str, Callable[[Request], LoadedImage]] = {
    flat.FORMAT: flat.load,
    elf.FORMAT: elf.load,
    multiboot.FORMAT: multiboot.load,
    pvh.FORMAT: pvh.load,
    linux.FORMAT: linux.load,
}

FORMATS: tuple[str, ...] = tuple(_LOADERS)
"""What `format=` accepts."""

_OTHER_CPU = "a kernel for another architecture: {}"
# Files that are nobody's flat binary, by magic number, and what to do about them.
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"#!", "a script"),
    (0x200, b"EFI PART", "a partitioned disk: give it with --disk, and a kernel to boot"),
    (0x438, b"\x53\xef", "an ext2, ext3 or ext4 file system: give it with --disk"),
    (0, b"hsqs", "a SquashFS file system: give it with --disk"),
    (0, b"XFSB", "an XFS file system: give it with --disk"),
    (0x10040, b"_BHRfS_M", "a Btrfs file system: give it with --disk"),
    (0, b"\x55\xaa", "an option ROM: it needs firmware that is not here"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"070702", "a cpio archive, as initrds are"),
    (0, b"\xc7\x71", "a cpio archive, as initrds are"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image: take the kernel out of it first"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree, or a U-Boot image: take the kernel out of it first"),
    (0, b"ANDROID!", "an Android boot image: take the kernel out of it first"),
    (0x38, b"ARM\x64", _OTHER_CPU.format("64-bit ARM")),
    (0x24, b"\x18\x28\x6f\x01", _OTHER_CPU.format("32-bit ARM")),
    (0x38, b"RSC\x05", _OTHER_CPU.format("RISC-V")),
    (0, b"\xcf\xfa\xed\xfe", "a Mach-O program"),
    (0, b"\xce\xfa\xed\xfe", "a Mach-O program"),
    (0, b"\xca\xfe\xba\xbe", "a Java class or a Mach-O program"),
    (0, b"\0asm", "a WebAssembly module"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x89PNG", "a picture"),
    (0, b"SQLite format 3", "a database"),
    (0, b"\x1f\x8b", "gzip data: decompress it first"),
    (0, b"BZh", "bzip2 data: decompress it first"),
    (0, b"\xfd7zXZ\0", "xz data: decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd data: decompress it first"),
    (0, b"\x04\x22\x4d\x18", "LZ4 data: decompress it first"),
    (0, b"\x02\x21\x4c\x18", "LZ4 data: decompress it first"),
    (0, b"MZ", "a UEFI or DOS program: it needs firmware that is not here"),
    (0, b"070701", "a cpio archive, as initrds are"),
    (0, b"!<arch>\n", "an ar archive"),
    (0x8001, b"CD001", "an ISO 9660 file system without a boot sector"),
)


def detect(image: BytesLike) -> str:
    """The format that ``load`` chooses for ``image`` from its content.

    In this order: a Multiboot header makes it "multiboot"; vmlinux (ELF64 linked as Linux is, with
    an entry of its own beside any PVH note's) and bzImage are "linux"; a PVH note in any other ELF
    file makes it "pvh", no note "elf"; all else is "flat", by guess. A vmlinux that also has a PVH
    note is started by that only if ``format="pvh"`` says so.

    Raises ImageError: empty, malformed ELF, text, or a kind of file that is known not to be code.

    >>> kvmpy.boot.detect(kvmpy.guests.load("demo.elf"))
    'elf'
    """
    with ExitStack() as opened:
        return _detect(_open(image, "the image", opened))


def _detect(image: Image) -> str:
    if elf.is_elf(image):
        executable = elf.parse(image)
        if multiboot.is_bootable(image):
            return multiboot.FORMAT
        pvh_entry = pvh.find_entry(executable)
        # Other kernels of the higher half have one 32-bit entry; Linux's two are different code.
        if linux.is_vmlinux(executable) and pvh_entry != executable.entry:
            return linux.FORMAT
        return elf.FORMAT if pvh_entry is None else pvh.FORMAT
    if linux.is_bzimage(image):
        return linux.FORMAT
    if multiboot.is_bootable(image):
        return multiboot.FORMAT
    disk = disks.format_of(image.prefix(512))
    if disk is not None:
        raise ImageError(
            f"format is unknown: the image is a {disk} disk image ({disks.REMEDY}, for --disk)"
        )
    for offset, magic, meaning in _FOREIGN:
        if image.matches(offset, magic) and not flat.is_boot_sector(image):
            raise ImageError(f"format is unknown: the image is {meaning}")
    if _is_firmware(image):
        raise ImageError(
            "format is unknown: the image is firmware, to start at the end of 4 GiB: that is not "
            "here"
        )
    if _is_text(image):
        raise ImageError(
            "format is unknown: the image is text (as format 'flat' it is run all the same)"
        )
    return flat.FORMAT


def _is_firmware(image: Image) -> bool:
    """64 KiB or a multiple, and at the reset vector, 16 bytes before the end, a jump."""
    if image.size % 0x1_0000 or flat.is_boot_sector(image):
        return False
    first = image.read("the reset vector", image.size - 16, 1)
    return first in (b"\xea", b"\xe9", b"\xeb", b"\x90")


#: Machine code without a byte that is no text is not met beyond a few instructions.
_SHORTEST_TEXT = 32


def _is_text(image: Image) -> bool:
    start = image.prefix(4096)
    return len(start) >= _SHORTEST_TEXT and all(
        0x20 <= byte < 0x7F or byte in b"\t\n\r\f" for byte in start
    )


def load(
    image: BytesLike,
    memory: GuestMemory,
    *,
    format: str | None = None,
    cmdline: str = "",
    initrd: BytesLike | None = None,
    modules: Iterable[ModuleLike] = (),
    load_address: int | None = None,
    mode: Mode | None = None,
    acpi_rsdp: int | None = None,
    rng_seed: bytes = b"",
) -> LoadedImage:
    """Load a bootable image into guest memory.

    Nothing is written unless the whole image is accepted, and never outside writable RAM or in
    the supervisor area.

    ``image``: content of the file; an ``mmap`` is copied to guest memory without detours.
    ``memory``: the guest's memory. ``format``: one of ``FORMATS``; None detects it, see ``detect``.
    ``cmdline``: kernel command line, for "linux", "multiboot" and "pvh". ``initrd``: initial RAM
    disk, for the same formats; the first module of the latter two. ``modules``: boot modules for
    "multiboot" and "pvh", each bytes-like or (bytes-like, string). ``load_address``: guest-physical
    address, for "flat" only. ``mode``: CPU mode of a "flat" or "elf" image; the others define
    theirs. ``acpi_rsdp``: gpa of the RSDP that ``kvmpy.boot.acpi.build_acpi`` has written; None
    without ACPI. "linux" and "pvh" hand it over, other kernels look for it; the tables' area is
    kept free of the image. ``rng_seed``: random bytes for the kernel's generator, for "linux" only;
    32 are usual.

    Raises ImageError: anything wrong with image, initrd, modules or command line; the message names
    the field, its value and the limit; ClosedError: the guest memory is closed.

    >>> loaded = kvmpy.boot.load(kvmpy.asm("hlt", bits=16), memory, format="flat")
    >>> hex(loaded.entry.rip)
    '0x7c00'
    """
    if memory.closed:
        raise ClosedError("the guest memory is closed")
    with ExitStack() as opened:
        request = Request(
            image=_open(image, "the image", opened),
            memory=memory,
            cmdline=_encode("cmdline", cmdline),
            initrd=None if initrd is None else _open(initrd, "initrd", opened),
            modules=tuple(
                _open_module(module, f"module {index}", opened)
                for index, module in enumerate(modules)
            ),
            load_address=load_address,
            mode=mode,
            acpi_rsdp=acpi_rsdp,
            rng_seed=rng_seed,
        )
        if format is None:
            format = _detect(request.image)
        if format not in _LOADERS:
            raise ImageError(f"format is {format!r}: it must be one of {', '.join(FORMATS)}")
        return _LOADERS[format](request)


def _open(data: BytesLike, name: str, opened: ExitStack) -> Image:
    image = Image(data, name)
    opened.callback(image.close)
    return image


def _open_module(module: ModuleLike, name: str, opened: ExitStack) -> Module:
    data, string = module if isinstance(module, tuple) else (module, "")
    return Module(_open(data, name, opened), _encode(f"string of {name}", string))


def _encode(what: str, text: str) -> bytes:
    """Bytes of a string that the guest reads up to a NUL."""
    try:
        encoded = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ImageError(f"{what} has {text[error.start]!r}: not encodable in UTF-8") from None
    if b"\0" in encoded:
        raise ImageError(f"{what} has a NUL at byte {encoded.index(0)}: it would end there")
    return encoded
