"""A vCPU's state as plain values: what the properties of :class:`kvmpy.VCPU` give and take, and
:class:`VcpuState`, all of it together.
"""

from ..lazy import attach

_TABLE = """
clock: Clock
host: HostIdentity
interrupts: ExceptionEvent InterruptEvent LAPIC_REGISTERS Lapic MpState NmiEvent SmiEvent
interrupts: TripleFaultEvent VcpuEvents
nested: NestedState SvmHeader VmxHeader
registers: DebugRegs DebugSlot Fpu Regs Sregs Sregs2 Xcr Xcrs
special: DescriptorTable Segment
vcpu: VcpuState
xsave: Component Xsave host_layout layout_of request_guest_permission
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
