"""Every KVM ioctl this package uses, from one table, each in a raw and a checked form.

``KVM_CREATE_VCPU.raw(vm_fd, 0)`` returns the new descriptor or ``-errno``;
``KVM_CREATE_VCPU(vm_fd, 0)`` returns it or raises :class:`~kvmpy.errors.KvmIoctlError`.
The argument is an integer, or a writable buffer that is at least as large as the structure the
request's number encodes (``_IOC_SIZE``).
"""

from __future__ import annotations

import errno
import os
from typing import Any, Literal

from . import _native
from .errors import ForkedError, KvmIoctlError, VmDeadError

_lib, _ffi = _native.lib, _native.ffi
_call = _lib.shim_ioctl
_CDATA = type(_ffi.new("int *"))

Fd = Literal["system", "vm", "vcpu", "vm or vcpu"]


class Ioctl:
    """One request.

    ``name`` as in ``<linux/kvm.h>``; ``fd`` is the kind of descriptor it goes to; ``argument`` the
    C structure behind the pointer, "" for a plain integer or nothing; ``capability`` gates it
    (None: part of API version 12); ``section`` is its heading in the kernel's KVM API document.
    """

    __slots__ = ("argument", "capability", "fd", "name", "request", "section", "size")

    def __init__(self, name: str, fd: Fd, argument: str, capability: str | None, section: str):
        self.name = name
        self.fd = fd
        self.argument = argument
        self.capability = capability
        self.section = section
        self.request: int = getattr(_lib, name)
        #: Bytes of the structure, from the request's own number; 0 where it encodes none.
        self.size = self.request >> 16 & 0x3FFF

    def raw(self, fd: int, argument: Any = 0) -> int:
        """The ioctl's result, or the negative errno. Raises ValueError for a buffer too small."""
        if isinstance(argument, int):
            result: int = _call(fd, self.request, argument)
            return result
        if not isinstance(argument, _CDATA):
            if memoryview(argument).nbytes < self.size:
                raise ValueError(f"{self.name} takes {self.size} bytes of {self.argument}")
            argument = _ffi.from_buffer("char[]", argument, require_writable=True)
        result = _call(fd, self.request, _ffi.cast("uintptr_t", argument))
        return result

    def __call__(self, fd: int, argument: Any = 0, detail: str = "") -> int:
        """The ioctl's result; raises KvmIoctlError, which quotes ``detail``, when it fails."""
        result = self.raw(fd, argument)
        if result < 0:
            raise self.error(fd, -result, detail)
        return result

    def error(self, fd: int, code: int, detail: str = "") -> Exception:
        """The exception for errno ``code`` from this ioctl on ``fd``."""
        if code == errno.EIO and self.fd != "system":
            return _explain_eio(self.name, fd, detail)
        return KvmIoctlError(self.name, code, detail)

    def __repr__(self) -> str:
        return f"<{self.name} on a {self.fd} fd, {self.argument or 'no structure'}>"


_creators: dict[int, int] = {}


def remember_creator(fd: int) -> None:
    """Note which process made ``fd``: KVM answers any other with EIO."""
    _creators[fd] = os.getpid()


def _explain_eio(name: str, fd: int, detail: str) -> Exception:
    """EIO has two usual causes: the VM belongs to another process, or KVM has given it up. A VM
    that still answers KVM_CHECK_EXTENSION is not dead: then this ioctl has a reason of its own."""
    creator = _creators.get(fd)
    if creator is not None and creator != os.getpid():
        return ForkedError(
            f"{name}: this VM was made by process {creator}, and KVM binds a VM to its process; "
            f"make a new one in process {os.getpid()}"
        )
    if _call(fd, _lib.KVM_CHECK_EXTENSION, 0) != -errno.EIO:
        return KvmIoctlError(name, errno.EIO, detail)
    return VmDeadError(name, errno.EIO, detail)


