"""What all loaders share: bounds-checked access to the image, the request, and the result.

An image is hostile input. Loaders read it only through ``Image``, whose every access is checked
against the size of the file.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import ImageError
from ..values import dataclass
from ..x86.modes import Mode

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

BytesLike: TypeAlias = "bytes | bytearray | memoryview | mmap.mmap"


class Image:
    """Bounds-checked, read-only access to the bytes of one file.

    No slice of the file outlives a call, so that a caller's ``mmap`` can be closed even while an
    exception raised here is still propagating.

    ``data``: the file's content, any C-contiguous bytes-like object. ``name``: what error messages
    call the file.

    Raises ImageError: the file is empty.
    """

    def __init__(self, data: BytesLike, name: str) -> None:
        view = memoryview(data)
        if view.nbytes == 0:
            view.release()
            raise ImageError(f"{name} is empty: size is 0, at least 1 byte is needed")
        self.name = name
        self.size = view.nbytes
        # Released at once: the cast alone keeps the buffer exported.
        with view, view.cast("B") as octets:
            self._view = octets.toreadonly()

    def close(self) -> None:
        self._view.release()

    def check(self, what: str, offset: int, size: int) -> None:
        """Raise ImageError unless ``size`` bytes at file offset ``offset`` exist."""
        if offset < 0 or offset + size > self.size:
            raise ImageError(
                f"{what}: {size:#x} bytes at file offset {offset:#x} lie outside {self.name}, "
                f"which has {self.size:#x} bytes"
            )

    def read(self, what: str, offset: int, size: int) -> bytes:
        self.check(what, offset, size)
        return bytes(self._view[offset : offset + size])

    def unpack(self, what: str, layout: struct.Struct, offset: int) -> tuple[Any, ...]:
        self.check(what, offset, layout.size)
        return layout.unpack_from(self._view, offset)

    def prefix(self, size: int) -> bytes:
        """The first ``size`` bytes, fewer if the file is shorter."""
        return bytes(self._view[:size])

    def matches(self, offset: int, magic: bytes) -> bool:
        return bytes(self._view[offset : offset + len(magic)]) == magic

    def copy_to(self, memory: GuestMemory, gpa: int, offset: int, size: int) -> None:
        """Copy a part of the file, already checked, straight to guest memory."""
        with self._view[offset : offset + size] as part:
            memory.write(gpa, part)


@dataclass(frozen=True)
class Module:
    """A boot module: a file and the string handed over with it."""

    data: Image
    string: bytes


@dataclass(frozen=True)
class Request:
    """The arguments of ``kvmpy.boot.load``, checked for what does not depend on the format."""

    image: Image
    memory: GuestMemory
    cmdline: bytes = b""
    initrd: Image | None = None
    modules: tuple[Module, ...] = ()
    load_address: int | None = None
    mode: Mode | None = None
    acpi_rsdp: int | None = None
    rng_seed: bytes = b""

    @property
    def boot_modules(self) -> tuple[Module, ...]:
        """What Multiboot and PVH hand over as modules: the initrd, if given, comes first."""
        return (Module(self.initrd, b""), *self.modules) if self.initrd else self.modules

    def refuse_boot_information(self, format: str) -> None:
        """For formats that define no way to pass a command line or files."""
        given = {"cmdline": self.cmdline, "initrd": self.initrd, "modules": self.modules}
        self.refuse_rng_seed(format)
        for name, value in given.items():
            if value:
                raise ImageError(
                    f"{name} was given, but a {format} image takes none: "
                    "its format defines no boot information"
                )

    def refuse_rng_seed(self, format: str) -> None:
        """For formats other than Linux's own."""
        if self.rng_seed:
            raise ImageError(
                f"rng_seed was given, but a {format} image takes none: "
                "only the Linux boot protocol has a place for it"
            )

    def refuse_placement(self, format: str, mode: Mode) -> None:
        """For formats that fix load address and CPU mode themselves."""
        self.refuse_load_address(format)
        if self.mode not in (None, mode):
            raise ImageError(
                f"mode is {self.mode}, but the boot protocol of a {format} image starts in {mode}"
            )

    def refuse_load_address(self, format: str) -> None:
        if self.load_address is not None:
            raise ImageError(
                f"load_address is {self.load_address:#x}, but a {format} image carries its own "
                "addresses: only flat images take one"
            )


_NO_REGISTERS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class EntryState:
    """CPU state at the first instruction, as far as the boot protocol defines it.

    ``mode``: CPU mode. ``rip``: guest-physical address of the first instruction. ``rsp``: first
    stack pointer; None leaves the choice to ``cpu.enter``. ``regs``: general registers by name
    (``"rax"`` ...) that the protocol sets. ``ring``: privilege level.
    """

    mode: Mode
    rip: int
    rsp: int | None = None
    regs: Mapping[str, int] = _NO_REGISTERS
    ring: int = 0


@dataclass(frozen=True)
class LoadedImage:
    """What ``load`` did.

    ``format``: "flat", "elf", "multiboot", "pvh" or "linux". ``description``: one line for people.
    ``entry``: CPU state to start with. ``segments``: (gpa, size in bytes, name) of everything
    placed in guest memory, by gpa.
    """

    format: str
    description: str
    entry: EntryState
    segments: tuple[tuple[int, int, str], ...]
