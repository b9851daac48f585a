"""CPUID of the CPU that this process runs on."""

from __future__ import annotations

from .._measure import ffi, lib

Registers = tuple[int, int, int, int]


def cpuid(function: int, index: int = 0) -> Registers:
    """EAX, EBX, ECX and EDX of a CPUID leaf, as this process sees it.

    >>> eax, ebx, ecx, edx = kvmpy.host.cpuid.cpuid(0)
    >>> eax > 0
    True
    """
    registers = ffi.new("uint32_t[4]")
    lib.measure_cpuid(function, index, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx
