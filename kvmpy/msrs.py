"""Model-specific registers of a vCPU, by number or name (KVM API, "4.18 KVM_GET_MSRS")."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import _native, ioctls
from .errors import ClosedError, KvmIoctlError

_ffi = _native.ffi

#: Names of SDM vol. 4 and APM vol. 2, without IA32_ and MSR_.
NAMES: dict[str, int] = {
    "TSC": 0x10, "APIC_BASE": 0x1B, "FEATURE_CONTROL": 0x3A, "TSC_ADJUST": 0x3B,
    "SPEC_CTRL": 0x48, "MTRRCAP": 0xFE, "ARCH_CAPABILITIES": 0x10A,
    "SYSENTER_CS": 0x174, "SYSENTER_ESP": 0x175, "SYSENTER_EIP": 0x176,
    "MISC_ENABLE": 0x1A0, "DEBUGCTL": 0x1D9, "PAT": 0x277, "MTRR_DEF_TYPE": 0x2FF,
    "TSC_DEADLINE": 0x6E0, "XSS": 0xDA0,
    "KVM_WALL_CLOCK_NEW": 0x4B564D00, "KVM_SYSTEM_TIME_NEW": 0x4B564D01,
    "KVM_ASYNC_PF_EN": 0x4B564D02, "KVM_STEAL_TIME": 0x4B564D03, "KVM_PV_EOI_EN": 0x4B564D04,
    "EFER": 0xC0000080, "STAR": 0xC0000081, "LSTAR": 0xC0000082, "CSTAR": 0xC0000083,
    "SFMASK": 0xC0000084, "FS_BASE": 0xC0000100, "GS_BASE": 0xC0000101,
    "KERNEL_GS_BASE": 0xC0000102, "TSC_AUX": 0xC0000103, "TSC_RATIO": 0xC0000104,
    "SYSCFG": 0xC0010010, "HWCR": 0xC0010015, "VM_CR": 0xC0010114, "VM_HSAVE_PA": 0xC0010117,
}  # fmt: skip
_BY_INDEX = {index: name for name, index in NAMES.items()}

#: KVM takes fewer than MAX_IO_MSRS = 256 entries at once.
CHUNK = 255

Key = int | str


def index_of(key: Key) -> int:
    """The number of an MSR given by number or name. Raises KeyError for an unknown name."""
    if isinstance(key, int):
        if not 0 <= key < 1 << 32:
            raise KeyError(f"MSR number {key:#x} is not in 0..2**32-1")
        return key
    name = key.upper().removeprefix("MSR_").removeprefix("IA32_")
    try:
        return NAMES[name]
    except KeyError:
        raise KeyError(f"no MSR named {key!r} is known here: use its number") from None


def name_of(index: int) -> str:
    """The name of an MSR, or its number in hex."""
    return _BY_INDEX.get(index, f"{index:#x}")


class Msrs:
    """``cpu.msrs["LSTAR"]``, ``cpu.msrs[0x10] = 0``; :meth:`read` and :meth:`write` in bulk.

    An MSR that KVM refuses raises KvmIoctlError naming it.
    """

    __slots__ = ("_settled_fd",)

    def __init__(self, fd: Callable[[], Callable[[], int] | None]):
        self._settled_fd = fd  # weak: a vCPU that nobody holds is to go at once

    def __getitem__(self, key: Key) -> int:
        index = index_of(key)
        return self.read([index])[index]

    def __setitem__(self, key: Key, value: int) -> None:
        self.write({key: value})

    def read(self, keys: Iterable[Key]) -> dict[int, int]:
        """Values by number."""
        result: dict[int, int] = {}
        wanted = [index_of(key) for key in keys]
        for at in range(0, len(wanted), CHUNK):
            table = _table([(index, 0) for index in wanted[at : at + CHUNK]])
            self._transfer(ioctls.KVM_GET_MSRS, table)
            result.update((entry.index, entry.data) for entry in table.entries)
        return result

    def write(self, values: Mapping[int, int] | Mapping[str, int] | Mapping[Key, int]) -> None:
        """Set all, in order. Those before a refused one are set."""
        items = [(index_of(key), value) for key, value in values.items()]
        for index, value in items:
            if not 0 <= value < 1 << 64:
                raise ValueError(f"MSR {name_of(index)} = {value:#x}: not in 0..2**64-1")
        for at in range(0, len(items), CHUNK):
            self._transfer(ioctls.KVM_SET_MSRS, _table(items[at : at + CHUNK]))

    def _fd(self) -> int:
        settled_fd = self._settled_fd()
        if settled_fd is None:
            raise ClosedError("the vCPU is gone")
        return settled_fd()

    def _transfer(self, ioctl: ioctls.Ioctl, table: Any) -> None:
        # The result is how many were processed: fewer is no errno, but names the one refused.
        done = ioctl(self._fd(), table)
        if done < table.nmsrs:
            refused = table.entries[done]
            raise KvmIoctlError(
                ioctl.name,
                errno.EINVAL,
                f"MSR {name_of(refused.index)} ({refused.index:#x}) = {refused.data:#x}"
                if "SET" in ioctl.name
                else f"MSR {name_of(refused.index)} ({refused.index:#x})",
            )


def _table(items: list[tuple[int, int]]) -> Any:
    table = _ffi.new("struct kvm_msrs *", {"entries": len(items)})
    table.nmsrs = len(items)
    for entry, (index, value) in zip(table.entries, items, strict=True):
        entry.index, entry.data = index, value
    return table
