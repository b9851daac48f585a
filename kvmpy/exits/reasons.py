"""Why a run came back, as values to match on.

One frozen dataclass per exit reason of KVM (KVM API, "5. The kvm_run structure"; those by which the
guest asks its hypervisor for something are in :mod:`kvmpy.exits.calls`), and a few for what the
host itself wanted: :class:`Kicked`, :class:`Timeout`, :class:`ExitLimit`, :class:`DebugExit`. What
the guest asks of its machine comes from the devices that it asks (``kvmpy.devices.platform``):
:class:`Reset`, :class:`PowerOff`, :class:`GuestPanic`.

    match cpu.run(timeout=1.0):
        case IoOut(port=0xE9, data=data): ...
        case Hlt(): ...
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ..text import flags_text
from ..x86.bits import DR6
from .base import Exit as Exit, exit_value
from .calls import (
    Hypercall as Hypercall,
    Hyperv as Hyperv,
    HypervHypercall as HypervHypercall,
    HypervOther as HypervOther,
    HypervSyndbg as HypervSyndbg,
    HypervSynic as HypervSynic,
    Rdmsr as Rdmsr,
    SystemEvent as SystemEvent,
    Tdx as Tdx,
    Wrmsr as Wrmsr,
    Xen as Xen,
)
from .names import INTERNAL_ERRORS, NUMBERS, REASONS as REASONS

if TYPE_CHECKING:
    from ..x86.exceptions import ExceptionReport, SyscallReport


@exit_value
class Unknown(Exit):
    """The processor left the guest for a reason KVM does not know."""

    reason: ClassVar[int] = NUMBERS["UNKNOWN"]
    resumable: ClassVar[bool] = False
    hardware_exit_reason: int = 0


@exit_value
class Exception_(Exit):
    """KVM_EXIT_EXCEPTION. No x86 KVM of today gives it."""

    reason: ClassVar[int] = NUMBERS["EXCEPTION"]
    exception: int = 0
    error_code: int = 0


@exit_value
class IoOut(Exit):
    """The guest wrote to a port nobody has claimed.

    ``data`` holds ``count`` elements of ``size`` bytes (1, 2 or 4), little endian; string
    instructions give more than one.
    """

    reason: ClassVar[int] = NUMBERS["IO"]
    port: int
    size: int
    data: bytes
    count: int = 1

    @property
    def value(self) -> int:
        """The first element.

        >>> kvmpy.IoOut(0x10, 2, b"\\x34\\x12").value == 0x1234
        True
        """
        return int.from_bytes(self.data[: self.size], "little")


@exit_value
class IoIn(Exit):
    """The guest reads a port nobody has claimed. ``cpu.answer(...)`` gives it ``size * count``
    bytes; without an answer it reads all ones."""

    reason: ClassVar[int] = NUMBERS["IO"]
    port: int
    size: int
    count: int = 1


@exit_value
class MmioWrite(Exit):
    """The guest wrote to a guest physical address without memory. 1 to 8 bytes."""

    reason: ClassVar[int] = NUMBERS["MMIO"]
    gpa: int
    data: bytes

    @property
    def size(self) -> int:
        """Bytes written.

        >>> kvmpy.MmioWrite(0xD0000000, bytes(4)).size
        4
        """
        return len(self.data)

    @property
    def value(self) -> int:
        """The bytes as a little-endian number.

        >>> kvmpy.MmioWrite(0xD0000000, b"\\x01\\x02").value == 0x201
        True
        """
        return int.from_bytes(self.data, "little")


@exit_value
class MmioRead(Exit):
    """The guest reads ``size`` bytes where there is no memory. See :meth:`VCPU.answer`."""

    reason: ClassVar[int] = NUMBERS["MMIO"]
    gpa: int
    size: int


@exit_value
class Debug(Exit):
    """A breakpoint or single step asked for with KVM_SET_GUEST_DEBUG.

    ``exception``: 1 for #DB, 3 for #BP; ``pc``: the linear address KVM gives, with #DB after a
    step the instruction that comes next or, where KVM emulated, the one that was stepped over.
    """

    reason: ClassVar[int] = NUMBERS["DEBUG"]
    exception: int
    pc: int
    dr6: int
    dr7: int

    def _text(self, name: str) -> str:
        if name != "dr6":
            return Exit._text(self, name)
        named = flags_text(self.dr6 & sum(1 << bit for bit in DR6), DR6)
        return f"{self.dr6:#x}{named[named.find('[') :] if '[' in named else ''}"

    @property
    def single_step(self) -> bool:
        """DR6.BS: a step.

        >>> exit = kvmpy.Debug(exception=1, pc=0x1000, dr6=0xFFFF4FF2, dr7=0x400)
        >>> exit.single_step
        True
        """
        return self.exception == 1 and bool(self.dr6 >> 14 & 1)

    @property
    def software(self) -> bool:
        """INT3.

        >>> kvmpy.Debug(exception=3, pc=0x1000, dr6=0, dr7=0x400).software
        True
        """
        return self.exception == 3

    @property
    def slots(self) -> tuple[int, ...]:
        """The debug registers 0..3 whose condition was met.

        >>> exit = kvmpy.Debug(exception=1, pc=0x1000, dr6=0xFFFF4FF2, dr7=0x400)
        >>> exit.slots
        (1,)
        """
        if self.exception != 1:
            return ()
        return tuple(slot for slot in range(4) if self.dr6 >> slot & 1)


@exit_value
class Hlt(Exit):
    """The guest executed HLT. Never seen with an in-kernel LAPIC, where KVM itself waits."""

    reason: ClassVar[int] = NUMBERS["HLT"]


@exit_value
class IrqWindowOpen(Exit):
    """The guest can take an interrupt now (asked for with request_interrupt_window)."""

    reason: ClassVar[int] = NUMBERS["IRQ_WINDOW_OPEN"]


@exit_value
class Shutdown(Exit):
    """Triple fault. On AMD the registers may show the state after INIT, not the fault's."""

    reason: ClassVar[int] = NUMBERS["SHUTDOWN"]
    resumable: ClassVar[bool] = False


