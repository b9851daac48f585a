"""A vCPU's state as plain values: what the properties of :class:`kvmpy.VCPU` give and take, and
:class:`VcpuState`, all of it together.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .clock import Clock as Clock
    from .host import HostIdentity as HostIdentity
    from .interrupts import LAPIC_REGISTERS as LAPIC_REGISTERS
    from .interrupts import ExceptionEvent as ExceptionEvent
    from .interrupts import InterruptEvent as InterruptEvent
    from .interrupts import Lapic as Lapic
    from .interrupts import MpState as MpState
    from .interrupts import NmiEvent as NmiEvent
    from .interrupts import SmiEvent as SmiEvent
    from .interrupts import TripleFaultEvent as TripleFaultEvent
    from .interrupts import VcpuEvents as VcpuEvents
    from .nested import NestedState as NestedState
    from .nested import SvmHeader as SvmHeader
    from .nested import VmxHeader as VmxHeader
    from .registers import Breakpoint as Breakpoint
    from .registers import DebugRegs as DebugRegs
    from .registers import DescriptorTable as DescriptorTable
    from .registers import Fpu as Fpu
    from .registers import Regs as Regs
    from .registers import Segment as Segment
    from .registers import Sregs as Sregs
    from .registers import Sregs2 as Sregs2
    from .registers import Xcr as Xcr
    from .registers import Xcrs as Xcrs
    from .vcpu import VcpuState as VcpuState
    from .xsave import Component as Component
    from .xsave import Xsave as Xsave
    from .xsave import host_layout as host_layout
    from .xsave import layout_of as layout_of
    from .xsave import request_guest_permission as request_guest_permission

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


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
