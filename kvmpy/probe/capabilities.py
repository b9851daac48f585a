"""What this KVM offers: its capabilities, grouped for reading, and its limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ioctls import capabilities
from ..kvm import KVM


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Group -> names without KVM_CAP_. Every name is in one group.
GROUPS: dict[str, tuple[str, ...]] = {
    "limits": _names("NR_VCPUS MAX_VCPUS MAX_VCPU_ID NR_MEMSLOTS MULTI_ADDRESS_SPACE MCE"),
    "API": _names(
        "CHECK_EXTENSION_VM ENABLE_CAP ENABLE_CAP_VM IMMEDIATE_EXIT ONE_REG DEVICE_CTRL "
        "SYS_ATTRIBUTES VM_ATTRIBUTES VCPU_ATTRIBUTES VM_TYPES DISABLE_QUIRKS DISABLE_QUIRKS2 "
        "BINARY_STATS_FD"
    ),
    "memory": _names(
        "USER_MEMORY USER_MEMORY2 DESTROY_MEMORY_REGION_WORKS JOIN_MEMORY_REGIONS_WORKS SYNC_MMU "
        "READONLY_MEM SET_TSS_ADDR SET_IDENTITY_MAP_ADDR COALESCED_MMIO COALESCED_PIO "
        "MANUAL_DIRTY_LOG_PROTECT MANUAL_DIRTY_LOG_PROTECT2 DIRTY_LOG_RING DIRTY_LOG_RING_ACQ_REL "
        "DIRTY_LOG_RING_WITH_BITMAP GUEST_MEMFD GUEST_MEMFD_FLAGS MEMORY_ATTRIBUTES "
        "PRE_FAULT_MEMORY SMALLER_MAXPHYADDR MMU_SHADOW_CACHE_CONTROL VM_DISABLE_NX_HUGE_PAGES"
    ),
    "vCPU state": _names(
        "SYNC_REGS MP_STATE VCPU_EVENTS EXCEPTION_PAYLOAD X86_TRIPLE_FAULT_EVENT INTR_SHADOW "
        "SREGS2 DEBUGREGS XSAVE XSAVE2 XCRS EXT_CPUID EXT_EMUL_CPUID GET_MSR_FEATURES "
        "MSR_PLATFORM_INFO ENFORCE_PV_FEATURE_CPUID SET_BOOT_CPU_ID X86_SMM LAST_CPU"
    ),
    "interrupts": _names(
        "IRQCHIP SPLIT_IRQCHIP IRQ_ROUTING IRQ_INJECT_STATUS IRQFD IRQFD_RESAMPLE SIGNAL_MSI "
        "USER_NMI VAPIC X2APIC_API IOAPIC_POLARITY_IGNORED IOEVENTFD IOEVENTFD_NO_LENGTH "
        "IOEVENTFD_ANY_LENGTH"
    ),
    "time": _names(
        "PIT PIT2 PIT_STATE2 REINJECT_CONTROL TSC_DEADLINE_TIMER TSC_CONTROL VM_TSC_CONTROL "
        "GET_TSC_KHZ X86_APIC_BUS_CYCLES_NS CLOCKSOURCE ADJUST_CLOCK KVMCLOCK_CTRL STEAL_TIME "
        "HLT HALT_POLL ASYNC_PF ASYNC_PF_INT"
    ),
    "exits and debugging": _names(
        "SET_GUEST_DEBUG SET_GUEST_DEBUG2 X86_ROBUST_SINGLESTEP X86_DISABLE_EXITS EXIT_HYPERCALL "
        "X86_USER_SPACE_MSR X86_MSR_FILTER X86_BUS_LOCK_EXIT X86_NOTIFY_VMEXIT MEMORY_FAULT_INFO "
        "EXIT_ON_EMULATION_FAILURE INTERNAL_ERROR_DATA SYSTEM_EVENT_DATA PMU_CAPABILITY "
        "PMU_EVENT_FILTER PMU_EVENT_MASKED_EVENTS"
    ),
    "nested and confidential guests": _names(
        "NESTED_STATE X86_GUEST_MODE VM_COPY_ENC_CONTEXT_FROM VM_MOVE_ENC_CONTEXT_FROM "
        "SGX_ATTRIBUTE"
    ),
    "Hyper-V and Xen": _names(
        "HYPERV HYPERV_VAPIC HYPERV_SPIN HYPERV_TIME HYPERV_SYNIC HYPERV_SYNIC2 HYPERV_VP_INDEX "
        "HYPERV_EVENTFD HYPERV_TLBFLUSH HYPERV_SEND_IPI HYPERV_ENLIGHTENED_VMCS HYPERV_CPUID "
        "SYS_HYPERV_CPUID HYPERV_DIRECT_TLBFLUSH HYPERV_ENFORCE_CPUID XEN_HVM"
    ),
    "of the past": _names("IOMMU ASSIGN_DEV_IRQ PCI_2_3 PCI_SEGMENT PV_MMU NOP_IO_DELAY"),
}

_MASKS = frozenset(
    _names(
        "SYNC_REGS ADJUST_CLOCK XEN_HVM X2APIC_API X86_DISABLE_EXITS MANUAL_DIRTY_LOG_PROTECT2 "
        "X86_BUS_LOCK_EXIT SET_GUEST_DEBUG2 EXIT_HYPERCALL PMU_CAPABILITY DISABLE_QUIRKS2 "
        "VM_TYPES MEMORY_ATTRIBUTES GUEST_MEMFD_FLAGS X86_NOTIFY_VMEXIT"
    )
)
_BYTES = frozenset(_names("DIRTY_LOG_RING DIRTY_LOG_RING_ACQ_REL XSAVE2"))


@dataclass(frozen=True, slots=True)
class Capability:
    """One capability: ``value`` is what KVM_CHECK_EXTENSION gave, 0 if absent."""

    name: str
    number: int
    value: int
    group: str

    @property
    def present(self) -> bool:
        """Whether KVM has it.

        >>> found = {row.name: row for row in kvmpy.probe.capabilities.read(kvm)}
        >>> found["KVM_CAP_USER_MEMORY"].present
        True
        """
        return self.value > 0


def value_text(name: str, value: int) -> str:
    """A capability's value as people read it: hex for bit masks, a unit for sizes.

    ``name`` is without ``KVM_CAP_``.

    >>> kvmpy.probe.capabilities.value_text("KVM_CAP_NR_MEMSLOTS", 509)
    '509'
    """
    if name in _MASKS:
        return f"{value:#x}"
    return f"{value} bytes" if name in _BYTES else str(value)


def read(kvm: KVM) -> Iterator[Capability]:
    """All capabilities by group, as /dev/kvm answers; a VM can answer otherwise for a few.

    >>> any(row.name == "KVM_CAP_IRQCHIP" for row in kvmpy.probe.capabilities.read(kvm))
    True
    """
    for group, names in GROUPS.items():
        for short in names:
            name = capabilities.PREFIX + short
            yield Capability(name, capabilities.number(name), kvm.check_extension(name), group)


def limits(kvm: KVM) -> dict[str, int]:
    """The numbers that bound a VM. Sizes in bytes.

    >>> max(kvmpy.probe.capabilities.limits(kvm).values()) > 1
    True
    """
    check = kvm.check_extension
    recommended = check("KVM_CAP_NR_VCPUS") or 4  # the defaults are the KVM API's, section 4.7
    most = check("KVM_CAP_MAX_VCPUS") or recommended
    return {
        "recommended_vcpus": recommended,
        "max_vcpus": most,
        "max_vcpu_id": check("KVM_CAP_MAX_VCPU_ID") or most,
        "memslots": check("KVM_CAP_NR_MEMSLOTS") or 32,
        "kvm_run_bytes": kvm.vcpu_mmap_size,
        "xsave_bytes": check("KVM_CAP_XSAVE2") or 4096,
        "gsi_routes": check("KVM_CAP_IRQ_ROUTING"),
        "mce_banks": check("KVM_CAP_MCE"),
        "dirty_ring_bytes": check("KVM_CAP_DIRTY_LOG_RING_ACQ_REL")
        or check("KVM_CAP_DIRTY_LOG_RING"),
        "msrs": len(kvm.msr_indices()),
        "feature_msrs": len(kvm.feature_msr_indices()),
        "cpuid_leaves": len(kvm.supported_cpuid()),
    }
