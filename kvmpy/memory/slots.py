"""Memory slots: which guest physical range shows which host memory (KVM API, "4.35
KVM_SET_USER_MEMORY_REGION").

``vm.slots`` has them by number. A slot that backs a region of ``vm.memory`` moves and goes with
it; one made by :meth:`VM.set_memory_region` stands for itself.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..errors import ClosedError, GuestMemoryError, UnsupportedError
from ..shim import ffi, lib
from ..values import dataclass, replace
from .guest import PAGE_SIZE, Region

if TYPE_CHECKING:
    from ..vm_fd import VmFd
    from .guest import GuestMemory
    from .guest_memfd import GuestMemfd


LOG_DIRTY_PAGES: int = lib.KVM_MEM_LOG_DIRTY_PAGES
READONLY: int = lib.KVM_MEM_READONLY
GUEST_MEMFD: int = lib.KVM_MEM_GUEST_MEMFD


@dataclass(frozen=True)
class Binding:
    """What KVM was told of a slot: the arguments of KVM_SET_USER_MEMORY_REGION2."""

    number: int
    gpa: int
    size: int
    hva: int
    flags: int = 0
    guest_memfd: GuestMemfd | int | None = None
    guest_memfd_offset: int = 0

    def set(self, fd: int) -> None:
        """Tell KVM. ``size`` 0 deletes the slot."""
        detail = f"slot {self.number}, gpa {self.gpa:#x}, size {self.size:#x}"
        fields = {
            "slot": self.number,
            "flags": self.flags,
            "guest_phys_addr": self.gpa,
            "memory_size": self.size,
            "userspace_addr": self.hva,
        }
        if self.guest_memfd is None:
            request = ffi.new("struct kvm_userspace_memory_region *", fields)
            ioctls.KVM_SET_USER_MEMORY_REGION(fd, request, detail)
            return
        memfd = self.guest_memfd
        fields["guest_memfd"] = memfd if isinstance(memfd, int) else memfd.fileno()
        fields["guest_memfd_offset"] = self.guest_memfd_offset
        request = ffi.new("struct kvm_userspace_memory_region2 *", fields)
        ioctls.KVM_SET_USER_MEMORY_REGION2(fd, request, detail)


class Slot:
    """One memory slot of a VM.

    >>> vm.slots[0]
    <Slot 0: gpa 0x0..0xffffff>
    """

    def __init__(self, slots: Slots, binding: Binding, region: Region | None, held: Any):
        self._slots = slots
        self._binding = binding
        #: The region of guest memory behind it, or None.
        self.region = region
        # KVM writes to the host mapping for as long as the slot points there: it stays.
        self._held: memoryview | None = held

    @property
    def number(self) -> int:
        """KVM's number for it; bits 16 and up are the address space (1: SMM).

        >>> vm.slots[0].number
        0
        """
        return self._binding.number

    @property
    def gpa(self) -> int:
        """Guest physical address of its first byte.

        >>> vm.slots[0].gpa
        0
        """
        return self._binding.gpa

    @property
    def size(self) -> int:
        """Bytes.

        >>> vm.slots[0].size >> 20
        16
        """
        return self._binding.size

    @property
    def end(self) -> int:
        """The first guest physical address after it.

        >>> hex(vm.slots[0].end)
        '0x1000000'
        """
        return self.gpa + self.size

    @property
    def pages(self) -> int:
        """Its size in pages of 4 KiB.

        >>> vm.slots[0].pages
        4096
        """
        return self.size // PAGE_SIZE

    @property
    def hva(self) -> int:
        """Host virtual address of its first byte.

        >>> vm.slots[0].hva == vm.memory.regions[0].hva
        True
        """
        return self._binding.hva

    @property
    def flags(self) -> int:
        """KVM_MEM_*.

        >>> vm.slots[0].flags
        0
        """
        return self._binding.flags

    @property
    def guest_memfd(self) -> GuestMemfd | int | None:
        """The guest_memfd it was made with.

        >>> vm.slots[0].guest_memfd is None
        True
        """
        return self._binding.guest_memfd

    @property
    def deleted(self) -> bool:
        """Whether it has been deleted.

        >>> vm.slots[0].deleted
        False
        """
        return self._slots.get(self.number) is not self

    @property
    def dirty_logging(self) -> bool:
        """KVM_MEM_LOG_DIRTY_PAGES: KVM notes which pages the guest writes. Assigning switches it,
        while vCPUs run too; each time it goes on the log starts anew.

        >>> vm.slots[0].dirty_logging = True
        >>> vm.slots[0]
        <Slot 0: gpa 0x0..0xffffff, dirty logging>
        """
        return bool(self.flags & LOG_DIRTY_PAGES)

    @dirty_logging.setter
    def dirty_logging(self, on: bool) -> None:
        self._alive()
        if self.flags & GUEST_MEMFD:
            raise GuestMemoryError(f"{self!r}: KVM logs no writes to a slot with a guest_memfd")
        flags = self.flags | LOG_DIRTY_PAGES if on else self.flags & ~LOG_DIRTY_PAGES
        self._slots.change(self, flags=flags)

    @property
    def read_only(self) -> bool:
        """KVM_MEM_READONLY: the guest's writes come back as MmioWrite.

        KVM cannot switch it on a slot that exists: assigning deletes the slot and makes it anew,
        which loses its dirty log. A vCPU that runs meanwhile may find no memory there: stop it.
        Raises UnsupportedError without KVM_CAP_READONLY_MEM.

        >>> rom = vm.slots.of(vm.memory.add(0x4000_0000, "64K"))
        >>> rom.read_only = True
        >>> rom
        <Slot 1: gpa 0x40000000..0x4000ffff, read-only>
        """
        return bool(self.flags & READONLY)

    @read_only.setter
    def read_only(self, on: bool) -> None:
        self._alive()
        if on:
            self._slots.check_read_only()
        flags = self.flags | READONLY if on else self.flags & ~READONLY
        self._slots.renew(self, flags=flags)
        if self.region is not None:
            self.region.read_only = on
            for follower in self._slots.memory._followers:
                follower.changed(self.region)

    def move(self, gpa: int) -> None:
        """Show the same host memory at ``gpa``, a multiple of 4 KiB, instead.

        A region of guest memory moves with its slot, in all VMs that share it. Raises
        GuestMemoryError where other memory is.

        >>> slot = vm.slots.of(vm.memory.add(0x4000_0000, "64K"))
        >>> slot.move(0x5000_0000)
        >>> slot.region
        <Region 0x50000000..0x5000ffff, anonymous>
        """
        self._alive()
        memory = self._slots.memory
        if self.region is not None and self.region in memory.regions:
            memory.move(self.region, gpa)
        else:
            self._slots.change(self, gpa=gpa)

    def delete(self) -> None:
        """Take it from the guest, which finds MMIO there from then on.

        A region of guest memory goes with its slot, in all VMs that share it.

        >>> slot = vm.slots.of(vm.memory.add(0x4000_0000, "64K"))
        >>> slot.delete()
        >>> vm.memory.contains(0x4000_0000)
        False
        """
        self._alive()
        memory = self._slots.memory
        if self.region is not None and self.region in memory.regions:
            memory.remove(self.region)
        else:
            self._slots.drop(self)

    def _alive(self) -> None:
        if self.deleted:
            raise ClosedError(f"{self!r} is used")

    def __repr__(self) -> str:
        marks = ", read-only" if self.read_only else ""
        marks += ", dirty logging" if self.dirty_logging else ""
        marks += ", guest_memfd" if self.flags & GUEST_MEMFD else ""
        marks += ", deleted" if self.deleted else ""
        return f"<Slot {self.number}: gpa {self.gpa:#x}..{self.end - 1:#x}{marks}>"


class Slots(Mapping[int, Slot]):
    """The memory slots of a VM by number.

    >>> list(vm.slots)
    [0]
    """

    def __init__(self, vm: VmFd, memory: GuestMemory):
        self._vm = weakref.ref(vm)  # the memory has this object, and would keep the VM
        self.memory = memory
        self._slots: dict[int, Slot] = {}
        self._lowest_free = 0

    def __getitem__(self, number: int) -> Slot:
        return self._slots[number]

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._slots))

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, number: object) -> bool:
        return number in self._slots

    def at(self, gpa: int) -> Slot | None:
        """The slot that holds a guest physical address, or None.

        >>> vm.slots.at(0x1000)
        <Slot 0: gpa 0x0..0xffffff>
        """
        found = (slot for slot in self._slots.values() if slot.gpa <= gpa < slot.end)
        return next(found, None)

    def of(self, what: Slot | Region | int) -> Slot:
        """The slot of a region of this VM's memory, or with a number. Raises GuestMemoryError if
        there is none.

        >>> vm.slots.of(vm.memory.regions[0]).number
        0
        """
        for slot in self._slots.values():
            if slot is what or (slot.region is what is not None) or slot.number == what:
                return slot
        raise GuestMemoryError(f"{what!r} is not a memory slot of this VM")

    # -- the memory's adopter

    def add(self, region: Region) -> None:
        """A slot for a region of guest memory, under the lowest free number."""
        if region.read_only:
            self.check_read_only()
        flags = READONLY if region.read_only else 0
        free = (n for n in itertools.count(self._lowest_free) if n not in self._slots)
        number = next(free)
        self.make(Binding(number, region.gpa, region.size, region.hva, flags), region=region)
        self._lowest_free = number + 1

    def move(self, region: Region, gpa: int) -> None:
        """The region's slot to ``gpa``."""
        self.change(self.of(region), gpa=gpa)

    def remove(self, region: Region) -> None:
        """The region's slot is deleted."""
        self.drop(self.of(region))

    # -- what the ioctl changes

    def make(
        self, binding: Binding, *, region: Region | None = None, held: memoryview | None = None
    ) -> Slot:
        """KVM_SET_USER_MEMORY_REGION with a new number."""
        if region is not None:
            held = region._hold()
        try:
            binding.set(self._fd())
        except BaseException:
            if held is not None:
                held.release()
            raise
        slot = self._slots[binding.number] = Slot(self, binding, region, held)
        return slot

    def change(self, slot: Slot, **changes: int) -> None:
        """Move a slot or switch its dirty logging, in place."""
        binding = replace(slot._binding, **changes)
        binding.set(self._fd())
        slot._binding = binding

    def renew(self, slot: Slot, *, flags: int) -> None:
        """Delete a slot and make it anew with other flags; if KVM refuses, as it was."""
        old, fd = slot._binding, self._fd()
        if flags == old.flags:
            return
        new = replace(old, flags=flags)
        _deleted(old).set(fd)
        try:
            new.set(fd)
        except BaseException:
            old.set(fd)
            raise
        slot._binding = new

    def drop(self, slot: Slot) -> None:
        """Delete a slot; its host mapping may go then."""
        _deleted(slot._binding).set(self._fd())
        self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """The slot has been deleted."""
        del self._slots[slot.number]
        self._lowest_free = min(self._lowest_free, slot.number)
        if slot._held is not None:
            slot._held.release()

    def close(self) -> None:
        """The VM is gone, and with it what pointed to host memory."""
        for slot in list(self._slots.values()):
            self.forget(slot)

    def check_read_only(self) -> None:
        """Raises UnsupportedError where KVM has no read-only slots."""
        vm = self._vm()
        if vm is not None and not vm.check_extension(lib.KVM_CAP_READONLY_MEM):
            raise UnsupportedError("this KVM has no read-only memory slots", "KVM_CAP_READONLY_MEM")

    def _fd(self) -> int:
        vm = self._vm()
        if vm is None:
            raise ClosedError("the VM is gone")
        return vm.fileno()

    def __repr__(self) -> str:
        return f"<{len(self)} memory slots: {', '.join(repr(self[n]) for n in self)}>"


def _deleted(old: Binding) -> Binding:
    return replace(old, size=0, flags=0, guest_memfd=None, guest_memfd_offset=0)
