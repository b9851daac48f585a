"""ACPI tables (ACPI Specification 6.3, "ACPI Software Programming Model").

The platform is the PC that kernels know best: ACPI's fixed hardware (PM1a blocks, SCI), by default
with PIC and PIT, not the hardware-reduced one. Both power off and reset with one port write, and
neither makes Linux wait; what decides is the rest:

- Hardware-reduced, x86 Linux drops the PIC and the PIT. Where neither the TSC-deadline timer nor a
  known APIC frequency is there (nested hosts, masked CPUID), its APIC timer then has nothing to be
  calibrated against.
- Fixed hardware has a power button that costs one status bit and one interrupt line; hardware-
  reduced needs a Generic Event Device and AML methods for it.
- Kernels from before ACPI 5, and small ones, know nothing else.

What Linux would wait for is left out: no PM timer (its driver spends milliseconds on seeing that it
counts), no SMI command port (no hand-over to wait for), no 8042 (Linux would probe it and its
keyboard for nothing; the controller's reset line works all the same), no HPET, no VGA.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ..values import dataclass
from ..x86 import layout
from . import aml

if TYPE_CHECKING:
    from ..memory.guest import GuestMemory

OEM_ID: Final = b"KVMPY "
OEM_TABLE_ID: Final = b"KVMPY   "
CREATOR_ID: Final = b"KVMP"
SDT_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
RSDP_V1_SIZE: Final = 20  # what the first checksum covers
FACS_SIZE: Final = 64

# PM1 Control Registers; SLP_TYP of the \_S5 package is ours to choose
SLP_TYP_S5: Final = 5

# IA-PC Boot Architecture Flags
LEGACY_DEVICES: Final = 1 << 0
VGA_NOT_PRESENT: Final = 1 << 2
CMOS_RTC_NOT_PRESENT: Final = 1 << 5
# Fixed ACPI Description Table Fixed Feature Flags
WBINVD: Final = 1 << 0
PROC_C1: Final = 1 << 2
SLP_BUTTON: Final = 1 << 5  # set: no fixed one
FIX_RTC: Final = 1 << 6  # set: the RTC cannot wake through a fixed register
RESET_REG_SUP: Final = 1 << 10
HEADLESS: Final = 1 << 12
# The reset register's value: full reset, and now
RESET_VALUE: Final = 0x06

# MADT
PCAT_COMPAT: Final = 1 << 0  # there are 8259s, to be masked
LAPIC_ENABLED: Final = 1 << 0
MAX_LAPIC_ID: Final = 254  # 255 addresses all
NMI_LINT: Final = 1
ACTIVE_HIGH_LEVEL: Final = 0x000D  # MPS INTI flags
ISA_BUS: Final = 0

SYSTEM_IO: Final = 1
NO_ADDRESS: Final = bytes(12)


@dataclass(frozen=True, slots=True)
class VirtioMmio:
    """A virtio-mmio device: ``size`` bytes at guest-physical ``gpa``, interrupt ``gsi``, an edge.

    >>> kvmpy.boot.acpi.VirtioMmio(0xD000_0000, 0x1000, 16).gsi
    16
    """

    gpa: int
    size: int
    gsi: int


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """What ``build_acpi`` wrote: the RSDP's gpa and (gpa, size in bytes, signature) of each table.

    >>> kvmpy.boot.acpi.build_acpi(memory, range(1)).tables[0]
    (917504, 36, 'RSDP')
    """

    rsdp: int
    tables: tuple[tuple[int, int, str], ...]


def build_acpi(
    memory: GuestMemory,
    apic_ids: Sequence[int],
    virtio: Sequence[VirtioMmio] = (),
    *,
    serial: bool = True,
    rtc: bool = True,
    pvpanic: bool = True,
    pic: bool = True,
) -> AcpiTables:
    """Write RSDP, RSDT, XSDT, FADT, FACS, DSDT and MADT to 0xE0000 and on.

    The ports are those of ``kvmpy.x86.layout``, the devices ``kvmpy.devices`` has for them. Give
    the RSDP to ``kvmpy.boot.load(..., acpi_rsdp=...)``.

    ``memory``: guest memory, with RAM below 1 MiB. ``apic_ids``: of the processors, the bootstrap
    processor's first; ``range(n)`` is usual. ``virtio``: in the order of their _UID, counted from
    0. ``serial``: COM1 at 0x3f8 is there. ``rtc``: the CMOS RTC is there. ``pvpanic``: the panic
    port is there. ``pic``: the 8259s are there, beside the I/O APIC.

    Raises ValueError: no processor, or an id, address or interrupt that a table cannot hold, or
    that is given twice; or the tables exceed their 64 KiB; GuestMemoryError: no writable RAM there.

    >>> tables = kvmpy.boot.acpi.build_acpi(memory, range(2))
    >>> hex(tables.rsdp), memory.read(tables.rsdp, 8)
    ('0xe0000', b'RSD PTR ')
    """
    _check_interrupts(virtio)
    area = _Area()
    rsdp = area.reserve("RSDP", 36)
    facs = area.add("FACS", _facs_table(), align=FACS_SIZE)
    dsdt = area.add("DSDT", _dsdt_table(virtio, serial=serial, rtc=rtc, pvpanic=pvpanic))
    fadt = area.add("FACP", _fadt_table(facs, dsdt, rtc=rtc))
    madt = area.add("APIC", _madt_table(apic_ids, pic=pic))
    listed = (fadt, madt)
    rsdt = area.add("RSDT", _sdt(b"RSDT", 1, struct.pack("<2I", *listed)))
    xsdt = area.add("XSDT", _sdt(b"XSDT", 1, struct.pack("<2Q", *listed)))
    area.put(rsdp, _rsdp_structure(rsdt, xsdt))
    memory.write(area.base, area.content)
    return AcpiTables(rsdp, tuple(area.tables))


class _Area:
    """The tables on their way to guest memory, one after the other."""

    base = layout.FIRMWARE_TABLES
    limit = layout.MP_TABLE - base

    def __init__(self) -> None:
        self._content = bytearray()
        self.tables: list[tuple[int, int, str]] = []

    def reserve(self, signature: str, size: int, align: int = 16) -> int:
        """The gpa of ``size`` bytes, aligned."""
        offset = -(-len(self._content) // align) * align
        if offset + size > self.limit:
            raise ValueError(
                f"ACPI tables: {signature} of {size:#x} bytes ends {offset + size:#x} bytes into "
                f"their area of {self.limit:#x}"
            )
        self._content.extend(bytes(offset + size - len(self._content)))
        self.tables.append((self.base + offset, size, signature))
        return self.base + offset

    def add(self, signature: str, table: bytes, align: int = 16) -> int:
        gpa = self.reserve(signature, len(table), align)
        self.put(gpa, table)
        return gpa

    def put(self, gpa: int, data: bytes) -> None:
        offset = gpa - self.base
        self._content[offset : offset + len(data)] = data

    @property
    def content(self) -> bytes:
        return bytes(self._content)


def _check_interrupts(virtio: Sequence[VirtioMmio]) -> None:
    taken = {layout.PIT_IRQ, layout.COM1_IRQ, layout.RTC_IRQ, layout.SCI_IRQ}
    for index, entry in enumerate(virtio):
        if not 0 <= entry.gsi < layout.IOAPIC_PINS:
            raise ValueError(
                f"virtio device {index}: gsi is {entry.gsi}, "
                f"the I/O APIC has 0..{layout.IOAPIC_PINS - 1}"
            )
        if entry.gsi in taken:
            raise ValueError(f"virtio device {index}: gsi {entry.gsi} is taken")
        taken.add(entry.gsi)


# --- tables ---------------------------------------------------------------------------------------


def checksum(data: bytes | bytearray) -> int:
    r"""The byte that makes the sum of all bytes 0 modulo 256.

    >>> kvmpy.boot.acpi.checksum(b"\x01\x02")
    253
    """
    return -sum(data) & 0xFF


def _sdt(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header, ``body``, and the checksum over both."""
    table = bytearray(
        SDT_HEADER.pack(
            signature, SDT_HEADER.size + len(body), revision, 0,
            OEM_ID, OEM_TABLE_ID, 1, CREATOR_ID, 1,
        ) + body
    )  # fmt: skip
    table[9] = checksum(table)
    return bytes(table)


