"""A Debian kernel for a rig: unpacked, never installed, reduced to its image and a few modules."""

from __future__ import annotations

import lzma
import shutil
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import host

_LAYOUT = "3"  # change it when what is written to the cache changes


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel and its modules, which are loaded in this order.

    ``elf`` is the decompressed image (vmlinux), or the bzImage again when it is compressed with
    something that Python cannot undo.
    """

    bzimage: Path
    elf: Path
    modules: tuple[Path, ...]


def fetch(package: str, modules: Iterable[str]) -> Kernel:
    """Get the kernel that ``package`` names or, for a metapackage, depends on.

    ``modules`` are module names ("kvm_amd"); what they depend on is added.  Raises RigError when
    apt has no such package or the package lacks a module.
    """
    wanted = tuple(modules)
    key = host.fingerprint(_LAYOUT, package, *wanted)

    def build(directory: Path) -> None:
        tree = directory / "unpacked"
        host.unpack(_archives(package), tree)
        _reduce(tree, wanted, directory)
        shutil.rmtree(tree)

    entry = host.cached("kernel", key, build)
    elf = entry / "vmlinux"
    bzimage = entry / "vmlinuz"
    modules_in_order = tuple(sorted((entry / "modules").iterdir()))
    return Kernel(bzimage, elf if elf.exists() else bzimage, modules_in_order)


def _archives(package: str) -> list[Path]:
    """The package's .deb, kept: rigs and their guests want different modules of one kernel."""

    def build(directory: Path) -> None:
        images = [name for name in host.dependencies(package) if name.startswith("linux-image-")]
        name = images[0] if images else package
        host.say(f"fetching {name}")
        host.download([name], directory)

    return sorted(host.cached("deb", host.fingerprint(package), build).glob("*.deb"))


def _reduce(tree: Path, wanted: tuple[str, ...], directory: Path) -> None:
    """Keep the image and the modules, numbered in load order."""
    (image,) = (tree / "boot").glob("vmlinuz-*")
    if (elf := BzImage.parse(image.read_bytes()).decompress()) is not None:
        (directory / "vmlinux").write_bytes(elf)
    shutil.move(image, directory / "vmlinuz")
    files = {_module_name(path): path for path in tree.rglob("*.ko*") if path.is_file()}
    built_in = {
        _module_name(Path(line))
        for listing in tree.rglob("modules.builtin")
        for line in listing.read_text().split()
    }
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in files:
            raise host.RigError(f"{image.name} has no module {name}")
        data = _read_module(files[name])
        for dependency in _module_dependencies(data):
            add(dependency)
        order[name] = data

    for name in wanted:
        add(name)
    (directory / "modules").mkdir()
    for number, (name, data) in enumerate(order.items()):
        (directory / "modules" / f"{number:02}-{name}.ko").write_bytes(_unsigned(data))


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read_module(path: Path) -> bytes:
    """A module's ELF image; Debian 13 ships them compressed with xz."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix != ".ko":
        raise host.RigError(f"{path.name}: only .ko and .ko.xz modules can be read")
    return data


def _module_dependencies(data: bytes) -> list[str]:
    """The modules that this one names in its .modinfo, as ``depends=a,b``."""
    for entry in data.split(b"\0"):
        if entry.startswith(b"depends="):
            names = entry.removeprefix(b"depends=").decode()
            return [name.replace("-", "_") for name in names.split(",") if name]
    return []


def _unsigned(data: bytes) -> bytes:
    """The module without its appended signature, whose check takes seconds in an emulator.

    Source: ``struct module_signature`` in Linux ``include/linux/module_signature.h``.
    """
    body = data.removesuffix(b"~Module signature appended~\n")
    if body == data:
        return data
    signer, key_id, size = struct.unpack(">3xBB3xI", body[-12:])
    return body[: -12 - signer - key_id - size]


@dataclass(frozen=True)
class BzImage:
    """A bzImage in its two parts: the real-mode setup code and what it starts.

    Source: Linux ``Documentation/arch/x86/boot.rst``, whose field offsets are used below.
    """

    setup: bytes
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> BzImage:
        """Raises RigError unless ``data`` is a bzImage of boot protocol 2.08 or newer."""
        if len(data) < 0x260 or data[0x202:0x206] != b"HdrS":
            raise host.RigError("the kernel image is not a bzImage")
        (version,) = struct.unpack_from("<H", data, 0x206)
        if version < 0x208:  # the first with payload_offset and payload_length
            raise host.RigError(f"the kernel's boot protocol is too old: {version:#x}")
        size = ((data[0x1F1] or 4) + 1) * 512
        return cls(data[:size], data[size:])

    def decompress(self) -> bytes | None:
        """The ELF image inside, when it is compressed with xz or gzip; None otherwise."""
        offset, size = struct.unpack_from("<II", self.setup, 0x248)  # payload_offset, _length
        compressed = self.payload[offset : offset + size]
        try:
            if compressed.startswith(b"\xfd7zXZ\0"):
                return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(compressed)
            if compressed.startswith(b"\x1f\x8b"):
                return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(compressed)
        except (lzma.LZMAError, zlib.error) as error:
            raise host.RigError(f"the kernel image is damaged: {error}") from None
        return None
