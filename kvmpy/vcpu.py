"""A vCPU: running it, its state, what ends a run (KVM API, "4.7 KVM_CREATE_VCPU" and on)."""

from __future__ import annotations

import errno
import math
import os
import struct
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import ioctls
from .cpuid.cpuid import Cpuid
from .debug.methods import DebugMethods
from .debug.translate import TranslateMethods
from .errors import ClosedError, KvmIoctlError, UnexpectedExitError
from .exits import reasons as exits
from .exits.reasons import Exit
from .interrupts.apic import ApicMethods
from .memory.dirty import DirtyRingMethods
from .memory.vcpu import MemoryMethods
from .msrs.msrs import Msrs
from .paravirt.hyperv import HypervVcpuMethods
from .paravirt.xen_methods import XenVcpuMethods
from .run import decode as exit_decode
from .run.answer import AnswerMethods
from .run.bus import Bus, WriteBatch, split_by_handler
from .run.enabling import VcpuEnableMethods
from .run.page import RunPageMethods
from .run.thread import ThreadMethods
from .shim import ffi, lib
from .state.live import Registers, SpecialRegisters
from .state.parts import StateMethods
from .stats.methods import StatsMethods
from .stats.run import RunStats

if TYPE_CHECKING:
    from .vm import VM
    from .x86.modes import Handlers, Mode
    from .x86.state import CpuState, StubTable

_shim_run, _shim_resume = lib.shim_run, lib.shim_resume

_ACCESS: int = lib.SHIM_ACCESS
_RING: int = lib.SHIM_RING
_DRAIN: int = lib.SHIM_DRAIN
_MSR: int = lib.SHIM_MSR
_EXIT: int = lib.SHIM_EXIT
_KICKED: int = lib.SHIM_KICKED
_TIMEOUT: int = lib.SHIM_TIMEOUT
_EXIT_LIMIT: int = lib.SHIM_EXIT_LIMIT
_DEBUG_EXIT: int = lib.SHIM_DEBUG_EXIT
_SINK_ERROR: int = lib.SHIM_SINK_ERROR
_CLOSED: int = lib.SHIM_CLOSED
_BUSY: int = lib.SHIM_BUSY
_SYSTEM: int = lib.SHIM_SYSTEM

_SYSTEM_EXITS: dict[int, Exit] = {
    lib.SHIM_RESET_I8042: exits.Reset("i8042"),
    lib.SHIM_RESET_CONTROL: exits.Reset("reset-control"),
    lib.SHIM_POWER_OFF_ACPI: exits.PowerOff("acpi"),
    lib.SHIM_PANICKED: exits.GuestPanic("pvpanic"),
    lib.SHIM_CRASH_LOADED: exits.GuestCrashLoaded("pvpanic"),
}
_WRITE: int = lib.SHIM_WRITE
_ROUTING_ERROR: int = lib.SHIM_ROUTING_ERROR
_PLACE_ERROR: int = lib.SHIM_PLACE_ERROR

_UNLIMITED = (1 << 64) - 1
_LONGEST = 1 << 62  # ns, 146 years: more, and the deadline would not fit in a clock
_unpack_report = struct.Struct("=5Q").unpack_from
#: Deferred writes a vCPU holds before a batch handler is called.
RING_SIZE = 4096

_E = TypeVar("_E", bound=Exit)


