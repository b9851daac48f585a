"""What CPUID a vCPU shows its guest."""

from __future__ import annotations

from .. import ioctls
from ..shim import ffi
from ..vcpu_fd import VcpuFd
from .cpuid import Cpuid


class VcpuCpuid(VcpuFd):
    """CPUID on a vCPU."""

    def set_cpuid(self, cpuid: Cpuid) -> None:
        """KVM_SET_CPUID2, before the first run.

        >>> cpu.set_cpuid(cpu.get_cpuid().without("x2apic"))
        >>> "x2apic" in cpu.get_cpuid()
        False
        """
        ioctls.KVM_SET_CPUID2(self.fileno(), cpuid._to_c(), f"{len(cpuid)} leaves")

    def get_cpuid(self, entries: int = 256) -> Cpuid:
        """KVM_GET_CPUID2: what the guest sees, up to ``entries`` leaves.

        >>> "lm" in cpu.get_cpuid()
        True
        """
        table = ffi.new("struct kvm_cpuid2 *", {"entries": entries})
        table.nent = entries
        ioctls.KVM_GET_CPUID2(self.fileno(), table, f"{entries} entries")
        return Cpuid._from_c(table)

    @property
    def cpuid(self) -> Cpuid:
        """CPUID as this vCPU shows it: ``cpu.cpuid[1].ecx``. Assigning is :meth:`set_cpuid`.

        >>> cpu.cpuid[0].eax > 0
        True
        """
        return self.get_cpuid()

    @cpuid.setter
    def cpuid(self, cpuid: Cpuid) -> None:
        self.set_cpuid(cpuid)

    def set_cpuid1(self, cpuid: Cpuid) -> None:
        """KVM_SET_CPUID: as :meth:`set_cpuid`, by the older call, which knows no subleaves: of
        each leaf the first is taken.

        >>> cpu.set_cpuid1(cpu.cpuid)
        >>> cpu.cpuid.get(0xD, 1) is None
        True
        """
        leaves = {leaf.function: leaf for leaf in reversed(tuple(cpuid))}
        table = ffi.new("struct kvm_cpuid *", {"nent": len(leaves), "entries": len(leaves)})
        for entry, leaf in zip(table.entries, reversed(leaves.values()), strict=True):
            entry.function = leaf.function
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        ioctls.KVM_SET_CPUID(self._settle(0), table, f"{len(leaves)} leaves")
