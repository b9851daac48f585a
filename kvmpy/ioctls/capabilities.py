"""The KVM_CAP_* numbers by name (KVM API, "4.4 KVM_CHECK_EXTENSION").

Names are those of ``<linux/kvm.h>`` that concern x86 (native/capabilities.h); the compiler gave
the numbers.
"""

from __future__ import annotations

import errno
import functools

from ..errors import UnsupportedError
from ..fd import Descriptor
from ..shim import ffi, lib
from . import KVM_CHECK_EXTENSION, KVM_ENABLE_CAP, lacks

PREFIX = "KVM_CAP_"


@functools.cache
def names() -> tuple[str, ...]:
    """All known names, in the order of their numbers.

    >>> kvmpy.capabilities.names()[0]
    'KVM_CAP_IRQCHIP'
    """
    found = [name for name in dir(lib) if name.startswith(PREFIX)]
    return tuple(sorted(found, key=number))


def number(capability: int | str) -> int:
    """The number of a capability given by number, or by name with or without ``KVM_CAP_``.

    Raises ValueError for a name that is not known here, and for a negative number.

    >>> kvmpy.capabilities.number("SYNC_REGS")
    74
    """
    if isinstance(capability, int):
        if capability < 0:
            raise ValueError(f"capability {capability} is negative")
        return capability
    full = capability if capability.startswith(PREFIX) else PREFIX + capability
    value = getattr(lib, full, None)
    if value is None:
        raise ValueError(f"no capability named {capability!r} is known here: give its number")
    result: int = value
    return result


@functools.cache
def _by_number() -> dict[int, str]:
    return {number(name): name for name in names()}


def name(capability: int | str) -> str:
    """The full name of a capability given by number or name, or its number as text.

    >>> kvmpy.capabilities.name(74)
    'KVM_CAP_SYNC_REGS'
    """
    value = number(capability)
    return _by_number().get(value, str(value))


class Asked(Descriptor):
    """What answers KVM_CHECK_EXTENSION: a KVM or a VM."""

    def check_extension(self, capability: int | str) -> int:
        """KVM_CHECK_EXTENSION: 0 if KVM lacks the capability, else 1 or a number that the
        capability defines. A VM's answer can differ from that of /dev/kvm.

        ``capability``: its number, or its name ("KVM_CAP_SYNC_REGS").
        Raises ValueError for a name that is not known here.

        >>> kvm.check_extension("KVM_CAP_USER_MEMORY"), vm.check_extension("USER_MEMORY")
        (1, 1)
        """
        return KVM_CHECK_EXTENSION(self.fileno(), number(capability), f"{capability}")


def require(asked: Asked, capability: str) -> int:
    """What KVM_CHECK_EXTENSION says of a capability; UnsupportedError if that is 0.

    >>> kvmpy.capabilities.require(kvm, "KVM_CAP_USER_MEMORY")
    1
    """
    value = asked.check_extension(capability)
    if not value:
        raise UnsupportedError(f"this KVM has no {capability}", capability)
    return value


def enable(
    fd: int, target: str, capability: int | str, args: tuple[int, ...], flags: int, has_vcpus: bool
) -> None:
    """KVM_ENABLE_CAP on ``fd``, a "vm" or a "vcpu" (``target``), with up to four arguments of 64
    bits (KVM API, "4.37 KVM_ENABLE_CAP"). ``has_vcpus``: whether the VM has any yet.

    Raises UnsupportedError when this KVM has no such capability, KvmIoctlError when it does not
    take the arguments.

    >>> kvmpy.capabilities.enable(vm.fileno(), "vm", "EXCEPTION_PAYLOAD", (1,), 0, False)
    """
    full = name(capability)
    if len(args) > 4:
        raise ValueError(f"{full}: {len(args)} arguments, KVM_ENABLE_CAP takes four")
    request = ffi.new("struct kvm_enable_cap *")
    request.cap, request.flags = number(capability), flags
    for i, value in enumerate(args):
        if not 0 <= value < 1 << 64:
            raise ValueError(f"{full}: argument {value:#x} is not in 0..2**64-1")
        request.args[i] = value
    result = KVM_ENABLE_CAP.raw(fd, request)
    if result < 0:
        raise _trouble(fd, target, full, args, -result, has_vcpus)


def _trouble(
    fd: int, target: str, full: str, args: tuple[int, ...], code: int, has_vcpus: bool
) -> Exception:
    """A capability that is not there is not a wrong argument."""
    from .enabling import TABLE

    row = TABLE.get(full.removeprefix(PREFIX))
    known = full.startswith(PREFIX)
    if code in (errno.EINVAL, errno.ENOTTY) and known and lacks(fd, full):
        return UnsupportedError(f"this KVM has no {full}", full)
    detail = ", ".join([f"capability {full}", *map(hex, args)])
    if row is not None and row.target != target:
        detail += f"; it is enabled on a {row.target}, not on a {target}"
    elif row is not None and row.early and has_vcpus:
        detail += "; it must be enabled before the first vCPU"
    return KVM_ENABLE_CAP.error(fd, code, detail)
