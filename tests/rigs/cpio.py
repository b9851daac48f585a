"""Write cpio archives in the "newc" format, the one the kernel unpacks as an initramfs.

Source: Linux ``Documentation/driver-api/early-userspace/buffer-format.rst``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_MAGIC = b"070701"
_ALIGNMENT = 4


class CpioWriter:
    """One archive, owned by root throughout; parent directories are added as they are needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._inode = 0
        self._directories: set[str] = {""}
        self._size = 0

    def __enter__(self) -> CpioWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory once; adding it again does nothing."""
        path = path.strip("/")
        if path in self._directories:
            return
        self._parents(path)
        self._directories.add(path)
        self._entry(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644, mtime: int = 0) -> None:
        """Add a regular file.  ``mtime`` is in seconds since the epoch."""
        path = path.strip("/")
        self._parents(path)
        self._entry(path, stat.S_IFREG | mode, data, mtime)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        path = path.strip("/")
        self._parents(path)
        self._entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))

    def tree(
        self, source: Path, prefix: str = "", keep: Callable[[str], bool] | None = None
    ) -> None:
        """Add everything below ``source``; ``keep`` sees each path relative to it and may refuse.

        A refused directory is left out with all it holds.  Sockets, devices and pipes are skipped:
        an initramfs gets its devices from devtmpfs.
        """
        for directory, subdirectories, names in os.walk(source):
            relative = os.path.relpath(directory, source)
            base = "" if relative == "." else relative + "/"
            subdirectories.sort()
            if keep is not None:
                subdirectories[:] = [n for n in subdirectories if keep(base + n)]
            for name in sorted(subdirectories + names):
                if keep is None or keep(base + name):
                    self._copy(Path(directory, name), f"{prefix}/{base}{name}")

    def close(self) -> None:
        """Write the trailer that ends the archive."""
        self._entry("TRAILER!!!", 0)

    def _copy(self, source: Path, path: str) -> None:
        status = source.lstat()
        permissions = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            self.symlink(path, os.readlink(source))
        elif stat.S_ISDIR(status.st_mode):
            self.directory(path, permissions)
        elif stat.S_ISREG(status.st_mode):
            self.file(path, source.read_bytes(), permissions, int(status.st_mtime))

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent not in self._directories:
            self.directory(parent)

    def _entry(self, path: str, mode: int, data: bytes = b"", mtime: int = 0) -> None:
        self._inode += 1
        name = os.fsencode(path) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
        # namesize, check
        fields = (self._inode, mode, 0, 0, links, mtime, len(data), 0, 0, 0, 0, len(name), 0)
        header = _MAGIC + b"".join(b"%08X" % field for field in fields)
        self._write(header + name)
        self._write(data)

    def _write(self, data: bytes) -> None:
        """Write ``data`` and pad: the name and the data both start on a 4-byte boundary."""
        padding = -len(data) % _ALIGNMENT
        if self._size % _ALIGNMENT:
            raise AssertionError("cpio stream lost its alignment")
        self._stream.write(data + bytes(padding))
        self._size += len(data) + padding
