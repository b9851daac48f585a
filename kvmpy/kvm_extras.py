"""The part of /dev/kvm that describes what its guests can have beyond CPUID."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .device import Attributes
from .ioctls import capabilities
from .paravirt import hyperv
from .shim import lib

if TYPE_CHECKING:
    from .cpuid.cpuid import Cpuid


class ExtraMethods:
    """System attributes, supported XCR0 and Hyper-V leaves."""

    if TYPE_CHECKING:

        def fileno(self) -> int: ...
        def check_extension(self, capability: int | str) -> int: ...

    @property
    def attributes(self) -> Attributes:
        """The system's attributes (KVM_CAP_SYS_ATTRIBUTES).

        >>> kvm.attributes.has(0, 0)  # KVM_X86_XCOMP_GUEST_SUPP
        True
        """
        return Attributes(self.fileno, "KVM_CAP_SYS_ATTRIBUTES")

    @property
    def supported_xcr0(self) -> int:
        """KVM_X86_XCOMP_GUEST_SUPP: the XCR0 bits that guests can have, those included that take
        arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM).

        >>> kvm.supported_xcr0 & 1
        1
        """
        return self.attributes.get(0, lib.KVM_X86_XCOMP_GUEST_SUPP)

    def supported_hyperv_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_HV_CPUID: the Hyper-V leaves that KVM can give a guest. KVM API, 4.118.

        Raises UnsupportedError without KVM_CAP_SYS_HYPERV_CPUID: ask a vCPU then.

        >>> if kvm.check_extension("KVM_CAP_SYS_HYPERV_CPUID"):
        ...     assert kvm.supported_hyperv_cpuid()[0x4000_0001].eax == 0x3123_7648  # "Hv#1"
        """
        capabilities.require(self, "KVM_CAP_SYS_HYPERV_CPUID")
        return hyperv._supported_cpuid(self.fileno())
