"""A vCPU's state as plain values: what the properties of :class:`kvmpy.VCPU` give and take, and
:class:`VcpuState`, all of it together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_from

if TYPE_CHECKING:
    from .clock import Clock as Clock
    from .host import HostIdentity as HostIdentity
    from .interrupts import (
        LAPIC_REGISTERS as LAPIC_REGISTERS,
        ExceptionEvent as ExceptionEvent,
        InterruptEvent as InterruptEvent,
        Lapic as Lapic,
        MpState as MpState,
        NmiEvent as NmiEvent,
        SmiEvent as SmiEvent,
        TripleFaultEvent as TripleFaultEvent,
        VcpuEvents as VcpuEvents,
    )
    from .nested import NestedState as NestedState, SvmHeader as SvmHeader, VmxHeader as VmxHeader
    from .registers import (
        Breakpoint as Breakpoint,
        DebugRegs as DebugRegs,
        DescriptorTable as DescriptorTable,
        Fpu as Fpu,
        Regs as Regs,
        Segment as Segment,
        Sregs as Sregs,
        Sregs2 as Sregs2,
        Xcr as Xcr,
        Xcrs as Xcrs,
    )
    from .vcpu import VcpuState as VcpuState
    from .xsave import (
        Component as Component,
        Xsave as Xsave,
        host_layout as host_layout,
        layout_of as layout_of,
        request_guest_permission as request_guest_permission,
    )

# module -> what is public of it. Imported when first used, as all of kvmpy.
_PUBLIC = {
    "clock": ("Clock",),
    "host": ("HostIdentity",),
    "interrupts": (
        "ExceptionEvent",
        "InterruptEvent",
        "LAPIC_REGISTERS",
        "Lapic",
        "MpState",
        "NmiEvent",
        "SmiEvent",
        "TripleFaultEvent",
        "VcpuEvents",
    ),
    "nested": ("NestedState", "SvmHeader", "VmxHeader"),
    "registers": (
        "Breakpoint",
        "DebugRegs",
        "DescriptorTable",
        "Fpu",
        "Regs",
        "Segment",
        "Sregs",
        "Sregs2",
        "Xcr",
        "Xcrs",
    ),
    "vcpu": ("VcpuState",),
    "xsave": ("Component", "Xsave", "host_layout", "layout_of", "request_guest_permission"),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = list(_WHERE)

__getattr__ = names_from(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
