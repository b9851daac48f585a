"""Images that are files."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ImageError

if TYPE_CHECKING:
    from .image import BytesLike

    ImageSource: TypeAlias = BytesLike | str | os.PathLike[str]


@contextmanager
def content(image: ImageSource) -> Iterator[BytesLike]:
    """The bytes of an image: a file's are mapped where they can be."""
    if not isinstance(image, (str, os.PathLike)):
        yield image
        return
    try:
        with open(image, "rb") as file:
            try:
                content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (ValueError, OSError):  # empty, or a pipe
                content = file.read()
    except OSError as error:
        raise ImageError(f"{os.fspath(image)}: {error.strerror}") from None
    try:
        yield content
    finally:
        if isinstance(content, mmap.mmap):
            content.close()
