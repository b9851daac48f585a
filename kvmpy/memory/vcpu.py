"""The part of a vCPU that is about guest memory."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .. import ioctls
from ..shim import ffi


class MemoryMethods:
    """Guest memory on the vCPU descriptor."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

    def pre_fault_memory(self, gpa: int, size: int) -> int:
        """KVM_PRE_FAULT_MEMORY: map [gpa, gpa + size) for the guest now, as its reads would later.

        ``gpa``, ``size``: multiples of 4 KiB. Goes on where signals interrupt it, having let
        Python handle them. Returns how many bytes were mapped: all of ``size``.

        Raises UnsupportedError without KVM_CAP_PRE_FAULT_MEMORY; KvmIoctlError: ENOENT outside
        all slots, EOPNOTSUPP where KVM shadows the guest's page tables.

        >>> if vm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        ...     assert cpu.pre_fault_memory(0, 0x10000) == 0x10000
        """
        request = ffi.new("struct kvm_pre_fault_memory *", {"gpa": gpa, "size": size})
        ioctl = ioctls.KVM_PRE_FAULT_MEMORY
        while True:
            fd = self.fileno()
            result = ioctl.raw(fd, request)
            if result < 0 and -result not in (errno.EINTR, errno.EAGAIN):
                left = f"gpa {request.gpa:#x}, size {request.size:#x} still to do"
                raise ioctl.error(fd, -result, left)
            if result == 0 and request.size == 0:  # KVM counts gpa up and size down as it goes
                return size
