"""The property by which a VM and a vCPU have KVM's statistics (:mod:`kvmpy.binary_stats`)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..fd import Descriptor
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd
from .run import RunStats

if TYPE_CHECKING:
    from .kvm import Stats


class WithStats(Descriptor):
    """KVM's own statistics of a VM or vCPU."""

    _stats: Stats | None = None

    @property
    def stats(self) -> Stats:
        """KVM's statistics of this VM or vCPU (KVM_GET_STATS_FD).

        Raises UnsupportedError without KVM_CAP_BINARY_STATS_FD (before Linux 5.14).

        >>> "remote_tlb_flush" in vm.stats, "io_exits" in cpu.stats
        (True, True)
        """
        from .kvm import Stats

        fd = self.fileno()
        if self._stats is None:
            self._stats = Stats(ioctls.KVM_GET_STATS_FD(fd))
        return self._stats

    def _close_stats(self) -> None:
        stats, self._stats = self._stats, None
        if stats is not None:
            stats.close()


class VcpuRunStats(VcpuFd):
    """What came out to user space, counted by the shim."""

    def measure(self, on: bool = True) -> None:
        """Have :attr:`run_stats` tell times as well as counts, from now on. It costs two clock
        readings an exit, and two more for one that Python handles.

        >>> cpu.measure()
        >>> cpu.run_stats.guest_ns
        0
        """
        self.fileno()
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
