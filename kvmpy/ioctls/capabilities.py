"""The KVM_CAP_* numbers by name (KVM API, "4.4 KVM_CHECK_EXTENSION").

Names are those of ``<linux/kvm.h>`` that concern x86 (native/capabilities.h); the compiler gave
the numbers.
"""

from __future__ import annotations

import functools
from typing import Protocol

from ..errors import UnsupportedError
from ..shim import lib

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


class Asked(Protocol):
    """What answers KVM_CHECK_EXTENSION: a KVM or a VM."""

    def check_extension(self, capability: int | str) -> int: ...


def require(asked: Asked, capability: str) -> int:
    """What KVM_CHECK_EXTENSION says of a capability; UnsupportedError if that is 0.

    >>> kvmpy.capabilities.require(kvm, "KVM_CAP_USER_MEMORY")
    1
    """
    value = asked.check_extension(capability)
    if not value:
        raise UnsupportedError(f"this KVM has no {capability}", capability)
    return value
