"""Which pages a guest wrote: dirty log, dirty ring (KVM API, "4.8 KVM_GET_DIRTY_LOG", "8.29
KVM_CAP_DIRTY_LOG_RING").

The log is a bitmap per memory slot. The ring is a queue per vCPU; a VM has one or the other.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from .. import ioctls
from ..errors import DirtyRingOverrunError, KvmpyError, UnsupportedError
from ..fd import gone
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd
from .dirty_pages import PAGES_PER_WORD, DirtyPages
from .guest import PAGE_SIZE, Region
from .regions import VmMemory
from .slots import GUEST_MEMFD, Slot

RING_ENTRY_SIZE: int = ffi.sizeof("struct kvm_dirty_gfn")
#: Entries copied at a time: the buffer lives as long as the ring.
HARVEST = 1024


class VmDirty(VmMemory):
    """Dirty tracking on the VM descriptor."""

    # -- the log

    def log_dirty(self, what: Slot | Region | int | None = None, on: bool = True) -> None:
        """Switch dirty logging of a slot or region, or (None) of all there are now but those with
        a guest_memfd, which KVM does not log. Host writes are never logged.

        >>> vm.log_dirty()
        >>> vm.get_dirty_log(0).count
        0
        """
        if what is not None:
            self.slots.of(what).dirty_logging = on
            return
        for slot in self.slots.values():
            if not slot.flags & GUEST_MEMFD:
                slot.dirty_logging = on

    def get_dirty_log(self, slot: Slot | Region | int) -> DirtyPages:
        """KVM_GET_DIRTY_LOG: the pages of a slot written since logging began or the last call;
        under :meth:`protect_dirty_log_manually`, since they were last cleared.

        Raises KvmIoctlError: ENOENT when the slot is not logged, ENXIO in a VM with a dirty ring.

        >>> vm.log_dirty(0)
        >>> vm.get_dirty_log(0)
        <DirtyPages 0 of 4096, gpa 0x0..0xffffff>
        """
        found = self.slots.of(slot)
        bitmap = bytearray(-(-found.pages // PAGES_PER_WORD) * 8)
        request = ffi.new("struct kvm_dirty_log *", {"slot": found.number})
        keep = request.dirty_bitmap = ffi.from_buffer(bitmap)
        ioctls.KVM_GET_DIRTY_LOG(self.fileno(), request, f"slot {found.number}")
        del keep
        return DirtyPages(bitmap, found.pages, found.gpa)

    def clear_dirty_log(
        self,
        slot: Slot | Region | int,
        pages: DirtyPages | None = None,
        *,
        first_page: int = 0,
        count: int | None = None,
    ) -> None:
        """KVM_CLEAR_DIRTY_LOG: pages of a slot count as clean, and KVM notes their next write.

        ``pages``: which, as :meth:`get_dirty_log` gave them for this slot; None for all.
        ``first_page`` and ``count`` choose a part of the slot, in pages of 4 KiB: ``first_page`` is
        a multiple of 64, and so is ``count`` unless the part ends with the slot.

        Raises ValueError for a part KVM cannot take, UnsupportedError without
        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2. Of use after :meth:`protect_dirty_log_manually`.

        >>> vm.protect_dirty_log_manually()
        >>> vm.log_dirty(0)
        >>> vm.clear_dirty_log(0, vm.get_dirty_log(0))
        >>> vm.clear_dirty_log(0, first_page=64, count=128)
        """
        found = self.slots.of(slot)
        number = _part(found, first_page, count)
        words = -(-number // PAGES_PER_WORD)
        if pages is None:
            bits: Any = bytes([0xFF]) * (8 * words)
        elif pages.pages != found.pages:
            raise ValueError(f"{pages!r} are not the pages of {found!r}")
        else:
            bits = pages.bitmap[first_page // 8 : first_page // 8 + 8 * words]
        request = ffi.new(
            "struct kvm_clear_dirty_log *",
            {"slot": found.number, "num_pages": number, "first_page": first_page},
        )
        keep = request.dirty_bitmap = ffi.from_buffer(bits)
        detail = f"slot {found.number}, pages {first_page}..{first_page + number - 1}"
        ioctls.KVM_CLEAR_DIRTY_LOG(self.fileno(), request, detail)
        del keep

    def protect_dirty_log_manually(self, on: bool = True, *, initially_set: bool = False) -> None:
        """KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: :meth:`get_dirty_log` no longer clears, and
        :meth:`clear_dirty_log` does, page by page as they are dealt with.

        ``initially_set``: all pages count as dirty when logging begins, so that beginning is fast
        and each page is protected when it is first cleared. For slots whose logging begins later.
        Raises UnsupportedError where KVM lacks what is asked.

        >>> vm.protect_dirty_log_manually(initially_set=True)
        >>> vm.log_dirty(0)
        >>> vm.get_dirty_log(0).count
        4096
        """
        capability = "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"
        flags = 0
        if on:
            flags = lib.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
            flags |= lib.KVM_DIRTY_LOG_INITIALLY_SET if initially_set else 0
        there = self.check_extension(capability)
        if not there or flags & ~there:
            what = "no manual dirty log" if not there else "no initially set dirty log"
            raise UnsupportedError(f"this KVM has {what} ({capability})", capability)
        self.enable_capability(capability, flags)

    # -- the ring

    def enable_dirty_ring(self, entries: int) -> None:
        """KVM_CAP_DIRTY_LOG_RING_ACQ_REL (or _RING): dirty pages go into a ring per vCPU, and there
        is no bitmap any longer. Before the first vCPU, and once only.

        ``entries``: a power of two from 256 up to what KVM says (65536 so far). KVM keeps some for
        itself, more with PML (kvm_intel), and may want 1024 for that.

        Raises ValueError for a number KVM cannot take, UnsupportedError without the capability,
        KvmIoctlError (EINVAL) when a vCPU exists.

        >>> with kvmpy.VM("1M") as other:
        ...     other.enable_dirty_ring(4096)
        ...     other.dirty_ring_entries
        4096
        """
        # The two differ on weakly ordered hosts alone; the newer name says what x86 always did.
        capability, there = "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", 0
        for capability in ("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "KVM_CAP_DIRTY_LOG_RING"):
            there = self.check_extension(capability)
            if there:
                break
        else:
            raise UnsupportedError(f"this KVM has no dirty ring ({capability})", capability)
        least, most = PAGE_SIZE // RING_ENTRY_SIZE, there // RING_ENTRY_SIZE
        if entries & (entries - 1) or not least <= entries <= most:
            raise ValueError(f"{entries} ring entries: a power of two from {least} to {most}")
        self.enable_capability(capability, entries * RING_ENTRY_SIZE)
        self.dirty_ring_entries = entries

    @property
    def dirty_ring_has_bitmap(self) -> bool:
        """Whether KVM can keep a bitmap beside the ring, for writes that no vCPU makes
        (KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP; x86 has none to log so far).

        >>> vm.dirty_ring_has_bitmap
        False
        """
        return bool(self.check_extension("KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP"))

    def reset_dirty_rings(self) -> int:
        """KVM_RESET_DIRTY_RINGS: KVM takes back the entries harvested from all rings, and notes
        the next write to their pages. Returns how many those were. (The bare ioctl would leave
        :meth:`DirtyRing.harvest` counting towards an overrun.)

        >>> with kvmpy.VM("1M", dirty_ring=4096) as other:
        ...     other.reset_dirty_rings()
        0
        """
        count = ioctls.KVM_RESET_DIRTY_RINGS(self.fileno())
        for vcpu in self._held_vcpus():
            if vcpu._dirty_ring is not None:
                vcpu._dirty_ring._given_back()
        return count

    def collect_dirty_rings(self) -> dict[int, DirtyPages]:
        """Harvest the rings of all vCPUs, reset them, and give the pages by slot number; only
        slots that have some. Entries of a slot deleted meanwhile are left out.

        >>> with kvmpy.VM("1M", dirty_ring=4096) as other:
        ...     other.collect_dirty_rings()
        {}
        """
        found: dict[int, list[int]] = {}
        for vcpu in self._held_vcpus():
            for number, offset in vcpu.dirty_ring.harvest():
                found.setdefault(number, []).append(offset)
        self.reset_dirty_rings()
        return {
            number: DirtyPages.of(_inside(offsets, slot.pages), slot.pages, slot.gpa)
            for number, offsets in found.items()
            if (slot := self.slots.get(number)) is not None
        }


def _inside(offsets: Iterable[int], pages: int) -> Iterator[int]:
    return (offset for offset in offsets if offset < pages)


def _part(slot: Slot, first_page: int, count: int | None) -> int:
    """How many pages from ``first_page`` on, checked against KVM's rules."""
    left = slot.pages - first_page
    if first_page % PAGES_PER_WORD or not 0 <= first_page < slot.pages:
        raise ValueError(
            f"first_page {first_page} is not a multiple of {PAGES_PER_WORD} in 0..{slot.pages - 1}"
        )
    if count is None:
        return left
    if not 0 < count <= left:
        raise ValueError(f"count {count} is not in 1..{left}, what {slot!r} has from there")
    if count % PAGES_PER_WORD and count != left:
        raise ValueError(
            f"count {count} is not a multiple of {PAGES_PER_WORD}, and the slot does not end there"
        )
    return count


