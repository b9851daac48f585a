"""Which KVM module this host has."""

from __future__ import annotations

from pathlib import Path

#: In the order in which they are looked for; more than one can be loaded, one at a time in use.
MODULES = ("kvm_pvm", "kvm_intel", "kvm_amd")


def module_name(sys_module: Path = Path("/sys/module")) -> str:
    """The name of the vendor module behind /dev/kvm, "kvm" if none is to be seen."""
    for name in MODULES:
        if (sys_module / name).exists():
            return name
    return "kvm"
