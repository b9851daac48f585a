"""The Linux KVM API for Python.

Made by native/names_stub.py: do not edit.
"""

from . import (
    bench as bench,
    boot as boot,
    devices as devices,
    guests as guests,
    host as host,
    ioctls as ioctls,
    lab as lab,
    machine as machine,
    msrs as msrs,
    report as report,
    sched as sched,
    state as state,
    watch as watch,
    x86 as x86,
)
from .cpuid.cpuid import (
    Cpuid as Cpuid,
    Leaf as Leaf,
)
from .debug.breakpoints import (
    Breakpoint as Breakpoint,
)
from .debug.stepping import (
    Step as Step,
)
from .device import (
    Device as Device,
)
from .devices.ioapic import (
    Ioapic as Ioapic,
)
from .devices.platform import (
    I8042 as I8042,
    PowerManagement as PowerManagement,
    PvPanic as PvPanic,
    ResetControl as ResetControl,
)
from .devices.ports import (
    DebugConsole as DebugConsole,
    PostPort as PostPort,
)
from .devices.rtc import (
    Rtc as Rtc,
)
from .devices.sink import (
    Sink as Sink,
)
from .devices.uart import (
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
from .interrupts import (
    irqchips as irqchips,
    routing as routing,
)
from .interrupts.irqchips import (
    IoapicState as IoapicState,
    PicState as PicState,
    PitState as PitState,
    RedirectionEntry as RedirectionEntry,
)
from .interrupts.lines import (
    IrqStatus as IrqStatus,
)
from .interrupts.routing import (
    HvSintRoute as HvSintRoute,
    IrqchipRoute as IrqchipRoute,
    MsiMessage as MsiMessage,
    MsiRoute as MsiRoute,
    XenEventRoute as XenEventRoute,
)
from .ioctls import (
    capabilities as capabilities,
    enabling as enabling,
)
from .ioctls.attributes import (
    Attributes as Attributes,
)
from .kvm import (
    KVM as KVM,
)
from .machine.machine import (
    Machine as Machine,
)
from .memory import (
    encryption as encryption,
    guest_memfd as guest_memfd,
)
from .memory.dirty_pages import (
    DirtyPages as DirtyPages,
)
from .memory.guest import (
    GuestMemory as GuestMemory,
)
from .memory.guest_memfd import (
    GuestMemfd as GuestMemfd,
    VmType as VmType,
)
from .memory.mapping import (
    HugePageFallbackWarning as HugePageFallbackWarning,
)
from .msrs import (
    pmu as pmu,
)
from .msrs.filters import (
    MsrRange as MsrRange,
)
from .paravirt import (
    xen as xen,
)
from .run.bus import (
    ClaimError as ClaimError,
    Counter as Counter,
    WriteBatch as WriteBatch,
)
from .state.differences import (
    diff as diff,
)
from .state.vcpu import (
    VcpuState as VcpuState,
)
from .stats.kvm import (
    StatsFormatError as StatsFormatError,
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
    LONG_MODE as LONG_MODE,
    PAGED_MODE as PAGED_MODE,
    PROTECTED_MODE as PROTECTED_MODE,
    REAL_MODE as REAL_MODE,
    Mode as Mode,
)

__version__: str
