"""Interrupt state as values: the local APIC, pending events, the multiprocessing state."""

from __future__ import annotations

import enum
from typing import ClassVar, Final

from ..record import Record
from ..shim import lib
from ..text import flags_text
from ..values import dataclass, replace
from ..x86.bits import DELIVERY_MODES, VECTORS


class MpState(enum.IntEnum):
    """What a vCPU does instead of running (KVM API, "4.38 KVM_GET_MP_STATE").

    >>> cpu.mp_state == kvmpy.state.MpState.RUNNABLE == 0
    True
    """

    RUNNABLE = lib.KVM_MP_STATE_RUNNABLE
    #: An application processor that has not got INIT yet.
    UNINITIALIZED = lib.KVM_MP_STATE_UNINITIALIZED
    #: Got INIT, waits for SIPI.
    INIT_RECEIVED = lib.KVM_MP_STATE_INIT_RECEIVED
    HALTED = lib.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = lib.KVM_MP_STATE_SIPI_RECEIVED
    AP_RESET_HOLD = lib.KVM_MP_STATE_AP_RESET_HOLD


def _vector(number: int) -> str:
    return VECTORS[number][0] if number in VECTORS else f"vector {number}"


@dataclass(frozen=True, repr=False)
class ExceptionEvent(Record):
    """An exception on its way: ``injected`` is being delivered; ``pending`` is not yet, and its
    side effects (CR2, DR6) are still in the payload."""

    injected: int = 0
    nr: int = 0
    has_error_code: int = 0
    pending: int = 0
    error_code: int = 0

    def __repr__(self) -> str:
        if not self.injected and not self.pending:
            return "none"
        state = "injected" if self.injected else "pending"
        code = f" error code {self.error_code:#x}" if self.has_error_code else ""
        return f"{_vector(self.nr)} {state}{code}"


@dataclass(frozen=True, repr=False)
class InterruptEvent(Record):
    """An external (``soft``: a software) interrupt being delivered; ``shadow``: interrupts wait
    until after the instruction that follows STI (2) or a load of SS (1)."""

    injected: int = 0
    nr: int = 0
    soft: int = 0
    shadow: int = 0

    def __repr__(self) -> str:
        shadow = (
            f", shadow {flags_text(self.shadow, {0: 'MOV SS', 1: 'STI'})}" if self.shadow else ""
        )
        if not self.injected:
            return f"none{shadow}"
        return f"{'software ' * self.soft}vector {self.nr:#x} injected{shadow}"


@dataclass(frozen=True, repr=False)
class NmiEvent(Record):
    """Non-maskable interrupts: one being delivered, how many wait, whether IRET must come first."""

    injected: int = 0
    pending: int = 0
    masked: int = 0

    def __repr__(self) -> str:
        parts = [name for name in ("injected", "pending", "masked") if getattr(self, name)]
        return " ".join(parts) or "none"


@dataclass(frozen=True, repr=False)
class SmiEvent(Record):
    """System-management mode: whether in it, an SMI that waits, an NMI inside, a latched INIT."""

    smm: int = 0
    pending: int = 0
    smm_inside_nmi: int = 0
    latched_init: int = 0

    def __repr__(self) -> str:
        names = ("smm", "pending", "smm_inside_nmi", "latched_init")
        return " ".join(name for name in names if getattr(self, name)) or "none"


@dataclass(frozen=True, repr=False)
class TripleFaultEvent(Record):
    """A triple fault that has not ended the run yet."""

    pending: int = 0

    def __repr__(self) -> str:
        return "pending" if self.pending else "none"


@dataclass(frozen=True, repr=False)
class VcpuEvents(Record):
    """Exceptions, interrupts, NMIs and SMIs on their way (struct kvm_vcpu_events; KVM API, "4.31
    KVM_GET_VCPU_EVENTS").

    ``flags`` says which parts KVM gave, or is to take: see :attr:`flag_names`. The exception
    payload and the triple fault are there once KVM_CAP_EXCEPTION_PAYLOAD and
    KVM_CAP_X86_TRIPLE_FAULT_EVENT are enabled on the VM.

    >>> cpu.nmi()
    >>> cpu.events.nmi
    pending
    """

    c_name = "struct kvm_vcpu_events"
    flag_names: ClassVar = {"flags": {
        0: "NMI_PENDING", 1: "SIPI_VECTOR", 2: "SHADOW", 3: "SMM", 4: "PAYLOAD", 5: "TRIPLE_FAULT",
    }}  # fmt: skip
    exception: ExceptionEvent = ExceptionEvent()
    interrupt: InterruptEvent = InterruptEvent()
    nmi: NmiEvent = NmiEvent()
    sipi_vector: int = 0
    flags: int = 0
    smi: SmiEvent = SmiEvent()
    triple_fault: TripleFaultEvent = TripleFaultEvent()
    exception_has_payload: int = 0
    exception_payload: int = 0

    def __repr__(self) -> str:
        parts = [
            f"{name} {getattr(self, name)!r}"
            for name in ("exception", "interrupt", "nmi", "smi", "triple_fault")
            if getattr(self, name) != type(getattr(self, name))()
        ]
        if self.sipi_vector:
            parts.append(f"sipi vector {self.sipi_vector:#x}")
        if self.exception_has_payload:
            parts.append(f"payload {self.exception_payload:#x}")
        return f"<VcpuEvents {', '.join(parts) or 'none'}; flags {self._text('flags')}>"


