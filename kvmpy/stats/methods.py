"""The property by which a VM and a vCPU have KVM's statistics (:mod:`kvmpy.binary_stats`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import ioctls

if TYPE_CHECKING:
    from .kvm import Stats


class StatsMethods:
    """The part of a VM or vCPU that has statistics."""

    _stats: Stats | None = None

    if TYPE_CHECKING:

        def fileno(self) -> int: ...

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
