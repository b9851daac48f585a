"""A vCPU's state as plain values: what the properties of :class:`kvmpy.VCPU` give and take, and

Made by native/names_stub.py: do not edit.
"""

from .clock import (
    Clock as Clock,
)
from .host import (
    HostIdentity as HostIdentity,
)
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
from .nested import (
    NestedState as NestedState,
    SvmHeader as SvmHeader,
    VmxHeader as VmxHeader,
)
from .registers import (
    DebugRegs as DebugRegs,
    DebugSlot as DebugSlot,
    Fpu as Fpu,
    Regs as Regs,
    Sregs as Sregs,
    Sregs2 as Sregs2,
    Xcr as Xcr,
    Xcrs as Xcrs,
)
from .special import (
    DescriptorTable as DescriptorTable,
    Segment as Segment,
)
from .vcpu import (
    VcpuState as VcpuState,
)
from .xsave import (
    Component as Component,
    Xsave as Xsave,
    host_layout as host_layout,
    layout_of as layout_of,
    request_guest_permission as request_guest_permission,
)
