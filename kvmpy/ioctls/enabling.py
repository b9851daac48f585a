"""Capabilities that change what a VM or vCPU does once they are enabled (KVM API, "4.37
KVM_ENABLE_CAP", "6. Capabilities that can be enabled on vCPUs", "7. ... on VMs").

:data:`TABLE` has all of x86's; VM and vCPU have a method for those with a friendlier shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..shim import lib
from ..values import dataclass


@dataclass(frozen=True)
class Enableable:
    """A capability that KVM_ENABLE_CAP takes.

    ``target``: "vm" or "vcpu". ``argument``: what the first argument means, "" without any (none
    takes two). ``early``: only before the first vCPU. ``section``: of the KVM API document, "" if
    it has none. ``method``: the method that says it more kindly, or None.
    """

    name: str
    target: str
    argument: str = ""
    early: bool = False
    section: str = ""
    method: str | None = None


# Name, target, "early" if only before the first vCPU, section of the KVM API document, method, and
# what the first argument means.
_ROWS = """
EXIT_HYPERCALL            vm   -     7.40 VM.exit_on_hypercalls        bit mask of hypercall numbers
X86_USER_SPACE_MSR        vm   -     7.21 VM.user_space_msrs           KVM_MSR_EXIT_REASON_*
EXCEPTION_PAYLOAD         vm   -     7.17 VM.exception_payloads        0 or 1
X86_TRIPLE_FAULT_EVENT    vm   -     -    VM.triple_fault_event        0 or 1
X86_BUS_LOCK_EXIT         vm   early 7.22 VM.exit_on_bus_locks         KVM_BUS_LOCK_DETECTION_*
X86_NOTIFY_VMEXIT         vm   early 7.33 VM.exit_on_notify            flags; window << 32
X86_DISABLE_EXITS         vm   early 7.13 VM.disable_exits             KVM_X86_DISABLE_EXITS_*
EXIT_ON_EMULATION_FAILURE vm   -     7.27 VM.exit_on_emulation_failure 0 or 1
DISABLE_QUIRKS2           vm   -     7.31 VM.disable_quirks            KVM_X86_QUIRK_*
DISABLE_QUIRKS            vm   -     -    VM.disable_quirks            KVM_X86_QUIRK_*
X2APIC_API                vm   -     7.7  VM.enable_x2apic_ids         KVM_X2APIC_API_*
SPLIT_IRQCHIP             vm   early 7.5  VM.create_irqchip            routes of the user's IOAPIC
MAX_VCPU_ID               vm   early 7.32 VM.limit_vcpu_ids            the highest APIC id plus one
MSR_PLATFORM_INFO         vm   -     7.15 VM.msr_platform_info         0 or 1
MANUAL_DIRTY_LOG_PROTECT2 vm   -     7.18 -                            KVM_DIRTY_LOG_*
DIRTY_LOG_RING            vm   early 7.36 -                            bytes of a vCPU's ring
DIRTY_LOG_RING_ACQ_REL    vm   early 7.36 -                            bytes of a vCPU's ring
HALT_POLL                 vm   -     7.20 VM.limit_halt_poll           longest poll in ns
PMU_CAPABILITY            vm   early 7.37 VM.disable_pmu               KVM_PMU_CAP_*
X86_APIC_BUS_CYCLES_NS    vm   early 7.35 VM.apic_bus_cycle            ns of a bus cycle
VM_DISABLE_NX_HUGE_PAGES  vm   early 7.38 VM.disable_nx_huge_pages     0
SGX_ATTRIBUTE             vm   -     7.25 -                            attribute's descriptor
VM_COPY_ENC_CONTEXT_FROM  vm   -     7.24 -                            descriptor of the source VM
VM_MOVE_ENC_CONTEXT_FROM  vm   -     7.29 -                            descriptor of the source VM
HYPERV_SYNIC              vcpu -     6.76 VCPU.hyperv.synic            -
HYPERV_SYNIC2             vcpu -     6.77 VCPU.hyperv.synic            -
HYPERV_ENLIGHTENED_VMCS   vcpu -     -    -                            address of a u16
HYPERV_DIRECT_TLBFLUSH    vcpu -     6.78 -                            -
HYPERV_ENFORCE_CPUID      vcpu -     6.79 VCPU.hyperv.enforce_cpuid    0 or 1
ENFORCE_PV_FEATURE_CPUID  vcpu -     6.80 VCPU.enforce_pv_cpuid        0 or 1
"""


def _row(line: str) -> Enableable:
    name, target, early, section, method, argument = line.split(maxsplit=5)
    return Enableable(
        name, target, "" if argument == "-" else argument, early == "early",
        "" if section == "-" else section, None if method == "-" else method,
    )  # fmt: skip


#: All of x86's by name, without ``KVM_CAP_``.
TABLE: Mapping[str, Enableable] = MappingProxyType(
    {row.name: row for row in map(_row, filter(None, _ROWS.splitlines()))}
)

#: KVM_X86_DISABLE_EXITS_* as :meth:`VM.disable_exits` takes them.
EXITS: Mapping[str, int] = MappingProxyType(
    {
        "mwait": lib.KVM_X86_DISABLE_EXITS_MWAIT,
        "hlt": lib.KVM_X86_DISABLE_EXITS_HLT,
        "pause": lib.KVM_X86_DISABLE_EXITS_PAUSE,
        "cstate": lib.KVM_X86_DISABLE_EXITS_CSTATE,
        "aperfmperf": lib.KVM_X86_DISABLE_EXITS_APERFMPERF,
    }
)
#: KVM_X86_QUIRK_* by name.
QUIRKS: Mapping[str, int] = MappingProxyType(
    {
        name.removeprefix("KVM_X86_QUIRK_"): getattr(lib, name)
        for name in dir(lib)
        if name.startswith("KVM_X86_QUIRK_")
    }
)
