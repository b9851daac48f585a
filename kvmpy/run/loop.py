"""Running a vCPU: the loop over the shim's stops, budgets, and what ends a run."""

from __future__ import annotations

import errno
import operator
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import SupportsIndex, TypeVar

from .. import ioctls
from ..arguments import integer, named, nanoseconds
from ..errors import UnexpectedExitError
from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..fd import gone
from ..shim import ffi, lib
from .answer import VcpuAnswers
from .bus import WriteBatch, split_by_handler
from .thread import VcpuThread

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
_unpack_report = struct.Struct("=5Q").unpack_from
#: Deferred writes a vCPU holds before a batch handler is called.
RING_SIZE = 4096

_E = TypeVar("_E", bound=Exit)


def _call_all(
    handlers: Sequence[Callable[[WriteBatch], None]], parts: Sequence[memoryview]
) -> None:
    """Each gets its writes, whatever another raises: the last exception has those before it as its
    context."""
    error: BaseException | None = None
    for handler, part in zip(handlers, parts, strict=True):
        if not part:
            continue
        try:
            handler(WriteBatch(part))
        except BaseException as raised:
            if raised.__context__ is None:
                raised.__context__ = error
            error = raised
    if error is not None:
        raise error


def _exit_budget(max_exits: int | None) -> int:
    if max_exits is None:
        return _UNLIMITED
    max_exits = integer(max_exits, "max_exits")
    if not 1 <= max_exits <= _UNLIMITED:
        raise ValueError(f"max_exits {max_exits!r} is not in 1..2**64-1")
    return max_exits


class VcpuRun(VcpuAnswers, VcpuThread):
    """Runs of a vCPU."""

    #: The exit of a run that a batch handler's exception, or lost output, ended in its place.
    _unreported: Exit | None = None

    def run(self, timeout: float | None = None, max_exits: int | None = None) -> Exit:
        """Run until an exit that nobody has claimed, and return it as a value.

        ``timeout`` in seconds and ``max_exits`` in exits are budgets, None for no limit: the run
        ends with Timeout or ExitLimit, and the next one goes on from there. Ports and addresses
        claimed on the VM are served meanwhile; an exception of a handler comes out unchanged.

        Raises OSError when a device's output cannot be written (a full disk, a reader that has
        gone): once, and if that came to light at the end of the run, its exit is the next run's.
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
        if self._unreported is not None:
            exit, self._unreported = self._unreported, None
            return exit
        regs, sregs = self.regs, self.sregs
        time, budget = nanoseconds(timeout), _exit_budget(max_exits)
        handlers = self._bus.handlers
        shim, report = self._shim, self._report
        regs._fresh = sregs._fresh = False  # so that other threads ask, and are refused
        try:
            stop = _shim_run(shim, time, budget)
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
                        value = handlers[handler](address, size, None)
                        try:
                            self._answer[0] = value
                            if value >> 8 * size:
                                raise ValueError
                        except (TypeError, ValueError):
                            raise _bad_answer(handlers[handler], address, size, value) from None
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
        if shim.ring_length or shim.flush_error:
            return self._wound_up(stop)
        if stop == _EXIT:
            exit = self._decode()
            if self._debugger is not None and not self._debugger.inside:  # since this run began
                return self._debugger.take_over(exit, timeout, max_exits)
            return exit
        return self._own_stop(stop)

    def _wound_up(self, stop: int) -> Exit:
        """What ended the run, once the handlers have had the writes before it, and all output is
        where it belongs. When one of them raises, or output is lost, the next run begins with it.
        """
        try:
            exit = self._decode() if stop == _EXIT else self._own_stop(stop)
        except BaseException:
            self._settle_up()
            raise
        try:
            self._settle_up()
        except BaseException:
            self._unreported = exit
            raise
        return exit

    def _settle_up(self) -> None:
        shim = self._shim
        code, shim.flush_error = shim.flush_error, 0
        try:
            if shim.ring_length:
                self._drain_ring()
        finally:
            if code:
                raise OSError(-code, os.strerror(-code))

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

    def kick(self) -> None:
        """End the run, from any thread, at once: it returns Kicked. If the vCPU is not running,
        its next run ends before the guest does anything.

        >>> vm.load(kvmpy.asm("1: jmp 1b"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.kick()
        >>> cpu.run()
        Kicked(signal=0)
        """
        self.fileno()
        lib.shim_kick(self._shim)

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
            raise gone(self._what, self._process)
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
        handlers = list(self._bus.batch_handlers)  # before their writes are out of the ring
        length, shim.ring_length = shim.ring_length, 0
        # A slice that a handler keeps holds the buffer, the buffer this pointer, and that the ring.
        ring = ffi.gc(shim.ring, lambda _, keep=shim: None)
        with (
            memoryview(ffi.buffer(ring, length * 32)).cast("B") as raw,
            raw.cast("Q") as words,
        ):
            parts = split_by_handler(words, len(handlers))
            _call_all(handlers, parts)

    def _drain_sinks(self) -> None:
        for device in self._bus.devices():
            drain = getattr(device, "_drain", None)
            if drain is not None:
                drain()

    def explain(self, exit: Exit) -> str:
        """What an exit means, with the registers, the instruction and the likely cause.

        >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> print(cpu.explain(cpu.run(timeout=60)).splitlines()[0])
        the guest has no handler for: #UD invalid opcode (vector 6) at 0010:0x1000...
        """
        from ..exits.explain import explain

        return explain(self, exit)


def _bad_answer(handler: object, address: int, size: int, value: object) -> Exception:
    who = f"{named(handler)}, for {address:#x}"
    if not isinstance(value, SupportsIndex):
        return TypeError(f"the handler of a {size}-byte read returned {value!r}: {who}")
    return ValueError(
        f"the handler of a {size}-byte read returned {operator.index(value):#x}: {who}"
    )
