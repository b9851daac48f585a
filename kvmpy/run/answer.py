"""What a guest waits for: the answers to reads, MSRs and hypercalls that came back as exits."""

from __future__ import annotations

import errno
import operator
from typing import Any

from ..arguments import named
from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd
from .decode import decode


class VcpuAnswers(VcpuFd):
    """A vCPU's exits, decoded and answered."""

    def answer(self, data: bytes | int = 0) -> None:
        """Give the guest what it waits for, after an exit that says so.

        IoIn and MmioRead take ``size * count`` bytes, or a number that fits in them; Rdmsr,
        Hypercall, HypervHypercall, HypervSyndbg, Xen and Tdx a number of 64 bits (negative ones
        as two's complement); Wrmsr nothing. Raises ValueError when the last exit takes no answer,
        has had it, or the answer does not fit.

        >>> vm.load(kvmpy.asm("in al, 0x10; out 0x11, al", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> cpu.run(timeout=5)
        IoIn(port=0x10, size=1, count=1)
        >>> cpu.answer(0x2A)
        >>> cpu.run(timeout=5)
        IoOut(port=0x11, size=1, data=b'*', count=1)
        """
        exit = self._decode()
        if isinstance(exit, (exits.IoIn, exits.MmioRead)):
            _answer_read(self._shim, exit, data)
            return
        if not exit.answerable:
            raise ValueError(f"{type(exit).__name__} is not a read, and takes no answer")
        if not isinstance(data, int) or not -(1 << 63) <= data < 1 << 64:
            raise ValueError(f"{type(exit).__name__} is answered by a number of 64 bits: {data!r}")
        if lib.shim_reply(self._shim, data & (1 << 64) - 1):
            raise ValueError("this exit has been answered, or takes no answer")

    def refuse(self) -> None:
        """Deny the guest what it waits for: #GP for Rdmsr and Wrmsr; for hypercalls the answer
        that KVM gives to those it does not know.

        Raises ValueError when the last exit takes no answer, or has had it.

        >>> vm.user_space_msrs("unknown")
        >>> vm.load(kvmpy.asm("mov ecx, 0x12345; rdmsr; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5)
        Rdmsr(index=0x12345, why=0x2[unknown])
        >>> cpu.refuse()
        >>> cpu.run(timeout=5).vector
        13
        """
        exit = self._decode()
        if not exit.answerable:
            raise ValueError(f"the last exit was {type(exit).__name__}: nothing to refuse")
        if lib.shim_refuse(self._shim):
            raise ValueError("this exit has been answered, or takes no answer")

    def _serve_msr(self) -> None:
        """The stop was an MSR with a handler (:meth:`VM.on_rdmsr`, :meth:`VM.on_wrmsr`)."""
        handler, index, _, is_write, value = self._report.cast("Q")
        function = self._bus.msr_handlers[handler]
        answer = function(index, value) if is_write else function(index)
        if (answer is None and not is_write) or answer is False:
            lib.shim_refuse(self._shim)
        elif not is_write:
            self._report.cast("Q")[4] = _checked_value(function, index, answer)

    def _decode(self) -> Exit:
        self.fileno()
        count = lib.shim_decode(self._shim, self._words)
        words = ffi.unpack(self._words, count)
        exit = decode(words, memoryview(ffi.buffer(self._shim.run, self._shim.run_size)))
        if self._stubs is not None and isinstance(exit, exits.IoOut):
            return self._identified(exit)
        return exit

    def _identified(self, exit: exits.IoOut) -> Exit:
        """The exception behind a write to the exception port by one of enter()'s stubs."""
        from ..x86 import exceptions, layout

        if exit.port != layout.EXCEPTION_PORT or self._stubs is None:
            return exit
        report = exceptions.identify(self._stubs, self.regs, self.sregs, self.vm.memory)
        if isinstance(report, exceptions.ExceptionReport):
            return exits.GuestException(report)
        if report is not None:
            return exits.UnexpectedSyscall(report)
        return exit


def _answer_read(shim: Any, exit: exits.IoIn | exits.MmioRead, data: bytes | int) -> None:
    length = exit.size * (exit.count if isinstance(exit, exits.IoIn) else 1)
    if isinstance(data, int):
        if not 0 <= data < 1 << 8 * length:
            raise ValueError(f"{data:#x} does not fit in a read of {length} bytes")
        raw = data.to_bytes(length, "little")
    else:
        raw = data
    error = lib.shim_answer(shim, raw, len(raw))
    if error == -errno.EMSGSIZE:
        raise ValueError(f"{len(raw)} bytes for a read of {length}")
    if error:
        raise ValueError("this read has been answered")


def _checked_value(handler: object, index: int, answer: Any) -> int:
    try:
        value = operator.index(answer)
    except TypeError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise ValueError(
            f"the handler of a read of MSR {index:#x} returned {answer!r}: {named(handler)}"
        )
    return value
