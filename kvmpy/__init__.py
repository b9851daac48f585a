"""The Linux KVM API for Python.

    with kvmpy.VM(memory="16M") as vm:
        cpu = vm.vcpu()
        vm.load(kvmpy.asm("mov al, 'A'; out 0xe9, al; hlt"), at=0x1000)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        for exit in cpu:
            ...

Everything public is here by name and imported when first used.
"""

from .lazy import attach

__version__ = "0.1.0"

#: What is public, and where it is: see :mod:`kvmpy.lazy`.
_TABLE = """
cpuid.cpuid: Cpuid Leaf
debug.breakpoints: Breakpoint
debug.stepping: Step
device: Device
devices.ioapic: Ioapic
devices.platform: I8042 PowerManagement PvPanic ResetControl
devices.ports: DebugConsole PostPort
devices.rtc: Rtc
devices.sink: Sink
devices.uart: Uart
errors: AsmError ClosedError ConsoleError DirtyRingOverrunError ExpectEof ExpectTimeout
errors: ForkedError GuestMemoryError ImageError KvmBrokenError KvmBusyError KvmIoctlError
errors: KvmMissingError KvmPermissionError KvmUnavailableError KvmVersionError KvmpyError MsrError
errors: StateFormatError StateMismatchError StillRunningError UnexpectedExitError UnsupportedError
errors: VmDeadError
exits.reasons: ApResetHold BusLock Debug DebugExit DirtyRingFull Exit ExitLimit FailEntry
exits.reasons: GuestCrashLoaded GuestException GuestPanic Hlt Hypercall Hyperv HypervHypercall
exits.reasons: HypervSyndbg HypervSynic InternalError Intr IoIn IoOut IoapicEoi IrqWindowOpen
exits.reasons: Kicked MemoryFault MmioRead MmioWrite Nmi Notify OtherExit PowerOff Rdmsr Reset
exits.reasons: SetTpr Shutdown SystemEvent Tdx Timeout TprAccess UnexpectedSyscall Unknown Wrmsr
exits.reasons: Xen
interrupts.irqchips: IoapicState PicState PitState RedirectionEntry
interrupts.lines: IrqStatus
interrupts.routing: HvSintRoute IrqchipRoute MsiMessage MsiRoute XenEventRoute
ioctls.attributes: Attributes
kvm: KVM
machine.machine: Machine
memory.dirty_pages: DirtyPages
memory.guest: GuestMemory
memory.guest_memfd: GuestMemfd VmType
memory.mapping: HugePageFallbackWarning
msrs.filters: MsrRange
run.bus: ClaimError Counter WriteBatch
state.differences: diff
state.vcpu: VcpuState
stats.kvm: StatsFormatError
vcpu: VCPU
vm: VM
x86.asm: asm
x86.descriptors: Gate
x86.modes: LONG_MODE Mode PAGED_MODE PROTECTED_MODE REAL_MODE
bench
stats.kvm as binary_stats
boot
ioctls.capabilities as capabilities
devices
ioctls.enabling as enabling
memory.encryption as encryption
memory.guest_memfd as guest_memfd
guests
host
ioctls
interrupts.irqchips as irqchips
lab
machine
msrs
msrs.pmu as pmu
report
interrupts.routing as routing
sched
state
interrupts.lines as vm_irq
watch
x86
paravirt.xen as xen
"""
__getattr__, __dir__ = attach(__name__, _TABLE, "__version__")
