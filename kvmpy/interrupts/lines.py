"""A VM's interrupt controllers, lines, timer, routing and MSIs.

KVM API, "4.24 KVM_CREATE_IRQCHIP" and the sections that its methods name.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from .. import ioctls
from ..errors import KvmIoctlError, UnsupportedError
from ..ioctls import capabilities
from ..shim import ffi, lib
from ..vm_fd import VmFd

if TYPE_CHECKING:
    from typing import Protocol

    from ..fd import HasFileno
    from .irqchips import IoapicState, PicState, PitState
    from .routing import MsiMessage, MsiRoute, Route

    class UserIoapic(Protocol):
        """An I/O APIC in user space, as a VM with a split irqchip knows it: kvmpy.Ioapic."""

        @property
        def routes(self) -> tuple[MsiRoute, ...]:
            """What its pins are routed to now."""

        def resample(self, pin: int, eventfd: int | HasFileno | None) -> None:
            """Signal ``eventfd`` at the guest's EOI of a pin; None no longer."""

        def _set_others(self, table: Any, routes: tuple[Route, ...]) -> None:
            """KVM_SET_GSI_ROUTING, of the routes that are not its pins'."""


#: Pins of the IOAPIC; GSIs from here on are free for MSIs.
IOAPIC_PINS: int = lib.KVM_IOAPIC_NUM_PINS


class IrqStatus(int):
    """What became of an interrupt: how many CPUs it was delivered to, 0 when it merged with one
    that was pending, negative when it was masked.

    >>> kvmpy.IrqStatus(0)
    <IrqStatus 0: coalesced>
    """

    @property
    def delivered(self) -> bool:
        """Whether a CPU took it.

        >>> kvmpy.IrqStatus(1).delivered
        True
        """
        return self > 0

    @property
    def coalesced(self) -> bool:
        """Whether it merged with one that was pending.

        >>> kvmpy.IrqStatus(1).coalesced
        False
        """
        return self == 0

    @property
    def masked(self) -> bool:
        """Whether every controller on its way has it masked.

        >>> kvmpy.IrqStatus(-1).masked
        True
        """
        return self < 0

    def __repr__(self) -> str:
        what = "masked" if self < 0 else f"delivered to {int(self)}" if self else "coalesced"
        return f"<IrqStatus {int(self)}: {what}>"


