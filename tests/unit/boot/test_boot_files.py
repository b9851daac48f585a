"""Images that are files: regular ones, pipes, devices, and what has no end."""

import os
import threading

import pytest

from kvmpy.boot import files
from kvmpy.errors import ImageError


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
def test_devices_are_no_images(device):
    """/dev/zero would be read until the host has no memory."""
    with pytest.raises(ImageError, match="a device, not a file"), files.content(device):
        pass


def test_a_pipe(tmp_path, monkeypatch):
    """To its end, or to the limit."""
    monkeypatch.setattr(files, "LARGEST_STREAM", 100_000)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for size, refused in ((100_000, False), (100_001, True)):
        writer = threading.Thread(target=pipe.write_bytes, args=(b"x" * size,))
        writer.start()
        if refused:
            with pytest.raises(ImageError, match="and no end"), files.content(pipe):
                pass
        else:
            with files.content(pipe) as content:
                assert len(content) == size
        writer.join()


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ImageError, match=str(path)), files.content(path):
            pass