def _rsdp_structure(rsdt: int, xsdt: int) -> bytes:
    """Root System Description Pointer, revision 2. The RSDT is for kernels from before 2.0."""
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt, 36, xsdt, 0))
    rsdp[8] = checksum(rsdp[:RSDP_V1_SIZE])
    rsdp[32] = checksum(rsdp)
    return bytes(rsdp)


def _facs_table() -> bytes:
    """Firmware ACPI Control Structure: the global lock, which nobody contends. No checksum."""
    return struct.pack("<4sIIIIIQB31x", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, 2)


def _generic_address(port: int, size: int) -> bytes:
    """Generic Address Structure of ``size`` bytes of I/O ports, accessed in 1 or 2 bytes."""
    return struct.pack("<BBBBQ", SYSTEM_IO, 8 * size, 0, 1 if size == 1 else 2, port)


def _fadt_table(facs: int, dsdt: int, *, rtc: bool = True) -> bytes:
    """Fixed ACPI Description Table, version 6.3."""
    event, control = layout.ACPI_PM_PORT, layout.ACPI_PM_PORT + 4
    boot_flags = LEGACY_DEVICES | VGA_NOT_PRESENT | (0 if rtc else CMOS_RTC_NOT_PRESENT)
    flags = WBINVD | PROC_C1 | SLP_BUTTON | FIX_RTC | RESET_REG_SUP | HEADLESS
    rows: tuple[tuple[str, int], ...] = (
        ("I", facs), ("I", dsdt),
        ("B", 0), ("B", 0),                         # reserved, preferred profile: unspecified
        ("H", layout.SCI_IRQ),
        ("I", 0), ("B", 0), ("B", 0),               # SMI_CMD and its values: always in ACPI mode
        ("B", 0), ("B", 0),                         # S4BIOS_REQ, PSTATE_CNT
        ("I", event), ("I", 0),                     # PM1a_EVT_BLK, PM1b_EVT_BLK
        ("I", control), ("I", 0),                   # PM1a_CNT_BLK, PM1b_CNT_BLK
        ("I", 0), ("I", 0), ("I", 0), ("I", 0),     # PM2_CNT_BLK, PM_TMR_BLK, GPE0_BLK, GPE1_BLK
        ("B", 4), ("B", 2),                         # PM1_EVT_LEN, PM1_CNT_LEN
        ("B", 0), ("B", 0), ("B", 0), ("B", 0),     # PM2_CNT_LEN, PM_TMR_LEN, GPE0/1_BLK_LEN
        ("B", 0), ("B", 0),                         # GPE1_BASE, CST_CNT
        ("H", 0xFFF), ("H", 0xFFF),                 # P_LVL2_LAT, P_LVL3_LAT: no C2, no C3
        ("H", 0), ("H", 0), ("B", 0), ("B", 0),     # FLUSH_SIZE, FLUSH_STRIDE, DUTY_OFFSET, _WIDTH
        ("B", 0), ("B", 0),                         # DAY_ALRM, MON_ALRM
        ("B", layout.RTC_CENTURY if rtc else 0),
        ("H", boot_flags), ("B", 0), ("I", flags),
    )  # fmt: skip
    body = b"".join(struct.pack("<" + format, value) for format, value in rows)
    body += _generic_address(layout.RESET_CONTROL_PORT, 1)
    body += struct.pack("<BHB", RESET_VALUE, 0, 3)  # ARM_BOOT_ARCH, minor version
    body += struct.pack("<QQ", 0, dsdt)  # X_FIRMWARE_CTRL: one of the two only
    body += _generic_address(event, 4) + NO_ADDRESS
    body += _generic_address(control, 2) + NO_ADDRESS
    body += 4 * NO_ADDRESS  # X_PM2_CNT_BLK, X_PM_TMR_BLK, X_GPE0_BLK, X_GPE1_BLK
    body += 2 * NO_ADDRESS  # SLEEP_CONTROL_REG, SLEEP_STATUS_REG: hardware-reduced only
    body += OEM_ID[:5].ljust(8, b"\0")  # Hypervisor Vendor Identity
    return _sdt(b"FACP", 6, body)


