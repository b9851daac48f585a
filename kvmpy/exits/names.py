"""Names of the numbers and bits in exits, as ``<linux/kvm.h>`` has them."""

from __future__ import annotations

from collections.abc import Mapping

#: KVM_EXIT_* by number, without the prefix: every architecture's, since they share the numbers.
REASONS: Mapping[int, str] = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO",
    7: "IRQ_WINDOW_OPEN", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 11: "SET_TPR",
    12: "TPR_ACCESS", 13: "S390_SIEIC", 14: "S390_RESET", 15: "DCR", 16: "NMI",
    17: "INTERNAL_ERROR", 18: "OSI", 19: "PAPR_HCALL", 20: "S390_UCONTROL", 21: "WATCHDOG",
    22: "S390_TSCH", 23: "EPR", 24: "SYSTEM_EVENT", 25: "S390_STSI", 26: "IOAPIC_EOI",
    27: "HYPERV", 28: "ARM_NISV", 29: "X86_RDMSR", 30: "X86_WRMSR", 31: "DIRTY_RING_FULL",
    32: "AP_RESET_HOLD", 33: "X86_BUS_LOCK", 34: "XEN", 35: "RISCV_SBI", 36: "RISCV_CSR",
    37: "NOTIFY", 38: "LOONGARCH_IOCSR", 39: "MEMORY_FAULT", 40: "TDX", 41: "ARM_SEA",
}  # fmt: skip

NUMBERS: Mapping[str, int] = {name: number for number, name in REASONS.items()}

#: KVM_INTERNAL_ERROR_* by number.
INTERNAL_ERRORS: Mapping[int, str] = {
    1: "emulation",
    2: "simultaneous exceptions",
    3: "delivery of an event caused an exit",
    4: "unexpected exit reason",
}

#: KVM_SYSTEM_EVENT_* by number.
SYSTEM_EVENTS: Mapping[int, str] = {
    1: "shutdown", 2: "reset", 3: "crash", 4: "wakeup", 5: "suspend", 6: "SEV terminate",
    7: "TDX fatal",
}  # fmt: skip

#: KVM_MSR_EXIT_REASON_* by bit: also what :meth:`kvmpy.VM.user_space_msrs` takes.
MSR_REASONS: Mapping[int, str] = {0: "inval", 1: "unknown", 2: "filter"}

#: Hypercalls of KVM's own (Documentation/virt/kvm/x86/hypercalls.rst).
HYPERCALLS: Mapping[int, str] = {
    1: "VAPIC_POLL_IRQ", 5: "KICK_CPU", 9: "CLOCK_PAIRING", 10: "SEND_IPI", 11: "SCHED_YIELD",
    12: "MAP_GPA_RANGE",
}  # fmt: skip

#: TDVMCALLs that reach user space (Intel's TDX GHCI specification).
TDVMCALLS: Mapping[int, str] = {
    0x10000: "GET_TD_VM_CALL_INFO", 0x10002: "GET_QUOTE", 0x10004: "SETUP_EVENT_NOTIFY_INTERRUPT",
}  # fmt: skip


def bit_names(value: int, names: Mapping[int, str]) -> frozenset[str]:
    """The names of the bits set in ``value``; a bit without one as ``bit N``.

    >>> sorted(kvmpy.exits.names.bit_names(0b110, kvmpy.exits.names.MSR_REASONS))
    ['filter', 'unknown']
    """
    bits = (bit for bit in range(value.bit_length()) if value >> bit & 1)
    return frozenset(names.get(bit, f"bit {bit}") for bit in bits)
