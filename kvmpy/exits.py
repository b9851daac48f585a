"""Why a run came back, as values to match on.

One frozen dataclass per exit reason of KVM (KVM API, "5. The kvm_run structure"), and a few for
what the host itself wanted: :class:`Kicked`, :class:`Timeout`, :class:`ExitLimit`,
:class:`DebugExit`. What the guest asks of its machine comes from the devices that it asks
(``kvmpy.devices.platform``): :class:`Reset`, :class:`PowerOff`, :class:`GuestPanic`.

    match cpu.run(timeout=1.0):
        case IoOut(port=0xE9, data=data): ...
        case Hlt(): ...
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .x86.exceptions import ExceptionReport, SyscallReport


@dataclass(frozen=True, slots=True)
class Exit:
    """Base of all exits."""

    #: KVM_EXIT_* number; -1 for the host's own.
    reason: ClassVar[int] = -1
    #: False when running again cannot help: the guest is over.
    resumable: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Unknown(Exit):
    """The processor left the guest for a reason KVM does not know."""

    reason: ClassVar[int] = 0
    resumable: ClassVar[bool] = False
    hardware_exit_reason: int = 0


@dataclass(frozen=True, slots=True)
class Exception_(Exit):
    """KVM_EXIT_EXCEPTION. No x86 KVM of today gives it."""

    reason: ClassVar[int] = 1
    exception: int = 0
    error_code: int = 0


@dataclass(frozen=True, slots=True)
class IoOut(Exit):
    """The guest wrote to a port nobody has claimed.

    ``data`` holds ``count`` elements of ``size`` bytes (1, 2 or 4), little endian; string
    instructions give more than one.
    """

    reason: ClassVar[int] = 2
    port: int
    size: int
    data: bytes
    count: int = 1

    @property
    def value(self) -> int:
        """The first element."""
        return int.from_bytes(self.data[: self.size], "little")


@dataclass(frozen=True, slots=True)
class IoIn(Exit):
    """The guest reads a port nobody has claimed. ``cpu.answer(...)`` gives it ``size * count``
    bytes; without an answer it reads all ones."""

    reason: ClassVar[int] = 2
    port: int
    size: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class MmioWrite(Exit):
    """The guest wrote to a guest physical address without memory. 1 to 8 bytes."""

    reason: ClassVar[int] = 6
    gpa: int
    data: bytes

    @property
    def size(self) -> int:
        """Bytes written."""
        return len(self.data)

    @property
    def value(self) -> int:
        """The bytes as a little-endian number."""
        return int.from_bytes(self.data, "little")


@dataclass(frozen=True, slots=True)
class MmioRead(Exit):
    """The guest reads ``size`` bytes where there is no memory. See :meth:`VCPU.answer`."""

    reason: ClassVar[int] = 6
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class Hypercall(Exit):
    """A hypercall KVM leaves to its user."""

    reason: ClassVar[int] = 3
    number: int
    args: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Debug(Exit):
    """A breakpoint or single step asked for with KVM_SET_GUEST_DEBUG."""

    reason: ClassVar[int] = 4
    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class Hlt(Exit):
    """The guest executed HLT. Never seen with an in-kernel LAPIC, where KVM itself waits."""

    reason: ClassVar[int] = 5


@dataclass(frozen=True, slots=True)
class IrqWindowOpen(Exit):
    """The guest can take an interrupt now (asked for with request_interrupt_window)."""

    reason: ClassVar[int] = 7


@dataclass(frozen=True, slots=True)
class Shutdown(Exit):
    """Triple fault. On AMD the registers may show the state after INIT, not the fault's."""

    reason: ClassVar[int] = 8
    resumable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class FailEntry(Exit):
    """The processor refused the guest state on VM entry."""

    reason: ClassVar[int] = 9
    resumable: ClassVar[bool] = False
    hardware_entry_failure_reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class Intr(Exit):
    """KVM_EXIT_INTR: a signal; usually seen as EINTR instead, and handled by the run loop."""

    reason: ClassVar[int] = 10


@dataclass(frozen=True, slots=True)
class SetTpr(Exit):
    """The guest lowered its task priority (no in-kernel LAPIC)."""

    reason: ClassVar[int] = 11


@dataclass(frozen=True, slots=True)
class TprAccess(Exit):
    """The guest touched the task priority register, and reporting is on."""

    reason: ClassVar[int] = 12
    rip: int
    is_write: bool


@dataclass(frozen=True, slots=True)
class Nmi(Exit):
    """KVM_EXIT_NMI."""

    reason: ClassVar[int] = 16


