"""Encrypted guests: AMD's SEV commands and the memory they cover (KVM API, "4.110
KVM_MEMORY_ENCRYPT_OP" on; the kernel's "Secure Encrypted Virtualization (SEV)")."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING

from .. import ioctls
from ..errors import KvmIoctlError, UnsupportedError
from ..shim import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..vm_fd import VmFd


class SevCommand(enum.IntEnum):
    """KVM_SEV_*: what :meth:`VmSev.op` does."""

    INIT = lib.KVM_SEV_INIT
    ES_INIT = lib.KVM_SEV_ES_INIT
    LAUNCH_START = lib.KVM_SEV_LAUNCH_START
    LAUNCH_UPDATE_DATA = lib.KVM_SEV_LAUNCH_UPDATE_DATA
    LAUNCH_UPDATE_VMSA = lib.KVM_SEV_LAUNCH_UPDATE_VMSA
    LAUNCH_SECRET = lib.KVM_SEV_LAUNCH_SECRET
    LAUNCH_MEASURE = lib.KVM_SEV_LAUNCH_MEASURE
    LAUNCH_FINISH = lib.KVM_SEV_LAUNCH_FINISH
    SEND_START = lib.KVM_SEV_SEND_START
    SEND_UPDATE_DATA = lib.KVM_SEV_SEND_UPDATE_DATA
    SEND_UPDATE_VMSA = lib.KVM_SEV_SEND_UPDATE_VMSA
    SEND_FINISH = lib.KVM_SEV_SEND_FINISH
    RECEIVE_START = lib.KVM_SEV_RECEIVE_START
    RECEIVE_UPDATE_DATA = lib.KVM_SEV_RECEIVE_UPDATE_DATA
    RECEIVE_UPDATE_VMSA = lib.KVM_SEV_RECEIVE_UPDATE_VMSA
    RECEIVE_FINISH = lib.KVM_SEV_RECEIVE_FINISH
    GUEST_STATUS = lib.KVM_SEV_GUEST_STATUS
    DBG_DECRYPT = lib.KVM_SEV_DBG_DECRYPT
    DBG_ENCRYPT = lib.KVM_SEV_DBG_ENCRYPT
    CERT_EXPORT = lib.KVM_SEV_CERT_EXPORT
    GET_ATTESTATION_REPORT = lib.KVM_SEV_GET_ATTESTATION_REPORT
    SEND_CANCEL = lib.KVM_SEV_SEND_CANCEL


def _error(ioctl: ioctls.Ioctl, fd: int, code: int, detail: str) -> Exception:
    """KVM has no capability for this; ENOTTY says that no vendor module took the call."""
    if code == errno.ENOTTY:
        return UnsupportedError(
            f"{ioctl.name}: no encrypted guests here. It takes AMD SEV (a CPU that has it, enabled "
            "in the firmware, and kvm_amd with sev=1) or Intel TDX, and a VM of such a type"
        )
    return ioctl.error(fd, code, detail)


class VmSev:
    """``vm.sev``: the VM's encryption."""

    def __init__(self, vm: VmFd):
        self._vm = vm

    def op(self, command: SevCommand | int, data: Buffer | None = None, sev_fd: int = -1) -> None:
        """KVM_MEMORY_ENCRYPT_OP: a command to the AMD secure processor. KVM API, 4.110.

        ``data``: the command's structure, a writable buffer that also takes its result.
        ``sev_fd``: /dev/sev, where the command needs it. Raises UnsupportedError where there is no
        SEV; KvmIoctlError, which quotes the firmware's error.

        >>> try:
        ...     vm.sev.op(kvmpy.encryption.SevCommand.GUEST_STATUS)
        ... except kvmpy.KvmpyError as error:
        ...     str(error).split(":")[0]
        'KVM_MEMORY_ENCRYPT_OP'
        """
        request = ffi.new("struct kvm_sev_cmd *", {"id": command})
        request.sev_fd = sev_fd & 0xFFFF_FFFF
        if data is not None:
            buffer = ffi.from_buffer("char[]", data, True)
            request.data = int(ffi.cast("uintptr_t", buffer))
        ioctl = ioctls.KVM_MEMORY_ENCRYPT_OP
        result = ioctl.raw(self._vm.fileno(), request)
        if result < 0 and request.error:
            detail = f"command {command!r}, SEV firmware error {request.error:#x}"
            raise KvmIoctlError(ioctl.name, -result, detail)
        if result < 0:
            raise _error(ioctl, self._vm.fileno(), -result, f"command {command!r}")

    def register_region(self, memory: Buffer) -> None:
        """KVM_MEMORY_ENCRYPT_REG_REGION: pin memory that may hold encrypted pages. KVM API, 4.111.

        ``memory``: the host's view of it, as of :attr:`Region.view`. Raises UnsupportedError
        where there is no SEV.

        >>> try:
        ...     vm.sev.register_region(memory.regions[0].view)
        ... except kvmpy.UnsupportedError as error:
        ...     str(error).split(":")[0]
        'KVM_MEMORY_ENCRYPT_REG_REGION'
        """
        self._region(ioctls.KVM_MEMORY_ENCRYPT_REG_REGION, memory)

    def unregister_region(self, memory: Buffer) -> None:
        """KVM_MEMORY_ENCRYPT_UNREG_REGION: the inverse. KVM API, 4.112.

        >>> try:
        ...     vm.sev.unregister_region(memory.regions[0].view)
        ... except kvmpy.UnsupportedError as error:
        ...     str(error).split(":")[0]
        'KVM_MEMORY_ENCRYPT_UNREG_REGION'
        """
        self._region(ioctls.KVM_MEMORY_ENCRYPT_UNREG_REGION, memory)

    def _region(self, ioctl: ioctls.Ioctl, memory: Buffer) -> None:
        buffer = ffi.from_buffer("char[]", memory, True)
        region = ffi.new("struct kvm_enc_region *")
        region.addr, region.size = int(ffi.cast("uintptr_t", buffer)), len(buffer)
        result = ioctl.raw(self._vm.fileno(), region)
        if result < 0:
            detail = f"{region.size:#x} bytes at host address {region.addr:#x}"
            raise _error(ioctl, self._vm.fileno(), -result, detail)
