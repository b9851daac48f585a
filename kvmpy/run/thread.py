"""The thread that runs a vCPU: which it is, where it may run, how it is kept out of the guest for a
while."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import ioctls
from ..arguments import nanoseconds, seconds
from ..errors import StillRunningError
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd

if TYPE_CHECKING:
    from ..host.topology import Pin


class VcpuThread(VcpuFd):
    """``cpu.pin``, ``cpu.thread_id``, ``cpu.pause()``, ``cpu.resume()``."""

    _pin: frozenset[int] | None = None

    @property
    def pin(self) -> frozenset[int] | None:
        """The pCPUs on which this vCPU runs; None for wherever the thread that runs it may.

        Assign a number, a set, range or other iterable of them, or a list as the kernel writes it
        (``"0-3,8"``). It binds the thread, not the process (sched_setaffinity(2) with the thread's
        id): the one that runs the vCPU now at once, any other when it begins to. None lets the
        thread use all that this process may.

        Raises PinError for a pCPU that this process may not use, or that the kernel refuses;
        ValueError for a malformed list.

        >>> one = min(kvmpy.host.topology.allowed_cpus())
        >>> cpu.pin = {one}
        >>> cpu.pin == {one}
        True
        """
        return self._pin

    @pin.setter
    def pin(self, pin: Pin | None) -> None:
        self.fileno()
        if pin is None and self._pin is None:
            return
        from ..host import topology

        cpus = topology.usable_cpus() if pin is None else topology.check_pins(pin)
        mask = sum(1 << cpu for cpu in cpus).to_bytes(max(cpus) // 8 + 1, "little")
        error = lib.shim_place(self._shim, mask, len(mask))
        if error:
            raise self._pin_error(cpus, -error)
        self._pin = None if pin is None else cpus

    def _pin_list(self) -> str:
        from ..host.topology import format_cpu_list

        return format_cpu_list(self._pin or ())

    def _pin_error(self, cpus: frozenset[int], code: int) -> Exception:
        from ..host import topology

        numbers = topology.format_cpu_list(cpus)
        why = os.strerror(code)
        if code == errno.EINVAL:
            why = "none of them is in the cpuset of this thread's cgroup and online"
        elif code == errno.EBUSY:
            why = "a SCHED_DEADLINE thread cannot be bound to a part of its pCPUs"
        return topology.PinError(f"vCPU {self.id} cannot be bound to pCPU {numbers}: {why}")

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of the thread that runs this vCPU, in the guest or in a handler; None
        while none does. As in /proc/self/task, and for os.sched_getaffinity().

        >>> cpu.thread_id
        """
        return lib.shim_thread(self._shim) or None

    def pause(self, timeout: float | None = 5.0) -> bool:
        """Have the vCPU out of the guest, and keep it out until :meth:`resume`. True once it is:
        no instruction of the guest runs any longer, and no exit is being handled. Registers and
        memory can be read and written then, from any thread. Its run does not end; one that begins
        waits. :meth:`kick` ends a run that is paused, and a run's ``timeout`` goes on.

        Any thread may call it, and several may: the vCPU goes on when all of them have resumed it.
        On the vCPU's own thread, in a handler, it takes effect when the handler returns: False.

        Raises StillRunningError, and takes the pause back, when a handler holds the vCPU for
        longer than ``timeout`` seconds.

        >>> cpu.pause()
        True
        >>> cpu.paused, cpu.resume(), cpu.paused
        (True, None, False)
        """
        return pause_all([self], timeout)

    def resume(self) -> None:
        """Take a :meth:`pause` back. Raises RuntimeError if there is none.

        >>> cpu.pause()
        True
        >>> cpu.resume()
        """
        resume_all([self])

    @property
    def paused(self) -> bool:
        """Whether a :meth:`pause` has not been taken back yet.

        >>> cpu.paused
        False
        """
        return bool(lib.shim_pauses(self._shim))


def pause_all(vcpus: Sequence[VcpuThread], timeout: float | None = 5.0) -> bool:
    """:meth:`VCPU.pause` of several: all are asked first, then waited for, ``timeout`` seconds in
    all. False when the calling thread runs one of them.

    >>> kvmpy.run.thread.pause_all([cpu, vm.vcpu()])
    True
    """
    limit, until = seconds(timeout), _until(timeout)
    asked: list[VcpuThread] = []
    try:
        for vcpu in vcpus:
            vcpu.fileno()
            lib.shim_pause(vcpu._shim)
            asked.append(vcpu)
        own = threading.get_native_id()
        if any(vcpu.thread_id == own for vcpu in vcpus):
            return False
        for vcpu in vcpus:
            _wait(vcpu, until, limit)
    except BaseException:
        _take_back(asked)
        raise
    return True


def _until(timeout: float | None) -> int:
    """On CLOCK_MONOTONIC, in nanoseconds."""
    return time.monotonic_ns() + nanoseconds(timeout, 1 << 62)


def _wait(vcpu: VcpuThread, until: int, timeout: float, in_a_run: bool = False) -> None:
    while True:
        result = lib.shim_pause_wait(vcpu._shim, until, in_a_run)
        if result == 0:
            return
        if result == 1 and in_a_run:
            raise StillRunningError(f"vCPU {vcpu.id} has not been run within {timeout:g} s")
        if result == 1:
            raise StillRunningError(
                f"a handler has held vCPU {vcpu.id} for {timeout:g} s: it cannot be paused"
            )
        # else a signal: Python has run its handlers


def arrive(vcpus: Sequence[VcpuThread], timeout: float | None) -> None:
    """After :func:`pause_all`: wait until a thread runs each, to be stopped by the pause.

    Raises StillRunningError after ``timeout`` seconds.

    >>> kvmpy.run.thread.arrive([], timeout=1)
    """
    limit, until = seconds(timeout), _until(timeout)
    for vcpu in vcpus:
        _wait(vcpu, until, limit, in_a_run=True)


def resume_all(vcpus: Sequence[VcpuThread]) -> None:
    """:meth:`VCPU.resume` of those that are paused: all go on within microseconds of each other. A
    guest with kvmclock learns that it was stopped (KVM_KVMCLOCK_CTRL).

    Raises RuntimeError if none is.

    >>> kvmpy.run.thread.pause_all([cpu])
    True
    >>> kvmpy.run.thread.resume_all([cpu])
    """
    for vcpu in vcpus:
        if vcpu.paused and not vcpu.closed:
            # For the guest's lockup watchdog. EINVAL: it has no kvmclock, which is normal.
            ioctls.KVM_KVMCLOCK_CTRL.raw(vcpu.fileno())
    if not _take_back(vcpus):
        numbers = ", ".join(str(vcpu.id) for vcpu in vcpus)
        raise RuntimeError(f"vCPU {numbers}: not paused")


def _take_back(vcpus: Sequence[VcpuThread]) -> bool:
    """One pause of each. Whether there was any."""
    # The live registers are current until this moment: a look just before must not make them so
    # again, nor one just after.
    for vcpu in vcpus:
        vcpu.regs._fresh = vcpu.sregs._fresh = False
    shims = ffi.new("struct shim_vcpu *[]", [vcpu._shim for vcpu in vcpus])
    none: int = lib.shim_unpause(shims, len(vcpus))
    for vcpu in vcpus:
        vcpu.regs._fresh = vcpu.sregs._fresh = False
    return none < len(vcpus)
