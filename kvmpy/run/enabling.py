"""Enabling capabilities: methods of a VM and of a vCPU (KVM API, "4.37 KVM_ENABLE_CAP").

What there is to enable, and what the arguments mean, is in :mod:`kvmpy.enabling`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import UnsupportedError
from ..ioctls import capabilities
from ..shim import lib
from ..vcpu_fd import VcpuFd
from ..vm_fd import VmFd


def _mask(what: str, names: Iterable[str], known: Mapping[str, int]) -> int:
    result = 0
    for name in names:
        if name not in known:
            raise ValueError(f"no {what} named {name!r}: there are {', '.join(known)}")
        result |= known[name]
    return result


class VmEnabling(VmFd):
    """Capabilities of a VM that are enabled by name."""

    def _enable_supported(self, capability: str, bits: int, what: str) -> None:
        """Enable with a mask that KVM_CHECK_EXTENSION must have all bits of."""
        full = capabilities.name(capability)
        supported = self.check_extension(full)
        missing = bits & ~supported
        if missing or not supported:
            raise UnsupportedError(
                f"this KVM's {full} is {supported:#x}: it lacks {missing:#x} for {what}", full
            )
        self.enable_capability(full, bits)

    def exit_on_hypercalls(self, *numbers: int) -> None:
        """KVM_CAP_EXIT_HYPERCALL: the hypercalls that come back as Hypercall exits; none: KVM
        answers all. KVM lets go of 12 only, KVM_HC_MAP_GPA_RANGE.

        >>> vm.exit_on_hypercalls(12)
        """
        if any(not 0 <= number < 64 for number in numbers):
            raise ValueError(f"hypercalls {numbers}: the mask has bits 0..63")
        bits = sum(1 << number for number in set(numbers))
        self._enable_supported("EXIT_HYPERCALL", bits, f"hypercalls {numbers}")

    def exception_payloads(self, on: bool = True) -> None:
        """KVM_CAP_EXCEPTION_PAYLOAD: vCPU events carry CR2 and DR6 of pending exceptions, and tell
        pending ones from injected ones.

        >>> vm.exception_payloads()
        """
        self.enable_capability("EXCEPTION_PAYLOAD", int(on))

    def triple_fault_event(self, on: bool = True) -> None:
        """KVM_CAP_X86_TRIPLE_FAULT_EVENT: vCPU events carry a pending triple fault.

        >>> vm.triple_fault_event()
        """
        self.enable_capability("X86_TRIPLE_FAULT_EVENT", int(on))

    def exit_on_bus_locks(self, on: bool = True) -> None:
        """KVM_CAP_X86_BUS_LOCK_EXIT, before the first vCPU: a guest that locks the bus gives
        BusLock, or sets :attr:`VCPU.bus_locked` with another exit.

        >>> vm.check_extension("X86_BUS_LOCK_EXIT") in (0, 1, 2, 3)
        True
        """
        bit = lib.KVM_BUS_LOCK_DETECTION_EXIT if on else lib.KVM_BUS_LOCK_DETECTION_OFF
        self._enable_supported("X86_BUS_LOCK_EXIT", bit, "exits on bus locks")

    def exit_on_notify(self, window: int, *, to_user_space: bool = True) -> None:
        """KVM_CAP_X86_NOTIFY_VMEXIT, before the first vCPU: a guest that opens no event window for
        ``window`` (0..2**32-1, in crystal clock cycles, on top of what the processor adds) leaves
        the guest, with Notify exits when ``to_user_space``. Intel only.

        >>> vm.check_extension("X86_NOTIFY_VMEXIT") in (0, 1)
        True
        """
        if not 0 <= window < 1 << 32:
            raise ValueError(f"a notify window of {window}: not in 0..2**32-1")
        flags = lib.KVM_X86_NOTIFY_VMEXIT_ENABLED
        if to_user_space:
            flags |= lib.KVM_X86_NOTIFY_VMEXIT_USER
        self.enable_capability("X86_NOTIFY_VMEXIT", window << 32 | flags)

    def disable_exits(self, *exits: str) -> None:
        """KVM_CAP_X86_DISABLE_EXITS, before the first vCPU: what no longer leaves the guest, of
        "mwait", "hlt", "pause", "cstate", "aperfmperf". For vCPUs that own their pCPU: a halted one
        looks busy.

        >>> with kvmpy.VM() as other:
        ...     other.disable_exits("pause")
        """
        from ..ioctls.enabling import EXITS

        bits = _mask("exit", exits, EXITS)
        self._enable_supported("X86_DISABLE_EXITS", bits, ", ".join(exits))

    def exit_on_emulation_failure(self, on: bool = True) -> None:
        """KVM_CAP_EXIT_ON_EMULATION_FAILURE: an instruction that KVM cannot emulate is an
        InternalError with its bytes even in ring 3, where the guest would get #UD.

        >>> vm.exit_on_emulation_failure()
        """
        self.enable_capability("EXIT_ON_EMULATION_FAILURE", int(on))

    def disable_quirks(self, *quirks: str) -> None:
        """KVM_CAP_DISABLE_QUIRKS2: behave as the architecture has it instead of as KVM always has
        (``kvmpy.enabling.QUIRKS`` has the names). Replaces the set disabled before.

        >>> vm.disable_quirks("OUT_7E_INC_RIP", "FIX_HYPERCALL_INSN")
        """
        from ..ioctls.enabling import QUIRKS

        bits = _mask("quirk", quirks, QUIRKS)
        self._enable_supported("DISABLE_QUIRKS2", bits, ", ".join(quirks))

    def limit_vcpu_ids(self, highest: int) -> None:
        """KVM_CAP_MAX_VCPU_ID, before the first vCPU and once: no vCPU has an id above
        ``highest``, which saves memory.

        >>> with kvmpy.VM() as other:
        ...     other.limit_vcpu_ids(7)
        """
        self.enable_capability("MAX_VCPU_ID", highest + 1)

    def msr_platform_info(self, on: bool = True) -> None:
        """KVM_CAP_MSR_PLATFORM_INFO: whether the guest may read MSR_PLATFORM_INFO.

        >>> vm.msr_platform_info(False)
        """
        self.enable_capability("MSR_PLATFORM_INFO", int(on))

    def limit_halt_poll(self, ns: int) -> None:
        """KVM_CAP_HALT_POLL: how long, in ns, KVM may poll before it puts a halted vCPU to sleep.

        >>> vm.limit_halt_poll(0)
        """
        self.enable_capability("HALT_POLL", ns)

    def apic_bus_cycle(self, ns: int) -> None:
        """KVM_CAP_X86_APIC_BUS_CYCLES_NS, with an irqchip and before the first vCPU: ns of one
        cycle of the clock that the LAPIC's timer counts.

        >>> vm.check_extension("X86_APIC_BUS_CYCLES_NS") >= 0
        True
        """
        self.enable_capability("X86_APIC_BUS_CYCLES_NS", ns)

    def disable_nx_huge_pages(self) -> None:
        """KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, before the first vCPU, with CAP_SYS_BOOT: no
        mitigation of iTLB multihit for this VM, whose guest must be trusted.

        >>> with kvmpy.VM() as other:
        ...     other.disable_nx_huge_pages()
        """
        self.enable_capability("VM_DISABLE_NX_HUGE_PAGES", 0)


class VcpuEnabling(VcpuFd):
    """Capabilities of a vCPU that are enabled by name."""

    def enforce_pv_cpuid(self, on: bool = True) -> None:
        """KVM_CAP_ENFORCE_PV_FEATURE_CPUID: the guest has only those paravirtual features of KVM
        that CPUID leaf 0x40000001 shows.

        >>> cpu.enforce_pv_cpuid()
        """
        self.enable_capability("ENFORCE_PV_FEATURE_CPUID", int(on))
