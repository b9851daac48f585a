"""Published figures, to print beside ours: never as measurements."""

from __future__ import annotations

from typing import Final

from .record import Reference

_BLITZ: Final = "Julian Stecklina, kernel_entry_benchmark, README of February 2022"
_PVM: Final = "PVM: Efficient Shadow Paging for Deploying Secure Containers, SOSP'23, table 2"
_HURD: Final = "Justus Winter, Changing GNU Mach's syscall interface, bug-hurd, May 2015"
_KVM: Final = "kvm mailing list, December 2024"
_SKYLAKE: Final = "Skylake E3-1270v5, in a KVM guest"
_CASCADE: Final = "Xeon 8269CY, Linux 4.19, in a guest"
_MACH: Final = "GNU Mach, i386"

SYSCALL: Final = (
    Reference(_SKYLAKE, "int80", 610, "ticks", "interrupt gate, bare handler", _BLITZ),
    Reference(_SKYLAKE, "callgate", 473, "ticks", "bare handler", _BLITZ),
    Reference(_SKYLAKE, "syscall", 99, "ticks", "bare handler", _BLITZ),
    Reference(_CASCADE, "syscall", 220, "ns", "get_pid, EPT, KPTI on", _PVM),
    Reference(_CASCADE, "syscall", 60, "ns", "get_pid, EPT, KPTI off", _PVM),
    Reference(_CASCADE, "syscall", 2090, "ns", "get_pid, shadow paging, KPTI on", _PVM),
    Reference(_CASCADE, "syscall", 60, "ns", "get_pid, shadow paging, KPTI off", _PVM),
    Reference(_CASCADE, "syscall", 1910, "ns", "get_pid, PVM, KPTI on and off", _PVM),
    Reference(_CASCADE, "syscall", 290, "ns", "get_pid, PVM, direct switch, KPTI on and off", _PVM),
    Reference(_MACH, "int80", 171, "ns", "mach_print of nothing, trap gate", _HURD),
    Reference(_MACH, "sysenter", 77, "ns", "mach_print of nothing", _HURD),
)
EXIT: Final = (
    Reference("not named", "cpuid", 1018, "cycles", "lowest of a range, 1018 to 1027", _KVM),
    Reference("not named", "cpuid", 1027, "cycles", "highest of a range, 1018 to 1027", _KVM),
    Reference("not named", "cpuid", 1600, "cycles", "with mitigations: more than this", _KVM),
)