def _madt_table(apic_ids: Sequence[int], *, pic: bool = True) -> bytes:
    """Multiple APIC Description Table, with the bootstrap processor first.

    The processors are declared here only. Objects for them in the namespace would give Linux an
    idle driver that halts as it does without.

    Raises ValueError: no processor, or an APIC id twice or not in 0..2**32 - 2.
    """
    if not apic_ids or len(set(apic_ids)) != len(apic_ids):
        raise ValueError("apic_ids: at least one processor, and each id once")
    body = struct.pack("<II", layout.LAPIC_BASE, PCAT_COMPAT if pic else 0)
    for uid, apic_id in enumerate(apic_ids):
        body += _madt_processor(uid, apic_id)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC_BASE, 0)  # id 0, from GSI 0 on
    # None for the timer: a PC wires IRQ 0 to pin 2, KVM's default routing has it at pin 0.
    body += _madt_override(layout.SCI_IRQ, layout.SCI_IRQ, ACTIVE_HIGH_LEVEL)
    body += struct.pack("<BBBHB", 4, 6, 0xFF, 0, NMI_LINT)  # Local APIC NMI, all processors
    if max(apic_ids) > MAX_LAPIC_ID:
        body += struct.pack("<BBHIB3x", 10, 12, 0, 0xFFFF_FFFF, NMI_LINT)  # Local x2APIC NMI
    return _sdt(b"APIC", 5, body)


