"""Disk images that are not raw: refused, unless they are meant."""

import pytest

from kvmpy.devices.virtio import Block
from kvmpy.host import disks


@pytest.mark.parametrize(("offset", "magic", "name"), disks.FORMATS)
def test_other_formats(tmp_path, offset, magic, name):
    """A guest would see the container, and write over it."""
    path = tmp_path / "disk"
    before = (bytes(offset) + magic).ljust(4096, b"\0")
    path.write_bytes(before)
    for read_only in (False, True):
        with pytest.raises(ValueError, match=f"{name} image") as info:
            Block(path, read_only=read_only)
        assert str(path) in str(info.value)
    assert path.read_bytes() == before
    with Block(path, format="raw") as disk:  # a guest may have written that
        assert disk.size == 4096
    with pytest.raises(ValueError, match="format"):
        Block(path, format="qcow2")
