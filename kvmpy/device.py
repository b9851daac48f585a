"""Devices that KVM itself has (KVM API, "4.79 KVM_CREATE_DEVICE").

x86 has one device, KVM_DEV_TYPE_VFIO, which ties VFIO groups to a VM: it is there where the module
was built with CONFIG_KVM_VFIO, else KVM answers ENODEV.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from . import ioctls
from .errors import UnsupportedError
from .fd import Descriptor
from .ioctls.attributes import Attributes
from .shim import ffi, lib
from .vm_fd import VmFd

if TYPE_CHECKING:
    pass


#: KVM_DEV_TYPE_* by name; all but vfio belong to other architectures.
DEVICE_TYPES: dict[str, int] = {
    "fsl_mpic_20": lib.KVM_DEV_TYPE_FSL_MPIC_20,
    "fsl_mpic_42": lib.KVM_DEV_TYPE_FSL_MPIC_42,
    "xics": lib.KVM_DEV_TYPE_XICS,
    "vfio": lib.KVM_DEV_TYPE_VFIO,
    "arm_vgic_v2": lib.KVM_DEV_TYPE_ARM_VGIC_V2,
    "flic": lib.KVM_DEV_TYPE_FLIC,
    "arm_vgic_v3": lib.KVM_DEV_TYPE_ARM_VGIC_V3,
    "arm_vgic_its": lib.KVM_DEV_TYPE_ARM_VGIC_ITS,
    "xive": lib.KVM_DEV_TYPE_XIVE,
    "arm_pv_time": lib.KVM_DEV_TYPE_ARM_PV_TIME,
}


class Device(Descriptor):
    """A device inside KVM. Made by :meth:`VM.create_device`."""

    _what = "device"

    def __init__(self, fd: int, type: int, vm_fd: int):
        self._opened(fd, vm_fd)
        #: KVM_DEV_TYPE_*.
        self.type = type

    @property
    def attributes(self) -> Attributes:
        """What it is controlled by.

        >>> if vm.has_device("vfio"):  # not every KVM has one
        ...     with vm.create_device("vfio") as vfio:
        ...         assert not vfio.attributes.has(99, 0)
        """
        return Attributes(self.fileno, "KVM_CAP_DEVICE_CTRL")

    def __repr__(self) -> str:
        names = {number: name for name, number in DEVICE_TYPES.items()}
        what = names.get(self.type, f"of type {self.type}")
        return f"<Device {what}, closed>" if self.closed else f"<Device {what} fd {self._fd}>"


class VmDevices(VmFd):
    """KVM's own devices."""

    @property
    def attributes(self) -> Attributes:
        """The VM's attributes. No x86 KVM up to 6.18 has any: KVM_CAP_VM_ATTRIBUTES.

        >>> vm.attributes.has(0, 0)
        False
        """
        return Attributes(self.fileno, "KVM_CAP_VM_ATTRIBUTES")

    def create_device(self, type: int | str) -> Device:
        """KVM_CREATE_DEVICE: make a device of KVM's own. KVM API, 4.79.

        ``type``: KVM_DEV_TYPE_*, or its name: "vfio" on x86. Raises UnsupportedError for a type
        that this KVM lacks, KvmIoctlError (EEXIST) for a second one of its kind.

        >>> if vm.has_device("vfio"):
        ...     vm.create_device("vfio").close()
        """
        number = _device_type(type)
        request = ffi.new("struct kvm_create_device *", {"type": number})
        result = ioctls.KVM_CREATE_DEVICE.raw(self.fileno(), request)
        if result == -errno.ENODEV:
            raise UnsupportedError(f"this KVM has no device of type {type}", "KVM_CAP_DEVICE_CTRL")
        if result < 0:
            raise ioctls.KVM_CREATE_DEVICE.error(self.fileno(), -result, f"type {type}")
        return Device(request.fd, number, self.fileno())

    def has_device(self, type: int | str) -> bool:
        """KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST: whether this KVM has such devices.

        >>> vm.has_device(9999)
        False
        """
        request = ffi.new("struct kvm_create_device *", {"type": _device_type(type)})
        request.flags = lib.KVM_CREATE_DEVICE_TEST
        result = ioctls.KVM_CREATE_DEVICE.raw(self.fileno(), request)
        if result < 0 and result != -errno.ENODEV:
            raise ioctls.KVM_CREATE_DEVICE.error(self.fileno(), -result, f"type {type}, test")
        return result >= 0


def _device_type(type: int | str) -> int:
    if isinstance(type, int):
        return type
    if type not in DEVICE_TYPES:
        raise ValueError(f"device type {type!r} is not one of {', '.join(DEVICE_TYPES)}")
    return DEVICE_TYPES[type]