def _madt_processor(uid: int, apic_id: int) -> bytes:
    """A Processor Local APIC structure, or x2APIC where the id or uid takes more than 8 bits."""
    if not 0 <= apic_id < 0xFFFF_FFFF:
        raise ValueError(f"APIC id {apic_id:#x}: it must be in 0..0xfffffffe")
    if apic_id <= MAX_LAPIC_ID and uid <= MAX_LAPIC_ID:
        return struct.pack("<BBBBI", 0, 8, uid, apic_id, LAPIC_ENABLED)
    return struct.pack("<BBHIII", 9, 16, 0, apic_id, LAPIC_ENABLED, uid)


def _madt_override(irq: int, gsi: int, flags: int) -> bytes:
    """An Interrupt Source Override. Without one an ISA interrupt is the GSI of its number, and
    an edge, active high."""
    return struct.pack("<BBBBIH", 2, 10, ISA_BUS, irq, gsi, flags)


# --- DSDT -----------------------------------------------------------------------------------------


def _dsdt_table(
    virtio: Sequence[VirtioMmio], *, serial: bool = True, rtc: bool = True, pvpanic: bool = True
) -> bytes:
    """Differentiated System Description Table: data only, no methods to interpret."""
    devices = [_virtio_device(uid, entry) for uid, entry in enumerate(virtio)]
    if serial:
        devices.append(_serial_device())
    if rtc:
        devices.append(_rtc_device())
    if pvpanic:
        devices.append(_pvpanic_device())
    sleep_type = aml.integer(SLP_TYP_S5)
    # SLP_TYP for PM1a and PM1b, and two reserved elements
    s5 = aml.package(sleep_type, sleep_type, aml.integer(0), aml.integer(0))
    return _sdt(b"DSDT", 2, aml.scope("\\_SB", *devices) + aml.name("\\_S5", s5))


def _virtio_device(uid: int, device: VirtioMmio) -> bytes:
    """A virtio-mmio transport, by the id that Linux's and others' drivers know."""
    resources = aml.resource_template(
        aml.memory32_fixed(device.gpa, device.size), aml.interrupt(device.gsi)
    )
    return aml.device(
        f"V{uid:03X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_CRS", resources),
    )


def _serial_device() -> bytes:
    """COM1, a 16550A."""
    resources = aml.resource_template(
        aml.io(layout.COM1_PORT, 8), aml.irq_no_flags(layout.COM1_IRQ)
    )
    return aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", resources),
    )


def _rtc_device() -> bytes:
    """The AT real-time clock."""
    resources = aml.resource_template(aml.io(layout.RTC_PORT, 2), aml.irq_no_flags(layout.RTC_IRQ))
    return aml.device("RTC", aml.name("_HID", aml.eisa_id("PNP0B00")), aml.name("_CRS", resources))


def _pvpanic_device() -> bytes:
    """QEMU's panic event port (its docs/specs/pvpanic)."""
    resources = aml.resource_template(aml.io(layout.PVPANIC_PORT, 1))
    return aml.device(
        "PEVT",
        aml.name("_HID", aml.string("QEMU0001")),
        aml.name("_STA", aml.integer(0xF)),
        aml.name("_CRS", resources),
    )