class VmInterrupts(VmFd):
    """Interrupt controllers, lines, the PIT, GSI routing and MSIs of a VM."""

    #: "kernel": PIC, IOAPIC and LAPICs in KVM; "split": LAPICs only; None: no irqchip.
    irqchip: Literal["kernel", "split"] | None = None
    #: Of a split irqchip: how many GSIs are pins of a user-space I/O APIC; and that I/O APIC, once
    #: one is connected.
    ioapic_pins: int = 0
    ioapic: UserIoapic | None = None
    #: None: those that KVM's irqchip comes with.
    _routes: tuple[Route, ...] | None = ()
    _x2apic_ids = False

    @property
    def has_irqchip(self) -> bool:
        """Whether interrupts go through KVM's LAPICs.

        >>> vm.has_irqchip
        False
        """
        return self.irqchip is not None

    def create_irqchip(self, split: bool = False, pins: int = IOAPIC_PINS) -> None:
        """KVM_CREATE_IRQCHIP: PIC, IOAPIC and, for each vCPU to come, a LAPIC. KVM API, 4.24.

        ``split``: only the LAPICs (KVM_CAP_SPLIT_IRQCHIP); the first ``pins`` GSIs are those of a
        user-space IOAPIC: an EOI of a level-triggered MSI that one of them is routed to comes as
        the exit :class:`IoapicEoi`, unless an :class:`Ioapic` is connected. Before
        the first vCPU. Raises UnsupportedError, KvmIoctlError.

        >>> with kvmpy.VM() as other:
        ...     other.create_irqchip(split=True)
        ...     other.irqchip
        'split'
        """
        if split:
            capabilities.require(self, "KVM_CAP_SPLIT_IRQCHIP")
            self.enable_capability("KVM_CAP_SPLIT_IRQCHIP", pins)
            self.irqchip, self._routes, self.ioapic_pins = "split", (), pins
        else:
            ioctls.KVM_CREATE_IRQCHIP(self.fileno())
            self.irqchip, self._routes = "kernel", None

    def set_boot_cpu(self, id: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU is the bootstrap processor; 0 unless this is called
        before the first one is created. KVM API, 4.41.

        >>> with kvmpy.VM() as other:
        ...     other.set_boot_cpu(1)
        """
        ioctls.KVM_SET_BOOT_CPU_ID(self.fileno(), id, f"id {id}")

    # -- lines

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: drive interrupt line ``gsi`` to 0 or 1. An edge is 1 and then 0. KVM API,
        4.25.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.irq_line(4, 1)
        """
        line = ffi.new("struct kvm_irq_level *")
        line.irq, line.level = gsi, level
        ioctls.KVM_IRQ_LINE(self.fileno(), line, f"gsi {gsi}, level {level}")

    def irq_line_status(self, gsi: int, level: int) -> IrqStatus:
        """KVM_IRQ_LINE_STATUS: as :meth:`irq_line`, and what became of it. KVM API, 4.25.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.irq_line_status(20, 1)
        <IrqStatus -1: masked>
        """
        line = ffi.new("struct kvm_irq_level *")
        line.irq, line.level = gsi, level
        ioctls.KVM_IRQ_LINE_STATUS(self.fileno(), line, f"gsi {gsi}, level {level}")
        return IrqStatus(line.status)

    # -- the chips' state

    @overload
    def get_irqchip(self, chip: Literal["ioapic"]) -> IoapicState: ...
    @overload
    def get_irqchip(self, chip: Literal["pic-master", "pic-slave"]) -> PicState: ...
    @overload
    def get_irqchip(self, chip: str) -> PicState | IoapicState: ...
    def get_irqchip(self, chip: str) -> PicState | IoapicState:
        """KVM_GET_IRQCHIP: the state of "pic-master", "pic-slave" or "ioapic". KVM API, 4.26.

        Raises KvmIoctlError (ENXIO) for a VM without them.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.get_irqchip("ioapic").redirtbl[4].masked
        True
        """
        number, member, record = _chip(chip)
        structure = ffi.new("struct kvm_irqchip *", {"chip_id": number})
        ioctls.KVM_GET_IRQCHIP(self.fileno(), structure, chip)
        return record.from_c(getattr(structure.chip, member))

    def set_irqchip(self, chip: str, state: PicState | IoapicState) -> None:
        """KVM_SET_IRQCHIP: the inverse of :meth:`get_irqchip`. KVM API, 4.27.

        Raises TypeError for another chip's state.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.set_irqchip("pic-slave", other.get_irqchip("pic-slave"))
        """
        number, member, record = _chip(chip)
        if not isinstance(state, record):
            raise TypeError(f"{chip} has a {record.__name__}, not a {type(state).__name__}")
        structure = ffi.new("struct kvm_irqchip *", {"chip_id": number})
        state.fill(getattr(structure.chip, member))
        ioctls.KVM_SET_IRQCHIP(self.fileno(), structure, chip)
        # Which lines devices hold up is theirs to say, not the saved chip's.
        for device in self._knowing():
            device._assert_line()

    # -- the timer

    def create_pit(self, speaker: bool = True) -> None:
        """KVM_CREATE_PIT2: an i8254, whose counter 0 drives GSI 0. KVM API, 4.71.

        ``speaker``: KVM also answers port 0x61. After the irqchip, which it needs. Where KVM is too
        old for PIT2 it is KVM_CREATE_PIT, which always has the speaker: UnsupportedError without.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.create_pit()
        """
        if self.irqchip == "split":  # a KVM before 6.13 would make one that interrupts nobody
            raise KvmIoctlError("KVM_CREATE_PIT2", errno.ENOENT, "split irqchip")
        if self.check_extension(lib.KVM_CAP_PIT2):
            config = ffi.new("struct kvm_pit_config *")
            config.flags = lib.KVM_PIT_SPEAKER_DUMMY if speaker else 0
            ioctls.KVM_CREATE_PIT2(self.fileno(), config, f"flags {config.flags}")
        elif speaker:
            ioctls.KVM_CREATE_PIT(self.fileno())
        else:
            raise UnsupportedError(
                "this KVM has no KVM_CAP_PIT2: its PIT comes with the speaker", "KVM_CAP_PIT2"
            )

    @property
    def pit(self) -> PitState:
        """The i8254's state: KVM_GET_PIT2 and KVM_SET_PIT2, or KVM_GET_PIT and KVM_SET_PIT where
        KVM_CAP_PIT_STATE2 is missing: then ``flags`` is 0, and setting others UnsupportedError.
        KVM API, 4.72.

        >>> with kvmpy.VM(pit=True) as other:
        ...     other.pit.channels[0].mode
        255
        """
        with_flags = self.check_extension(lib.KVM_CAP_PIT_STATE2)
        structure = ffi.new("struct kvm_pit_state2 *")
        if with_flags:
            ioctls.KVM_GET_PIT2(self.fileno(), structure)
        else:  # the same three channels, and nothing after them
            ioctls.KVM_GET_PIT(self.fileno(), structure)
        from .irqchips import PitState

        return PitState.from_c(structure)

    @pit.setter
    def pit(self, state: PitState) -> None:
        if self.check_extension(lib.KVM_CAP_PIT_STATE2):
            ioctls.KVM_SET_PIT2(self.fileno(), state.to_c())
        elif state.flags:
            raise UnsupportedError(
                "this KVM has no KVM_CAP_PIT_STATE2: flags cannot be set", "KVM_CAP_PIT_STATE2"
            )
        else:
            ioctls.KVM_SET_PIT(self.fileno(), state.to_c())

    def reinject_pit(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL: whether ticks that the guest was too slow for are made up for.

        >>> with kvmpy.VM(pit=True) as other:
        ...     other.reinject_pit(False)
        """
        control = ffi.new("struct kvm_reinject_control *")
        control.pit_reinject = reinject
        ioctls.KVM_REINJECT_CONTROL(self.fileno(), control, f"{reinject}")

    # -- routing

    @property
    def gsi_routes(self) -> tuple[Route, ...]:
        """The routing table in force: what :meth:`set_gsi_routing` set last; before that what the
        irqchip came with. With an :class:`Ioapic`, its pins' routes come before.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.gsi_routes == kvmpy.routing.default_routes()
        True
        """
        own = self._own_routes()
        return own if self.ioapic is None else (*self.ioapic.routes, *own)

    def _own_routes(self) -> tuple[Route, ...]:
        """All but the Ioapic's."""
        if self._routes is None:
            from .routing import default_routes

            self._routes = default_routes()
        return self._routes

    def set_gsi_routing(self, routes: Iterable[Route]) -> None:
        """KVM_SET_GSI_ROUTING: replace the whole table of where each GSI leads. KVM API, 4.52.

        A GSI can lead to several pins of different chips; to an MSI it leads alone. With an
        :class:`Ioapic`: all but its pins, which the guest routes. Raises ValueError for more routes
        or a higher GSI than KVM takes, or a pin of the Ioapic's; KvmIoctlError.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.set_gsi_routing(kvmpy.routing.default_routes())
        """
        from .routing import MsiRoute, _table

        structure, entries = _table(routes, self.check_extension(lib.KVM_CAP_IRQ_ROUTING))
        for route in entries:
            if isinstance(route, MsiRoute):
                self._check_address(route.address)
        if self.ioapic is not None:
            self.ioapic._set_others(structure, entries)
        else:
            ioctls.KVM_SET_GSI_ROUTING(self.fileno(), structure, f"{len(entries)} routes")
        self._routes = entries

    def add_msi_route(self, message: MsiMessage, gsi: int | None = None) -> int:
        """Route ``gsi``, by default the first free one from 24 on, to an MSI; returns it.

        What the GSI led to before is forgotten. It then takes :meth:`irqfd` and :meth:`irq_line`.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.add_msi_route(kvmpy.MsiMessage(vector=0x41))
        24
        """
        from .routing import MsiRoute

        routes = self._own_routes()
        if gsi is None:
            used = {route.gsi for route in routes}
            gsi = next(n for n in range(IOAPIC_PINS, IOAPIC_PINS + len(used) + 1) if n not in used)
        others = (route for route in routes if route.gsi != gsi)
        self.set_gsi_routing((*others, MsiRoute.of(gsi, message)))
        return gsi

    def enable_x2apic_ids(self, broadcast_quirk: bool = True) -> None:
        """KVM_CAP_X2APIC_API: APIC ids of 32 bits, in MSIs and in the LAPIC's state. KVM API, 7.7.

        Without ``broadcast_quirk`` id 0xff is a vCPU's, no broadcast, in x2APIC mode.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     other.enable_x2apic_ids()
        """
        flags = lib.KVM_X2APIC_API_USE_32BIT_IDS
        if not broadcast_quirk:
            flags |= lib.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
        missing = flags & ~capabilities.require(self, "KVM_CAP_X2APIC_API")
        if missing:
            raise UnsupportedError(
                f"KVM_CAP_X2APIC_API of this KVM lacks flags {missing:#x}", "KVM_CAP_X2APIC_API"
            )
        self.enable_capability("KVM_CAP_X2APIC_API", flags)
        self._x2apic_ids = True

    def signal_msi(
        self, address: int | MsiMessage, data: int | None = None, *, devid: int | None = None
    ) -> bool:
        """KVM_SIGNAL_MSI: deliver a message now; False when the guest blocked it. KVM API, 4.70.

        ``address`` and ``data``, or an MsiMessage. ``devid`` as in MsiRoute. Raises ValueError for
        an APIC id above 255 without :meth:`enable_x2apic_ids`.

        >>> with kvmpy.VM(irqchip=True) as other:
        ...     cpu0 = other.vcpu()
        ...     other.signal_msi(0xFEE0_0000, 0x41)  # its LAPIC is not enabled yet
        False
        """
        from .routing import MsiMessage, _fill_msi

        if isinstance(address, MsiMessage):
            if data is not None:
                raise TypeError("an MsiMessage has its data")
            data, address = address.data, address.address
        if data is None:
            raise TypeError("an address needs its data")
        self._check_address(address)
        message = ffi.new("struct kvm_msi *")
        _fill_msi(message, address, data)
        if devid is not None:
            message.flags, message.devid = lib.KVM_MSI_VALID_DEVID, devid
        detail = f"address {address:#x}, data {data:#x}"
        result = ioctls.KVM_SIGNAL_MSI.raw(self.fileno(), message)
        if result == -errno.EPERM:  # -1 is how kvm_set_msi() says that no CPU took it
            return False
        if result < 0:
            raise ioctls.KVM_SIGNAL_MSI.error(self.fileno(), -result, detail)
        return result > 0

    def _check_address(self, address: int) -> None:
        if address >> 32 and not self._x2apic_ids:
            raise ValueError(
                f"MSI address {address:#x} has an APIC id above 255: enable_x2apic_ids() first, "
                "or KVM looks at its low 8 bits only"
            )


def _chip(chip: str) -> tuple[int, str, type[PicState] | type[IoapicState]]:
    from .irqchips import CHIPS

    if chip not in CHIPS:
        raise ValueError(f"irqchip {chip!r} is not one of {', '.join(CHIPS)}")
    return CHIPS[chip]
