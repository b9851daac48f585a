"""Host memory for guests: mappings of the kinds that may back a region."""

from __future__ import annotations

import mmap
import os
import warnings
from typing import Any, Literal

from ..shim import address_of, ffi, lib

Backing = Literal["anonymous", "memfd", "hugetlb"]
HUGE_PAGE_SIZE = 2 << 20
#: Anonymous memory from this size on can have transparent huge pages. A kernel in it touches
#: megabytes, which then cost a fault for each 2 MiB; a small guest touches a few pages, and to
#: clear 2 MiB for each would take longer than it runs.
TRANSPARENT_FROM = 64 << 20
_MAP_NORESERVE = 0x4000
_MAP_HUGETLB = 0x40000


class HugePageFallbackWarning(UserWarning):
    """hugetlb memory was asked for and could not be had: ordinary pages back the guest."""


class Mapping(mmap.mmap):
    """A mapping that fork()ed children have zero pages for: they are not to share the guest's, nor
    to make the kernel copy them.
    """

    _unshared: Any = None

    def close(self) -> None:
        """Unmap it. Raises BufferError while a view of it is held.

        >>> from kvmpy.memory.mapping import Mapping
        >>> Mapping(-1, 4096).close()
        """
        try:
            if self._unshared is not None:
                ffi.release(self._unshared)  # first: the addresses may be another's in a moment
            super().close()
        except BufferError:
            keep_from_children(self)
            raise


def keep_from_children(mapping: Mapping) -> Mapping:
    """Have it so. Raises OSError where the kernel will not.

    >>> from kvmpy.memory.mapping import Mapping, keep_from_children
    >>> keep_from_children(Mapping(-1, 4096)).close()
    """
    unshared = lib.shim_unshare(ffi.cast("void *", address_of(mapping)), len(mapping))
    if unshared == ffi.NULL:
        raise OSError("the memory cannot be kept from child processes")
    mapping._unshared = ffi.gc(unshared, lib.shim_share)
    return mapping


def map_memory(size: int, backing: Backing) -> tuple[Mapping, int, Backing, int | None]:
    """A mapping; where in it the memory's ``size`` bytes begin; what really backs it; a memfd's
    descriptor. Raises OSError, OverflowError or ValueError when the host has none.

    >>> kvmpy.memory.mapping.map_memory(4096, "anonymous")
    (<Mapping ...>, 0, 'anonymous', None)
    """
    mapping, begin, actual, fd = _map(size, backing)
    return keep_from_children(mapping), begin, actual, fd


def _map(size: int, backing: Backing) -> tuple[Mapping, int, Backing, int | None]:
    if backing == "memfd":
        fd = os.memfd_create("kvmpy-guest", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            return Mapping(fd, size, mmap.MAP_SHARED), 0, "memfd", fd
        except BaseException:
            os.close(fd)
            raise
    if backing == "hugetlb":
        try:
            if size % HUGE_PAGE_SIZE:
                raise OSError(f"{size:#x} bytes are not a multiple of 2 MiB")
            # Reserved, so that a pool that is too small fails here and not in the guest's face.
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB
            return Mapping(-1, size, flags=flags), 0, "hugetlb", None
        except OSError as error:
            warnings.warn(
                f"no hugetlb pages for {size >> 20} MiB of guest memory ({error}): using ordinary "
                "pages; reserve some with 'sysctl vm.nr_hugepages=N'",
                HugePageFallbackWarning,
                stacklevel=5,
            )
    return (*_map_anonymous(size), "anonymous", None)


def _map_anonymous(size: int) -> tuple[Mapping, int]:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    if size < TRANSPARENT_FROM:
        return Mapping(-1, size, flags=flags), 0
    # KVM maps a huge page to the guest only where both addresses are multiples of its size, and
    # mmap() before Linux 6.7 gives any page's: so one huge page more, never touched.
    mapping = Mapping(-1, size + HUGE_PAGE_SIZE, flags=flags)
    return mapping, -address_of(mapping) % HUGE_PAGE_SIZE
