"""What CPUID KVM can give its guests: asked of /dev/kvm."""

from __future__ import annotations

import os

from .. import ioctls
from ..ioctls import capabilities
from ..ioctls.capabilities import Asked
from ..ioctls.growing import read_table
from ..values import replace
from .cpuid import Cpuid

# Device number of the KVM device -> what it supports, and that made a vCPU's own, by id and
# whether there is a LAPIC. It cannot change while the module is loaded, and takes a millisecond.
_supported: dict[int, dict[tuple[int, bool] | None, Cpuid]] = {}


def _table(ioctl: ioctls.Ioctl, fd: int) -> Cpuid:
    return Cpuid._from_c(read_table(ioctl, fd))


class KvmCpuid(Asked):
    """CPUID on /dev/kvm."""

    def supported_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_CPUID: what KVM can give a guest.

        With two bits that kernels before 6.14 leave to the caller: the hypervisor bit, and the TSC
        deadline timer if KVM_CAP_TSC_DEADLINE_TIMER is there.

        >>> "hypervisor" in kvm.supported_cpuid(), "sse2" in kvm.supported_cpuid()
        (True, True)
        """
        table = _table(ioctls.KVM_GET_SUPPORTED_CPUID, self.fileno())
        first = table.get(1)
        if first is None:
            return table
        deadline = self.check_extension("KVM_CAP_TSC_DEADLINE_TIMER") > 0
        return table.with_leaf(replace(first, ecx=first.ecx | 1 << 31 | deadline << 24))

    def emulated_cpuid(self) -> Cpuid:
        """KVM_GET_EMULATED_CPUID: features the CPU need not have, because KVM's instruction
        emulator provides them, slowly (KVM API, "4.88 KVM_GET_EMULATED_CPUID").

        Raises UnsupportedError if KVM_CAP_EXT_EMUL_CPUID is missing.

        >>> all(feature in kvm.emulated_cpuid() for feature in kvm.emulated_cpuid().features)
        True
        """
        return _table(ioctls.KVM_GET_EMULATED_CPUID, self.fileno())

    def supported_hyperv_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_HV_CPUID: the Hyper-V leaves that KVM can give a guest. KVM API, 4.118.

        Raises UnsupportedError without KVM_CAP_SYS_HYPERV_CPUID: ask a vCPU then.

        >>> if kvm.check_extension("KVM_CAP_SYS_HYPERV_CPUID"):
        ...     assert kvm.supported_hyperv_cpuid()[0x4000_0001].eax == 0x3123_7648  # "Hv#1"
        """
        capabilities.require(self, "KVM_CAP_SYS_HYPERV_CPUID")
        return _table(ioctls.KVM_GET_SUPPORTED_HV_CPUID, self.fileno())

    def host_cpuid(self, vcpu_id: int, *, lapic: bool) -> Cpuid:
        """All that KVM supports, made vCPU ``vcpu_id``'s own: what :meth:`VM.vcpu` gives it.

        KVM is asked once for each KVM device, and a table is made once for each id.

        >>> kvm.host_cpuid(3, lapic=True)[1].ebx >> 24
        3
        """
        known = _supported.setdefault(os.fstat(self.fileno()).st_rdev, {})
        if None not in known:
            known[None] = self.supported_cpuid()
        key = vcpu_id, lapic
        if key not in known:
            known[key] = known[None].for_vcpu(vcpu_id, lapic=lapic)
        return known[key]
