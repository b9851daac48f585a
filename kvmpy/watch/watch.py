"""A watch: reads what the vCPUs of machines have done, again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from ..fd import Owner
from ..host.topology import format_cpu_list
from ..shim import ffi, lib
from ..stats.kvm import Schema, StatsFormatError
from .find import MachineInfo, Peer, PeerError, _NotOursError, listed
from .proc import ThreadFiles, ThreadTimes
from .samples import MachineSample, Reading, Sample, VcpuSample, difference

#: Seconds until a process that did not tell of its machine is asked again.
_ASK_AGAIN = 30.0
_NO_STATS = "exits inside KVM, poll: KVM gives no statistics (KVM_GET_STATS_FD, Linux 5.14)"
_NO_DELAY = "steal: the kernel has no schedstat (CONFIG_SCHED_INFO); wait includes it"


class _Vcpu:
    """One vCPU being read."""

    def __init__(self, peer: Peer, number: int):
        self._pid = peer.info.pid
        self._counters = peer.counters(number)
        self._files: ThreadFiles | None = None
        self._read: Callable[[int, int], bytes] | None = None
        if peer.stats:
            fd = peer.stats[number]
            self._read = lambda size, offset: os.pread(fd, size, offset)
            self._schema = Schema(self._read)
            self._growing = [
                (name, descriptor.offset // 8)
                for name, descriptor in self._schema.descriptors.items()
                if descriptor.kind == "cumulative" and descriptor.size == 1
            ]
        self.last = self.read()

    def read(self) -> Reading:
        """Its state now."""
        seen = self._counters
        thread = seen.thread
        times = self._times(thread)
        return Reading(
            time.monotonic_ns(), seen.id, thread, seen.runs, seen.running,
            tuple(ffi.unpack(seen.exits, lib.SHIM_EXIT_REASONS)),
            tuple(ffi.unpack(seen.handling_ns, lib.SHIM_EXIT_REASONS)),
            times, None if times is None else _allowed(thread), self._statistics(),
        )  # fmt: skip

    def sample(self) -> VcpuSample:
        """What it did since the last time, or since it is being watched."""
        before, self.last = self.last, self.read()
        return difference(before, self.last)

    def _times(self, thread: int) -> ThreadTimes | None:
        if self._files is not None and self._files.thread != thread:
            self._files.close()
            self._files = None
        if self._files is None and thread > 0:
            try:
                self._files = ThreadFiles(self._pid, thread)
            except (FileNotFoundError, ProcessLookupError):
                return None
        return None if self._files is None else self._files.read()

    def _statistics(self) -> Mapping[str, int] | None:
        if self._read is None:
            return None
        words = self._schema.words(self._read)
        return {name: words[at] for name, at in self._growing}

    def close(self) -> None:
        if self._files is not None:
            self._files.close()
        self._files = None


def _allowed(thread: int) -> str | None:
    try:
        return format_cpu_list(os.sched_getaffinity(thread))
    except OSError:  # ended just now
        return None


class _Watched:
    """One machine being read. Raises PeerError."""

    def __init__(self, name: str):
        self.peer = Peer(name)
        self._vcpus: list[_Vcpu] = []
        try:
            for number in range(self.peer.info.cpus):
                self._vcpus.append(_Vcpu(self.peer, number))
        except StatsFormatError as error:
            self.close()
            raise PeerError(str(error)) from None
        except BaseException:
            self.close()
            raise
        self._at = time.monotonic()

    def sample(self) -> MachineSample:
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        vcpus = sorted((vcpu.sample() for vcpu in self._vcpus), key=lambda sample: sample.id)
        last = [vcpu.last for vcpu in self._vcpus]
        notes = []
        if any(reading.kvm is None for reading in last):
            notes.append(_NO_STATS)
        if any(reading.times is not None and reading.times.delay is None for reading in last):
            notes.append(_NO_DELAY)
        return MachineSample(self.peer.info, seconds, tuple(vcpus), tuple(notes))

    def close(self) -> None:
        for vcpu in self._vcpus:
            vcpu.close()
        self.peer.close()


class Watch(Owner):
    """Watches all machines of this user's processes, those of process ``pid``, or the one of
    ``socket`` (:attr:`MachineInfo.socket`). Machines may come and go.

    A vCPU is some 10 to 50 us of reading a sample. While it is watched, a machine that is closed
    keeps KVM's part of its VM until the next :meth:`sample`.

    Raises OSError without /proc/net/unix.

    >>> import os, time
    >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
    ...     m.start()
    ...     with kvmpy.watch.Watch(os.getpid()) as watch:
    ...         time.sleep(0.1)
    ...         vcpu, = watch.sample().machines[0].vcpus
    >>> vcpu.state, vcpu.pcpu in os.sched_getaffinity(0)
    ('running', True)
    """

    def __init__(self, pid: int | None = None, *, socket: str | None = None):
        self._pid, self._socket = pid, socket
        self._watched: dict[str, _Watched] = {}
        self._refused: dict[str, tuple[float, str]] = {}
        self._look()

    def _look(self) -> None:
        """Find machines that are new."""
        now = time.monotonic()
        found = [
            (pid, name)
            for pid, name in listed()
            if self._pid in (None, pid) and self._socket in (None, name)
        ]
        names = {name for _, name in found}
        self._refused = {n: refusal for n, refusal in self._refused.items() if n in names}
        for _, name in found:
            if name in self._watched or now < self._refused.get(name, (now, ""))[0]:
                continue
            try:
                self._watched[name] = _Watched(name)
                self._refused.pop(name, None)
            except (PeerError, OSError) as error:
                reason = "" if isinstance(error, _NotOursError) else str(error)
                self._refused[name] = (now + _ASK_AGAIN, reason)

    def sample(self) -> Sample:
        """What was done since the last sample, or since the machine was found.

        >>> kvmpy.watch.Watch(socket="no such machine").sample().machines
        ()
        """
        ended: list[MachineInfo] = []
        for name, watched in list(self._watched.items()):
            if watched.peer.ended:
                ended.append(self._watched.pop(name).peer.info)
                watched.close()
        samples = [watched.sample() for watched in self._watched.values()]
        known = set(self._watched)
        self._look()
        samples += [self._watched[name].sample() for name in set(self._watched) - known]
        refused = {
            int(name.split("/")[1]): text for name, (_, text) in self._refused.items() if text
        }
        samples.sort(key=lambda machine: (machine.pid, machine.info.socket))
        return Sample(time.time(), tuple(samples), tuple(ended), refused)

    @property
    def machines(self) -> tuple[MachineInfo, ...]:
        """The machines being watched.

        >>> kvmpy.watch.Watch(socket="no such machine").machines
        ()
        """
        infos = (watched.peer.info for watched in self._watched.values())
        return tuple(sorted(infos, key=lambda info: (info.pid, info.socket)))

    def close(self) -> None:
        """Let go of all machines.

        >>> kvmpy.watch.Watch(socket="no such machine").close()
        """
        while self._watched:
            self._watched.popitem()[1].close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
