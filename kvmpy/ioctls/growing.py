"""Tables that KVM fills, and that must be large enough: E2BIG asks for a larger one."""

from __future__ import annotations

import errno
from typing import Any

from ..shim import ffi
from .ioctl import Ioctl

#: Structure -> its count and its entries.
_FIELDS = {
    "struct kvm_cpuid2": ("nent", "entries"),
    "struct kvm_msr_list": ("nmsrs", "indices"),
    "struct kvm_reg_list": ("n", "reg"),
}
_FIRST, _MOST = 128, 1 << 14


def read_table(ioctl: Ioctl, fd: int) -> Any:
    """The table that ``ioctl`` fills, as a C structure whose count KVM has set.

    >>> table = kvmpy.ioctls.growing.read_table(kvmpy.ioctls.KVM_GET_SUPPORTED_CPUID, kvm.fileno())
    >>> table.nent > 0
    True
    """
    count, array = _FIELDS[ioctl.argument]
    entries = _FIRST
    while True:
        table = ffi.new(f"{ioctl.argument} *", {array: entries})
        setattr(table, count, entries)
        result = ioctl.raw(fd, table)
        if result >= 0:
            return table
        if result != -errno.E2BIG or entries >= _MOST:
            raise ioctl.error(fd, -result, f"{entries} entries")
        # Some say how many there are, others leave it to the caller to try.
        entries = min(max(getattr(table, count), 2 * entries), _MOST)
