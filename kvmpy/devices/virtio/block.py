"""Block device over a raw file."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Literal

from ...errors import KvmpyError
from ...host import disks
from ...shim import lib
from .device import VirtioDevice

if TYPE_CHECKING:
    from _typeshed import StrPath


SECTOR_SIZE = 512
#: Bytes of the serial number, VIRTIO_BLK_ID_BYTES.
SERIAL_SIZE = 20


class Block(VirtioDevice):
    """A disk: the raw image or block device at ``path``, byte for byte.

    VIRTIO 1.2, "5.2 Block Device". Linux: ``/dev/vda``, and on.

    ``read_only``: the guest is told, and what it writes all the same fails. ``serial``: up to 20
    ASCII characters, in Linux ``/sys/block/vda/serial``. Writes go to the host's page cache, and to
    the storage when the guest flushes; a guest that never negotiated flushing gets each write
    stored before it is done. Discards make holes where the file system can.

    The file is locked (flock: shared if read-only), so that two guests do not write to one disk.

    ``format``: "raw" takes a file that begins as a QCOW2, VHD, VHDX, VMDK or VDI image does for the
    disk itself, as a guest may have written one there; None refuses it.

    Raises OSError when it cannot be opened, KvmpyError when another has locked it, ValueError when
    it is neither a regular file nor a block device, is empty, is not a multiple of 512 bytes, or
    has another format.

    >>> import tempfile; image = tempfile.NamedTemporaryFile(); _ = image.truncate(1 << 20)
    >>> with kvmpy.devices.virtio.Block(image.name, serial="root") as disk:
    ...     disk.connect(vm, 0xD000_0000)
    ...     disk
    <Block at 0xd0000000>
    """

    def __init__(
        self,
        path: StrPath,
        *,
        read_only: bool = False,
        serial: str = "",
        format: Literal["raw"] | None = None,
    ):
        if format not in ("raw", None):
            raise ValueError(f"format {format!r}: 'raw', or None for a look at the file")
        if not serial.isascii() or len(serial) > SERIAL_SIZE or "\0" in serial:
            raise ValueError(f"serial {serial!r} is more than {SERIAL_SIZE} ASCII characters")
        self._path = os.fspath(path)
        self._read_only = read_only
        self._serial = serial
        fd = os.open(self._path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            if format is None:
                _check_raw(fd, self._path)
            self._size = _size_of(fd, self._path)
            _lock(fd, self._path, read_only)
            sectors = self._size // SECTOR_SIZE
            super().__init__(
                lib.shim_virtio_blk_new(fd, sectors, read_only, serial.encode("ascii"))
            )
        except BaseException:
            os.close(fd)
            raise

    @property
    def path(self) -> str:
        """The image.

        >>> import tempfile; image = tempfile.NamedTemporaryFile(); _ = image.truncate(512)
        >>> kvmpy.devices.virtio.Block(image.name).path == image.name
        True
        """
        return self._path

    @property
    def size(self) -> int:
        """Bytes the guest sees; what the file had when it was opened.

        >>> import tempfile; image = tempfile.NamedTemporaryFile(); _ = image.truncate(1024)
        >>> kvmpy.devices.virtio.Block(image.name).size
        1024
        """
        return self._size

    @property
    def read_only(self) -> bool:
        """Whether the guest may only read.

        >>> import tempfile; image = tempfile.NamedTemporaryFile(); _ = image.truncate(512)
        >>> kvmpy.devices.virtio.Block(image.name, read_only=True).read_only
        True
        """
        return self._read_only

    @property
    def serial(self) -> str:
        """The serial number.

        >>> import tempfile; image = tempfile.NamedTemporaryFile(); _ = image.truncate(512)
        >>> kvmpy.devices.virtio.Block(image.name, serial="data-1").serial
        'data-1'
        """
        return self._serial


def _check_raw(fd: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return
    name = disks.format_of(os.pread(fd, SECTOR_SIZE, 0))
    if name is not None:
        raise ValueError(f"{path} is a {name} image, and a disk here is raw: {disks.REMEDY}")


def _size_of(fd: int, path: str) -> int:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise ValueError(f"{path} is neither a regular file nor a block device")
    size = os.lseek(fd, 0, os.SEEK_END)
    if not size or size % SECTOR_SIZE:
        raise ValueError(
            f"{path} has {size} bytes: the size of a disk is a positive multiple of {SECTOR_SIZE} "
            f"(truncate -s %{SECTOR_SIZE} pads it)"
        )
    return size


def _lock(fd: int, path: str, shared: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        use = "written to" if shared else "used"
        raise KvmpyError(f"{path} is {use} by another guest, here or in another process") from None
    except OSError as error:
        # Some network file systems have no locks: then nobody can know.
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
