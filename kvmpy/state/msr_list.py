"""Which MSRs belong to a vCPU's state, and their transfer in bulk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .. import ioctls
from ..cpuid.cpuid import Cpuid
from ..msrs.msrs import CHUNK
from ..shim import ffi

TSC: Final = 0x10
TSC_DEADLINE: Final = 0x6E0
MCG_CAP: Final = 0x179
_MC0_CTL: Final = 0x400
_MC0_CTL2: Final = 0x280
_MCG_CMCI_P: Final = 1 << 10
#: State that KVM_GET_MSR_INDEX_LIST leaves out: the MTRRs (variable, fixed, default type); and on
#: kvm_pvm TSC_AUX.
_UNLISTED: Final = (
    *range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF, 0xC000_0103,
)  # fmt: skip
#: More of that, by CPUID leaf and bit of its ECX: the SGX launch key's hash, AMD-V's VM_CR, the
#: OS-visible workarounds (SDM vol. 4; APM vol. 2, "MSR Cross-Reference").
_UNLISTED_BY_FEATURE: Final = {
    (0x7, 30): tuple(range(0x8C, 0x90)),
    (0x8000_0001, 2): (0xC001_0114,),
    (0x8000_0001, 9): (0xC001_0140, 0xC001_0141),
}
#: In the list and no state: Hyper-V's reference counter and frequencies, which KVM derives.
_DERIVED: Final = frozenset((0x40000020, 0x40000022, 0x40000023))


def state_msrs(listed: tuple[int, ...], mcg_cap: int, cpuid: Cpuid) -> tuple[int, ...]:
    """The MSRs to save: KVM's list (``listed``), the MTRRs, the machine-check banks that
    ``mcg_cap`` counts, and what goes with CPUID's features.

    The TSC comes first and the TSC deadline last: it counts in the TSC that was set before.
    """
    banks = mcg_cap & 0xFF
    extra = [*_UNLISTED, *range(_MC0_CTL, _MC0_CTL + 4 * banks)]
    if mcg_cap & _MCG_CMCI_P:
        extra += range(_MC0_CTL2, _MC0_CTL2 + banks)
    for (function, bit), unlisted in _UNLISTED_BY_FEATURE.items():
        leaf = cpuid.get(function)
        if leaf and leaf.ecx >> bit & 1:
            extra += unlisted
    between = dict.fromkeys((*listed, *extra))
    left_out = _DERIVED | {TSC, TSC_DEADLINE, MCG_CAP}
    return (TSC, *(index for index in between if index not in left_out), TSC_DEADLINE)


def _table(items: Iterable[tuple[int, int]]) -> Any:
    entries = [{"index": index, "data": value} for index, value in items]
    return ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})


def read(fd: int, indices: Iterable[int]) -> tuple[dict[int, int], list[int]]:
    """Values by number, and those that KVM refused: KVM_GET_MSRS stops at each, and goes on after
    it."""
    values: dict[int, int] = {}
    refused: list[int] = []
    for table, done in _transfers(ioctls.KVM_GET_MSRS, fd, [(index, 0) for index in indices]):
        entries = table.entries
        values.update((entries[i].index, entries[i].data) for i in range(done))
        if done < table.nmsrs:
            refused.append(entries[done].index)
    return values, refused


def write(fd: int, values: Mapping[int, int]) -> list[int]:
    """Set all, in order; gives those that KVM refused."""
    transfers = _transfers(ioctls.KVM_SET_MSRS, fd, list(values.items()))
    return [table.entries[done].index for table, done in transfers if done < table.nmsrs]


def _transfers(
    ioctl: ioctls.Ioctl, fd: int, items: list[tuple[int, int]]
) -> Iterator[tuple[Any, int]]:
    at = 0
    while at < len(items):
        table = _table(items[at : at + CHUNK])
        done = ioctl(fd, table)
        yield table, done
        at += done + (done < table.nmsrs)
