"""The attributes of descriptors (KVM API, "4.80 KVM_SET_DEVICE_ATTR" and on)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import ioctls
from ..errors import KvmIoctlError, UnsupportedError
from ..shim import address_of, ffi

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: What a descriptor of which kind without attributes answers.
_NO_SUCH = (errno.ENXIO, errno.ENOTTY, errno.EPERM)


class Attributes:
    """The attributes of a descriptor: KVM's, a VM's, a vCPU's or a device's. Each has a group and
    a number, and a value whose size they determine.
    """

    def __init__(self, fileno: Callable[[], int], capability: str):
        self._fileno = fileno
        self._capability = capability

    def _call(self, ioctl: ioctls.Ioctl, group: int, attr: int, value: Buffer | None) -> int:
        request = ffi.new("struct kvm_device_attr *")
        request.group, request.attr = group, attr
        if value is not None:
            request.addr = address_of(value)
        return ioctl.raw(self._fileno(), request)

    def _check(self, result: int, ioctl: ioctls.Ioctl, group: int, attr: int) -> None:
        if result >= 0:
            return
        fd = self._fileno()
        if -result in (*_NO_SUCH, errno.EINVAL) and ioctls.lacks(fd, self._capability):
            raise UnsupportedError(
                f"{ioctl.name}: this KVM has no {self._capability}", self._capability
            )
        detail = f"group {group}, attribute {attr}"
        if -result == errno.EIO:
            raise ioctl.error(fd, -result, detail)
        raise KvmIoctlError(ioctl.name, -result, detail)

    def has(self, group: int, attr: int) -> bool:
        """KVM_HAS_DEVICE_ATTR: whether there is such an attribute. KVM API, 4.81.

        >>> kvm.attributes.has(99, 0)
        False
        """
        result = self._call(ioctls.KVM_HAS_DEVICE_ATTR, group, attr, None)
        if -result not in _NO_SUCH:
            self._check(result, ioctls.KVM_HAS_DEVICE_ATTR, group, attr)
        return result >= 0

    def get(self, group: int, attr: int, size: int = 8) -> int:
        """KVM_GET_DEVICE_ATTR: its value of ``size`` bytes as a number. KVM API, 4.80.

        ``size`` must be the attribute's: KVM writes as many bytes as that has. Raises KvmIoctlError
        (ENXIO) if there is no such attribute, UnsupportedError if this descriptor has none at all.

        >>> kvm.attributes.get(0, 0) & 3  # KVM_X86_XCOMP_GUEST_SUPP: x87 and SSE at least
        3
        """
        return int.from_bytes(self.get_bytes(group, attr, size), "little")

    def get_bytes(self, group: int, attr: int, size: int) -> bytes:
        """As :meth:`get`, for a structure.

        >>> len(kvm.attributes.get_bytes(0, 0, 8))
        8
        """
        if size < 0:
            raise ValueError(f"{size} bytes")
        value = bytearray(max(size, 8))  # no attribute of a number is larger
        result = self._call(ioctls.KVM_GET_DEVICE_ATTR, group, attr, value)
        self._check(result, ioctls.KVM_GET_DEVICE_ATTR, group, attr)
        return bytes(value[:size])

    def set(self, group: int, attr: int, value: int | Buffer | None = None) -> None:
        """KVM_SET_DEVICE_ATTR, to a number (8 bytes), bytes, or nothing. KVM API, 4.80.

        >>> cpu.attributes.set(0, 0, cpu.attributes.get(0, 0))  # KVM_VCPU_TSC_OFFSET
        """
        raw = value.to_bytes(8, "little") if isinstance(value, int) else value
        result = self._call(ioctls.KVM_SET_DEVICE_ATTR, group, attr, raw)
        self._check(result, ioctls.KVM_SET_DEVICE_ATTR, group, attr)
