"""guest_memfd: memory that the guest has and its host cannot read (KVM API, "4.142
KVM_CREATE_GUEST_MEMFD"), and the VM types that make use of it."""

from __future__ import annotations

import enum
import os

from .. import ioctls
from ..fd import Descriptor
from ..shim import ffi, lib

#: The host may map it (KVM_CAP_GUEST_MEMFD_FLAGS).
FLAG_MMAP: int = lib.GUEST_MEMFD_FLAG_MMAP
#: It begins as shared memory: the host can read and write what it maps.
FLAG_INIT_SHARED: int = lib.GUEST_MEMFD_FLAG_INIT_SHARED
ATTRIBUTE_PRIVATE: int = lib.KVM_MEMORY_ATTRIBUTE_PRIVATE


class VmType(enum.IntEnum):
    """What kind of VM to create (KVM API, "8.37 KVM_CAP_VM_TYPES").

    >>> kvmpy.VmType.DEFAULT in kvm.vm_types
    True
    """

    DEFAULT = lib.KVM_X86_DEFAULT_VM
    #: Private memory without hardware behind it: for development.
    SW_PROTECTED = lib.KVM_X86_SW_PROTECTED_VM
    SEV = lib.KVM_X86_SEV_VM
    SEV_ES = lib.KVM_X86_SEV_ES_VM
    SNP = lib.KVM_X86_SNP_VM
    TDX = lib.KVM_X86_TDX_VM


def decode_vm_types(mask: int) -> tuple[VmType | int, ...]:
    """The types in KVM_CAP_VM_TYPES's answer; a number for one without a name here. Kernels that
    do not know the capability have the default type alone.

    >>> kvmpy.guest_memfd.decode_vm_types(1)
    (<VmType.DEFAULT: 0>,)
    """
    known = {int(kind): kind for kind in VmType}
    numbers = [n for n in range(mask.bit_length()) if mask >> n & 1]
    return tuple(known.get(n, n) for n in numbers) or (VmType.DEFAULT,)


class GuestMemfd(Descriptor):
    """Made by :meth:`VM.create_guest_memfd`. Owns the descriptor, until :meth:`close` or the VM's;
    closing takes the memory from the slots that use it: the guest's next access is a MemoryFault.

    >>> if vm.check_extension("KVM_CAP_GUEST_MEMFD"):
    ...     memfd = vm.create_guest_memfd("64K")
    ...     memfd.close()
    """

    _what = "guest_memfd"

    def __init__(self, vm_fd: int, size: int, flags: int):
        #: Bytes.
        self.size = size
        #: GUEST_MEMFD_FLAG_*.
        self.flags = flags
        request = ffi.new("struct kvm_create_guest_memfd *", {"size": size, "flags": flags})
        detail = f"size {size:#x}, flags {flags:#x}"
        self._opened(ioctls.KVM_CREATE_GUEST_MEMFD(vm_fd, request, detail), vm_fd)
        os.set_inheritable(self._fd, False)  # KVM's other descriptors are made so

    def __repr__(self) -> str:
        if self.closed:
            return "<GuestMemfd, closed>"
        return f"<GuestMemfd fd {self._fd}, {self.size >> 10} KiB, flags {self.flags:#x}>"
