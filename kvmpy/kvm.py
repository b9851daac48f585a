"""/dev/kvm: the system file descriptor (KVM API, "4.1 KVM_GET_API_VERSION" and on)."""

from __future__ import annotations

import errno
import os

from . import ioctls
from .cpuid.kvm import KvmCpuid
from .errors import (
    KvmBrokenError,
    KvmBusyError,
    KvmIoctlError,
    KvmMissingError,
    KvmPermissionError,
    KvmUnavailableError,
    KvmVersionError,
    UnsupportedError,
)
from .ioctls.attributes import Attributes
from .memory.guest_memfd import VmType, decode_vm_types
from .msrs.msrs import KvmMsrs
from .shim import ffi, lib

API_VERSION = 12


def _cannot_open(path: str, error: OSError) -> KvmUnavailableError | KvmIoctlError:
    code = error.errno or 0
    if code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR):
        return KvmIoctlError("open", code, path)  # this process's trouble, not KVM's
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return KvmMissingError(
            f"{path} does not exist: no KVM module is loaded.",
            "Load it with 'modprobe kvm_intel' or 'modprobe kvm_amd'; if that fails, enable VT-x "
            "or AMD-V (SVM) in the firmware setup, or, in a virtual machine, nested "
            "virtualization on its host; in a container, pass the device in.",
            code,
        )
    if code in (errno.EACCES, errno.EPERM):
        return KvmPermissionError(
            f"{path} may not be opened by this user.",
            "Join its group: 'sudo usermod -aG kvm $USER', then log in again.",
            code,
        )
    if code == errno.EBUSY:
        return KvmBusyError(
            f"{path} is busy: another hypervisor holds the virtualization extensions.",
            "Stop it (VirtualBox, VMware) or unload its module.",
            code,
        )
    return KvmBrokenError(
        f"{path} cannot be opened: {os.strerror(code)}.", "Run 'kvmpy doctor'.", code
    )


class KVM(KvmCpuid, KvmMsrs):
    """The system descriptor: opens ``path`` and checks that the kernel speaks API version 12.

    Raises a subclass of KvmUnavailableError, each with its remedy.
    """

    _what = "KVM object"

    def __init__(self, path: str = "/dev/kvm"):
        try:
            self._opened(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise _cannot_open(path, error) from None
        version = ioctls.KVM_GET_API_VERSION.raw(self._fd)
        if version != API_VERSION:
            self.close()
            if version < 0:  # ENOTTY from most; other devices have errors of their own
                raise KvmBrokenError(
                    f"{path} is not KVM.", "Give the path of the KVM device.", -version
                )
            raise KvmVersionError(
                f"{path} speaks KVM API version {version}, not {API_VERSION}.",
                "Use a kernel of 2007 or later.",
            )

    def _in_child(self) -> None:
        """/dev/kvm itself serves a child as well."""
        self._process = os.getpid()

    def create_vm(self, machine_type: int = 0) -> int:
        """KVM_CREATE_VM: a new VM's descriptor. ``machine_type``: a VmType.

        Raises UnsupportedError for a type that :attr:`vm_types` lacks, and KvmBrokenError when KVM
        refuses.

        >>> import os
        >>> os.close(kvm.create_vm())
        """
        result = ioctls.KVM_CREATE_VM.raw(self.fileno(), machine_type)
        if result >= 0:
            return result
        if result == -errno.EINVAL and machine_type and machine_type not in self.vm_types:
            there = ", ".join(str(int(kind)) for kind in self.vm_types)
            raise UnsupportedError(
                f"this KVM has no VM type {int(machine_type)}, only {there} (KVM_CAP_VM_TYPES)",
                "KVM_CAP_VM_TYPES",
            )
        if -result in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINVAL):
            raise KvmIoctlError("KVM_CREATE_VM", -result, f"type {machine_type}")
        if -result == errno.EBUSY:
            raise KvmBusyError(
                "KVM cannot enable virtualization: another hypervisor holds it.",
                "Stop it (VirtualBox, VMware) or unload its module.",
                errno.EBUSY,
            )
        raise KvmBrokenError(
            f"/dev/kvm opens, and KVM_CREATE_VM fails: {os.strerror(-result)}.",
            "In a virtual machine, its host has nested virtualization off or in part; see "
            "'dmesg | grep -i kvm'.",
            -result,
        )

    @property
    def vm_types(self) -> tuple[VmType | int, ...]:
        """The VM types that can be created (KVM_CAP_VM_TYPES).

        >>> kvm.vm_types[0]
        <VmType.DEFAULT: 0>
        """
        return decode_vm_types(self.check_extension("KVM_CAP_VM_TYPES"))

    @property
    def vcpu_mmap_size(self) -> int:
        """Bytes of a vCPU's kvm_run mapping (KVM_GET_VCPU_MMAP_SIZE).

        >>> kvm.vcpu_mmap_size % 4096
        0
        """
        return ioctls.KVM_GET_VCPU_MMAP_SIZE(self.fileno())

    @property
    def mce_capabilities(self) -> int:
        """IA32_MCG_CAP's bits that VCPU.mce.setup() takes, without the bank count
        (KVM_X86_GET_MCE_CAP_SUPPORTED).

        >>> kvm.mce_capabilities & 0xFF
        0
        """
        value = ffi.new("uint64_t *")
        ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED(self.fileno(), value)
        result: int = value[0]
        return result

    @property
    def attributes(self) -> Attributes:
        """The system's attributes (KVM_CAP_SYS_ATTRIBUTES).

        >>> kvm.attributes.has(0, 0)  # KVM_X86_XCOMP_GUEST_SUPP
        True
        """
        return Attributes(self.fileno, "KVM_CAP_SYS_ATTRIBUTES")

    @property
    def supported_xcr0(self) -> int:
        """KVM_X86_XCOMP_GUEST_SUPP: the XCR0 bits that guests can have, those included that take
        arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM).

        >>> kvm.supported_xcr0 & 1
        1
        """
        return self.attributes.get(0, lib.KVM_X86_XCOMP_GUEST_SUPP)

    def __repr__(self) -> str:
        return "<KVM, closed>" if self.closed else f"<KVM fd {self._fd}>"