@exit_value
class FailEntry(Exit):
    """The processor refused the guest state on VM entry."""

    reason: ClassVar[int] = NUMBERS["FAIL_ENTRY"]
    resumable: ClassVar[bool] = False
    hardware_entry_failure_reason: int
    cpu: int


@exit_value
class Intr(Exit):
    """KVM_EXIT_INTR: a signal; usually seen as EINTR instead, and handled by the run loop."""

    reason: ClassVar[int] = NUMBERS["INTR"]


@exit_value
class SetTpr(Exit):
    """The guest lowered its task priority, CR8 (no in-kernel LAPIC): see :attr:`VCPU.cr8`."""

    reason: ClassVar[int] = NUMBERS["SET_TPR"]


@exit_value
class TprAccess(Exit):
    """The guest touched the task priority register at ``rip``, and reporting is on
    (KVM_TPR_ACCESS_REPORTING)."""

    reason: ClassVar[int] = NUMBERS["TPR_ACCESS"]
    rip: int
    is_write: bool


@exit_value
class Nmi(Exit):
    """KVM_EXIT_NMI."""

    reason: ClassVar[int] = NUMBERS["NMI"]


@exit_value
class InternalError(Exit):
    """KVM gave up on an instruction. ``data`` is as KVM gave it."""

    reason: ClassVar[int] = NUMBERS["INTERNAL_ERROR"]
    resumable: ClassVar[bool] = False
    suberror: int
    data: tuple[int, ...] = ()

    @property
    def flags(self) -> int:
        """For suberror 1: KVM_INTERNAL_ERROR_EMULATION_FLAG_*; 0 where KVM gave none.

        >>> error = kvmpy.InternalError(1, (1, 0x9B01, 0, 7))
        >>> error.flags
        1
        """
        return self.data[0] if self.suberror == 1 and self.data else 0

    @property
    def instruction(self) -> bytes:
        """For suberror 1: the bytes KVM could not emulate, where it says (KVM API,
        "KVM_EXIT_INTERNAL_ERROR"; flags bit 0 says that they follow).

        >>> error = kvmpy.InternalError(1, (1, 0x9B01, 0, 7))
        >>> error.instruction
        b'\\x9b'
        """
        if not self.flags & 1 or len(self.data) < 3:
            return b""
        raw = struct.pack("<2Q", *self.data[1:3])
        return raw[1 : 1 + min(raw[0], 15)]

    @property
    def debug_data(self) -> tuple[int, ...]:
        """What lies beyond the documented fields: differs between kernels.

        >>> error = kvmpy.InternalError(1, (1, 0x9B01, 0, 7))
        >>> error.debug_data
        (7,)
        """
        if self.suberror != 1:
            return self.data
        return self.data[3 if self.flags & 1 else 1 :]

    @property
    def kind(self) -> str:
        """The suberror in words.

        >>> error = kvmpy.InternalError(1, (1, 0x9B01, 0, 7))
        >>> error.kind
        'emulation'
        """
        return INTERNAL_ERRORS.get(self.suberror, f"suberror {self.suberror}")


@exit_value
class IoapicEoi(Exit):
    """The LAPIC got the end of a level-triggered interrupt: ``vector`` 0..255 (split irqchip)."""

    reason: ClassVar[int] = NUMBERS["IOAPIC_EOI"]
    vector: int


@exit_value
class DirtyRingFull(Exit):
    """The vCPU's dirty ring is full. ``cpu.dirty_ring.harvest()``, ``vm.reset_dirty_rings()``, and
    run again."""

    reason: ClassVar[int] = NUMBERS["DIRTY_RING_FULL"]


@exit_value
class ApResetHold(Exit):
    """An SEV-ES guest's vCPU waits for its INIT and SIPI (AP Reset Hold of the GHCB protocol)."""

    reason: ClassVar[int] = NUMBERS["AP_RESET_HOLD"]


