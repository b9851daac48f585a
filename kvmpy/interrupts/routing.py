"""Where an interrupt goes: the GSI routing table's entries, and message-signalled interrupts.

KVM API, "4.52 KVM_SET_GSI_ROUTING" and "4.70 KVM_SIGNAL_MSI"; SDM vol. 3, "Message Signalled
Interrupts".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from ..shim import ffi, lib
from .irqchips import DELIVERY_MODES, DEST_MODES, TRIGGERS, choice

#: Where MSI addresses start; the LAPICs' registers are there too, for a CPU's own accesses.
MSI_BASE = 0xFEE0_0000
#: Priority of a Xen event: deliver by the 2-level ABI.
XEN_2LEVEL = 0xFFFF_FFFF


@dataclass(frozen=True, kw_only=True)
class MsiMessage:
    """A message-signalled interrupt: the address and data that a device writes for it.

    ``dest_id``: APIC id; above 255 it takes :meth:`VM.enable_x2apic_ids`. ``delivery_mode`` is one
    of ``irqchips.DELIVERY_MODES``; ``redirection_hint`` lets the chipset choose among several.

    >>> message = kvmpy.MsiMessage(dest_id=1, vector=0x41)
    >>> hex(message.address), hex(message.data)
    ('0xfee01000', '0x41')
    """

    vector: int
    dest_id: int = 0
    delivery_mode: str = "fixed"
    dest_mode: str = "physical"
    trigger: str = "edge"
    assert_level: bool = True
    redirection_hint: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.vector <= 255 or not 0 <= self.dest_id < 1 << 32:
            raise ValueError(f"vector {self.vector} is not 0..255, or dest_id {self.dest_id:#x} "
                             "has more than 32 bits")  # fmt: skip
        choice(DELIVERY_MODES, self.delivery_mode, "delivery_mode")
        choice(DEST_MODES, self.dest_mode, "dest_mode")
        choice(TRIGGERS, self.trigger, "trigger")

    @property
    def address(self) -> int:
        """The 64-bit address; bits 8 and up of ``dest_id`` are in its upper half (KVM API,
        "KVM_CAP_X2APIC_API").

        >>> hex(kvmpy.MsiMessage(dest_id=0x1234, vector=0).address)
        '0x1200fee34000'
        """
        low = (self.dest_id & 0xFF) << 12 | self.redirection_hint << 3
        return MSI_BASE | low | DEST_MODES.index(self.dest_mode) << 2 | self.dest_id >> 8 << 40

    @property
    def data(self) -> int:
        """The data word.

        >>> hex(kvmpy.MsiMessage(vector=0x41, trigger="level").data)
        '0xc041'
        """
        level = self.trigger == "level"
        mode = DELIVERY_MODES.index(self.delivery_mode)
        return self.vector | mode << 8 | (level and self.assert_level) << 14 | level << 15

    @classmethod
    def decode(cls, address: int, data: int) -> Self:
        """The message behind an address and data. Raises ValueError for any other address.

        >>> kvmpy.MsiMessage.decode(0xFEE0_1000, 0x41).dest_id
        1
        """
        if address & 0xFF_FFF0_0000 != MSI_BASE or address >> 64:
            raise ValueError(f"{address:#x} is not the address of an MSI")
        level = data >> 15 & 1
        return cls(
            vector=data & 0xFF,
            dest_id=address >> 12 & 0xFF | address >> 40 << 8,
            delivery_mode=DELIVERY_MODES[data >> 8 & 7],
            dest_mode=DEST_MODES[address >> 2 & 1],
            trigger=TRIGGERS[level],
            assert_level=bool(data >> 14 & 1) if level else True,
            redirection_hint=bool(address >> 3 & 1),
        )


@dataclass(frozen=True)
class IrqchipRoute:
    """``gsi`` drives ``pin`` of an in-kernel chip: ``irqchip`` is "pic-master", "pic-slave" or
    "ioapic".

    >>> kvmpy.IrqchipRoute(4, "ioapic", 4).pin
    4
    """

    gsi: int
    irqchip: str
    pin: int

    def _fill(self, entry: Any) -> None:
        from .irqchips import CHIPS

        if self.irqchip not in CHIPS:
            raise ValueError(f"irqchip {self.irqchip!r} is not one of {', '.join(CHIPS)}")
        entry.type = lib.KVM_IRQ_ROUTING_IRQCHIP
        entry.u.irqchip.irqchip, entry.u.irqchip.pin = CHIPS[self.irqchip][0], self.pin


@dataclass(frozen=True)
class MsiRoute:
    """``gsi`` sends an MSI. ``devid`` tells which device sends it; KVM on x86 ignores it.

    >>> kvmpy.MsiRoute.of(24, kvmpy.MsiMessage(vector=0x41)).data
    65
    """

    gsi: int
    address: int
    data: int
    devid: int | None = None

    @classmethod
    def of(cls, gsi: int, message: MsiMessage) -> Self:
        """The route of a message.

        >>> message = kvmpy.MsiMessage(vector=0x41)
        >>> kvmpy.MsiRoute.of(24, message).message == message
        True
        """
        return cls(gsi, message.address, message.data)

    @property
    def message(self) -> MsiMessage:
        """Address and data, decoded.

        >>> kvmpy.MsiRoute(24, 0xFEE0_0000, 0x41).message.vector
        65
        """
        return MsiMessage.decode(self.address, self.data)

    def _fill(self, entry: Any) -> None:
        entry.type = lib.KVM_IRQ_ROUTING_MSI
        _fill_msi(entry.u.msi, self.address, self.data)
        if self.devid is not None:
            entry.flags, entry.u.msi.devid = lib.KVM_MSI_VALID_DEVID, self.devid


@dataclass(frozen=True)
class HvSintRoute:
    """``gsi`` raises a Hyper-V synthetic interrupt: ``sint`` 0..15 of vCPU ``vcpu``.

    >>> kvmpy.HvSintRoute(24, vcpu=0, sint=2).sint
    2
    """

    gsi: int
    vcpu: int
    sint: int

    def _fill(self, entry: Any) -> None:
        entry.type = lib.KVM_IRQ_ROUTING_HV_SINT
        entry.u.hv_sint.vcpu, entry.u.hv_sint.sint = self.vcpu, self.sint


@dataclass(frozen=True)
class XenEventRoute:
    """``gsi`` raises Xen event channel ``port`` on vCPU ``vcpu``.

    >>> kvmpy.XenEventRoute(24, port=3, vcpu=0).port
    3
    """

    gsi: int
    port: int
    vcpu: int
    priority: int = XEN_2LEVEL

    def _fill(self, entry: Any) -> None:
        entry.type = lib.KVM_IRQ_ROUTING_XEN_EVTCHN
        target = entry.u.xen_evtchn
        target.port, target.vcpu, target.priority = self.port, self.vcpu, self.priority


Route = IrqchipRoute | MsiRoute | HvSintRoute | XenEventRoute


def _fill_msi(structure: Any, address: int, data: int) -> None:
    """Address and data into kvm_msi or kvm_irq_routing_msi."""
    structure.address_lo, structure.address_hi = address & 0xFFFF_FFFF, address >> 32
    structure.data = data


def default_routes() -> tuple[Route, ...]:
    """What a VM with KVM's irqchip starts with: GSI 0..15 to the PICs and the IOAPIC, 16..23 to
    the IOAPIC alone, each to the pin of its number.

    >>> len(kvmpy.routing.default_routes())
    40
    """
    pics = [
        IrqchipRoute(gsi, "pic-slave" if gsi > 7 else "pic-master", gsi % 8) for gsi in range(16)
    ]
    return (*pics, *(IrqchipRoute(gsi, "ioapic", gsi) for gsi in range(24)))


def _table(routes: Iterable[Route], most: int) -> tuple[Any, tuple[Route, ...]]:
    """The kvm_irq_routing for these, and the routes. Raises ValueError for more than ``most`` of
    them, and for a GSI that is not below it."""
    entries = tuple(routes)
    if len(entries) > most:
        raise ValueError(f"{len(entries)} routes: this KVM takes {most}")
    structure = ffi.new("struct kvm_irq_routing *", {"entries": len(entries)})
    structure.nr = len(entries)
    for i, route in enumerate(entries):
        if not 0 <= route.gsi < most:
            raise ValueError(f"gsi {route.gsi} is not in 0..{most - 1}")
        structure.entries[i].gsi = route.gsi
        route._fill(structure.entries[i])
    return structure, entries