def _nanoseconds(timeout: float | None) -> int:
    if timeout is None:
        return -1
    if not (timeout >= 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout {timeout!r} is not a number of seconds >= 0")
    return int(min(timeout * 1e9, _LONGEST))


def _exit_budget(max_exits: int | None) -> int:
    if max_exits is None:
        return _UNLIMITED
    if not 1 <= max_exits <= _UNLIMITED:
        raise ValueError(f"max_exits {max_exits!r} is not in 1..2**64-1")
    return max_exits


class VCPU(
    AnswerMethods, ApicMethods, DebugMethods, DirtyRingMethods, HypervVcpuMethods, MemoryMethods,
    RunPageMethods, StateMethods, StatsMethods, ThreadMethods, TranslateMethods, VcpuEnableMethods,
    XenVcpuMethods,
):  # fmt: skip
    """A virtual CPU. Made by :meth:`VM.vcpu`.

    One thread at a time runs it; any thread may :meth:`kick` or :meth:`close` it.
    """

    def __init__(self, vm: VM, id: int):
        #: The VM it belongs to.
        self.vm = vm
        #: KVM's number for it, which is its APIC id.
        self.id = id
        self._stubs: StubTable | None = None
        fd = ioctls.KVM_CREATE_VCPU(vm.fileno(), id, f"id {id}")
        ioctls.remember_origin(fd, vm.fileno())
        error = ffi.new("int *")
        # Everything the C side points into lives at least as long as this object.
        self._bus: Bus = vm.bus
        shim = lib.shim_vcpu_new(fd, vm.run_size, self._bus._bus, vm.sync_fields, error)
        if shim == ffi.NULL:
            os.close(fd)
            raise KvmIoctlError("mmap", -error[0], "the kvm_run page of a new vCPU")
        self._fd = fd
        self._shim = ffi.gc(shim, lib.shim_vcpu_free)
        whole = memoryview(ffi.buffer(self._shim)).cast("B")
        report = ffi.offsetof("struct shim_vcpu", "report")
        self._report = whole[report : report + 40]
        self._answer = self._report[32:40].cast("Q")
        self._words = ffi.new(f"uint64_t[{lib.SHIM_DECODE_WORDS}]")
        # Plain attributes: a property would double what cpu.regs.rax costs.
        #: General registers, RIP and RFLAGS, live.
        self.regs: Final = Registers(self._shim)
        #: Segments, control registers and descriptor tables, live.
        self.sregs: Final = SpecialRegisters(self._shim)
        #: Model-specific registers by number or name.
        self.msrs: Final = Msrs(weakref.WeakMethod(self._settled_fd))

    # -- running

    def run(self, timeout: float | None = None, max_exits: int | None = None) -> Exit:
        """Run until an exit that nobody has claimed, and return it as a value.

        ``timeout`` in seconds and ``max_exits`` in exits are budgets: the run ends with Timeout or
        ExitLimit, and the next one goes on from there. Ports and addresses claimed on the VM are
        served meanwhile; an exception of a handler comes out unchanged.

        Raises KvmIoctlError when KVM_RUN itself fails, ClosedError when the vCPU is closed, by
        whomever.

        >>> vm.load(kvmpy.asm("mov al, 7; out 0x10, al; 1: jmp 1b"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run().value
        7
        >>> cpu.run(timeout=0.01)
        Timeout()
        """
        if self._debugger is not None and not self._debugger.inside:
            return self._debugger.run(timeout, max_exits)
        regs, sregs = self.regs, self.sregs
        nanoseconds, budget = _nanoseconds(timeout), _exit_budget(max_exits)
        handlers = self._bus.handlers
        shim, report = self._shim, self._report
        regs._fresh = sregs._fresh = False  # so that other threads ask, and are refused
        try:
            stop = _shim_run(shim, nanoseconds, budget)
            # After each stop as well: another thread may have looked just before the run.
            regs._fresh = sregs._fresh = False
            while True:  # CPython 3.11 never specializes "while stop < _EXIT" in a single run
                if stop >= _EXIT:
                    break
                if stop == _ACCESS:
                    handler, address, size, is_write, value = _unpack_report(report)
                    if is_write:
                        handlers[handler](address, size, value)
                    else:
                        self._answer[0] = _checked_answer(
                            handlers[handler](address, size, None), size
                        )
                elif stop == _RING:
                    self._drain_ring()
                elif stop == _DRAIN:
                    self._drain_sinks()
                elif stop == _MSR:
                    self._serve_msr()
                # else: a signal, or a pause, which the next line waits for. Python runs its
                # handlers first.
                stop = _shim_resume(shim)
                regs._fresh = sregs._fresh = False
        except BaseException:
            regs._fresh = sregs._fresh = False
            lib.shim_finish(shim)
            raise
        if stop == _BUSY:  # refused: the ring, too, belongs to the run under way
            raise ioctls.KVM_RUN.error(self._fd, errno.EBUSY, f"vCPU {self.id}")
        if shim.ring_length:
            self._drain_ring()
        if stop == _EXIT:
            return self._decode()
        return self._own_stop(stop)

    @property
    def exits_left(self) -> int:
        """What the last run left of its ``max_exits``.

        >>> vm.load(kvmpy.asm("out 0x10, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> _ = cpu.run(max_exits=5)
        >>> cpu.exits_left
        4
        """
        left: int = self._shim.exits_left
        return left

    def __iter__(self) -> Iterator[Exit]:
        """Exits nobody handled, one run after the other; ends with a kick, or after an exit that
        running again cannot help (Shutdown, InternalError, DebugExit ...)."""
        while True:
            exit = self.run()
            if isinstance(exit, exits.Kicked):
                return
            yield exit
            if not exit.resumable:
                return

    def expect(
        self, kind: type[_E], *, timeout: float | None = None, max_exits: int | None = None
    ) -> _E:
        """Run, and return the exit if it is of ``kind``; else raise UnexpectedExitError, whose
        text explains what came instead.

        >>> vm.load(kvmpy.asm("out 0x10, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.expect(kvmpy.IoOut, timeout=60).port
        16
        """
        exit = self.run(timeout, max_exits)
        if isinstance(exit, kind):
            return exit
        raise UnexpectedExitError(self.explain(exit), exit)

    def explain(self, exit: Exit) -> str:
        """What an exit means, with the registers, the instruction and the likely cause.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> print(cpu.explain(cpu.run(timeout=60)).splitlines()[0])
        the guest has no handler for: #UD invalid opcode (vector 6) at 0010:0x1000...
        """
        from .exits.explain import explain

        return explain(self, exit)

    def kick(self) -> None:
        """End the run, from any thread, at once: it returns Kicked. If the vCPU is not running,
        its next run ends before the guest does anything.

        >>> vm.load(kvmpy.asm("1: jmp 1b"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.kick()
        >>> cpu.run()
        Kicked(signal=0)
        """
        self._open()
        lib.shim_kick(self._shim)

    def _decode(self) -> Exit:
        self._open()
        count = lib.shim_decode(self._shim, self._words)
        words = ffi.unpack(self._words, count)
        exit = exit_decode.decode(
            words, memoryview(ffi.buffer(self._shim.run, self._shim.run_size))
        )
        if self._stubs is not None and isinstance(exit, exits.IoOut):
            return self._identified(exit)
        return exit

    def _identified(self, exit: exits.IoOut) -> Exit:
        """The exception behind a write to the exception port by one of enter()'s stubs."""
        from .x86 import exceptions, layout

        if exit.port != layout.EXCEPTION_PORT or self._stubs is None:
            return exit
        report = exceptions.identify(self._stubs, self.regs, self.sregs, self.vm.memory)
        if isinstance(report, exceptions.ExceptionReport):
            return exits.GuestException(report)
        if report is not None:
            return exits.UnexpectedSyscall(report)
        return exit

    def _own_stop(self, stop: int) -> Exit:
        value = self._shim.report.value
        if stop == _KICKED:
            return exits.Kicked(value)
        if stop == _TIMEOUT:
            return exits.Timeout()
        if stop == _EXIT_LIMIT:
            return exits.ExitLimit()
        if stop == _DEBUG_EXIT:
            return exits.DebugExit(value)
        if stop == _SYSTEM:
            return _SYSTEM_EXITS[value]
        if stop == _WRITE:
            return self._coalesced_write()
        if stop == _SINK_ERROR:
            raise OSError(value, os.strerror(value))
        if stop == _ROUTING_ERROR:
            raise ioctls.KVM_SET_GSI_ROUTING.error(self.vm.fileno(), value, "the I/O APIC's pins")
        if stop == _PLACE_ERROR:
            raise self._pin_error(self._pin or frozenset(), value)
        if stop == _CLOSED:
            raise ClosedError("the vCPU was closed")
        raise ioctls.KVM_RUN.error(self._fd, value, f"vCPU {self.id}")

    def _coalesced_write(self) -> Exit:
        """A write from KVM's ring that nobody claimed, as the exit that it would have been."""
        is_mmio, address, size, _, value = _unpack_report(self._report)
        data = value.to_bytes(8, "little")[:size]
        return exits.MmioWrite(address, data) if is_mmio else exits.IoOut(address, size, data)

    def _drain_ring(self) -> None:
        shim = self._shim
        if not shim.ring_size:  # what stopped is the first deferred write: no ring, no room
            if lib.shim_vcpu_ring(shim, RING_SIZE):
                raise MemoryError(f"no memory for a ring of {RING_SIZE} writes")
            return
        length, shim.ring_length = shim.ring_length, 0
        # A slice that a handler keeps holds the buffer, the buffer this pointer, and that the ring.
        ring = ffi.gc(shim.ring, lambda _, keep=shim: None)
        with (
            memoryview(ffi.buffer(ring, length * 32)).cast("B") as raw,
            raw.cast("Q") as words,
        ):
            handlers = self._bus.batch_handlers
            parts = split_by_handler(words, len(handlers))
            for handler, part in zip(handlers, parts, strict=True):
                if part:
                    handler(WriteBatch(part))

    def _drain_sinks(self) -> None:
        for device in self._bus.devices():
            drain = getattr(device, "_drain", None)
            if drain is not None:
                drain()

    # -- state

    def enter(
        self,
        mode: Mode,
        *,
        rip: int,
        ring: int = 0,
        rsp: int | None = None,
        regs: Mapping[str, int] | None = None,
        handlers: Handlers | None = None,
        **options: Any,
    ) -> None:
        """Set the vCPU up to start at ``rip`` in a mode and ring, tables and all.

        See :func:`kvmpy.x86.modes.prepare` for the parameters and what is written to guest
        memory. An exception or system call without a handler comes back from :meth:`run` as
        GuestException or UnexpectedSyscall.

        >>> vm.load(kvmpy.asm("mov eax, cs; and eax, 3; ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=3)
        >>> cpu.run(timeout=60).name, cpu.regs.rax
        ('#UD invalid opcode', 3)
        """
        from .x86.modes import prepare

        state = prepare(
            self.vm.memory, mode, rip=rip, ring=ring, rsp=rsp, regs=regs, handlers=handlers,
            **options,
        )  # fmt: skip
        self.apply(state)

    def apply(self, state: CpuState) -> None:
        """Set all of a CpuState: SREGS, then MSRs (FS and GS base are in both), FPU, REGS last.

        >>> state = kvmpy.x86.modes.prepare(vm.memory, kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.apply(state)
        >>> hex(cpu.regs.rip)
        '0x1000'
        """
        fd = self._settle(lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS)
        self._set_sregs(fd, state)
        self.msrs.write(state.msrs)
        self._set_fpu_control(state.fcw, state.mxcsr)
        ioctls.KVM_SET_REGS(fd, ffi.new("struct kvm_regs *", dict(state.regs)))
        self._stubs = state.stub_table

    def _set_fpu_control(self, fcw: int, mxcsr: int) -> None:
        """By XSAVE: KVM_SET_FPU does not know MXCSR, and what it sets is lost if XSTATE_BV says
        that the component is in its initial state."""
        now = self.xsave
        if (now.value("fcw"), now.value("mxcsr")) != (fcw, mxcsr):
            self.xsave = now.replace(fcw=fcw, mxcsr=mxcsr)

    def _set_sregs(self, fd: int, state: CpuState) -> None:
        sregs = ffi.new("struct kvm_sregs *")
        ioctls.KVM_GET_SREGS(fd, sregs)  # APIC base and the interrupt bitmap stay
        new = state.sregs
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt"):
            setattr(sregs, name, vars(getattr(new, name)))  # same field names: cffi takes a dict
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            setattr(sregs, name, getattr(new, name))
        detail = f"cr0 {new.cr0:#x}, cr4 {new.cr4:#x}, efer {new.efer:#x}"
        ioctls.KVM_SET_SREGS(fd, sregs, detail)
        self._shim.run.cr8 = new.cr8  # what KVM takes at entry if it has no LAPIC

    def set_cpuid(self, cpuid: Cpuid) -> None:
        """KVM_SET_CPUID2, before the first run.

        >>> cpu.set_cpuid(cpu.get_cpuid().without("x2apic"))
        >>> "x2apic" in cpu.get_cpuid()
        False
        """
        ioctls.KVM_SET_CPUID2(self.fileno(), cpuid._to_c(), f"{len(cpuid)} leaves")

    def get_cpuid(self, entries: int = 256) -> Cpuid:
        """KVM_GET_CPUID2: what the guest sees.

        >>> "lm" in cpu.get_cpuid()
        True
        """
        table = ffi.new("struct kvm_cpuid2 *", {"entries": entries})
        table.nent = entries
        ioctls.KVM_GET_CPUID2(self.fileno(), table, f"{entries} entries")
        return Cpuid._from_c(table)

    @property
    def cpuid(self) -> Cpuid:
        """CPUID as this vCPU shows it: ``cpu.cpuid[1].ecx``. Assigning is :meth:`set_cpuid`.

        >>> cpu.cpuid[0].eax > 0
        True
        """
        return self.get_cpuid()

    @cpuid.setter
    def cpuid(self, cpuid: Cpuid) -> None:
        self.set_cpuid(cpuid)

    def nmi(self) -> None:
        """KVM_NMI: queue a non-maskable interrupt.

        >>> cpu.nmi()
        """
        ioctls.KVM_NMI(self.fileno())

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: queue an external interrupt, in a VM without in-kernel irqchip.

        ``vector`` 0..255. The guest must be ready for it: RFLAGS.IF set, none queued.

        >>> cpu.interrupt(0x20)
        >>> cpu.events.interrupt.nr
        32
        """
        request = ffi.new("struct kvm_interrupt *", {"irq": vector})
        ioctls.KVM_INTERRUPT(self.fileno(), request, f"vector {vector}")

    def _settle(self, fields: int) -> int:
        """The descriptor, for an ioctl that reads or sets state: the last exit's instruction is
        completed and edits of the live views are in."""
        fd = self.fileno()
        error = lib.shim_settle(self._shim, fields)
        if error:
            raise ioctls.KVM_RUN.error(fd, -error, "completing the last exit")
        self.regs._fresh = self.sregs._fresh = False
        return fd

    def _settled_fd(self) -> int:
        return self._settle(0)

    # -- statistics

    def measure(self, on: bool = True) -> None:
        """Have :attr:`run_stats` tell times as well as counts, from now on. It costs two clock
        readings an exit, and two more for one that Python handles.

        >>> cpu.measure()
        >>> cpu.run_stats.guest_ns
        0
        """
        self._open()
        shim = self._shim
        shim.timing = on
        shim.returned_at = shim.left_at = 0  # the time since the last exit belongs to none

    @property
    def first_exit_at(self) -> float | None:
        """When the guest first came out to user space, in seconds of time.monotonic(); None before.

        >>> cpu.first_exit_at
        """
        at: int = self._shim.first_exit_at
        return at / 1e9 if at else None

    @property
    def run_stats(self) -> RunStats:
        """Exits by reason so far; their times too, from :meth:`measure` on.

        >>> vm.load(kvmpy.asm("out 0x10, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> [type(exit).__name__ for _, exit in zip(range(2), cpu)], cpu.run_stats["IO"]
        (['IoOut', 'Hlt'], 1)
        """
        seen = self._shim.counters
        counts = ffi.unpack(seen.exits, lib.SHIM_EXIT_REASONS)
        times = ffi.unpack(seen.handling_ns, lib.SHIM_EXIT_REASONS)
        if not self._shim.timing:
            return RunStats.of(counts, times, None)
        return RunStats.of(counts, times, seen.guest_ns, seen.python_ns)

    def _count_in(self, counters: Any, memory: Any) -> None:
        """Count in a ``struct shim_counters`` in ``memory``, which this vCPU keeps from now on."""
        counters.id = self.id
        if lib.shim_vcpu_count_in(self._shim, counters):
            raise ioctls.KVM_RUN.error(self._fd, errno.EBUSY, f"vCPU {self.id}")
        self._counters = memory

    # -- life

    def _open(self) -> None:
        if self._fd < 0:
            raise ClosedError("the vCPU is closed")

    def fileno(self) -> int:
        """The vCPU's descriptor. Raises ClosedError after close().

        >>> kvmpy.ioctls.KVM_GET_REGS(cpu.fileno(), bytearray(144))
        0
        """
        self._open()
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether close() was called.

        >>> cpu.closed
        False
        """
        return self._fd < 0

    def close(self) -> None:
        """Close the vCPU. A run in another thread ends with ClosedError first.

        >>> cpu.close()
        >>> cpu
        <VCPU 0, closed>
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self.regs._fresh = self.sregs._fresh = False
        self._close_stats()
        error = lib.shim_vcpu_close(self._shim)
        if error:
            raise OSError(-error, os.strerror(-error))

    def __enter__(self) -> VCPU:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<VCPU {self.id}, closed>"
        pinned = f", pinned to pCPU {self._pin_list()}" if self._pin else ""
        return f"<VCPU {self.id} fd {self._fd}{pinned}>"


def _checked_answer(value: object, size: int) -> int:
    if not isinstance(value, int):
        raise TypeError(f"the handler of a {size}-byte read returned {value!r}, not an integer")
    if value >> 8 * size:
        raise ValueError(f"the handler of a {size}-byte read returned {value:#x}")
    return value
