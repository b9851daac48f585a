"""Images that are files."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from ..errors import ImageError

if TYPE_CHECKING:
    from .image import BytesLike

    ImageSource: TypeAlias = BytesLike | str | os.PathLike[str]

#: Bytes that are taken from what is no file: a pipe.
LARGEST_STREAM = 1 << 30


def _is_empty(device: BinaryIO) -> bool:
    return not device.isatty() and not device.read(1)


@contextmanager
def content(image: ImageSource) -> Iterator[BytesLike]:
    """The bytes of an image: a file's are mapped where they can be."""
    if not isinstance(image, (str, os.PathLike)):
        yield image
        return
    try:
        with open(image, "rb") as file:
            kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
            if kind == stat.S_IFBLK or (kind == stat.S_IFCHR and not _is_empty(file)):
                raise ImageError(f"{os.fspath(image)}: a device, not a file (--disk takes disks)")
            try:
                content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):  # empty, or a pipe
                content = file.read(LARGEST_STREAM + 1)
            if len(content) > LARGEST_STREAM and isinstance(content, bytes):
                raise ImageError(
                    f"{os.fspath(image)}: more than {LARGEST_STREAM >> 20} MiB came, and no end"
                )
    except OSError as error:
        raise ImageError(f"{os.fspath(image)}: {error.strerror}") from None
    try:
        yield content
    finally:
        if isinstance(content, mmap.mmap):
            content.close()
