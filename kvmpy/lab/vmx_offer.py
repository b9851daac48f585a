"""What a CPU's virtualization extension can do, what the KVM module uses, and what guests get.

VT-x tells of itself in MSRs that only a kernel reads: the CPU's column is what Linux makes of them
(/proc/cpuinfo, "vmx flags"), the guests' is KVM's feature MSRs (SDM vol. 3, "VMX Capability
Reporting Facility"). AMD-V is told by CPUID leaf 8000000Ah (APM vol. 3, "CPUID").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import MsrError, UnsupportedError
from ..host.cpu import HostCpu
from ..host.cpuid import cpuid
from ..host.module import module_parameters
from ..kvm import KVM

#: SVM's leaf of CPUID.
_SVM_LEAF: Final = 0x8000_000A


@dataclass(frozen=True)
class Feature:
    """``cpu``: whether the CPU has it; ``module``: whether KVM is set to use it; ``guests``:
    whether a guest's own hypervisor is offered it. None: not to be found out."""

    name: str
    cpu: bool | None
    module: bool | None
    guests: bool | None


class _Intel(NamedTuple):
    name: str
    flag: str  # of /proc/cpuinfo
    parameter: str  # of kvm_intel
    msr: str  # whose upper half says what may be one
    bit: int


_PIN, _CPU, _CPU2 = "VMX_PINBASED_CTLS", "VMX_PROCBASED_CTLS", "VMX_PROCBASED_CTLS2"
_INTEL: Final = (
    _Intel("EPT", "ept", "ept", _CPU2, 1),
    _Intel("VPID", "vpid", "vpid", _CPU2, 5),
    _Intel("unrestricted guest", "unrestricted_guest", "unrestricted_guest", _CPU2, 7),
    _Intel("TPR shadow", "vtpr", "flexpriority", _CPU, 21),
    _Intel("APICv", "apicv", "enable_apicv", _CPU2, 9),
    _Intel("posted interrupts", "posted_intr", "enable_apicv", _PIN, 7),
    _Intel("virtual NMIs", "vnmi", "vnmi", _PIN, 5),
    _Intel("VMCS shadowing", "shadow_vmcs", "enable_shadow_vmcs", _CPU2, 14),
    _Intel("page-modification log", "pml", "pml", _CPU2, 17),
    _Intel("preemption timer", "preemption_timer", "preemption_timer", _PIN, 6),
    _Intel("TSC scaling", "tsc_scaling", "", _CPU2, 25),
)
_AMD: Final = (  # name, bit of EDX, parameter of kvm_amd
    ("NPT", 0, "npt"),
    ("next RIP (NRIPS)", 3, "nrips"),
    ("TSC scaling", 4, ""),
    ("VMCB clean bits", 5, ""),
    ("TLB flush by ASID", 6, ""),
    ("decode assists", 7, ""),
    ("pause filter", 10, ""),
    ("AVIC", 13, "avic"),
    ("VMLOAD and VMSAVE", 15, "vls"),
    ("virtual GIF", 16, "vgif"),
    ("virtual NMIs", 25, "vnmi"),
)


@dataclass(frozen=True)
class Offer:
    """``features`` in the order of a table, ``facts`` as name and value: both empty where neither
    extension is there."""

    features: tuple[Feature, ...]
    facts: tuple[tuple[str, str], ...]


def collect(kvm: KVM, host: HostCpu, module: str) -> Offer:
    """Ask the CPU, the module's parameters and KVM.

    >>> from kvmpy.lab import vmx_offer
    >>> offer = vmx_offer.collect(kvm, kvmpy.host.cpu.identify(), "kvm")
    >>> all(feature.cpu in (True, False, None) for feature in offer.features)
    True
    """
    parameters = module_parameters(module)
    if module == "kvm_intel" or host.extension == "VT-x":
        return _intel(kvm, parameters)
    if module == "kvm_amd" or host.extension == "AMD-V":
        return _amd(kvm, parameters)
    return Offer((), ())


def _set(parameters: Mapping[str, str], name: str) -> bool | None:
    value = parameters.get(name)
    return None if value is None else value not in ("N", "0")


