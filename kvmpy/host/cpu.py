"""The CPU this kernel sees: vendor, virtualization extensions, and what it really is.

Sources: SDM vol. 2 and APM vol. 3, "CPUID"; the hypervisors' documents for leaf 40000000h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .cpuid import Registers, cpuid

#: What CPUID leaf 40000000h says in EBX, ECX, EDX -> the hypervisor's name.
HYPERVISORS = {
    "KVMKVMKVM": "KVM",
    "Linux KVM Hv": "KVM",
    "TCGTCGTCGTCG": "QEMU TCG",
    "Microsoft Hv": "Hyper-V",
    "VMwareVMware": "VMware",
    "XenVMMXenVMM": "Xen",
    "VBoxVBoxVBox": "VirtualBox",
    "bhyve bhyve ": "bhyve",
    "ACRNACRNACRN": "ACRN",
    " lrpepyh vr": "Parallels",
}
_VMX = 1 << 5  # CPUID 1, ECX
_SVM = 1 << 2  # CPUID 80000001h, ECX
_HYPERVISOR = 1 << 31  # CPUID 1, ECX


@dataclass(frozen=True, slots=True)
class HostCpu:
    """What CPUID and the firmware say about the host.

    ``extension`` is "VT-x", "AMD-V" or None. ``hypervisor`` is None where CPUID announces none,
    which is a promise of nothing: Bochs announces none. ``emulator`` is the program that
    interprets this CPU's instructions, None if none was recognised.
    """

    vendor: str
    model: str
    extension: str | None
    hypervisor: str | None
    emulator: str | None

    @property
    def nested(self) -> bool:
        """Whether this host is known to be a virtual machine itself.

        >>> kvmpy.host.cpu.identify().nested in (True, False)
        True
        """
        return self.hypervisor is not None or self.emulator is not None

    @property
    def surroundings(self) -> str:
        """In words: what this host is itself.

        >>> isinstance(kvmpy.host.cpu.identify().surroundings, str)
        True
        """
        if self.emulator:
            return f"a machine emulated by {self.emulator}"
        if self.hypervisor:
            return f"a virtual machine under {self.hypervisor}"
        return "no hypervisor announced, as on bare metal"


#: Leaves with subleaves, and how many to ask for.
_SUBLEAVES = {0x4: 16, 0x7: 3, 0xB: 8, 0xD: 64, 0xF: 2, 0x10: 4, 0x12: 4, 0x14: 2, 0x17: 4,
              0x18: 8, 0x1D: 2, 0x1E: 2, 0x1F: 8, 0x20: 2, 0x24: 2,
              0x8000_001D: 16, 0x8000_0026: 8}  # fmt: skip
_HIGHEST_RANGE = 0x100  # leaves of a range: what claims more is not a CPUID range


def every_leaf(
    read: Callable[[int, int], Registers] = cpuid,
) -> Iterator[tuple[tuple[int, int], Registers]]:
    """All leaves of this CPU: (function, index) and the registers. ``read`` gives one leaf.

    >>> (0, 0) in dict(kvmpy.host.cpu.every_leaf())
    True
    """
    ranges = [0, 0x8000_0000]
    if read(1, 0)[2] & _HYPERVISOR:
        ranges.insert(1, 0x4000_0000)
    for first in ranges:
        highest = read(first, 0)[0]
        for function in range(first, min(highest, first + _HIGHEST_RANGE) + 1):
            for index in range(_SUBLEAVES.get(function, 1)):
                registers = read(function, index)
                if index == 0 or any(registers):
                    yield (function, index), registers


def _text(*registers: int) -> str:
    return struct.pack(f"<{len(registers)}I", *registers).decode("latin-1").rstrip("\0")


def identify(
    read: Callable[[int], Registers] = lambda function: cpuid(function),
    dmi: Path = Path("/sys/class/dmi/id"),
) -> HostCpu:
    """Find out what this host is. ``read`` gives a CPUID leaf's registers.

    >>> bool(kvmpy.host.cpu.identify().vendor)
    True
    """
    _, ebx, ecx, edx = read(0)
    vendor = _text(ebx, edx, ecx)
    features = read(1)[2]
    highest = read(0x8000_0000)[0]
    extended = read(0x8000_0001)[2] if highest >= 0x8000_0001 else 0
    leaves = range(0x8000_0002, 0x8000_0005) if highest >= 0x8000_0004 else ()
    model = " ".join("".join(_text(*read(leaf)) for leaf in leaves).split())
    extension = "VT-x" if features & _VMX else "AMD-V" if extended & _SVM else None
    hypervisor = _hypervisor(read(0x4000_0000)) if features & _HYPERVISOR else None
    return HostCpu(vendor, model, extension, hypervisor, _emulator(hypervisor, model, dmi))


def _hypervisor(registers: Registers) -> str:
    signature = _text(*registers[1:])
    return HYPERVISORS.get(signature) or f"an unknown hypervisor ({signature!r})"


def _emulator(hypervisor: str | None, model: str, dmi: Path) -> str | None:
    # TCG's leaf can be hidden (-cpu ...,-hypervisor); its default models still name it.
    if hypervisor == "QEMU TCG" or "TCG" in model:
        return "QEMU TCG"
    # Bochs poses as a real CPU without a hypervisor; its BIOS, which nobody else uses, does not.
    # (The "BOCHS" in ACPI tables is no evidence: SeaBIOS, and so every QEMU, has it too.)
    try:
        firmware = (dmi / "bios_vendor").read_text().strip()
    except OSError:
        return None
    return "Bochs" if firmware == "The Bochs Project" else None
