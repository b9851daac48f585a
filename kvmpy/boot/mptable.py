"""MP configuration table (Intel MultiProcessor Specification 1.4, "MP Configuration Table").

For kernels without ACPI, or started with ``acpi=off``: processors, the ISA bus, the I/O APIC and
how the bus's interrupts are wired to it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..x86 import layout
from .acpi import ISA_BUS, MAX_LAPIC_ID, NMI_LINT, checksum

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

SPECIFICATION: Final = 4  # 1.4
FLOATING_POINTER: Final = struct.Struct("<4sIBBB5s")
HEADER: Final = struct.Struct("<4sHBB8s12sIHHIHBx")
PROCESSOR: Final = struct.Struct("<BBBBII8x")
BUS: Final = struct.Struct("<BB6s")
IO_APIC: Final = struct.Struct("<BBBBI")
INTERRUPT: Final = struct.Struct("<BBHBBBB")

# Entry types
_PROCESSOR, _BUS, _IO_APIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
# Interrupt types
INT, NMI, EXTINT = 0, 1, 3
ENABLED: Final = 1 << 0
BOOTSTRAP: Final = 1 << 1  # of a processor
CPU_SIGNATURE: Final = 0x600  # family 6; software asks CPUID
CPU_FEATURES: Final = 1 << 0 | 1 << 9  # FPU, APIC
LAPIC_VERSION: Final = 0x14  # integrated, as KVM's
IO_APIC_VERSION: Final = 0x11  # KVM's
SPLIT_IO_APIC_VERSION: Final = 0x20  # kvmpy.Ioapic's
CONFORMS: Final = 0  # to the bus: ISA is edge, active high
ALL_APICS: Final = 0xFF
TIMER_IRQ: Final = 0
CASCADE_IRQ: Final = 2  # the second PIC, not an interrupt
ISA_IRQS: Final = 16


def build_mp_table(memory: GuestMemory, apic_ids: Sequence[int], *, pic: bool = True) -> int:
    """Write the floating pointer and the configuration table to 0xF0000; return the former's gpa.

    ``memory``: guest memory, with RAM below 1 MiB. ``apic_ids``: of the processors, the bootstrap
    processor's first; ``range(n)`` is usual. ``pic``: 8259s and PIT are there, as with KVM's own
    irqchip; False for a split one.

    Raises ValueError: no processor, an id twice, or not in 0..254: the table has 8 bits for it, and
    one is the I/O APIC's; GuestMemoryError: no writable RAM there.

    >>> kvmpy.boot.mptable.build_mp_table(memory, range(2)) == kvmpy.x86.layout.MP_TABLE
    True
    >>> memory.read(kvmpy.x86.layout.MP_TABLE, 4)
    b'_MP_'
    """
    gpa = layout.MP_TABLE
    table = _configuration_table(apic_ids, pic)
    memory.write(gpa, _floating_pointer(gpa + FLOATING_POINTER.size) + table)
    return gpa


def _floating_pointer(table: int) -> bytes:
    """MP Floating Pointer Structure: 16 bytes, to be aligned to 16."""
    # Feature byte 1 is 0: there is a configuration table; byte 2: virtual wire mode, no IMCR
    pointer = bytearray(
        FLOATING_POINTER.pack(
            b"_MP_", table, FLOATING_POINTER.size // 16, SPECIFICATION, 0, bytes(5)
        )
    )
    pointer[10] = checksum(pointer)
    return bytes(pointer)


def _configuration_table(apic_ids: Sequence[int], pic: bool) -> bytes:
    """The configuration table for these processors. See ``build_mp_table``."""
    if not apic_ids or len(set(apic_ids)) != len(apic_ids):
        raise ValueError("apic_ids: at least one processor, and each id once")
    for apic_id in apic_ids:
        if not 0 <= apic_id <= MAX_LAPIC_ID:
            raise ValueError(f"APIC id {apic_id:#x}: an MP table holds 0..{MAX_LAPIC_ID:#x}")
    bus = BUS.pack(_BUS, ISA_BUS, b"ISA   ")
    entries = [*_processors(apic_ids), bus, *_interrupts(apic_ids, pic)]
    body = b"".join(entries)
    table = bytearray(
        HEADER.pack(
            b"PCMP", HEADER.size + len(body), SPECIFICATION, 0, b"KVMPY   ", b"KVMPY       ",
            0, 0, len(entries), layout.LAPIC_BASE, 0, 0,
        ) + body
    )  # fmt: skip
    table[7] = checksum(table)
    return bytes(table)


def _processors(apic_ids: Sequence[int]) -> list[bytes]:
    return [
        PROCESSOR.pack(
            _PROCESSOR, apic_id, LAPIC_VERSION, ENABLED | (0 if index else BOOTSTRAP),
            CPU_SIGNATURE, CPU_FEATURES,
        )
        for index, apic_id in enumerate(apic_ids)
    ]  # fmt: skip


def _interrupts(apic_ids: Sequence[int], pic: bool) -> list[bytes]:
    """The I/O APIC, what is wired to it, and the local APICs' own pins."""
    io_apic = next(number for number in range(MAX_LAPIC_ID + 2) if number not in apic_ids)
    version = IO_APIC_VERSION if pic else SPLIT_IO_APIC_VERSION
    entries = [IO_APIC.pack(_IO_APIC, io_apic, version, ENABLED, layout.IOAPIC_BASE)]
    for irq in range(ISA_IRQS):
        if irq != CASCADE_IRQ and (pic or irq != TIMER_IRQ):
            entries.append(INTERRUPT.pack(_IO_INTERRUPT, INT, CONFORMS, ISA_BUS, irq, io_apic, irq))
    if pic:
        to = apic_ids[0]
        entries.append(INTERRUPT.pack(_LOCAL_INTERRUPT, EXTINT, CONFORMS, ISA_BUS, 0, to, 0))
    entries.append(INTERRUPT.pack(_LOCAL_INTERRUPT, NMI, CONFORMS, ISA_BUS, 0, ALL_APICS, NMI_LINT))
    return entries
