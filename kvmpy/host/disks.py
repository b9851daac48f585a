"""Disk images that are not the disk, byte for byte: what their files begin with."""

from __future__ import annotations

#: Where the magic number is, the number, and the format's name.
FORMATS = (
    (0, b"QFI\xfb", "QCOW2"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
)
#: What makes a raw one of any of them.
REMEDY = "'qemu-img convert -O raw' makes a raw one of it"


def format_of(start: bytes) -> str | None:
    """The format of an image that begins with ``start``, 512 bytes or more; None for none of these.

    >>> kvmpy.host.disks.format_of(b"QFI\\xfb" + bytes(508))
    'QCOW2'
    """
    for offset, magic, name in FORMATS:
        if start[offset : offset + len(magic)] == magic:
            return name
    return None
