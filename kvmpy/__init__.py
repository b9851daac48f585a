"""The Linux KVM API for Python.

    with kvmpy.VM(memory="16M") as vm:
        cpu = vm.vcpu()
        vm.load(kvmpy.asm("mov al, 'A'; out 0xe9, al; hlt"), at=0x1000)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        for exit in cpu:
            ...

Everything public is here by name and imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cpuid.cpuid import Cpuid as Cpuid, Leaf as Leaf
    from .debug.breakpoints import Breakpoint as Breakpoint
    from .debug.stepping import Step as Step
    from .device import (
        Attributes as Attributes,
        Device as Device,
    )
    from .devices import (
        I8042 as I8042,
        DebugConsole as DebugConsole,
        Ioapic as Ioapic,
        PostPort as PostPort,
        PowerManagement as PowerManagement,
        PvPanic as PvPanic,
        ResetControl as ResetControl,
        Rtc as Rtc,
        Sink as Sink,
        Uart as Uart,
    )
    from .errors import (
        AsmError as AsmError,
        ClosedError as ClosedError,
        ConsoleError as ConsoleError,
        DirtyRingOverrunError as DirtyRingOverrunError,
        ExpectEof as ExpectEof,
        ExpectTimeout as ExpectTimeout,
        ForkedError as ForkedError,
        GuestMemoryError as GuestMemoryError,
        ImageError as ImageError,
        KvmBrokenError as KvmBrokenError,
        KvmBusyError as KvmBusyError,
        KvmIoctlError as KvmIoctlError,
        KvmMissingError as KvmMissingError,
        KvmPermissionError as KvmPermissionError,
        KvmpyError as KvmpyError,
        KvmUnavailableError as KvmUnavailableError,
        KvmVersionError as KvmVersionError,
        MsrError as MsrError,
        StateFormatError as StateFormatError,
        StateMismatchError as StateMismatchError,
        StillRunningError as StillRunningError,
        UnexpectedExitError as UnexpectedExitError,
        UnsupportedError as UnsupportedError,
        VmDeadError as VmDeadError,
    )
    from .exits.reasons import (
        ApResetHold as ApResetHold,
        BusLock as BusLock,
        Debug as Debug,
        DebugExit as DebugExit,
        DirtyRingFull as DirtyRingFull,
        Exit as Exit,
        ExitLimit as ExitLimit,
        FailEntry as FailEntry,
        GuestCrashLoaded as GuestCrashLoaded,
        GuestException as GuestException,
        GuestPanic as GuestPanic,
        Hlt as Hlt,
        Hypercall as Hypercall,
        Hyperv as Hyperv,
        HypervHypercall as HypervHypercall,
        HypervSyndbg as HypervSyndbg,
        HypervSynic as HypervSynic,
        InternalError as InternalError,
        Intr as Intr,
        IoapicEoi as IoapicEoi,
        IoIn as IoIn,
        IoOut as IoOut,
        IrqWindowOpen as IrqWindowOpen,
        Kicked as Kicked,
        MemoryFault as MemoryFault,
        MmioRead as MmioRead,
        MmioWrite as MmioWrite,
        Nmi as Nmi,
        Notify as Notify,
        OtherExit as OtherExit,
        PowerOff as PowerOff,
        Rdmsr as Rdmsr,
        Reset as Reset,
        SetTpr as SetTpr,
        Shutdown as Shutdown,
        SystemEvent as SystemEvent,
        Tdx as Tdx,
        Timeout as Timeout,
        TprAccess as TprAccess,
        UnexpectedSyscall as UnexpectedSyscall,
        Unknown as Unknown,
        Wrmsr as Wrmsr,
        Xen as Xen,
    )
    from .interrupts.irqchips import (
        IoapicState as IoapicState,
        PicState as PicState,
        PitState as PitState,
        RedirectionEntry as RedirectionEntry,
    )
    from .interrupts.lines import IrqStatus as IrqStatus
    from .interrupts.routing import (
        HvSintRoute as HvSintRoute,
        IrqchipRoute as IrqchipRoute,
        MsiMessage as MsiMessage,
        MsiRoute as MsiRoute,
        XenEventRoute as XenEventRoute,
    )
    from .kvm import KVM as KVM
    from .machine import Machine as Machine
    from .memory.dirty_pages import DirtyPages as DirtyPages
    from .memory.guest import GuestMemory as GuestMemory
    from .memory.guest_memfd import GuestMemfd as GuestMemfd, VmType as VmType
    from .memory.mapping import HugePageFallbackWarning as HugePageFallbackWarning
    from .msrs.filters import MsrRange as MsrRange
    from .run.bus import ClaimError as ClaimError, Counter as Counter, WriteBatch as WriteBatch
    from .state.differences import diff as diff
    from .state.vcpu import VcpuState as VcpuState
    from .stats.kvm import StatsFormatError as StatsFormatError
    from .vcpu import VCPU as VCPU
    from .vm import VM as VM
    from .x86.asm import asm as asm
    from .x86.descriptors import Gate as Gate
    from .x86.modes import Mode as Mode

    REAL_MODE = Mode.REAL_16
    PROTECTED_MODE = Mode.PROTECTED_32
    PAGED_MODE = Mode.PAGED_32
    LONG_MODE = Mode.LONG_64

__version__ = "0.1.0"

# name -> module. Importing all of it takes longer than a short script runs.
_WHERE = {
    "StatsFormatError": ".stats.kvm",
    "ClaimError": ".run.bus",
    "Counter": ".run.bus",
    "WriteBatch": ".run.bus",
    "Cpuid": ".cpuid.cpuid",
    "Leaf": ".cpuid.cpuid",
    "Attributes": ".device",
    "Device": ".device",
    "DirtyPages": ".memory.dirty_pages",
    "DebugConsole": ".devices",
    "I8042": ".devices",
    "Ioapic": ".devices",
    "PostPort": ".devices",
    "PowerManagement": ".devices",
    "PvPanic": ".devices",
    "ResetControl": ".devices",
    "Rtc": ".devices",
    "Sink": ".devices",
    "Uart": ".devices",
    "diff": ".state.differences",
    "AsmError": ".errors",
    "ClosedError": ".errors",
    "ConsoleError": ".errors",
    "ExpectEof": ".errors",
    "ExpectTimeout": ".errors",
    "DirtyRingOverrunError": ".errors",
    "ForkedError": ".errors",
    "GuestMemoryError": ".errors",
    "ImageError": ".errors",
    "KvmBrokenError": ".errors",
    "KvmBusyError": ".errors",
    "KvmIoctlError": ".errors",
    "KvmMissingError": ".errors",
    "KvmPermissionError": ".errors",
    "KvmUnavailableError": ".errors",
    "KvmVersionError": ".errors",
    "KvmpyError": ".errors",
    "MsrError": ".errors",
    "StateFormatError": ".errors",
    "StateMismatchError": ".errors",
    "StillRunningError": ".errors",
    "UnexpectedExitError": ".errors",
    "UnsupportedError": ".errors",
    "VmDeadError": ".errors",
    "BusLock": ".exits.reasons",
    "Debug": ".exits.reasons",
    "DebugExit": ".exits.reasons",
    "DirtyRingFull": ".exits.reasons",
    "Exit": ".exits.reasons",
    "ExitLimit": ".exits.reasons",
    "FailEntry": ".exits.reasons",
    "GuestCrashLoaded": ".exits.reasons",
    "GuestException": ".exits.reasons",
    "GuestPanic": ".exits.reasons",
    "Hlt": ".exits.reasons",
    "Hypercall": ".exits.reasons",
    "InternalError": ".exits.reasons",
    "IoIn": ".exits.reasons",
    "IoOut": ".exits.reasons",
    "IoapicEoi": ".exits.reasons",
    "IrqWindowOpen": ".exits.reasons",
    "Kicked": ".exits.reasons",
    "MemoryFault": ".exits.reasons",
    "MmioRead": ".exits.reasons",
    "MmioWrite": ".exits.reasons",
    "Notify": ".exits.reasons",
    "OtherExit": ".exits.reasons",
    "PowerOff": ".exits.reasons",
    "Rdmsr": ".exits.reasons",
    "Reset": ".exits.reasons",
    "SetTpr": ".exits.reasons",
    "Shutdown": ".exits.reasons",
    "SystemEvent": ".exits.reasons",
    "Timeout": ".exits.reasons",
    "TprAccess": ".exits.reasons",
    "UnexpectedSyscall": ".exits.reasons",
    "Unknown": ".exits.reasons",
    "Wrmsr": ".exits.reasons",
    "GuestMemfd": ".memory.guest_memfd",
    "VmType": ".memory.guest_memfd",
    "IoapicState": ".interrupts.irqchips",
    "PicState": ".interrupts.irqchips",
    "PitState": ".interrupts.irqchips",
    "RedirectionEntry": ".interrupts.irqchips",
    "ApResetHold": ".exits.reasons",
    "Hyperv": ".exits.reasons",
    "HypervHypercall": ".exits.reasons",
    "HypervSynic": ".exits.reasons",
    "HypervSyndbg": ".exits.reasons",
    "Intr": ".exits.reasons",
    "Nmi": ".exits.reasons",
    "Tdx": ".exits.reasons",
    "Xen": ".exits.reasons",
    "Breakpoint": ".debug.breakpoints",
    "Step": ".debug.stepping",
    "MsrRange": ".msrs.filters",
    "KVM": ".kvm",
    "Machine": ".machine",
    "GuestMemory": ".memory.guest",
    "HugePageFallbackWarning": ".memory.mapping",
    "HvSintRoute": ".interrupts.routing",
    "IrqchipRoute": ".interrupts.routing",
    "MsiMessage": ".interrupts.routing",
    "MsiRoute": ".interrupts.routing",
    "XenEventRoute": ".interrupts.routing",
    "VcpuState": ".state.vcpu",
    "VCPU": ".vcpu",
    "VM": ".vm",
    "IrqStatus": ".interrupts.lines",
    "asm": ".x86.asm",
    "Gate": ".x86.descriptors",
    "Mode": ".x86.modes",
}
# The modes have names of their own, as people say them.
_MODES = {
    "REAL_MODE": "REAL_16",
    "PROTECTED_MODE": "PROTECTED_32",
    "PAGED_MODE": "PAGED_32",
    "LONG_MODE": "LONG_64",
}
_ROOMS = (
    "bench", "binary_stats", "boot", "capabilities", "devices", "enabling", "encryption",
    "guest_memfd", "guests", "host", "ioctls", "irqchips", "lab", "machine", "msrs", "pmu",
    "report", "routing", "sched", "state", "vm_irq", "watch", "x86", "xen",
)  # fmt: skip
__all__ = ["__version__", *_MODES, *_ROOMS, *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    elif name in _MODES:
        value = getattr(importlib.import_module(".x86.modes", __name__).Mode, _MODES[name])
    elif name in _ROOMS:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