# -- VT-x


def vmx_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What Linux says of VT-x, empty if it says nothing (before 5.9, and without VT-x).

    >>> from kvmpy.lab import vmx_offer
    >>> isinstance(vmx_offer.vmx_flags(), frozenset)
    True
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "vmx flags":
            return frozenset(value.split())
    return frozenset()


def _intel(kvm: KVM, parameters: Mapping[str, str]) -> Offer:
    flags, offered = vmx_flags(), _guest_msrs(kvm)
    features = tuple(
        Feature(
            row.name,
            row.flag in flags if flags else None,
            _set(parameters, row.parameter),
            bool(offered.get(row.msr, 0) >> 32 + row.bit & 1),
        )
        for row in _INTEL
    )
    return Offer(features, tuple(vmx_facts(offered)) if offered else ())


def _guest_msrs(kvm: KVM) -> dict[str, int]:
    """The VMX MSRs that guests get, by name; none where nesting is off."""
    wanted = (_PIN, _CPU, _CPU2, "VMX_BASIC", "VMX_MISC", "VMX_EPT_VPID_CAP")
    found: dict[str, int] = {}
    for name in wanted:
        try:
            found[name] = kvm.feature_msrs[name]
        except (MsrError, UnsupportedError):
            return {}
    return found


def vmx_facts(msrs: Mapping[str, int]) -> list[tuple[str, str]]:
    """VMX_BASIC, VMX_MISC and VMX_EPT_VPID_CAP in words (SDM vol. 3, "VMX Capability Reporting
    Facility").

    >>> from kvmpy.lab import vmx_offer
    >>> msrs = {"VMX_BASIC": 6 << 50 | 0x1000 << 32 | 4, "VMX_MISC": 5, "VMX_EPT_VPID_CAP": 1 << 6}
    >>> vmx_offer.vmx_facts(msrs)[0]
    ('VMCS', 'revision 0x4, 4096 bytes, write-back memory')
    """
    basic, misc, ept = (msrs[name] for name in ("VMX_BASIC", "VMX_MISC", "VMX_EPT_VPID_CAP"))
    memory = {0: "uncacheable", 6: "write-back"}.get(basic >> 50 & 15, "reserved type")
    facts = [
        (
            "VMCS",
            f"revision {basic & 0x7FFF_FFFF:#x}, {basic >> 32 & 0x1FFF} bytes, {memory} memory",
        ),
        ("preemption timer", f"counts down every {1 << (misc & 31)} TSC ticks"),
    ]
    if ept:
        sizes = ["4 KiB", *(text for bit, text in ((16, "2 MiB"), (17, "1 GiB")) if ept >> bit & 1)]
        levels = [text for bit, text in ((6, "4"), (7, "5")) if ept >> bit & 1]
        dirty = ", accessed and dirty bits" if ept >> 21 & 1 else ""
        walk = f"{' or '.join(levels)} levels, " if levels else ""
        facts.append(("EPT for guests", f"{walk}pages of {', '.join(sizes)}{dirty}"))
    return facts


# -- AMD-V


def _amd(kvm: KVM, parameters: Mapping[str, str]) -> Offer:
    highest = cpuid(0x8000_0000)[0]
    revision, asids, _, mine = cpuid(_SVM_LEAF) if highest >= _SVM_LEAF else (0, 0, 0, 0)
    table = kvm.supported_cpuid()
    leaf = table.get(_SVM_LEAF) if "svm" in table else None
    theirs = leaf.edx if leaf is not None else 0
    features = tuple(
        Feature(name, bool(mine >> bit & 1), _set(parameters, parameter), bool(theirs >> bit & 1))
        for name, bit, parameter in _AMD
    )
    facts = [("SVM", f"revision {revision & 0xFF}")]
    facts.append(("ASIDs", f"{asids} on the CPU"))
    if leaf is not None:
        facts[-1] = (facts[-1][0], f"{asids} on the CPU, {leaf.ebx} for a guest")
    return Offer(features, tuple(facts))
