"""What can go wrong, as exceptions a person can act on.

Every error of this package is a :class:`KvmpyError`. Where a standard exception says the same
(``OSError``, ``ValueError``), it is one of those too.
"""

from __future__ import annotations

import errno as _errno
import os


def _rebuilt(kind: type[KvmpyError], args: tuple[object, ...]) -> KvmpyError:
    error = kind.__new__(kind, *args)
    # Not the class's own __init__, which takes other arguments: the text is made already. OSError
    # takes errno and strerror in its own, or in __new__ where no class has another.
    (OSError if isinstance(error, OSError) else Exception).__init__(error, *args)
    return error


class KvmpyError(Exception):
    """Base of all errors of this package. They can be pickled, as process pools do."""

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__ or None


class ClosedError(KvmpyError, ValueError):
    """The object was closed and then used."""


class ForkedError(ClosedError):
    """What a process has made was used in its fork()ed child, where all of that is closed: KVM
    binds a VM to the process that made it."""


class GuestMemoryError(KvmpyError, ValueError):
    """A guest physical address outside guest memory, or a memory layout that cannot be."""


class ImageError(KvmpyError, ValueError):
    """A guest image that is damaged, lies about itself, or does not fit."""


class AsmError(KvmpyError, ValueError):
    """The assembler refused the text, or there is no assembler."""


class StateFormatError(KvmpyError, ValueError):
    """Bytes or text that are not a saved state, or a damaged one."""


class StateMismatchError(KvmpyError, ValueError):
    """A saved state cannot go on here. ``differences`` says what stands against it: an object of
    ``kvmpy.state.differences.Differences``, saved -> here."""

    def __init__(self, message: str, differences: object):
        super().__init__(f"{message}\n{differences!r}")
        self.differences = differences


class UnsupportedError(KvmpyError):
    """This host's KVM lacks a capability.

    ``capability`` is its name in the KVM API (``"KVM_CAP_SYNC_REGS"``) or None where KVM has no
    name for what is missing.
    """

    def __init__(self, message: str, capability: str | None = None):
        super().__init__(message)
        self.capability = capability


