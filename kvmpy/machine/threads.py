"""vCPU threads: each vCPU of a VM in a thread of its own; the first that ends ends them all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import ClosedError, StillRunningError
from ..vcpu import VCPU

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ending(Generic[T]):
    """What ended the first vCPU: what its ``body`` gave, or the exception it raised."""

    vcpu: VCPU
    value: T | None
    error: BaseException | None = None


class VcpuThreads(Generic[T]):
    """Runs ``body(vcpu)`` for each vCPU in a thread, named "vCPU 0" and so on by id.

    ``body`` is to return or raise when its vCPU's run gives Kicked; :meth:`VCPU.run` does. The
    first to end, by whatever, has all others kicked. Once the last thread is through,
    ``on_end(ending)`` is called in it, and :meth:`wait` returns. A vCPU made with ``pin`` binds its
    thread to that pCPU. Threads run once.

    >>> vm.load(kvmpy.asm("mov al, 7; out 0x10, al; hlt", 16), at=0x1000)
    >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
    >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
    >>> threads.start()
    >>> threads.wait(timeout=60).value.data
    b'\\x07'
    """

    def __init__(
        self,
        vcpus: Sequence[VCPU],
        body: Callable[[VCPU], T],
        *,
        on_end: Callable[[Ending[T]], None] | None = None,
    ):
        if not vcpus:
            raise ValueError("no vCPU to run")
        self._body, self._on_end = body, on_end
        self._lock = threading.Lock()  # guards the next three
        self._running: list[VCPU] = []
        self._first: Ending[T] | None = None
        self._started = False
        self._done = threading.Event()
        self._vcpus = list(vcpus)
        self._threads = [
            threading.Thread(target=self._main, args=(vcpu,), name=f"vCPU {vcpu.id}", daemon=True)
            for vcpu in self._vcpus
        ]

    def start(self) -> None:
        """Start all threads. Raises RuntimeError the second time, or when the host has no more
        threads; then none is left running.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.stop()
        True
        """
        with self._lock:
            if self._started:
                raise RuntimeError("these vCPU threads were started before")
            self._started = True
            self._running = list(self._vcpus)
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except BaseException as error:
                for vcpu in self._vcpus[number:]:
                    self._ended(Ending(vcpu, None, error))
                self.stop()
                raise

    def _main(self, vcpu: VCPU) -> None:
        ending: Ending[T]
        try:
            ending = Ending(vcpu, self._body(vcpu))
        except BaseException as error:
            ending = Ending(vcpu, None, error)
        self._ended(ending)

    def _ended(self, ending: Ending[T]) -> None:
        with self._lock:
            self._running.remove(ending.vcpu)
            is_first, is_last = self._first is None, not self._running
            first = self._first = self._first or ending
        if is_first:
            self._kick()
        if not is_last:
            return
        try:
            if self._on_end:
                self._on_end(first)
        except BaseException as error:
            if first.error is None:  # the guest's own error goes first
                self._first = Ending(first.vcpu, None, error)
        finally:
            self._done.set()

    def _kick(self) -> None:
        with self._lock:
            running = list(self._running)
        for vcpu in running:
            try:
                vcpu.kick()
            except ClosedError:
                pass  # closing it has ended its run

    @property
    def running(self) -> bool:
        """Whether a vCPU still runs, or ``on_end`` does.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.running, threads.stop(), threads.running
        (True, True, False)
        """
        return self._started and not self._done.is_set()

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of these.

        >>> kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run).is_own_thread()
        False
        """
        return threading.current_thread() in self._threads

    def stop(self, timeout: float = 5.0) -> bool:
        """Kick all vCPUs and wait for their threads, ``timeout`` seconds at most. True once all are
        through.

        Any thread may call it. One of the vCPUs' own, in a handler, does not wait: its run ends
        when the handler returns.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.stop()
        True
        """
        self._kick()
        if self.is_own_thread():
            return False
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def wait(self, timeout: float | None = None) -> Ending[T]:
        """Wait until all threads are through: what the first to end gave. An exception that ended
        it, a handler's for one, is raised here, unchanged.

        ``timeout`` in seconds. Raises StillRunningError when it is up; nothing is stopped then.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.stop(), threads.wait().value
        (True, Kicked(signal=0))
        """
        if not self._started:
            raise RuntimeError("these vCPU threads were not started")
        if not self._done.wait(timeout):
            raise StillRunningError(f"the guest has not ended within {timeout:g} s")
        ending = self._first
        assert ending is not None
        if ending.error is not None:
            raise ending.error
        return ending
