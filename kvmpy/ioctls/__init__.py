"""Every KVM ioctl of x86 by name: ``kvmpy.ioctls.KVM_GET_REGS(cpu.fileno(), buffer)``.

Made from :mod:`kvmpy.ioctls.table`. The argument is an integer, or a writable buffer that is at
least as large as the structure the request's number encodes (``_IOC_SIZE``). The ``.pyi`` beside
this file says of each what it takes and which method makes it.
"""

from .ioctl import Ioctl, lacks
from .table import TABLE

#: All of them by name.
ALL: dict[str, Ioctl] = {row.split(maxsplit=1)[0]: Ioctl(row) for row in TABLE.splitlines() if row}
globals().update(ALL)

__all__ = ["ALL", "Ioctl", "lacks", *ALL]
