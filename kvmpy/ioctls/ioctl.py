"""One KVM ioctl as an object, in a raw and a checked form; what its errors mean.

``KVM_CREATE_VCPU.raw(vm_fd, 0)`` returns the new descriptor or ``-errno``;
``KVM_CREATE_VCPU(vm_fd, 0)`` returns it or raises. :mod:`kvmpy.ioctls` has them all by name.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

from ..errors import ForkedError, KvmIoctlError, UnsupportedError, VmDeadError
from ..fd import owner_of
from ..shim import ffi, lib

_call, _call_with = lib.shim_ioctl, lib.shim_ioctl_with
_ioctl = fcntl.ioctl
_from_buffer = ffi.from_buffer
_BYTES = ffi.typeof("char[]")
_CDATA = type(ffi.new("int *"))

#: What KVM answers when it lacks the whole feature; and also when only the argument is wrong.
_PERHAPS_MISSING = frozenset(
    (errno.ENOTTY, errno.EINVAL, errno.ENXIO, errno.ENOSYS, errno.ENODEV, errno.EOPNOTSUPP)
)


class Ioctl:
    """One request; a row of ``kvmpy.ioctls.table``.

    ``name`` as in ``<linux/kvm.h>``; ``fds`` the kinds of descriptor it goes to; ``direction`` of
    its structure, seen from the kernel ("in", "out", "inout", "" for none); ``argument`` the C
    type behind the pointer, "" for a plain integer or nothing; ``capability`` gates it (None:
    part of API version 12, or gated by something else than a capability); ``section`` is its
    heading in the kernel's KVM API document, "" where that has none; ``method`` makes it.
    """

    __slots__ = (
        "argument", "capability", "direction", "fds", "method", "name", "request", "section",
        "size",
    )  # fmt: skip

    def __init__(self, row: str):
        name, fds, direction, argument, capability, section, method = row.split()
        self.name = name
        self.fds = tuple(fds.split(","))
        self.direction = "" if direction == "-" else direction
        self.argument = {"-": "", "=": "", "uint64_t": argument}.get(argument, f"struct {argument}")
        self.capability = None if capability == "-" else "KVM_CAP_" + capability
        self.section = "" if section == "-" else section
        self.method = method
        self.request: int = getattr(lib, name)
        #: Bytes of the structure, from the request's own number; 0 where it encodes none.
        self.size = self.request >> 16 & 0x3FFF

    def raw(self, fd: int, argument: Any = 0) -> int:
        """The ioctl's result, or the negative errno. Raises ValueError for a buffer too small.

        ``argument`` is an integer, or a writable buffer at least as large as the structure.

        >>> kvmpy.ioctls.KVM_GET_API_VERSION.raw(kvm.fileno())
        12
        >>> kvmpy.ioctls.KVM_GET_API_VERSION.raw(-1)
        -9
        """
        if type(argument) is int:
            result: int = _call(fd, self.request, argument)
            return result
        result = _call_with(fd, self.request, self._pointer(argument))
        return result

    def __call__(self, fd: int, argument: Any = 0, detail: str = "") -> int:
        """The ioctl's result. Raises what :meth:`error` gives, which quotes ``detail``."""
        # raw() written out: a call more would be a fifth of what the checked form costs.
        if type(argument) is int:
            result: int = _call(fd, self.request, argument)
        elif isinstance(argument, _CDATA):
            result = _call_with(fd, self.request, argument)
        elif type(argument) is bytearray and len(argument) >= self.size:
            try:  # CPython's own way to the same system call: to cffi a bytearray is a detour
                result = _ioctl(fd, self.request, argument)
            except OSError as error:
                result = -(error.errno or errno.EINVAL)
        else:
            result = _call_with(fd, self.request, self._pointer(argument))
        if result < 0:
            raise self.error(fd, -result, detail)
        return result

    def _pointer(self, argument: Any) -> Any:
        if isinstance(argument, _CDATA):
            return argument
        if isinstance(argument, int):
            return ffi.cast("void *", int(argument))
        buffer = _from_buffer(_BYTES, argument, True)  # KVM may write: bytes will not do
        if len(buffer) < self.size:
            raise ValueError(f"{self.name} takes {self.size} bytes of {self.argument}")
        return buffer

    def error(self, fd: int, code: int, detail: str = "") -> Exception:
        """The exception for errno ``code`` from this ioctl on ``fd``: UnsupportedError if this
        KVM lacks the capability that gates it; ForkedError, VmDeadError; else KvmIoctlError.

        >>> kvmpy.ioctls.KVM_GET_REGS.error(cpu.fileno(), 14, "vCPU 0")
        KvmIoctlError(14, 'Bad address')
        """
        if code == errno.EIO and "system" not in self.fds:
            return _explain_eio(self.name, fd, detail)
        if self.capability and code in _PERHAPS_MISSING and lacks(fd, self.capability):
            return UnsupportedError(
                f"{self.name}: this KVM has no {self.capability}", self.capability
            )
        return KvmIoctlError(self.name, code, detail)

    def __repr__(self) -> str:
        return f"<{self.name} on a {' or '.join(self.fds)} fd, {self.argument or 'no structure'}>"


def lacks(fd: int, capability: str) -> bool:
    """Whether KVM, asked through ``fd`` or the VM it belongs to, says it has no ``capability``.

    >>> kvmpy.ioctls.ioctl.lacks(vm.fileno(), "KVM_CAP_USER_MEMORY")
    False
    """
    number = getattr(lib, capability)
    answer = _call(fd, lib.KVM_CHECK_EXTENSION, number)
    owner = owner_of(fd)
    if answer < 0 and owner is not None:  # only /dev/kvm and VMs answer
        answer = _call(owner._vm_fd, lib.KVM_CHECK_EXTENSION, number)
    return bool(answer == 0)


def _explain_eio(name: str, fd: int, detail: str) -> Exception:
    """EIO has two usual causes: the VM belongs to another process, or KVM has given it up. A VM
    that still answers KVM_CHECK_EXTENSION is not dead: then this ioctl has a reason of its own."""
    owner = owner_of(fd)
    if owner is not None and owner._process != os.getpid():
        return ForkedError(
            f"{name}: this VM was made by process {owner._process}, and KVM binds "
            f"a VM to its process; make a new one in process {os.getpid()}"
        )
    if _call(fd, lib.KVM_CHECK_EXTENSION, 0) != -errno.EIO:
        return KvmIoctlError(name, errno.EIO, detail)
    return VmDeadError(name, errno.EIO, detail)
