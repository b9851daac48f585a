"""State of KVM's interrupt controllers and timer as values (KVM API, "4.26 KVM_GET_IRQCHIP",
"4.72 KVM_GET_PIT2").

Registers are named as in KVM's structures; the IOAPIC's redirection entries and the i8254's modes
are decoded (Intel 82093AA and 8254 data sheets).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Self

from ..record import Record
from ..shim import lib
from ..text import value_text
from ..values import dataclass, names, replace
from ..x86.bits import DELIVERY_MODES as DELIVERY_MODES

DEST_MODES: Final = ("physical", "logical")
TRIGGERS: Final = ("edge", "level")
POLARITIES: Final = ("high", "low")

#: The i8254's input clock, Hz.
PIT_HZ: Final = 1_193_182
PIT_MODES: Final = (
    "interrupt on terminal count", "one-shot", "rate generator", "square wave",
    "software strobe", "hardware strobe",
)  # fmt: skip
_PIT_ACCESS: Final = ("latch", "low byte", "high byte", "word, low byte", "word, high byte")


def choice(names: tuple[str, ...], name: str, what: str) -> int:
    """The number of ``name``. Raises ValueError that lists the others.

    >>> kvmpy.irqchips.choice(kvmpy.irqchips.DELIVERY_MODES, "nmi", "delivery mode")
    4
    """
    try:
        return names.index(name)
    except ValueError:
        raise ValueError(f"{what} {name!r} is not one of {', '.join(names)}") from None


_IRQS: Final = {bit: f"irq{bit}" for bit in range(8)}


@dataclass(frozen=True, repr=False)
class PicState(Record):
    """One i8259A: what KVM_GET_IRQCHIP gives for the master and the slave.

    ``irr`` requested, ``imr`` masked, ``isr`` in service, ``elcr`` level-triggered: a bit for each
    of its eight inputs. ``irq_base`` is the vector of input 0.

    >>> kvmpy.PicState(irr=0x10, irq_base=0x20).irr
    16
    """

    c_name: ClassVar[str] = "struct kvm_pic_state"
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = dict.fromkeys(
        ("last_irr", "irr", "imr", "isr", "elcr", "elcr_mask"), _IRQS
    )
    last_irr: int = 0
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_reg_select: int = 0
    poll: int = 0
    special_mask: int = 0
    init_state: int = 0
    auto_eoi: int = 0
    rotate_on_auto_eoi: int = 0
    special_fully_nested_mode: int = 0
    init4: int = 0
    elcr: int = 0
    elcr_mask: int = 0


@dataclass(frozen=True, repr=False)
class RedirectionEntry(Record):
    """Where one pin of the IOAPIC leads.

    ``delivery_mode`` is one of ``irqchips.DELIVERY_MODES``, ``dest_mode`` "physical" or "logical",
    ``polarity`` "high" or "low", ``trigger`` "edge" or "level". ``remote_irr``: a level interrupt
    was delivered and waits for its EOI. ``dest_id``: APIC id, 0..255. ``reserved``: bits 17 to 55.

    >>> kvmpy.RedirectionEntry(vector=0x31, trigger="level")
    <vector 0x31 to APIC 0x0: fixed, physical, active high, level>
    """

    vector: int = 0
    delivery_mode: str = "fixed"
    dest_mode: str = "physical"
    delivery_pending: bool = False
    polarity: str = "high"
    remote_irr: bool = False
    trigger: str = "edge"
    masked: bool = False
    dest_id: int = 0
    reserved: int = 0

    @classmethod
    def from_bits(cls, bits: int) -> Self:
        """From the entry's 64 bits.

        >>> kvmpy.RedirectionEntry.from_bits(0x0100_0000_0001_0420)
        <vector 0x20 to APIC 0x1: nmi, physical, active high, edge, masked>
        """
        return cls(
            vector=bits & 0xFF,
            delivery_mode=DELIVERY_MODES[bits >> 8 & 7],
            dest_mode=DEST_MODES[bits >> 11 & 1],
            delivery_pending=bool(bits >> 12 & 1),
            polarity=POLARITIES[bits >> 13 & 1],
            remote_irr=bool(bits >> 14 & 1),
            trigger=TRIGGERS[bits >> 15 & 1],
            masked=bool(bits >> 16 & 1),
            dest_id=bits >> 56 & 0xFF,
            reserved=bits >> 17 & (1 << 39) - 1,
        )

    @property
    def bits(self) -> int:
        """The 64 bits. Raises ValueError for a field that does not fit.

        >>> hex(kvmpy.RedirectionEntry(vector=0x31, masked=True).bits)
        '0x10031'
        """
        for name, width in (("vector", 8), ("dest_id", 8), ("reserved", 39)):
            if getattr(self, name) >> width:
                raise ValueError(f"{name} {getattr(self, name):#x} does not fit in {width} bits")
        return (
            self.vector
            | choice(DELIVERY_MODES, self.delivery_mode, "delivery_mode") << 8
            | choice(DEST_MODES, self.dest_mode, "dest_mode") << 11
            | self.delivery_pending << 12
            | choice(POLARITIES, self.polarity, "polarity") << 13
            | self.remote_irr << 14
            | choice(TRIGGERS, self.trigger, "trigger") << 15
            | self.masked << 16
            | self.reserved << 17
            | self.dest_id << 56
        )

    @classmethod
    def from_c(cls, structure: Any) -> Self:
        """From an element of kvm_ioapic_state's table: for the package's own use.

        >>> structure = kvmpy.IoapicState().to_c()
        >>> kvmpy.RedirectionEntry.from_c(structure.redirtbl[0]).masked
        True
        """
        return cls.from_bits(structure.bits)

    def fill(self, structure: Any) -> None:
        """Into an element of kvm_ioapic_state's table: for the package's own use.

        >>> structure = kvmpy.IoapicState().to_c()
        >>> kvmpy.RedirectionEntry(vector=0x31).fill(structure.redirtbl[0])
        """
        structure.bits = self.bits

    def __repr__(self) -> str:
        parts = [self.delivery_mode, self.dest_mode, f"active {self.polarity}", self.trigger]
        parts += ["masked"] * self.masked + ["remote IRR"] * self.remote_irr
        parts += ["pending"] * self.delivery_pending
        parts += [f"reserved {self.reserved:#x}"] if self.reserved else []
        return f"<vector {self.vector:#x} to APIC {self.dest_id:#x}: {', '.join(parts)}>"


@dataclass(frozen=True, repr=False)
class IoapicState(Record):
    """The IOAPIC: what KVM_GET_IRQCHIP gives for it. ``redirtbl`` has an entry for each of its 24
    pins; ``irr`` a bit for each pin whose interrupt waits.

    >>> state = kvmpy.IoapicState()
    >>> state.with_entry(4, kvmpy.RedirectionEntry(vector=0x31)).redirtbl[4].vector
    49
    """

    c_name: ClassVar[str] = "struct kvm_ioapic_state"
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "irr": {bit: f"pin{bit}" for bit in range(24)}
    }
    base_address: int = 0xFEC0_0000
    ioregsel: int = 0
    id: int = 0
    irr: int = 0
    redirtbl: tuple[RedirectionEntry, ...] = (RedirectionEntry(masked=True),) * 24

    def with_entry(self, pin: int, entry: RedirectionEntry) -> Self:
        """A copy whose ``pin`` (0..23) leads where ``entry`` says.

        >>> entry = kvmpy.RedirectionEntry(vector=0x22)
        >>> kvmpy.IoapicState().with_entry(2, entry).redirtbl[2] == entry
        True
        """
        if not 0 <= pin < len(self.redirtbl):
            raise ValueError(f"pin {pin} is not in 0..{len(self.redirtbl) - 1}")
        table = (*self.redirtbl[:pin], entry, *self.redirtbl[pin + 1 :])
        return replace(self, redirtbl=table)

    def _text(self, name: str) -> str:
        if name != "redirtbl":
            return super()._text(name)
        used = [f"{i}: {entry!r}" for i, entry in enumerate(self.redirtbl) if not entry.masked]
        return f"{{{', '.join(used)}}}, {len(self.redirtbl) - len(used)} masked"


@dataclass(frozen=True, repr=False)
class PitChannel(Record):
    """One counter of the i8254. ``count`` is its reload value, 1..65536; ``count_load_time`` in ns
    of the host's clock.

    >>> round(kvmpy.irqchips.PitChannel(count=11932, mode=2).frequency)
    100
    """

    c_name: ClassVar[str] = "struct kvm_pit_channel_state"
    count: int = 0
    latched_count: int = 0
    count_latched: int = 0
    status_latched: int = 0
    status: int = 0
    read_state: int = 0
    write_state: int = 0
    write_latch: int = 0
    rw_mode: int = 0
    mode: int = 0
    bcd: int = 0
    gate: int = 0
    count_load_time: int = 0

    @property
    def frequency(self) -> float:
        """Reloads a second, Hz.

        >>> round(kvmpy.irqchips.PitChannel(count=65536).frequency, 1)
        18.2
        """
        return PIT_HZ / (self.count or 65536)

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        if name == "mode" and value < len(PIT_MODES):
            return f"{value}[{PIT_MODES[value]}]"
        if name == "count":
            return f"{value}[{self.frequency:.1f} Hz]"
        if name in ("rw_mode", "read_state", "write_state") and value < len(_PIT_ACCESS):
            return f"{value}[{_PIT_ACCESS[value]}]"
        return value_text(value)

    def __repr__(self) -> str:
        shown = ("count", "mode", "rw_mode", "gate", "bcd")
        rest = [
            f"{name}={self._text(name)}"
            for name in names(self)
            if name not in shown and getattr(self, name)
        ]
        return f"PitChannel({', '.join([f'{n}={self._text(n)}' for n in shown] + rest)})"


@dataclass(frozen=True, repr=False)
class PitState(Record):
    """The i8254: three counters, and ``flags``.

    >>> len(kvmpy.PitState().channels)
    3
    """

    c_name: ClassVar[str] = "struct kvm_pit_state2"
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {
        "flags": {0: "HPET_LEGACY", 1: "SPEAKER_DATA_ON"}
    }
    channels: tuple[PitChannel, ...] = (PitChannel(),) * 3
    flags: int = 0


#: Which chip KVM_GET_IRQCHIP is about: its number there, its member of the union, its record.
CHIPS: Final[dict[str, tuple[int, str, type[PicState] | type[IoapicState]]]] = {
    "pic-master": (lib.KVM_IRQCHIP_PIC_MASTER, "pic", PicState),
    "pic-slave": (lib.KVM_IRQCHIP_PIC_SLAVE, "pic", PicState),
    "ioapic": (lib.KVM_IRQCHIP_IOAPIC, "ioapic", IoapicState),
}
