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
    from .bus import (
        ClaimError as ClaimError,
        Counter as Counter,
        WriteBatch as WriteBatch,
    )
    from .cpuid import (
        Cpuid as Cpuid,
        Leaf as Leaf,
    )
    from .devices import (
        DebugConsole as DebugConsole,
        PostPort as PostPort,
        Sink as Sink,
        Uart as Uart,
    )
    from .errors import (
        AsmError as AsmError,
        ClosedError as ClosedError,
        ForkedError as ForkedError,
        GuestMemoryError as GuestMemoryError,
        ImageError as ImageError,
        KvmBrokenError as KvmBrokenError,
        KvmBusyError as KvmBusyError,
        KvmIoctlError as KvmIoctlError,
        KvmMissingError as KvmMissingError,
        KvmPermissionError as KvmPermissionError,
        KvmUnavailableError as KvmUnavailableError,
        KvmVersionError as KvmVersionError,
        KvmpyError as KvmpyError,
        UnexpectedExitError as UnexpectedExitError,
        UnsupportedError as UnsupportedError,
        VmDeadError as VmDeadError,
    )
    from .exits import (
        BusLock as BusLock,
        Debug as Debug,
        DebugExit as DebugExit,
        DirtyRingFull as DirtyRingFull,
        Exit as Exit,
        ExitLimit as ExitLimit,
        FailEntry as FailEntry,
        GuestException as GuestException,
        Hlt as Hlt,
        Hypercall as Hypercall,
        InternalError as InternalError,
        IoIn as IoIn,
        IoOut as IoOut,
        IoapicEoi as IoapicEoi,
        IrqWindowOpen as IrqWindowOpen,
        Kicked as Kicked,
        MemoryFault as MemoryFault,
        MmioRead as MmioRead,
        MmioWrite as MmioWrite,
        Notify as Notify,
        OtherExit as OtherExit,
        Rdmsr as Rdmsr,
        SetTpr as SetTpr,
        Shutdown as Shutdown,
        SystemEvent as SystemEvent,
        Timeout as Timeout,
        TprAccess as TprAccess,
        UnexpectedSyscall as UnexpectedSyscall,
        Unknown as Unknown,
        Wrmsr as Wrmsr,
    )
    from .kvm import (
        KVM as KVM,
    )
    from .memory import (
        GuestMemory as GuestMemory,
        HugePageFallbackWarning as HugePageFallbackWarning,
    )
    from .vcpu import (
        VCPU as VCPU,
    )
    from .vm import (
        VM as VM,
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
    "ClaimError": ".bus",
    "Counter": ".bus",
    "WriteBatch": ".bus",
    "Cpuid": ".cpuid",
    "Leaf": ".cpuid",
    "DebugConsole": ".devices",
    "PostPort": ".devices",
    "Sink": ".devices",
    "Uart": ".devices",
    "AsmError": ".errors",
    "ClosedError": ".errors",
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
    "GuestException": ".exits",
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
    "Rdmsr": ".exits",
    "SetTpr": ".exits",
    "Shutdown": ".exits",
    "SystemEvent": ".exits",
    "Timeout": ".exits",
    "TprAccess": ".exits",
    "UnexpectedSyscall": ".exits",
    "Unknown": ".exits",
    "Wrmsr": ".exits",
    "KVM": ".kvm",
    "GuestMemory": ".memory",
    "HugePageFallbackWarning": ".memory",
    "VCPU": ".vcpu",
    "VM": ".vm",
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
__all__ = ["__version__", *_WHERE, *_MODES]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    elif name in _MODES:
        value = getattr(importlib.import_module(".x86.modes", __name__).Mode, _MODES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