@exit_value
class BusLock(Exit):
    """The guest locked the bus, and detection exits (KVM_CAP_X86_BUS_LOCK_EXIT). With another
    exit at the same moment :attr:`VCPU.bus_locked` tells it. On Intel after the instruction, on
    AMD before it."""

    reason: ClassVar[int] = NUMBERS["X86_BUS_LOCK"]


@exit_value
class Notify(Exit):
    """No event window opened for too long (KVM_CAP_X86_NOTIFY_VMEXIT)."""

    reason: ClassVar[int] = NUMBERS["NOTIFY"]
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {"flags": {0: "CONTEXT_INVALID"}}
    flags: int

    @property
    def context_invalid(self) -> bool:
        """The processor's state of the guest is corrupt: do not run on.

        >>> kvmpy.Notify(1).context_invalid
        True
        """
        return bool(self.flags & 1)


@exit_value
class MemoryFault(Exit):
    """An access that KVM cannot resolve: guest_memfd, memory attributes, or a hole in a slot.
    ``flags``: KVM_MEMORY_EXIT_FLAG_*."""

    reason: ClassVar[int] = NUMBERS["MEMORY_FAULT"]
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {"flags": {3: "PRIVATE"}}
    flags: int
    gpa: int
    size: int

    @property
    def private(self) -> bool:
        """The access was to private memory (KVM_MEMORY_EXIT_FLAG_PRIVATE).

        >>> kvmpy.MemoryFault(8, 0x1000, 0x1000).private
        True
        """
        return bool(self.flags >> 3 & 1)


@exit_value
class OtherExit(Exit):
    """An exit reason this package has no class for: another architecture's, or a newer kernel's."""

    number: int

    def _text(self, name: str) -> str:
        return str(self.number)  # as the kernel writes them

    @property
    def name(self) -> str:
        """KVM_EXIT_* without the prefix.

        >>> kvmpy.OtherExit(41).name
        'ARM_SEA'
        """
        return REASONS.get(self.number, f"exit {self.number}")


# ---- the host's own


@exit_value
class Kicked(Exit):
    """:meth:`VCPU.kick` ended the run, or Ctrl-C did while another thread ran the vCPU: then
    ``signal`` is the signal's number."""

    signal: int = 0


@exit_value
class Timeout(Exit):
    """The run's time budget is spent. The vCPU can be run again."""


@exit_value
class ExitLimit(Exit):
    """The run's exit budget is spent. The vCPU can be run again."""


@exit_value
class DebugExit(Exit):
    """The guest wrote ``status`` to the debug-exit port."""

    resumable: ClassVar[bool] = False
    status: int


@exit_value
class Reset(Exit):
    """The guest resets its machine.

    ``source``: "i8042" for the keyboard controller's reset line, "reset-control" for port 0xCF9,
    which is ACPI's reset register too.
    """

    resumable: ClassVar[bool] = False
    source: str


@exit_value
class PowerOff(Exit):
    """The guest turns its machine off. ``source``: "acpi", sleep state S5."""

    resumable: ClassVar[bool] = False
    source: str


@exit_value
class GuestPanic(Exit):
    """The guest's kernel has panicked, and says so. ``source``: "pvpanic".

    What it does next, such as resetting the machine, it does in another run.
    """

    resumable: ClassVar[bool] = False
    source: str


@exit_value
class GuestCrashLoaded(Exit):
    """The guest's kernel has panicked, and its crash kernel takes over. ``source``: "pvpanic"."""

    source: str


@exit_value
class GuestException(Exit):
    """An exception arrived at a stub that :meth:`VCPU.enter` put there: nobody else wanted it.

    ``report`` has all the processor saved, and a likely cause.
    """

    resumable: ClassVar[bool] = False
    report: ExceptionReport

    @property
    def vector(self) -> int:
        """0..255.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5).vector
        6
        """
        return self.report.vector

    @property
    def name(self) -> str:
        """Mnemonic and name: #PF page fault, interrupt 0x80.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5).name
        '#UD invalid opcode'
        """
        return self.report.name

    @property
    def error_code(self) -> int | None:
        """None for exceptions without one.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5).error_code is None
        True
        """
        return self.report.error_code

    @property
    def rip(self) -> int | None:
        """Where it happened; None if the stack could not be read.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> hex(cpu.run(timeout=5).rip)
        '0x1000'
        """
        return self.report.rip

    @property
    def cr2(self) -> int | None:
        """The address, for a page fault.

        >>> vm.load(kvmpy.asm("mov rax, [0x123456789000]"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> hex(cpu.run(timeout=5).cr2)
        '0x123456789000'
        """
        return self.report.cr2


@exit_value
class UnexpectedSyscall(Exit):
    """SYSCALL or SYSENTER arrived at the stub that :meth:`VCPU.enter` put there."""

    resumable: ClassVar[bool] = False
    report: SyscallReport