class DirtyRing:
    """A vCPU's dirty ring: ``cpu.dirty_ring``.

    :meth:`harvest` may be called while the vCPU runs. A full ring ends the run with DirtyRingFull:
    harvest, ``vm.reset_dirty_rings()``, run again.

    >>> with kvmpy.VM("1M", dirty_ring=4096) as other:
    ...     other.vcpu().dirty_ring
    <DirtyRing of 4096 entries>
    """

    def __init__(self, shim: Any, entries: int):
        error = lib.shim_dirty_map(shim, entries)
        if error:
            raise OSError(-error, f"the dirty ring cannot be mapped: {os.strerror(-error)}")
        self._shim = shim  # the mapping is its
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._words = ffi.new(f"uint64_t[{2 * HARVEST}]")
        self._taken = 0  # since the last reset
        #: How many entries it has, those that KVM keeps for itself included.
        self.entries = entries

    def harvest(self) -> list[tuple[int, int]]:
        """Take what is new: ``(slot number, page offset in the slot)`` in the order KVM noted
        them. KVM has the entries back after :meth:`VM.reset_dirty_rings`.

        Raises DirtyRingOverrunError when the ring has lost pages; it is of no more use then.

        >>> with kvmpy.VM("1M", dirty_ring=4096) as other:
        ...     other.vcpu().dirty_ring.harvest()
        []
        """
        if self._process != os.getpid():
            raise gone("dirty ring", self._process)
        pages: list[tuple[int, int]] = []
        with self._lock:  # the position in the ring is one
            while True:
                count = lib.shim_dirty_harvest(self._shim, self._words, HARVEST)
                words = iter(ffi.unpack(self._words, 2 * count))
                pages.extend(zip(words, words, strict=True))
                if count < HARVEST:
                    break
            self._taken += len(pages)
            # KVM ends the run some entries before the ring is full. Where it did not, it has
            # written over the oldest.
            if self._taken >= self.entries:
                self._taken = self.entries
                raise DirtyRingOverrunError(
                    f"the dirty ring of {self.entries} entries has overrun: pages are lost, and "
                    "all may be dirty"
                )
            return pages

    def _given_back(self) -> None:
        if self._taken < self.entries:  # after an overrun KVM and we are out of step for good
            self._taken = 0

    def __repr__(self) -> str:
        return f"<DirtyRing of {self.entries} entries>"


class VcpuDirtyRing(VcpuFd):
    """The ring on the vCPU descriptor."""

    _dirty_ring: DirtyRing | None = None

    @property
    def dirty_ring(self) -> DirtyRing:
        """The vCPU's dirty ring. Raises KvmpyError in a VM without.

        >>> with kvmpy.VM("1M", dirty_ring=4096) as other:
        ...     other.vcpu().dirty_ring.entries
        4096
        """
        if self.closed:
            raise gone(self._what, self._process)
        if self._dirty_ring is None:
            if not self.vm.dirty_ring_entries:
                raise KvmpyError("this VM has no dirty ring: make it with VM(dirty_ring=4096)")
            self._dirty_ring = DirtyRing(self._shim, self.vm.dirty_ring_entries)
        return self._dirty_ring
