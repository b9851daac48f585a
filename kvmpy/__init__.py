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
    from .binary_stats import (
        StatsFormatError as StatsFormatError,
    )
    from .bus import (
        ClaimError as ClaimError,
    )
    from .bus import (
        Counter as Counter,
    )
    from .bus import (
        WriteBatch as WriteBatch,
    )
    from .cpuid import (
        Cpuid as Cpuid,
    )
    from .cpuid import (
        Leaf as Leaf,
    )
    from .debugging import (
        Breakpoint as Breakpoint,
    )
    from .device import (
        Attributes as Attributes,
    )
    from .device import (
        Device as Device,
    )
    from .devices import (
        I8042 as I8042,
    )
    from .devices import (
        DebugConsole as DebugConsole,
    )
    from .devices import (
        PostPort as PostPort,
    )
    from .devices import (
        PowerManagement as PowerManagement,
    )
    from .devices import (
        PvPanic as PvPanic,
    )
    from .devices import (
        ResetControl as ResetControl,
    )
    from .devices import (
        Rtc as Rtc,
    )
    from .devices import (
        Sink as Sink,
    )
    from .devices import (
        Uart as Uart,
    )
    from .differences import (
        diff as diff,
    )
    from .dirty_pages import (
        DirtyPages as DirtyPages,
    )
    from .errors import (
        AsmError as AsmError,
    )
    from .errors import (
        ClosedError as ClosedError,
    )
    from .errors import (
        ConsoleError as ConsoleError,
    )
    from .errors import (
        DirtyRingOverrunError as DirtyRingOverrunError,
    )
    from .errors import (
        ExpectEof as ExpectEof,
    )
    from .errors import (
        ExpectTimeout as ExpectTimeout,
    )
    from .errors import (
        ForkedError as ForkedError,
    )
    from .errors import (
        GuestMemoryError as GuestMemoryError,
    )
    from .errors import (
        ImageError as ImageError,
    )
    from .errors import (
        KvmBrokenError as KvmBrokenError,
    )
    from .errors import (
        KvmBusyError as KvmBusyError,
    )
    from .errors import (
        KvmIoctlError as KvmIoctlError,
    )
    from .errors import (
        KvmMissingError as KvmMissingError,
    )
    from .errors import (
        KvmPermissionError as KvmPermissionError,
    )
    from .errors import (
        KvmpyError as KvmpyError,
    )
    from .errors import (
        KvmUnavailableError as KvmUnavailableError,
    )
    from .errors import (
        KvmVersionError as KvmVersionError,
    )
    from .errors import (
        MsrError as MsrError,
    )
    from .errors import (
        StateFormatError as StateFormatError,
    )
    from .errors import (
        StateMismatchError as StateMismatchError,
    )
    from .errors import (
        StillRunningError as StillRunningError,
    )
    from .errors import (
        UnexpectedExitError as UnexpectedExitError,
    )
    from .errors import (
        UnsupportedError as UnsupportedError,
    )
    from .errors import (
        VmDeadError as VmDeadError,
    )
    from .exits import (
        ApResetHold as ApResetHold,
    )
    from .exits import (
        BusLock as BusLock,
    )
    from .exits import (
        Debug as Debug,
    )
    from .exits import (
        DebugExit as DebugExit,
    )
    from .exits import (
        DirtyRingFull as DirtyRingFull,
    )
    from .exits import (
        Exit as Exit,
    )
    from .exits import (
        ExitLimit as ExitLimit,
    )
    from .exits import (
        FailEntry as FailEntry,
    )
    from .exits import (
        GuestCrashLoaded as GuestCrashLoaded,
    )
    from .exits import (
        GuestException as GuestException,
    )
    from .exits import (
        GuestPanic as GuestPanic,
    )
    from .exits import (
        Hlt as Hlt,
    )
    from .exits import (
        Hypercall as Hypercall,
    )
    from .exits import (
        Hyperv as Hyperv,
    )
    from .exits import (
        HypervHypercall as HypervHypercall,
    )
    from .exits import (
        HypervSyndbg as HypervSyndbg,
    )
    from .exits import (
        HypervSynic as HypervSynic,
    )
    from .exits import (
        InternalError as InternalError,
    )
    from .exits import (
        Intr as Intr,
    )
    from .exits import (
        IoapicEoi as IoapicEoi,
    )
    from .exits import (
        IoIn as IoIn,
    )
    from .exits import (
        IoOut as IoOut,
    )
    from .exits import (
        IrqWindowOpen as IrqWindowOpen,
    )
    from .exits import (
        Kicked as Kicked,
    )
    from .exits import (
        MemoryFault as MemoryFault,
    )
    from .exits import (
        MmioRead as MmioRead,
    )
    from .exits import (
        MmioWrite as MmioWrite,
    )
    from .exits import (
        Nmi as Nmi,
    )
    from .exits import (
        Notify as Notify,
    )
    from .exits import (
        OtherExit as OtherExit,
    )
    from .exits import (
        PowerOff as PowerOff,
    )
    from .exits import (
        Rdmsr as Rdmsr,
    )
    from .exits import (
        Reset as Reset,
    )
    from .exits import (
        SetTpr as SetTpr,
    )
    from .exits import (
        Shutdown as Shutdown,
    )
    from .exits import (
        SystemEvent as SystemEvent,
    )
    from .exits import (
        Tdx as Tdx,
    )
    from .exits import (
        Timeout as Timeout,
    )
    from .exits import (
        TprAccess as TprAccess,
    )
    from .exits import (
        UnexpectedSyscall as UnexpectedSyscall,
    )
    from .exits import (
        Unknown as Unknown,
    )
    from .exits import (
        Wrmsr as Wrmsr,
    )
    from .exits import (
        Xen as Xen,
    )
    from .guest_memfd import (
        GuestMemfd as GuestMemfd,
    )
    from .guest_memfd import (
        VmType as VmType,
    )
    from .irqchips import (
        IoapicState as IoapicState,
    )
    from .irqchips import (
        PicState as PicState,
    )
    from .irqchips import (
        PitState as PitState,
    )
    from .irqchips import (
        RedirectionEntry as RedirectionEntry,
    )
    from .kvm import (
        KVM as KVM,
    )
    from .machine import (
        Machine as Machine,
    )
    from .memory import (
        GuestMemory as GuestMemory,
    )
    from .memory import (
        HugePageFallbackWarning as HugePageFallbackWarning,
    )
    from .routing import (
        HvSintRoute as HvSintRoute,
    )
    from .routing import (
        IrqchipRoute as IrqchipRoute,
    )
    from .routing import (
        MsiMessage as MsiMessage,
    )
    from .routing import (
        MsiRoute as MsiRoute,
    )
    from .routing import (
        XenEventRoute as XenEventRoute,
    )
    from .state.vcpu import (
        VcpuState as VcpuState,
    )
    from .stepping import (
        Step as Step,
    )
    from .vcpu import (
        VCPU as VCPU,
    )
    from .vm import (
        VM as VM,
    )
    from .vm_filters import (
        MsrRange as MsrRange,
    )
    from .vm_irq import (
        IrqStatus as IrqStatus,
    )
    from .x86.asm import (
        asm as asm,
    )
    from .x86.descriptors import (
        Gate as Gate,
    )
    from .x86.modes import (
        Mode as Mode,
    )

    REAL_MODE = Mode.REAL_16
    PROTECTED_MODE = Mode.PROTECTED_32
    PAGED_MODE = Mode.PAGED_32
    LONG_MODE = Mode.LONG_64

