"""Published figures, to print beside ours: never as measurements."""

from __future__ import annotations

from typing import Final

from .record import Reference

_BLITZ: Final = "blitz/kernel_entry_benchmark, README"
_PVM: Final = "PVM: Efficient Shadow Paging for Deploying Secure Containers, SOSP'23, table 2"
_HURD: Final = "bug-hurd mailing list"
_KVM: Final = "kvm mailing list, December 2024"
_SKYLAKE: Final = "Skylake E3-1270v5, in a KVM guest"
_CASCADE: Final = "Xeon 8269CY, Linux 4.19, in a guest"

SYSCALL: Final = (
    Reference(_SKYLAKE, "int80", 610, "ticks", "round trip, bare handler", _BLITZ),
    Reference(_SKYLAKE, "callgate", 473, "ticks", "round trip, bare handler", _BLITZ),
    Reference(_SKYLAKE, "syscall", 99, "ticks", "round trip, bare handler", _BLITZ),
    Reference(_CASCADE, "syscall", 220, "ns", "get_pid, EPT, KPTI on", _PVM),
    Reference(_CASCADE, "syscall", 60, "ns", "get_pid, EPT, KPTI off", _PVM),
    Reference(_CASCADE, "syscall", 2090, "ns", "get_pid, shadow paging, KPTI on", _PVM),
    Reference(_CASCADE, "syscall", 60, "ns", "get_pid, shadow paging, KPTI off", _PVM),
    Reference(_CASCADE, "syscall", 1910, "ns", "get_pid, PVM", _PVM),
    Reference(_CASCADE, "syscall", 290, "ns", "get_pid, PVM with direct switch", _PVM),
    Reference("GNU Mach, i386", "int80", 171, "ns", "trap gate", _HURD),
    Reference("GNU Mach, i386", "sysenter", 77, "ns", "SYSENTER", _HURD),
)
EXIT: Final = (
    Reference("not named", "cpuid", 1018, "cycles", "lowest of a range, 1018 to 1027", _KVM),
    Reference("not named", "cpuid", 1027, "cycles", "highest of a range, 1018 to 1027", _KVM),
    Reference("not named", "cpuid", 1600, "cycles", "with mitigations: more than this", _KVM),
)