#: Offsets of the local APIC's 32-bit registers (SDM vol. 3, "Local APIC Register Address Map").
LAPIC_REGISTERS: Final = {
    "id": 0x20, "version": 0x30, "tpr": 0x80, "apr": 0x90, "ppr": 0xA0, "ldr": 0xD0, "dfr": 0xE0,
    "svr": 0xF0, "esr": 0x280, "lvt_cmci": 0x2F0, "icr": 0x300, "icr_high": 0x310,
    "lvt_timer": 0x320, "lvt_thermal": 0x330, "lvt_perf": 0x340, "lvt_lint0": 0x350,
    "lvt_lint1": 0x360, "lvt_error": 0x370, "timer_initial": 0x380, "timer_current": 0x390,
    "timer_divide": 0x3E0,
}  # fmt: skip
_TIMER_MODES: Final = ("one-shot", "periodic", "TSC-deadline", "reserved mode")


@dataclass(frozen=True, repr=False)
class Lapic(Record):
    """The registers of a vCPU's in-kernel local APIC (struct kvm_lapic_state; KVM API, "4.57
    KVM_GET_LAPIC").

    ``lapic["tpr"]``, by the names of ``kvmpy.state.LAPIC_REGISTERS``; :meth:`replace` gives a copy
    with others. ``isr``, ``irr``, ``tmr``: sets of vectors in service, requested, and
    level-triggered.

    >>> hex(kvmpy.state.Lapic().replace(svr=0x1FF)["svr"])
    '0x1ff'
    """

    c_name = "struct kvm_lapic_state"
    regs: bytes = bytes(1024)

    def __getitem__(self, name: str) -> int:
        """A register, 32 bits. Raises KeyError for an unknown name."""
        offset = LAPIC_REGISTERS[name]
        return int.from_bytes(self.regs[offset : offset + 4], "little")

    def replace(self, **values: int) -> Lapic:
        """A copy with other values. Raises KeyError for an unknown name.

        >>> kvmpy.state.Lapic().replace(tpr=0x20)["tpr"]
        32
        """
        area = bytearray(self.regs)
        for name, value in values.items():
            if not 0 <= value < 1 << 32:
                raise ValueError(f"{name} = {value:#x}: not in 0..2**32-1")
            offset = LAPIC_REGISTERS[name]
            area[offset : offset + 4] = value.to_bytes(4, "little")
        return replace(self, regs=bytes(area))

    @property
    def id(self) -> int:
        """The APIC id. In x2APIC mode, on a VM with KVM_X2APIC_API_USE_32BIT_IDS, the register is
        the id; else its high byte is.

        >>> kvmpy.state.Lapic().replace(id=3 << 24).id
        3
        """
        raw = self["id"]  # ids of 2**24 and above do not exist: the two formats cannot be mixed up
        return raw if raw & 0xFF_FFFF else raw >> 24

    @property
    def enabled(self) -> bool:
        """Whether software has enabled it (SVR bit 8).

        >>> kvmpy.state.Lapic().replace(svr=0x1FF).enabled
        True
        """
        return bool(self["svr"] & 1 << 8)

    def _vectors(self, offset: int) -> frozenset[int]:
        words = (self.regs[offset + 16 * i : offset + 16 * i + 4] for i in range(8))
        bits = int.from_bytes(b"".join(words), "little")
        return frozenset(vector for vector in range(256) if bits >> vector & 1)

    @property
    def isr(self) -> frozenset[int]:
        """Vectors in service.

        >>> kvmpy.state.Lapic().isr
        frozenset()
        """
        return self._vectors(0x100)

    @property
    def tmr(self) -> frozenset[int]:
        """Vectors whose last interrupt was level-triggered.

        >>> kvmpy.state.Lapic().tmr
        frozenset()
        """
        return self._vectors(0x180)

    @property
    def irr(self) -> frozenset[int]:
        """Vectors requested and not yet in service.

        >>> kvmpy.state.Lapic().irr
        frozenset()
        """
        return self._vectors(0x200)

    def lvt(self, name: str) -> str:
        """A local-vector-table entry in words: ``lvt("timer")``, "lint0", "error" ...

        >>> kvmpy.state.Lapic().replace(lvt_timer=0x20020).lvt("timer")
        'vector 0x20 periodic'
        """
        value = self[f"lvt_{name}"]
        kind = _TIMER_MODES[value >> 17 & 3] if name == "timer" else DELIVERY_MODES[value >> 8 & 7]
        return f"vector {value & 0xFF:#x} {kind}{' masked' if value >> 16 & 1 else ''}"

    def __repr__(self) -> str:
        sets = " ".join(
            f"{name} {{{', '.join(f'{vector:#x}' for vector in sorted(getattr(self, name)))}}}"
            for name in ("isr", "irr", "tmr")
        )
        return (
            f"<Lapic id {self.id} version {self['version']:#x} tpr {self['tpr']:#x} "
            f"svr {self['svr']:#x} timer [{self.lvt('timer')}] {self['timer_current']} of "
            f"{self['timer_initial']}, lint0 [{self.lvt('lint0')}] lint1 [{self.lvt('lint1')}] "
            f"{sets}>"
        )
