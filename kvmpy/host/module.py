"""Which KVM module this host has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import StrPath

SYS_MODULE = "/sys/module"
#: The vendor modules. One is in use at a time; built into the kernel, several can be seen.
MODULES = ("kvm_pvm", "kvm_intel", "kvm_amd")
_NEEDS = {"kvm_intel": "VT-x", "kvm_amd": "AMD-V"}


def module_name(sys_module: StrPath = SYS_MODULE) -> str:
    """The name of the vendor module behind /dev/kvm, "kvm" if none can be seen.

    >>> kvmpy.host.module.module_name() in ("kvm_intel", "kvm_amd", "kvm_pvm", "")
    True
    """
    found = [name for name in MODULES if os.path.exists(os.path.join(sys_module, name))]
    if len(found) > 1:
        from .cpu import identify

        extension = identify().extension
        found = [name for name in found if _NEEDS.get(name, extension) == extension]
    return found[0] if found else "kvm"


def module_parameters(module: str, sys_module: StrPath = SYS_MODULE) -> dict[str, str]:
    """The parameters of a kernel module that can be read, by name.

    >>> kvmpy.host.module.module_parameters("kvm_amd").get("nested", "0") in "01YN"
    True
    """
    values: dict[str, str] = {}
    try:
        directory = os.path.join(sys_module, module, "parameters")
        names = sorted(os.listdir(directory))
    except OSError:
        return values
    for name in names:
        try:
            with open(os.path.join(directory, name)) as file:
                values[name] = file.read().strip()
        except OSError:
            continue  # write-only, or root's
    return values


#: module -> why a distribution's kernel does not come up on it.
_KERNEL_TROUBLE = {
    "kvm_pvm": "kvm_pvm emulates ring 0, hundreds of times slower than hardware and without "
    "instructions that Linux executes as it boots, XRSTOR and INT3 among them: it starts, but "
    "does not reach user space"
}


def kernel_trouble(module: str) -> str:
    """What keeps Linux from booting to user space on a KVM module; "" when nothing is known to.

    >>> kvmpy.host.module.kernel_trouble("kvm_amd")
    ''
    """
    return _KERNEL_TROUBLE.get(module, "")