_TABLE: tuple[tuple[str, Fd, str, str | None, str], ...] = (
    ("KVM_GET_API_VERSION", "system", "", None, "4.1"),
    ("KVM_CREATE_VM", "system", "", None, "4.2"),
    ("KVM_GET_MSR_INDEX_LIST", "system", "struct kvm_msr_list", None, "4.3"),
    (
        "KVM_GET_MSR_FEATURE_INDEX_LIST",
        "system",
        "struct kvm_msr_list",
        "KVM_CAP_GET_MSR_FEATURES",
        "4.3",
    ),
    ("KVM_CHECK_EXTENSION", "system", "", None, "4.4"),
    ("KVM_GET_VCPU_MMAP_SIZE", "system", "", None, "4.5"),
    ("KVM_GET_SUPPORTED_CPUID", "system", "struct kvm_cpuid2", "KVM_CAP_EXT_CPUID", "4.46"),
    ("KVM_CREATE_VCPU", "vm", "", None, "4.7"),
    (
        "KVM_SET_USER_MEMORY_REGION",
        "vm",
        "struct kvm_userspace_memory_region",
        "KVM_CAP_USER_MEMORY",
        "4.35",
    ),
    ("KVM_SET_TSS_ADDR", "vm", "", "KVM_CAP_SET_TSS_ADDR", "4.36"),
    ("KVM_SET_IDENTITY_MAP_ADDR", "vm", "uint64_t", "KVM_CAP_SET_IDENTITY_MAP_ADDR", "4.41"),
    ("KVM_CREATE_IRQCHIP", "vm", "", "KVM_CAP_IRQCHIP", "4.24"),
    ("KVM_CREATE_PIT2", "vm", "struct kvm_pit_config", "KVM_CAP_PIT2", "4.71"),
    ("KVM_IRQ_LINE", "vm", "struct kvm_irq_level", "KVM_CAP_IRQCHIP", "4.25"),
    ("KVM_IRQFD", "vm", "struct kvm_irqfd", "KVM_CAP_IRQFD", "4.75"),
    ("KVM_IOEVENTFD", "vm", "struct kvm_ioeventfd", "KVM_CAP_IOEVENTFD", "4.59"),
    ("KVM_ENABLE_CAP", "vm or vcpu", "struct kvm_enable_cap", "KVM_CAP_ENABLE_CAP", "4.37"),
    ("KVM_RUN", "vcpu", "", None, "4.10"),
    ("KVM_GET_REGS", "vcpu", "struct kvm_regs", None, "4.11"),
    ("KVM_SET_REGS", "vcpu", "struct kvm_regs", None, "4.12"),
    ("KVM_GET_SREGS", "vcpu", "struct kvm_sregs", None, "4.13"),
    ("KVM_SET_SREGS", "vcpu", "struct kvm_sregs", None, "4.14"),
    ("KVM_TRANSLATE", "vcpu", "struct kvm_translation", None, "4.15"),
    ("KVM_INTERRUPT", "vcpu", "struct kvm_interrupt", None, "4.16"),
    ("KVM_GET_MSRS", "vcpu", "struct kvm_msrs", None, "4.18"),
    ("KVM_SET_MSRS", "vcpu", "struct kvm_msrs", None, "4.19"),
    ("KVM_GET_FPU", "vcpu", "struct kvm_fpu", None, "4.22"),
    ("KVM_SET_FPU", "vcpu", "struct kvm_fpu", None, "4.23"),
    ("KVM_GET_VCPU_EVENTS", "vcpu", "struct kvm_vcpu_events", "KVM_CAP_VCPU_EVENTS", "4.31"),
    ("KVM_SET_VCPU_EVENTS", "vcpu", "struct kvm_vcpu_events", "KVM_CAP_VCPU_EVENTS", "4.32"),
    ("KVM_GET_MP_STATE", "vcpu", "struct kvm_mp_state", "KVM_CAP_MP_STATE", "4.38"),
    ("KVM_SET_MP_STATE", "vcpu", "struct kvm_mp_state", "KVM_CAP_MP_STATE", "4.39"),
    ("KVM_NMI", "vcpu", "", "KVM_CAP_USER_NMI", "4.64"),
    ("KVM_SET_CPUID2", "vcpu", "struct kvm_cpuid2", "KVM_CAP_EXT_CPUID", "4.20"),
    ("KVM_GET_CPUID2", "vcpu", "struct kvm_cpuid2", "KVM_CAP_EXT_CPUID", "4.20"),
    ("KVM_SET_GUEST_DEBUG", "vcpu", "struct kvm_guest_debug", "KVM_CAP_SET_GUEST_DEBUG", "4.87"),
)

#: All of them by name.
ALL: dict[str, Ioctl] = {row[0]: Ioctl(*row) for row in _TABLE}


def __getattr__(name: str) -> Ioctl:
    try:
        return ALL[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
