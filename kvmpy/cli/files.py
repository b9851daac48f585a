"""Files that commands write: checked before the work, so that none is done in vain."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import KvmpyError


class OutputFileError(KvmpyError):
    """A file that a command was to write cannot be written."""


def check_writable(path: str | None) -> None:
    """Raise OutputFileError if ``path`` can be seen to be no file that can be written."""
    if path is None:
        return
    target = Path(path)
    if target.is_dir():
        raise OutputFileError(f"{path}: is a directory")
    if not target.parent.is_dir():
        raise OutputFileError(f"{path}: there is no directory {target.parent}")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise OutputFileError(f"{path}: cannot be written")


def write(path: str, text: str) -> None:
    """Write a file. Raises OutputFileError."""
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputFileError(f"{path}: {error.strerror}") from None