class KvmUnavailableError(KvmpyError, OSError):
    """No guest can be run here. ``remedy`` says what to do about it.

    The subclasses tell the five usual troubles apart.
    """

    def __init__(self, problem: str, remedy: str, errno: int = 0):
        super().__init__(errno, problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


class KvmMissingError(KvmUnavailableError):
    """There is no /dev/kvm: the module is not loaded, or the CPU or firmware lacks VT-x/AMD-V."""


class KvmPermissionError(KvmUnavailableError):
    """/dev/kvm is there, and this user may not open it."""


class KvmBusyError(KvmUnavailableError):
    """Another hypervisor holds the virtualization extensions."""


class KvmBrokenError(KvmUnavailableError):
    """/dev/kvm opens, and does not do what it should: no VM can be created, or it is not KVM."""


class KvmVersionError(KvmUnavailableError):
    """The kernel speaks another KVM API than version 12, the only one there has been since 2007."""


#: What an errno usually means for an ioctl. The general reading comes last.
_HINTS: dict[tuple[str, int], str] = {
    ("KVM_SET_USER_MEMORY_REGION", _errno.EEXIST): "the region overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION", _errno.EINVAL): (
        "address or size is not a multiple of the page size, the slot number is too high, or an "
        "existing slot was to change its size or flags"
    ),
    ("KVM_SET_USER_MEMORY_REGION2", _errno.EEXIST): "the region overlaps another memory slot",
    ("KVM_SET_USER_MEMORY_REGION2", _errno.EINVAL): (
        "address or size is not a multiple of the page size, a slot with a guest_memfd was to "
        "change, its guest_memfd is another VM's or too small, or this VM type has none"
    ),
    ("KVM_GET_DIRTY_LOG", _errno.ENOENT): "dirty logging is off for this slot: log_dirty()",
    ("KVM_GET_DIRTY_LOG", _errno.ENXIO): "this VM has dirty rings: harvest them instead",
    ("KVM_CLEAR_DIRTY_LOG", _errno.ENOENT): "dirty logging is off for this slot: log_dirty()",
    ("KVM_CLEAR_DIRTY_LOG", _errno.ENXIO): "this VM has dirty rings: harvest them instead",
    ("KVM_RESET_DIRTY_RINGS", _errno.EINVAL): "this VM has no dirty rings: VM(dirty_ring=4096)",
    ("KVM_SET_NR_MMU_PAGES", _errno.EINVAL): "KVM wants at least 64 pages",
    ("KVM_CREATE_GUEST_MEMFD", _errno.EINVAL): "the size is not a multiple of the page size, or a "
    "flag is unknown or not for this VM type",
    ("KVM_SET_PMU_EVENT_FILTER", _errno.E2BIG): "KVM takes 300 events",
    ("KVM_SET_PMU_EVENT_FILTER", _errno.EINVAL): "an event has bits that a masked event lacks, "
    "or KVM does not know the flags",
    ("KVM_PRE_FAULT_MEMORY", _errno.ENOENT): "there is no memory slot",
    ("KVM_PRE_FAULT_MEMORY", _errno.EOPNOTSUPP): "KVM shadows this guest's page tables",
    ("KVM_CREATE_VCPU", _errno.EEXIST): "a vCPU with this id exists",
    ("KVM_CREATE_VCPU", _errno.EINVAL): "the id is above KVM_CAP_MAX_VCPU_ID, or there are "
    "as many vCPUs as KVM_CAP_MAX_VCPUS allows",
    ("KVM_CREATE_IRQCHIP", _errno.EEXIST): "the VM has an irqchip, or it has vCPUs already: the "
    "irqchip comes first",
    ("KVM_CREATE_IRQCHIP", _errno.EINVAL): "the VM has vCPUs already: the irqchip comes first",
    ("KVM_CREATE_PIT2", _errno.EEXIST): "the VM has a PIT",
    ("KVM_CREATE_PIT2", _errno.ENOENT): "the PIT needs the in-kernel irqchip, created before it",
    ("KVM_IRQ_LINE", _errno.ENXIO): "the VM has no in-kernel irqchip",
    ("KVM_IRQ_LINE_STATUS", _errno.ENXIO): "the VM has no in-kernel irqchip",
    ("KVM_GET_IRQCHIP", _errno.ENXIO): "the VM has no in-kernel PIC and IOAPIC",
    ("KVM_SET_IRQCHIP", _errno.ENXIO): "the VM has no in-kernel PIC and IOAPIC",
    ("KVM_GET_PIT2", _errno.ENXIO): "the VM has no in-kernel PIT",
    ("KVM_SET_PIT2", _errno.ENXIO): "the VM has no in-kernel PIT",
    ("KVM_REINJECT_CONTROL", _errno.ENXIO): "the VM has no in-kernel PIT",
    ("KVM_SIGNAL_MSI", _errno.EINVAL): "the VM has no in-kernel irqchip",
    ("KVM_SET_BOOT_CPU_ID", _errno.EBUSY): "the VM has vCPUs already",
    ("KVM_IRQFD", _errno.EBADF): "the descriptor is closed, or is not an eventfd",
    ("KVM_IRQFD", _errno.EBUSY): "this eventfd is bound to a GSI already",
    ("KVM_IOEVENTFD", _errno.EEXIST): "this address, length and datamatch are taken",
    ("KVM_INTERRUPT", _errno.ENXIO): "the VM has an in-kernel irqchip: use irq_line()",
    ("KVM_INTERRUPT", _errno.EEXIST): "an interrupt is queued already: wait for IrqWindowOpen",
    ("KVM_SET_SREGS", _errno.EINVAL): "KVM refuses this combination of CR0, CR4 and EFER, or the "
    "CPUID set for this vCPU lacks one of their bits",
    ("KVM_SET_XSAVE", _errno.EINVAL): "XSTATE_BV has a component that this host or this guest has "
    "not, or MXCSR a reserved bit",
    ("KVM_SET_XCRS", _errno.EINVAL): "XCR0 has a component that the vCPU's CPUID lacks, or not "
    "what comes with it (x87 always; AVX needs SSE)",
    ("KVM_SET_MP_STATE", _errno.EINVAL): "without an in-kernel LAPIC there is only RUNNABLE",
    ("KVM_SET_TSC_KHZ", _errno.EINVAL): "this processor cannot scale the TSC to that frequency",
    ("KVM_GET_LAPIC", _errno.EINVAL): "the VM has no in-kernel LAPIC: VM(irqchip=True)",
    ("KVM_SET_LAPIC", _errno.EINVAL): "the VM has no in-kernel LAPIC, or the APIC id in it is not "
    "this vCPU's",
    (
        "KVM_X86_SETUP_MCE",
        _errno.EINVAL,
    ): "no bank, more banks than KVM has, or a bit that is not in KVM_X86_GET_MCE_CAP_SUPPORTED",
    ("KVM_X86_SET_MCE", _errno.EINVAL): "the vCPU has no such bank, or the status is not valid: "
    "mce.setup() first, and bit 63 of the status",
    ("KVM_SET_VCPU_EVENTS", _errno.EINVAL): "flags has a part that this VM has not enabled "
    "(KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT), or a vector cannot be",
    ("KVM_SET_CPUID2", _errno.EINVAL): "CPUID cannot change once the vCPU has run",
    ("KVM_RUN", _errno.EINVAL): "kvm_valid_regs or kvm_dirty_regs has a bit KVM does not know",
    ("KVM_RUN", _errno.EPROTO): "the ring of coalesced writes is corrupt: something wrote to the "
    "page that this process shares with KVM",
    ("KVM_RUN", _errno.EBUSY): "the vCPU is running already, in another thread or in one of its "
    "own handlers",
    ("KVM_RUN", _errno.EFAULT): "the guest touched a memslot whose host mapping is gone or may not "
    "be written",
    ("KVM_RUN", _errno.ENOMEM): "the host is out of memory for guest page tables",
}
_GENERAL_HINTS: dict[int, str] = {
    _errno.ENOTTY: "this kernel's KVM does not know the call on this kind of file descriptor",
    _errno.EBADF: "the file descriptor is closed",
    _errno.EMFILE: "this process has too many open files (ulimit -n)",
    _errno.ENFILE: "the system has too many open files",
    _errno.ENOMEM: "the host is out of memory, or a limit on locked memory was reached",
    _errno.EPERM: "not permitted for this VM or process",
}


