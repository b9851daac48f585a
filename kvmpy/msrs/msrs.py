"""Model-specific registers, by number or name (KVM API, "4.18 KVM_GET_MSRS").

``cpu.msrs`` are a vCPU's, ``kvm.feature_msrs`` the host's. Names: :mod:`kvmpy.msrs.table`; what
values mean: :func:`describe`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import ioctls
from ..errors import ClosedError, MsrError, UnsupportedError
from ..ioctls.capabilities import Asked
from ..ioctls.growing import read_table
from ..shim import ffi

#: KVM takes fewer than MAX_IO_MSRS = 256 entries at once.
CHUNK = 255

Key = int | str


def index_of(key: Key) -> int:
    """The number of an MSR given by number or name. Raises KeyError, with close matches, for an
    unknown name.

    >>> hex(kvmpy.msrs.index_of("IA32_LSTAR"))
    '0xc0000082'
    """
    if isinstance(key, int):
        if not 0 <= key < 1 << 32:
            raise KeyError(f"MSR number {key:#x} is not in 0..2**32-1")
        return key
    from . import table

    index = table.find(key)
    if index is None:
        close = table.close_to(key)
        hint = f": did you mean {' or '.join(close)}?" if close else ": use its number"
        raise KeyError(f"no MSR named {key!r} is known here{hint}")
    return index


def name_of(index: int) -> str:
    """The name of an MSR, or its number in hex.

    >>> kvmpy.msrs.name_of(0x10), kvmpy.msrs.name_of(0x1234)
    ('TSC', '0x1234')
    """
    from . import table

    row = table.table().get(index)
    return row.name if row else f"{index:#x}"


def names() -> tuple[str, ...]:
    """All names known here, by number.

    >>> kvmpy.msrs.names()[0]
    'P5_MC_ADDR'
    """
    from . import table

    return tuple(row.name for _, row in sorted(table.table().items()))


def describe(key: Key, value: int) -> str:
    """An MSR and its value as text: the flags of EFER, the selectors of STAR, the memory types
    of PAT ... and of others the number.

    >>> kvmpy.msrs.describe("EFER", 0xD01)
    'EFER 0xd01: SCE LME LMA NXE'
    """
    from .meanings import meaning

    index = index_of(key)
    text = meaning(index, value)
    return f"{name_of(index)} {value:#x}" + (f": {text}" if text else "")


class _Reader:
    """Reads MSRs through KVM_GET_MSRS on some descriptor."""

    __slots__ = ()

    def _fd(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: Key) -> int:
        index = index_of(key)
        return self.read([index])[index]

    def read(self, keys: Iterable[Key]) -> dict[int, int]:
        """Values by number, in the order given. Raises MsrError for one that KVM refuses.

        >>> cpu.msrs.read(["EFER", 0x1B]).keys() == {0xC0000080, 0x1B}
        True
        """
        result: dict[int, int] = {}
        wanted = [index_of(key) for key in keys]
        for at in range(0, len(wanted), CHUNK):
            table = _table([(index, 0) for index in wanted[at : at + CHUNK]])
            done = ioctls.KVM_GET_MSRS(self._fd(), table)
            # The result is how many were processed: fewer is no errno, but tells the one refused.
            if done < table.nmsrs:
                index = wanted[at + done]
                raise MsrError("KVM_GET_MSRS", index, name_of(index), at + done)
            result.update((entry.index, entry.data) for entry in table.entries)
        return result

    def describe(self, key: Key) -> str:
        """One of them with its value, as text.

        >>> cpu.msrs.describe("PAT")
        'PAT 0x7040600070406: WB WT UC- UC WB WT UC- UC'
        """
        return describe(key, self[key])


class Msrs(_Reader):
    """``cpu.msrs["LSTAR"]``, ``cpu.msrs[0x10] = 0``; :meth:`read` and :meth:`write` in bulk.

    An MSR that KVM refuses raises MsrError, which names it.

    >>> cpu.msrs["LSTAR"] = 0x1000
    >>> cpu.msrs[0xC0000082]
    4096
    """

    __slots__ = ("_settled_fd",)

    def __init__(self, fd: Callable[[], Callable[[], int] | None]):
        self._settled_fd = fd  # weak: a vCPU that nobody holds is to go at once

    def __setitem__(self, key: Key, value: int) -> None:
        self.write({key: value})

    def write(self, values: Mapping[int, int] | Mapping[str, int] | Mapping[Key, int]) -> None:
        """Set all, in order. Those before a refused one are set. Raises MsrError for that one,
        ValueError, before anything is written, for a value that is not in 0..2**64-1.

        >>> cpu.msrs.write({"STAR": 0x23_0010 << 32, "LSTAR": 0x1000})
        """
        items = [(index_of(key), value) for key, value in values.items()]
        for index, value in items:
            if not 0 <= value < 1 << 64:
                raise ValueError(f"MSR {name_of(index)} = {value:#x}: not in 0..2**64-1")
        for at in range(0, len(items), CHUNK):
            table = _table(items[at : at + CHUNK])
            done = ioctls.KVM_SET_MSRS(self._fd(), table)
            if done < table.nmsrs:
                index, value = items[at + done]
                raise MsrError("KVM_SET_MSRS", index, name_of(index), at + done, value)

    def _fd(self) -> int:
        settled_fd = self._settled_fd()
        if settled_fd is None:
            raise ClosedError("the vCPU is gone")
        return settled_fd()


class FeatureMsrs(_Reader):
    """``kvm.feature_msrs["ARCH_CAPABILITIES"]``; iteration gives the numbers that KVM lists.

    Reading raises MsrError for one that is not a feature MSR, UnsupportedError if
    KVM_CAP_GET_MSR_FEATURES is missing.

    >>> len(kvm.feature_msrs.read(kvm.feature_msrs)) == len(kvm.feature_msr_indices())
    True
    """

    __slots__ = ("_kvm",)

    def __init__(self, kvm: KvmMsrs):
        self._kvm = kvm

    def __iter__(self) -> Iterator[int]:
        self._fd()
        return iter(self._kvm.feature_msr_indices())

    def names(self) -> tuple[str, ...]:
        """The names of those that KVM lists.

        >>> kvm.feature_msrs.names() == tuple(kvmpy.msrs.name_of(i) for i in kvm.feature_msrs)
        True
        """
        return tuple(name_of(index) for index in self)

    def _fd(self) -> int:
        if not self._kvm.check_extension("KVM_CAP_GET_MSR_FEATURES"):
            raise UnsupportedError(
                "this KVM has no feature MSRs to read: KVM_CAP_GET_MSR_FEATURES is missing "
                "(Linux 4.17 and later have it)",
                "KVM_CAP_GET_MSR_FEATURES",
            )
        return self._kvm.fileno()

    def __repr__(self) -> str:
        try:
            values = self.read(self)
        except (ClosedError, UnsupportedError) as error:
            return f"<feature MSRs: {error}>"
        return "\n".join(["<feature MSRs", *(describe(*item) for item in values.items())]) + ">"


def _table(items: list[tuple[int, int]]) -> Any:
    table = ffi.new("struct kvm_msrs *", {"entries": len(items)})
    table.nmsrs = len(items)
    for entry, (index, value) in zip(table.entries, items, strict=True):
        entry.index, entry.data = index, value
    return table


def _indices(ioctl: ioctls.Ioctl, fd: int) -> tuple[int, ...]:
    table = read_table(ioctl, fd)
    return tuple(table.indices[i] for i in range(table.nmsrs))


class KvmMsrs(Asked):
    """MSRs on /dev/kvm."""

    @functools.cached_property
    def _listed_msrs(self) -> tuple[int, ...]:
        return self.msr_indices()

    def msr_indices(self) -> tuple[int, ...]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that make up a vCPU's state here.

        >>> 0x10 in kvm.msr_indices()
        True
        """
        return _indices(ioctls.KVM_GET_MSR_INDEX_LIST, self.fileno())

    def feature_msr_indices(self) -> tuple[int, ...]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that describe what the host can virtualize.

        >>> isinstance(kvm.feature_msr_indices(), tuple)
        True
        """
        return _indices(ioctls.KVM_GET_MSR_FEATURE_INDEX_LIST, self.fileno())

    @property
    def feature_msrs(self) -> FeatureMsrs:
        """Feature MSRs by number or name: what this host's KVM can virtualize, read only
        (KVM API, "4.18 KVM_GET_MSRS", on the system descriptor).

        Reading raises UnsupportedError if KVM_CAP_GET_MSR_FEATURES is missing.

        >>> "BIOS_SIGN_ID" in kvm.feature_msrs.names()
        True
        """
        return FeatureMsrs(self)
