"""Every guest-physical address and I/O port that kvmpy reserves, in one place.

Two kinds of constants live here. The platform addresses are fixed by the PC architecture or chosen
once for KVM. The *supervisor area* holds what a CPU needs in memory to run in protected or long
mode (page tables, GDT, IDT, TSS, exception stubs, ring-0 stacks); it sits at the top of the first
RAM region, out of the way of anything a boot protocol loads low, and is reported as reserved in
every memory map handed to a guest. Real mode needs no such area: its vector table is at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ..memory.guest import HOLE_END as HOLE_END, HOLE_START as HOLE_START, PAGE_SIZE as PAGE_SIZE
from ..values import dataclass

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# --- platform: what lies in the hole below 4 GiB ------------------------------------------------
IOAPIC_BASE: Final = 0xFEC0_0000  # reset value of the I/O APIC of every PC; KVM's is fixed there
LAPIC_BASE: Final = 0xFEE0_0000  # reset value of IA32_APIC_BASE

# KVM_SET_IDENTITY_MAP_ADDR (one page) and KVM_SET_TSS_ADDR (three pages): scratch that kvm_intel
# needs without unrestricted guest. They must lie in the first 4 GiB, outside every memslot, and
# away from the APICs; right below the top 256 KiB, which belong to a firmware image.
IDENTITY_MAP: Final = 0xFFFB_C000
TSS_ADDR: Final = 0xFFFB_D000

# KVM_IOAPIC_NUM_PINS. Pin n is global system interrupt n, and ISA's IRQ n, the timer's included:
# that is KVM's default routing (KVM_SET_GSI_ROUTING); a PC has the timer at pin 2.
IOAPIC_PINS: Final = 24
PIT_IRQ: Final = 0

# virtio-mmio devices, one page each: clear of RAM, which ends at 3 GiB, and of the APICs. GSIs 16
# to 23 have no ISA line, so nothing presumes how they are triggered; then the ISA lines that no
# device here uses. An interrupt of its own for each: edges cannot be shared.
VIRTIO_MMIO_BASE: Final = 0xD000_0000
VIRTIO_MMIO_SIZE: Final = 0x1000
VIRTIO_MMIO_GSIS: Final = (*range(16, IOAPIC_PINS), 5, 6, 7, 10, 11, 12, 14, 15)

# Where a PC's firmware keeps its tables, and kernels that are not told look for them: within the
# low hole, so RAM that every memory map calls reserved.
FIRMWARE_TABLES: Final = 0xE_0000  # ACPI, RSDP first; to 0xeffff
MP_TABLE: Final = 0xF_0000  # the MP specification's "BIOS ROM address space"; to 0xfffff
FIRMWARE_TABLES_END: Final = 0x10_0000

# --- platform: I/O ports ------------------------------------------------------------------------
I8042_DATA_PORT: Final = 0x60
I8042_COMMAND_PORT: Final = 0x64
RTC_PORT: Final = 0x70  # index; data at 0x71
RTC_CENTURY: Final = 0x32  # CMOS register of the century, as the FADT says
RTC_IRQ: Final = 8
SCI_IRQ: Final = 9  # ACPI's interrupt, as on every PC: level-triggered
#: The interrupt vectors that a PC's firmware has its PICs begin at.
PIC_BASES: Final = {"pic-master": 0x08, "pic-slave": 0x70}
POST_PORT: Final = 0x80  # power-on self-test codes
DEBUGCON_PORT: Final = 0xE9  # one character per OUT, as in Bochs and QEMU's isa-debugcon
DEBUG_EXIT_PORT: Final = 0xF4  # ends the run with the value written, as QEMU's isa-debug-exit
EXCEPTION_PORT: Final = 0xF5  # written by the exception stubs below; no PC device decodes it
COM1_PORT: Final = 0x3F8
COM1_IRQ: Final = 4
PVPANIC_PORT: Final = 0x505  # as in QEMU
ACPI_PM_PORT: Final = 0x600  # PM1a event block (4 bytes), PM1a control block (2 bytes)
#: PCI's configuration mechanism #1: the address, and the four bytes of data. No bus is behind it.
PCI_CONFIG_PORTS: Final = (0xCF8, 0xCFC, 0xCFD, 0xCFE, 0xCFF)
RESET_CONTROL_PORT: Final = 0xCF9  # Intel chipsets' reset control register

# --- exception and landing stubs ----------------------------------------------------------------
# One 8-byte slot each, the same bytes in 16-, 32- and 64-bit code:
#   out 0xf5, al      tells the host; the vector is known from RIP, so no register is changed
#   hlt; jmp $-1      stays put if the host runs the vCPU again
STUB_SIZE: Final = 8
STUB: Final = bytes((0xE6, EXCEPTION_PORT, 0xF4, 0xEB, 0xFD, 0x90, 0x90, 0x90))
EXCEPTION_VECTORS: Final = 32  # vectors 0..31 belong to the CPU
SYSCALL_SLOT: Final = 32  # 64-bit SYSCALL (LSTAR), or legacy SYSCALL (STAR[31:0])
SYSCALL32_SLOT: Final = 33  # SYSCALL from compatibility mode (CSTAR)
SYSENTER_SLOT: Final = 34
STUB_SLOTS: Final = 35

# --- real mode ----------------------------------------------------------------------------------
REAL_IVT: Final = 0x0000  # 256 far pointers, where the CPU expects them after reset
REAL_IVT_SIZE: Final = 0x400
BDA_COM1: Final = 0x400  # u16: port of the first serial port
BDA_BASE_MEMORY: Final = 0x413  # u16: KiB of RAM below the video memory
LOW_MEMORY_END: Final = 0xA_0000  # video memory and ROMs follow, up to 1 MiB
# 0x400..0x4ef is the BIOS data area; 0x4f0..0x4ff in it is free for programs' own use. Three stubs
# of five bytes fit there and serve the 224 vectors 32..255, see real_vector_pointer().
REAL_SHARED_STUBS: Final = 0x4F0
REAL_SHARED_STUB_SIZE: Final = 5
REAL_SHARED_STUB_COUNT: Final = 3
REAL_SHARED_ALIASES: Final = 75  # CS values per stub; 3 * 75 >= 224 and 75 * 16 <= 0x4f0
REAL_STUBS: Final = 0x500  # 32 slots, up to 0x5ff: the first bytes above the BIOS data area
REAL_RESERVED_END: Final = 0x600
REAL_STACK_TOP: Final = 0x7C00  # grows down from where a boot sector is loaded

# --- supervisor area ----------------------------------------------------------------------------
SUPERVISOR_SIZE: Final = 64 * KIB  # without the extra page directories of a large guest
MIN_SUPERVISOR_RAM: Final = 128 * KIB  # half of it stays free for the guest
# Offsets in the upper 64 KiB of the area. Below them lie the extra page directories, if any.
PAGE_TABLES: Final = 0x0000  # 8 pages: PML4, PDPT, PDs of the low 4 GiB, PTs of this area
PAGE_TABLE_PAGES: Final = 8
GDT: Final = 0x8000
STUBS: Final = 0x8100  # STUB_SLOTS slots; shares the GDT's page
IDT: Final = 0x9000  # 256 gates of 16 bytes: one page
TSS: Final = 0xA000  # 104 bytes, then the I/O permission bitmap of 8193 bytes: three pages
IST_STACK_TOP: Final = 0xE000  # IST1, for #DF: 4 KiB down
RING0_STACK_TOP: Final = 0xF000  # RSP0/ESP0 and SYSENTER_ESP: 4 KiB down
# Not the stack that interrupts from an outer ring use, so that ring-0 code which enters ring 3
# finds its own frames again.
ENTRY_STACK_TOP: Final = 0x1_0000  # first RSP of ring 0: 4 KiB down

# Each GiB of address space costs one page directory; four fit in the 64 KiB. The limit keeps the
# area within two 2 MiB pages (two page tables) and the map within one PML4 slot: slot 256 and
# others are unusable on kvm_pvm.
MAX_RAM_END: Final = 496 * GIB


class RegionLike(Protocol):
    """What is used of ``kvmpy.memory.Region``."""

    @property
    def gpa(self) -> int: ...
    @property
    def end(self) -> int: ...


class MemoryLike(Protocol):
    """What is used of ``kvmpy.memory.GuestMemory``."""

    @property
    def regions(self) -> Sequence[RegionLike]: ...
    def read(self, gpa: int, size: int, /) -> bytes: ...
    def write(self, gpa: int, data: bytes, /) -> None: ...


@dataclass(frozen=True)
class SupervisorArea:
    """Where the pieces of one supervisor area are, as guest-physical addresses.

    ``base`` and ``size`` in bytes, both multiples of 4 KiB.
    """

    base: int
    size: int

    @property
    def end(self) -> int:
        """First address above the area.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).end)
        '0x100000'
        """
        return self.base + self.size

    @property
    def fixed(self) -> int:
        """Start of the upper 64 KiB, to which the offsets of this module apply.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).fixed)
        '0xf0000'
        """
        return self.end - SUPERVISOR_SIZE

    @property
    def page_tables(self) -> tuple[int, ...]:
        """Pages for paging structures in the order of their use; the first is what CR3 holds.

        >>> area = kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000)
        >>> [hex(page) for page in area.page_tables[:2]]
        ['0xf0000', '0xf1000']
        """
        first = self.fixed + PAGE_TABLES
        inside = range(first, first + PAGE_TABLE_PAGES * PAGE_SIZE, PAGE_SIZE)
        return (*inside, *range(self.base, self.fixed, PAGE_SIZE))

    @property
    def gdt(self) -> int:
        """The GDT.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).gdt)
        '0xf8000'
        """
        return self.fixed + GDT

    @property
    def stubs(self) -> int:
        """The exception and landing stubs.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).stubs)
        '0xf8100'
        """
        return self.fixed + STUBS

    @property
    def idt(self) -> int:
        """The IDT.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).idt)
        '0xf9000'
        """
        return self.fixed + IDT

    @property
    def tss(self) -> int:
        """The TSS and its I/O bitmap.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).tss)
        '0xfa000'
        """
        return self.fixed + TSS

    @property
    def ist_stack_top(self) -> int:
        """Top of IST 1's stack.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).ist_stack_top)
        '0xfe000'
        """
        return self.fixed + IST_STACK_TOP

    @property
    def ring0_stack_top(self) -> int:
        """Top of the stack that interrupts from outer rings use.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).ring0_stack_top)
        '0xff000'
        """
        return self.fixed + RING0_STACK_TOP

    @property
    def entry_stack_top(self) -> int:
        """First RSP of ring-0 code.

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).entry_stack_top)
        '0x100000'
        """
        return self.fixed + ENTRY_STACK_TOP

    def stub(self, slot: int) -> int:
        """Address of an exception stub (0..31) or a landing stub (``SYSCALL_SLOT`` ...).

        >>> hex(kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).stub(14))
        '0xf8170'
        """
        return self.stubs + STUB_SIZE * slot

    def contains(self, gpa: int) -> bool:
        """Whether an address lies in the area.

        >>> kvmpy.x86.layout.SupervisorArea(0xf0000, 0x10000).contains(0xf1234)
        True
        """
        return self.base <= gpa < self.end


def ram_end(memory: MemoryLike) -> int:
    """First guest-physical address above all RAM.

    >>> hex(kvmpy.x86.layout.ram_end(memory))
    '0x1000000'
    """
    return max(region.end for region in memory.regions)


def page_directories(memory: MemoryLike) -> int:
    """Page directories (1 GiB each) of the long-mode identity map: low 4 GiB and all RAM.

    >>> kvmpy.x86.layout.page_directories(memory)
    4
    """
    return max(4, -(-ram_end(memory) // GIB))


def supervisor_area(memory: MemoryLike) -> SupervisorArea:
    """The supervisor area of ``memory``: the top of its first RAM region.

    64 KiB, and 4 KiB more for each GiB of address space above 4 GiB that holds RAM.

    Raises ValueError: the first region does not start at 0, is smaller than 128 KiB, or RAM ends
    above 496 GiB.

    >>> kvmpy.x86.layout.supervisor_area(memory).size
    65536
    """
    if not memory.regions or memory.regions[0].gpa != 0:
        raise ValueError("protected and long mode need RAM at guest-physical address 0")
    end = memory.regions[0].end & -PAGE_SIZE
    if end < MIN_SUPERVISOR_RAM:
        raise ValueError(
            f"protected and long mode need at least {MIN_SUPERVISOR_RAM // KIB} KiB of RAM "
            f"at address 0, this guest has {end // KIB} KiB"
        )
    if ram_end(memory) > MAX_RAM_END:
        raise ValueError(f"RAM ends at {ram_end(memory):#x}, the limit is {MAX_RAM_END:#x}")
    size = SUPERVISOR_SIZE + (page_directories(memory) - 4) * PAGE_SIZE
    return SupervisorArea(end - size, size)


def real_vector_pointer(vector: int) -> tuple[int, int]:
    """Segment and offset of the real-mode stub for ``vector`` (0..255).

    Vectors 32..255 share three stubs. Real mode has many CS:IP pairs for one address, so CS at the
    stub still tells the vectors apart: no room is spent, and ``int 21h`` is named when it comes.

    >>> segment, offset = kvmpy.x86.layout.real_vector_pointer(14)
    >>> f"{segment:04x}:{offset:04x}"
    '0000:0570'
    """
    if vector < EXCEPTION_VECTORS:
        return 0, REAL_STUBS + STUB_SIZE * vector
    stub, alias = divmod(vector - EXCEPTION_VECTORS, REAL_SHARED_ALIASES)
    return alias, REAL_SHARED_STUBS + REAL_SHARED_STUB_SIZE * stub - 16 * alias


def real_vector_at(linear: int, cs: int) -> int | None:
    """The vector whose real-mode stub contains ``linear``, reached with selector ``cs``.

    >>> kvmpy.x86.layout.real_vector_at(0x570, cs=0)
    14
    """
    if REAL_STUBS <= linear < REAL_STUBS + STUB_SIZE * EXCEPTION_VECTORS:
        return (linear - REAL_STUBS) // STUB_SIZE
    stub = (linear - REAL_SHARED_STUBS) // REAL_SHARED_STUB_SIZE
    if not 0 <= stub < REAL_SHARED_STUB_COUNT or cs >= REAL_SHARED_ALIASES:
        return None
    vector = EXCEPTION_VECTORS + REAL_SHARED_ALIASES * stub + cs
    return vector if vector < 256 else None