#: KVM_INTERNAL_ERROR_* by number.
INTERNAL_ERRORS = {
    1: "emulation",
    2: "simultaneous exceptions",
    3: "delivery of an event caused an exit",
    4: "unexpected exit reason",
}


@dataclass(frozen=True, slots=True)
class InternalError(Exit):
    """KVM gave up on an instruction. ``data`` is as KVM gave it.

    ``instruction``: for suberror 1 the bytes KVM could not emulate, where it says.
    """

    reason: ClassVar[int] = 17
    resumable: ClassVar[bool] = False
    suberror: int
    data: tuple[int, ...] = ()

    @property
    def instruction(self) -> bytes:
        """KVM API, "KVM_EXIT_INTERNAL_ERROR": flags bit 0 says that bytes follow."""
        if self.suberror != 1 or len(self.data) < 3 or not self.data[0] & 1:
            return b""
        raw = struct.pack("<2Q", *self.data[1:3])
        return raw[1 : 1 + min(raw[0], 15)]

    @property
    def kind(self) -> str:
        """The suberror in words."""
        return INTERNAL_ERRORS.get(self.suberror, f"suberror {self.suberror}")


@dataclass(frozen=True, slots=True)
class SystemEvent(Exit):
    """The guest asked for shutdown, reset or suspend, or crashed, through KVM itself."""

    reason: ClassVar[int] = 24
    type: int
    data: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class IoapicEoi(Exit):
    """End of a level-triggered interrupt (split irqchip)."""

    reason: ClassVar[int] = 26
    vector: int


@dataclass(frozen=True, slots=True)
class Hyperv(Exit):
    """A Hyper-V hypercall or SynIC event."""

    reason: ClassVar[int] = 27


@dataclass(frozen=True, slots=True)
class Rdmsr(Exit):
    """The guest reads an MSR that was left to user space. ``why``: KVM_MSR_EXIT_REASON_*."""

    reason: ClassVar[int] = 29
    index: int
    why: int


@dataclass(frozen=True, slots=True)
class Wrmsr(Exit):
    """The guest writes an MSR that was left to user space."""

    reason: ClassVar[int] = 30
    index: int
    data: int
    why: int


@dataclass(frozen=True, slots=True)
class DirtyRingFull(Exit):
    """The dirty ring is full."""

    reason: ClassVar[int] = 31


@dataclass(frozen=True, slots=True)
class BusLock(Exit):
    """The guest locked the bus, and detection exits."""

    reason: ClassVar[int] = 33


@dataclass(frozen=True, slots=True)
class Xen(Exit):
    """A Xen hypercall."""

    reason: ClassVar[int] = 34


@dataclass(frozen=True, slots=True)
class Notify(Exit):
    """No event window opened for too long (KVM_CAP_X86_NOTIFY_VMEXIT)."""

    reason: ClassVar[int] = 37
    flags: int


@dataclass(frozen=True, slots=True)
class MemoryFault(Exit):
    """An access that KVM cannot resolve: guest_memfd, memory attributes, or a hole in a slot."""

    reason: ClassVar[int] = 39
    flags: int
    gpa: int
    size: int


@dataclass(frozen=True, slots=True)
class OtherExit(Exit):
    """An exit reason this package has no class for."""

    number: int


# ---- the host's own


@dataclass(frozen=True, slots=True)
class Kicked(Exit):
    """:meth:`VCPU.kick` ended the run, or Ctrl-C did while another thread ran the vCPU: then
    ``signal`` is the signal's number."""

    signal: int = 0


@dataclass(frozen=True, slots=True)
class Timeout(Exit):
    """The run's time budget is spent. The vCPU can be run again."""


@dataclass(frozen=True, slots=True)
class ExitLimit(Exit):
    """The run's exit budget is spent. The vCPU can be run again."""


@dataclass(frozen=True, slots=True)
class DebugExit(Exit):
    """The guest wrote ``status`` to the debug-exit port."""

    resumable: ClassVar[bool] = False
    status: int


@dataclass(frozen=True, slots=True)
class Reset(Exit):
    """The guest resets its machine.

    ``source``: "i8042" for the keyboard controller's reset line, "reset-control" for port 0xCF9,
    which is ACPI's reset register too.
    """

    resumable: ClassVar[bool] = False
    source: str


@dataclass(frozen=True, slots=True)
class PowerOff(Exit):
    """The guest turns its machine off. ``source``: "acpi", sleep state S5."""

    resumable: ClassVar[bool] = False
    source: str