class KvmIoctlError(KvmpyError, OSError):
    """An ioctl failed.

    ``name`` is the ioctl's (``"KVM_SET_SREGS"``), ``errno`` what it gave, ``argument`` the
    argument that mattered, as text, and ``hint`` what usually causes this.
    """

    def __init__(self, name: str, errno: int, argument: str = ""):
        super().__init__(errno, os.strerror(errno))
        self.name = name
        self.argument = argument
        self.hint = _HINTS.get((name, errno)) or _GENERAL_HINTS.get(errno, "")

    def __str__(self) -> str:
        code = _errno.errorcode.get(self.errno or 0, str(self.errno))
        where = f"({self.argument})" if self.argument else ""
        hint = f": {self.hint}" if self.hint else ""
        return f"{self.name}{where} failed with {code}{hint}"


class MsrError(KvmIoctlError):
    """KVM refused one MSR of those to be read or written.

    ``index`` is its number, ``msr`` its name (or its number in hex), ``position`` its place among
    those asked for: the ones before it were read or written. ``value`` is what was to be written,
    None when reading.
    """

    def __init__(self, ioctl: str, index: int, msr: str, position: int, value: int | None = None):
        what = "" if value is None else f" = {value:#x}"
        super().__init__(ioctl, _errno.EINVAL, f"MSR {msr} ({index:#x}){what}")
        self.index = index
        self.msr = msr
        self.position = position
        self.value = value
        self.hint = (
            "this KVM does not have it, or the CPUID set for the vCPU does not"
            if value is None
            else "this KVM does not have it, the CPUID set for the vCPU does not, or the value "
            "has a bit that may not be set"
        )


class VmDeadError(KvmIoctlError):
    """KVM has marked the VM as dead (``kvm_vm_dead``): nothing but closing it works any longer."""

    def __init__(self, name: str, errno: int, argument: str = ""):
        super().__init__(name, errno, argument)
        self.hint = "KVM has marked this VM as dead; the kernel's log may say why (dmesg)"


class DirtyRingOverrunError(KvmpyError):
    """KVM noted more pages than the dirty ring holds without ending the run: some are lost, and
    the ring is of no more use. All pages may be dirty.

    kvm_pvm does so when ring-0 code, which it emulates, writes to many pages in one go.
    """


class UnexpectedExitError(KvmpyError):
    """The guest stopped in a way its host did not foresee. The text explains it.

    ``exit`` is the exit as a value.
    """

    def __init__(self, message: str, exit: object):
        super().__init__(message)
        self.exit = exit


class StillRunningError(KvmpyError, TimeoutError):
    """A guest has not ended in the time given, or a thread that runs it cannot be stopped."""


class ConsoleError(KvmpyError):
    """A script and its guest's console did not meet.

    ``tail`` is the end of the guest's output, as bytes; the message shows it.

    >>> kvmpy.ExpectTimeout("no login", b"panic").tail
    b'panic'
    """

    def __init__(self, message: str, tail: bytes):
        super().__init__(message)
        self.tail = tail


class ExpectTimeout(ConsoleError, TimeoutError):
    """What a script waited for has not come in time."""


class ExpectEof(ConsoleError, EOFError):
    """The guest ended before what a script waited for had come."""
