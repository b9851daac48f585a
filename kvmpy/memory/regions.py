"""Guest memory on the descriptors: slots, guest_memfds, attributes, shadow pages, pre-faulting."""

from __future__ import annotations

import errno
import weakref
from typing import TYPE_CHECKING

from .. import ioctls
from ..errors import GuestMemoryError
from ..ioctls import capabilities
from ..shim import address_of, ffi, lib
from ..vcpu_fd import VcpuFd
from ..vm_fd import VmFd
from .guest import PAGE_SIZE, parse_size
from .guest_memfd import GuestMemfd
from .slots import GUEST_MEMFD, Binding, Slot, Slots

if TYPE_CHECKING:
    from typing_extensions import Buffer


class VmMemory(VmFd):
    """Guest memory on the VM descriptor."""

    #: The memory slots by number.
    slots: Slots
    _guest_memfds: weakref.WeakSet[GuestMemfd]

    def set_memory_region(
        self,
        slot: int,
        gpa: int,
        size: int,
        hva: int | Buffer,
        flags: int = 0,
        *,
        guest_memfd: GuestMemfd | int | None = None,
        guest_memfd_offset: int = 0,
    ) -> Slot | None:
        """KVM_SET_USER_MEMORY_REGION, or ...REGION2 with a guest_memfd: make, move, reflag or
        (``size`` 0) delete a memory slot by hand; ``vm.memory.add`` is the comfortable way.

        ``slot``: its number, below KVM_CAP_NR_MEMSLOTS; bits 16 and up choose the address space.
        ``gpa``, ``size``: multiples of 4 KiB, bytes. ``hva``: the host virtual address, or a
        writable buffer that begins at a page; a buffer (an mmap, say) is kept mapped for as long
        as the slot exists, an address is the caller's to keep. ``flags``: KVM_MEM_*.
        ``guest_memfd``, ``guest_memfd_offset``: where the slot's private memory is; such a slot
        can only be deleted again.

        Returns the Slot, or None for a deletion. What it makes is not part of ``vm.memory``.
        Raises GuestMemoryError for a slot that backs a region of ``vm.memory``, UnsupportedError
        without KVM_CAP_USER_MEMORY2 (guest_memfd only), KvmIoctlError when KVM refuses.

        >>> import mmap
        >>> slot = vm.set_memory_region(7, 0x4000_0000, 4096, mmap.mmap(-1, 4096))
        >>> slot
        <Slot 7: gpa 0x40000000..0x40000fff>
        >>> vm.set_memory_region(7, 0x4000_0000, 0, 0)
        >>> slot.deleted
        True
        """
        held, address = _host_range(hva, size)
        if guest_memfd is not None:
            flags |= GUEST_MEMFD
        binding = Binding(slot, gpa, size, address, flags, guest_memfd, guest_memfd_offset)
        known = self.slots.get(slot)
        if known is None and size:
            return self.slots.make(binding, held=held)
        if held is not None:
            held.release()  # an existing slot keeps the mapping it began with
        if known is None:
            binding.set(self.fileno())  # nothing to delete: KVM says so
            return None
        return self._change_slot(known, binding)

    def _change_slot(self, slot: Slot, binding: Binding) -> Slot | None:
        if slot.region is not None:
            raise GuestMemoryError(f"{slot!r} is {slot.region!r}: use its own methods")
        if binding.size == 0:
            self.slots.drop(slot)
            return None
        binding.set(self.fileno())
        slot._binding = binding
        return slot

    def _close_memory(self) -> None:
        self.slots.close()
        for memfd in list(self._guest_memfds):
            memfd.close()

    @property
    def nr_mmu_pages(self) -> int:
        """KVM_GET_NR_MMU_PAGES: shadow pages KVM may use for this VM; KVM_SET_NR_MMU_PAGES, at
        least 64. Only guests whose paging is shadowed (no EPT or NPT, nested ones) need them.

        From Linux 6.4 on it can be set and not read: KvmIoctlError, ENOTTY.

        >>> vm.nr_mmu_pages = 1024
        """
        return ioctls.KVM_GET_NR_MMU_PAGES(self.fileno())

    @nr_mmu_pages.setter
    def nr_mmu_pages(self, pages: int) -> None:
        ioctls.KVM_SET_NR_MMU_PAGES(self.fileno(), pages, f"{pages} pages")

    # -- private memory

    def create_guest_memfd(self, size: int | str, flags: int = 0) -> GuestMemfd:
        """KVM_CREATE_GUEST_MEMFD: memory that belongs to this VM and is nobody else's to map.

        ``size`` in bytes, or "64K"; ``flags``: GUEST_MEMFD_FLAG_*, of which
        ``check_extension("KVM_CAP_GUEST_MEMFD_FLAGS")`` tells those that are there.

        Raises UnsupportedError without KVM_CAP_GUEST_MEMFD. On Linux 6.12 that is for VM types
        with private memory alone: KVM would make one for others too, and take it in no slot.

        >>> if vm.check_extension("KVM_CAP_GUEST_MEMFD"):
        ...     with vm.create_guest_memfd("64K") as memfd:
        ...         assert memfd.size == 65536
        """
        capabilities.require(self, "KVM_CAP_GUEST_MEMFD")
        memfd = GuestMemfd(self.fileno(), parse_size(size), flags)
        self._guest_memfds.add(memfd)  # each keeps the VM alive in the kernel
        return memfd

    @property
    def memory_attributes(self) -> int:
        """KVM_MEMORY_ATTRIBUTE_* that this VM's pages can have; 0 for none.

        >>> vm.memory_attributes in (0, kvmpy.guest_memfd.ATTRIBUTE_PRIVATE)
        True
        """
        return self.check_extension(lib.KVM_CAP_MEMORY_ATTRIBUTES)

    def set_memory_attributes(self, gpa: int, size: int, *, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: the guest's accesses to [gpa, gpa + size) go to the slot's
        guest_memfd (``private``) or to its host mapping.

        ``gpa``, ``size``: multiples of 4 KiB. Raises UnsupportedError without
        KVM_CAP_MEMORY_ATTRIBUTES, which needs a VM type with private memory.

        >>> if vm.memory_attributes:
        ...     vm.set_memory_attributes(0x10_0000, 0x1000, private=True)
        """
        request = ffi.new(
            "struct kvm_memory_attributes *",
            {
                "address": gpa,
                "size": size,
                "attributes": lib.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0,
            },
        )
        detail = f"gpa {gpa:#x}, size {size:#x}, {'private' if private else 'shared'}"
        ioctls.KVM_SET_MEMORY_ATTRIBUTES(self.fileno(), request, detail)


class VcpuMemory(VcpuFd):
    """Guest memory on the vCPU descriptor."""

    def pre_fault_memory(self, gpa: int, size: int) -> int:
        """KVM_PRE_FAULT_MEMORY: map [gpa, gpa + size) for the guest now, as its reads would later.

        ``gpa``, ``size``: multiples of 4 KiB. Goes on where signals interrupt it, having let
        Python handle them. Returns how many bytes were mapped: all of ``size``.

        Raises UnsupportedError without KVM_CAP_PRE_FAULT_MEMORY; KvmIoctlError: ENOENT outside
        all slots, EOPNOTSUPP where KVM shadows the guest's page tables.

        >>> if vm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
        ...     assert cpu.pre_fault_memory(0, 0x10000) == 0x10000
        """
        request = ffi.new("struct kvm_pre_fault_memory *", {"gpa": gpa, "size": size})
        ioctl = ioctls.KVM_PRE_FAULT_MEMORY
        while True:
            fd = self.fileno()
            result = ioctl.raw(fd, request)
            if result < 0 and -result not in (errno.EINTR, errno.EAGAIN):
                left = f"gpa {request.gpa:#x}, size {request.size:#x} still to do"
                raise ioctl.error(fd, -result, left)
            if result == 0 and request.size == 0:  # KVM counts gpa up and size down as it goes
                return size


def _host_range(hva: int | Buffer, size: int) -> tuple[memoryview | None, int]:
    """What keeps the host memory mapped, if we can, and its address."""
    if isinstance(hva, int):
        return None, hva
    view = memoryview(hva)
    if view.readonly or view.nbytes < size:
        view.release()
        raise ValueError(f"the buffer is read-only, or smaller than {size:#x} bytes")
    address = address_of(view)
    if address % PAGE_SIZE:
        view.release()
        raise ValueError(f"the buffer is at {address:#x}, not a multiple of {PAGE_SIZE}")
    return view, address
