"""vCPU threads: each vCPU of a VM in a thread of its own; the first that ends ends them all."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from ..arguments import deadline, left, seconds
from ..errors import ClosedError, StillRunningError
from ..fd import Owner, gone, hears_of_forks
from ..run.thread import _take_back, arrive, pause_all, resume_all
from ..shim import lib
from ..values import dataclass
from ..vcpu import VCPU

if TYPE_CHECKING:
    from ..host.cgroup import ThreadGroup
    from ..host.scheduling import Scheduling

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ending(Generic[T]):
    """What ended the first vCPU: what its ``body`` gave, or the exception it raised."""

    vcpu: VCPU
    value: T | None
    error: BaseException | None = None


class VcpuThreads(Owner, Generic[T]):
    """Runs ``body(vcpu)`` for each vCPU in a thread, named "vCPU 0" and so on by id, for Python and
    for ps and top.

    ``body`` is to return or raise when its vCPU's run gives Kicked; :meth:`VCPU.run` does. The
    first to end, by whatever, has all others kicked. Once the last thread is through,
    ``on_end(ending)`` is called in it, and :meth:`wait` returns. A vCPU with a ``pin`` binds its
    thread to those pCPUs; ``scheduling`` is how the host schedules all of them. Threads run once.

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
        scheduling: Scheduling | None = None,
    ):
        if not vcpus:
            raise ValueError("no vCPU to run")
        self._body, self._on_end, self._scheduling = body, on_end, scheduling
        self._group: ThreadGroup | None = None
        self._admitted = threading.Event()  # all threads are there, and scheduled
        self._refusal: BaseException | None = None  # what came instead
        self._lock = threading.Lock()  # guards the next five
        self._together = False  # they wait for each other
        self._left: set[VCPU] = set()  # stopped alone
        self._running: list[VCPU] = []
        self._first: Ending[T] | None = None
        self._started = False
        self._done = threading.Event()
        self._vcpus = list(vcpus)
        self._process = os.getpid()
        hears_of_forks(self)
        self._threads = [
            threading.Thread(target=self._main, args=(vcpu,), name=f"vCPU {vcpu.id}", daemon=True)
            for vcpu in self._vcpus
        ]

    def start(self, *, together: bool = False, timeout: float | None = 10.0) -> None:
        """Start all threads. ``together``: the guests begin within microseconds of each other, once
        every ``body`` has come to run its vCPU, or raised; StillRunningError if that takes longer
        than ``timeout`` seconds.

        Raises RuntimeError the second time, or when the host has no more threads; SchedulingError
        when it does not permit the scheduling. None is left running then.

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
        try:
            if together:
                pause_all(self._vcpus)
                self._together = True
            for thread in self._threads:
                thread.start()
            if self._scheduling is not None:
                self.schedule(self._scheduling)
            self._admitted.set()
            if together:
                arrive(self._vcpus, timeout)
                self._go()
        except BaseException as error:
            self._refuse(error)
            raise

    def _refuse(self, error: BaseException) -> None:
        self._refusal = error
        self._admitted.set()
        for vcpu, thread in zip(self._vcpus, self._threads, strict=True):
            if thread.ident is None:
                self._ended(Ending(vcpu, None, error))
        self._kick(self._vcpus)  # before they are let: their guests are not to begin
        self._go()
        self.stop()

    def _go(self) -> None:
        """Let those that wait for each other."""
        with self._lock:
            together, self._together = self._together, False
        if together:
            _take_back(self._vcpus)

    def _main(self, vcpu: VCPU) -> None:
        lib.shim_name_thread(threading.current_thread().name.encode())
        self._admitted.wait()
        ending: Ending[T]
        try:
            if self._refusal is not None:
                raise self._refusal
            ending = Ending(vcpu, self._body(vcpu))
        except BaseException as error:
            ending = Ending(vcpu, None, error)
        self._ended(ending)

    def _ended(self, ending: Ending[T]) -> None:
        with self._lock:
            self._running.remove(ending.vcpu)
            is_last = not self._running
            alone = ending.vcpu in self._left and ending.error is None and not is_last
            is_first = self._first is None and not alone
            if is_first:
                self._first = ending
            first = self._first
        if is_first:
            self._kick(self._vcpus)
            self._go()
        if not is_last:
            return
        assert first is not None
        try:
            if self._group is not None:
                self._group.close()
            if self._on_end:
                self._on_end(first)
        except BaseException as error:
            if first.error is None:  # the guest's own error goes first
                self._first = Ending(first.vcpu, None, error)
        finally:
            self._done.set()

    def _in_child(self) -> None:
        """The threads are in the parent; here they have ended."""
        self._lock, self._done = threading.Lock(), threading.Event()
        self._running = []
        if self._first is None:
            error = gone("group of vCPU threads", self._process)
            self._first = Ending(self._vcpus[0], None, error)
        self._done.set()

    def _kick(self, vcpus: Sequence[VCPU]) -> None:
        with self._lock:
            running = [vcpu for vcpu in vcpus if vcpu in self._running]
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

    def thread_ids(self) -> dict[VCPU, int]:
        """The kernel's ids of the threads, by vCPU; of those that have been started.

        >>> kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run).thread_ids()
        {}
        """
        return {
            vcpu: thread.native_id
            for vcpu, thread in zip(self._vcpus, self._threads, strict=True)
            if thread.native_id is not None
        }

    def schedule(self, scheduling: Scheduling, vcpu: VCPU | None = None) -> None:
        """Have the host schedule the threads so, or that of one vCPU, from now on.

        Raises SchedulingError, which says what would permit it; ESRCH for a thread that has ended.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.schedule(kvmpy.host.scheduling.Scheduling("batch", nice=5))
        >>> print(kvmpy.host.scheduling.scheduling(threads.thread_ids()[cpu]))
        SCHED_BATCH, nice 5
        >>> threads.stop()
        True
        """
        from ..host.scheduling import schedule

        ids = self.thread_ids()
        for each in self._chosen(vcpu):
            schedule(scheduling, ids[each])

    def limit(self, cpus: float | None, *, period: float = 0.1) -> None:
        """Give the threads together no more than ``cpus`` pCPUs' time (0.5: half of one): in each
        ``period``, 0.001 to 1 s, what is left after ``cpus * period`` passes without them. None
        takes the limit away, as the end of the last thread does.

        By cpu.max of a threaded cgroup v2 made for them. Raises UnsupportedError where this process
        may not have one; the text says why.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> try:
        ...     threads.limit(0.5, period=0.01)
        ... except kvmpy.UnsupportedError as error:
        ...     assert "cgroup" in str(error)
        >>> threads.stop()
        True
        """
        from ..host.cgroup import ThreadGroup

        with self._lock:  # so that the last thread's end closes what is made here
            if not self._running:
                raise RuntimeError("these vCPU threads are not running")
            group = self._group
            if cpus is None:
                self._group = None
                if group is not None:
                    group.close()
                return
            made = group or ThreadGroup()
            try:
                made.limit(cpus, period)
                ids = self.thread_ids()
                for vcpu in self._running:
                    made.add(ids[vcpu])
            except BaseException:
                if group is None:
                    made.close()
                raise
            self._group = made

    def _chosen(self, vcpu: VCPU | None) -> Sequence[VCPU]:
        if vcpu is None:
            return self._vcpus
        if vcpu not in self._vcpus:
            raise ValueError(f"{vcpu!r} is not one of these threads' vCPUs")
        return [vcpu]

    def pause(self, vcpu: VCPU | None = None, *, timeout: float | None = 5.0) -> bool:
        """Have one vCPU, or all, out of the guest until :meth:`resume`: :meth:`VCPU.pause`. True
        once they are. False on one of their own threads, in a handler: that one is when the handler
        returns.

        Raises StillRunningError after ``timeout`` seconds; then nothing is paused by it.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.pause(), hex(cpu.regs.rip)
        (True, '0x1000')
        >>> threads.resume()
        >>> threads.stop()
        True
        """
        return pause_all(self._chosen(vcpu), timeout)

    def resume(self, vcpu: VCPU | None = None) -> None:
        """Take back one :meth:`pause` of each that is paused; all go on at once. Raises
        RuntimeError if none is.

        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.pause()
        True
        >>> threads.resume()
        """
        resume_all(self._chosen(vcpu))

    def is_own_thread(self) -> bool:
        """Whether the calling thread is one of these.

        >>> kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run).is_own_thread()
        False
        """
        return threading.current_thread() in self._threads

    def stop(self, timeout: float | None = 5.0, *, vcpu: VCPU | None = None) -> bool:
        """Kick all vCPUs and wait for their threads, ``timeout`` seconds at most. True once all are
        through. With ``vcpu`` that one ends, and the others go on.

        Any thread may call it. One of the vCPUs' own, in a handler, does not wait: its run ends
        when the handler returns. Paused ones end too.

        >>> vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> threads = kvmpy.machine.VcpuThreads([cpu], kvmpy.VCPU.run)
        >>> threads.start()
        >>> threads.stop()
        True
        """
        until = deadline(timeout)
        chosen = self._chosen(vcpu)
        if vcpu is not None:
            with self._lock:
                self._left.add(vcpu)
        self._kick(chosen)
        if self.is_own_thread():
            return False
        threads = [self._threads[self._vcpus.index(each)] for each in chosen]
        for thread in threads:
            if thread.ident is not None:
                thread.join(left(until))
        return not any(thread.is_alive() for thread in threads)

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
        limit = seconds(timeout)
        if self.is_own_thread():
            raise RuntimeError("wait() in a handler waits for itself: stop(), and return")
        if not self._done.wait(left(time.monotonic() + limit)):
            raise StillRunningError(f"the guest has not ended within {limit:g} s")
        ending = self._first
        assert ending is not None
        if ending.error is not None:
            raise ending.error
        return ending