@dataclass(frozen=True, slots=True)
class GuestPanic(Exit):
    """The guest's kernel has panicked, and says so. ``source``: "pvpanic".

    What it does next, such as resetting the machine, it does in another run.
    """

    resumable: ClassVar[bool] = False
    source: str


@dataclass(frozen=True, slots=True)
class GuestCrashLoaded(Exit):
    """The guest's kernel has panicked, and its crash kernel takes over. ``source``: "pvpanic"."""

    source: str


@dataclass(frozen=True, slots=True)
class GuestException(Exit):
    """An exception arrived at a stub that :meth:`VCPU.enter` put there: nobody else wanted it.

    ``report`` has all the processor saved, and a likely cause.
    """

    resumable: ClassVar[bool] = False
    report: ExceptionReport

    @property
    def vector(self) -> int:
        """0..255."""
        return self.report.vector

    @property
    def name(self) -> str:
        """Mnemonic and name: #PF page fault, interrupt 0x80."""
        return self.report.name

    @property
    def error_code(self) -> int | None:
        """None for exceptions without one."""
        return self.report.error_code

    @property
    def rip(self) -> int | None:
        """Where it happened; None if the stack could not be read."""
        return self.report.rip

    @property
    def cr2(self) -> int | None:
        """The address, for a page fault."""
        return self.report.cr2


@dataclass(frozen=True, slots=True)
class UnexpectedSyscall(Exit):
    """SYSCALL or SYSENTER arrived at the stub that :meth:`VCPU.enter` put there."""

    resumable: ClassVar[bool] = False
    report: SyscallReport


#: Names of KVM_EXIT_* numbers, without the prefix.
REASONS: dict[int, str] = {
    0: "UNKNOWN", 1: "EXCEPTION", 2: "IO", 3: "HYPERCALL", 4: "DEBUG", 5: "HLT", 6: "MMIO",
    7: "IRQ_WINDOW_OPEN", 8: "SHUTDOWN", 9: "FAIL_ENTRY", 10: "INTR", 11: "SET_TPR",
    12: "TPR_ACCESS", 16: "NMI", 17: "INTERNAL_ERROR", 24: "SYSTEM_EVENT", 26: "IOAPIC_EOI",
    27: "HYPERV", 29: "X86_RDMSR", 30: "X86_WRMSR", 31: "DIRTY_RING_FULL", 33: "X86_BUS_LOCK",
    34: "XEN", 37: "NOTIFY", 39: "MEMORY_FAULT",
}  # fmt: skip

_Decoder = Callable[[Sequence[int]], Exit]

# The words are shim_decode()'s (native/exits.c), after the reason.
_DECODERS: dict[int, _Decoder] = {
    0: lambda w: Unknown(w[0]),
    1: lambda w: Exception_(w[0], w[1]),
    3: lambda w: Hypercall(w[0], tuple(w[1:7])),
    4: lambda w: Debug(w[0], w[1], w[2], w[3]),
    5: lambda w: Hlt(),
    7: lambda w: IrqWindowOpen(),
    8: lambda w: Shutdown(),
    9: lambda w: FailEntry(w[0], w[1]),
    10: lambda w: Intr(),
    11: lambda w: SetTpr(),
    12: lambda w: TprAccess(w[0], bool(w[1])),
    16: lambda w: Nmi(),
    17: lambda w: InternalError(w[0], tuple(w[1:])),
    24: lambda w: SystemEvent(w[0], tuple(w[1:])),
    26: lambda w: IoapicEoi(w[0]),
    27: lambda w: Hyperv(),
    29: lambda w: Rdmsr(w[0], w[2]),
    30: lambda w: Wrmsr(w[0], w[1], w[2]),
    31: lambda w: DirtyRingFull(),
    33: lambda w: BusLock(),
    34: lambda w: Xen(),
    37: lambda w: Notify(w[0]),
    39: lambda w: MemoryFault(w[0], w[1], w[2]),
}


def decode(words: Sequence[int], run_page: memoryview) -> Exit:
    """The exit that ``words`` (shim_decode's, the reason first) describe.

    ``run_page`` is the vCPU's kvm_run mapping: port data lies in it, beyond the structure.
    """
    reason, rest = words[0], words[1:]
    if reason == 2:
        is_write, port, size, count, offset = rest
        if not is_write:
            return IoIn(port, size, count)
        return IoOut(port, size, bytes(run_page[offset : offset + size * count]), count)
    if reason == 6:
        is_write, gpa, size, data = rest
        if not is_write:
            return MmioRead(gpa, size)
        return MmioWrite(gpa, data.to_bytes(8, "little")[:size])
    decoder = _DECODERS.get(reason)
    return decoder(rest) if decoder else OtherExit(reason)