__version__ = "0.1.0"

# name -> module. Importing all of it takes longer than a short script runs.
_WHERE = {
    "StatsFormatError": ".binary_stats",
    "ClaimError": ".bus",
    "Counter": ".bus",
    "WriteBatch": ".bus",
    "Cpuid": ".cpuid",
    "Leaf": ".cpuid",
    "Attributes": ".device",
    "Device": ".device",
    "DirtyPages": ".dirty_pages",
    "DebugConsole": ".devices",
    "I8042": ".devices",
    "PostPort": ".devices",
    "PowerManagement": ".devices",
    "PvPanic": ".devices",
    "ResetControl": ".devices",
    "Rtc": ".devices",
    "Sink": ".devices",
    "Uart": ".devices",
    "diff": ".differences",
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
    "BusLock": ".exits",
    "Debug": ".exits",
    "DebugExit": ".exits",
    "DirtyRingFull": ".exits",
    "Exit": ".exits",
    "ExitLimit": ".exits",
    "FailEntry": ".exits",
    "GuestCrashLoaded": ".exits",
    "GuestException": ".exits",
    "GuestPanic": ".exits",
    "Hlt": ".exits",
    "Hypercall": ".exits",
    "InternalError": ".exits",
    "IoIn": ".exits",
    "IoOut": ".exits",
    "IoapicEoi": ".exits",
    "IrqWindowOpen": ".exits",
    "Kicked": ".exits",
    "MemoryFault": ".exits",
    "MmioRead": ".exits",
    "MmioWrite": ".exits",
    "Notify": ".exits",
    "OtherExit": ".exits",
    "PowerOff": ".exits",
    "Rdmsr": ".exits",
    "Reset": ".exits",
    "SetTpr": ".exits",
    "Shutdown": ".exits",
    "SystemEvent": ".exits",
    "Timeout": ".exits",
    "TprAccess": ".exits",
    "UnexpectedSyscall": ".exits",
    "Unknown": ".exits",
    "Wrmsr": ".exits",
    "GuestMemfd": ".guest_memfd",
    "VmType": ".guest_memfd",
    "IoapicState": ".irqchips",
    "PicState": ".irqchips",
    "PitState": ".irqchips",
    "RedirectionEntry": ".irqchips",
    "ApResetHold": ".exits",
    "Hyperv": ".exits",
    "HypervHypercall": ".exits",
    "HypervSynic": ".exits",
    "HypervSyndbg": ".exits",
    "Intr": ".exits",
    "Nmi": ".exits",
    "Tdx": ".exits",
    "Xen": ".exits",
    "Breakpoint": ".debugging",
    "Step": ".stepping",
    "MsrRange": ".vm_filters",
    "KVM": ".kvm",
    "Machine": ".machine",
    "GuestMemory": ".memory",
    "HugePageFallbackWarning": ".memory",
    "HvSintRoute": ".routing",
    "IrqchipRoute": ".routing",
    "MsiMessage": ".routing",
    "MsiRoute": ".routing",
    "XenEventRoute": ".routing",
    "VcpuState": ".state.vcpu",
    "VCPU": ".vcpu",
    "VM": ".vm",
    "IrqStatus": ".vm_irq",
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
    "boot", "capabilities", "devices", "encryption", "guest_memfd", "guests", "host", "ioctls",
    "irqchips", "machine", "msrs", "pmu", "routing", "state", "vm_irq", "x86", "xen",
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
