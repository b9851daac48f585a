"""Which MSRs the guest may touch, and who answers for the others (KVM API, "4.97
KVM_X86_SET_MSR_FILTER" and "7.21 KVM_CAP_X86_USER_SPACE_MSR")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from .. import ioctls
from ..exits.names import MSR_REASONS
from ..run.bus import ClaimError
from ..shim import ffi, lib
from ..values import dataclass
from ..vm_fd import VmFd
from .msrs import Key, index_of, name_of

#: ``handler(index)`` gives the value; None: #GP.
ReadHandler = Callable[[int], int | None]
#: ``handler(index, value)``; False: #GP.
WriteHandler = Callable[[int, int], bool | None]
_R = TypeVar("_R", bound=ReadHandler)
_W = TypeVar("_W", bound=WriteHandler)

#: KVM's limits: ranges in a filter, and MSRs in a range.
MAX_RANGES: int = lib.KVM_MSR_FILTER_MAX_RANGES
MAX_MSRS: int = 8 * lib.KVM_MSR_FILTER_MAX_BITMAP_SIZE
#: The x2APIC's registers, which no filter reaches.
X2APIC = range(0x800, 0x900)

_REASON_BITS = {name: 1 << bit for bit, name in MSR_REASONS.items()}
_FILTER_BIT = _REASON_BITS["filter"]

Default = Literal["allow", "deny"]


@dataclass(frozen=True)
class MsrRange:
    """``count`` MSRs from number ``base`` on: bit i of ``bitmap`` (of byte i // 8, from its least
    significant bit) allows MSR ``base + i``, for the directions ``read`` and ``write``.

    The first range that has an MSR and its direction decides. Raises ValueError for a range KVM
    would refuse: none or more than 12288 MSRs, numbers beyond 2**32-1, a bitmap too short, neither
    direction.

    >>> kvmpy.MsrRange(0x10, b"\\x01", 2).allows(0x11)
    False
    """

    base: int
    bitmap: bytes
    count: int
    read: bool = True
    write: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_MSRS:
            raise ValueError(f"{self.count} MSRs in a range: 1..{MAX_MSRS} can be")
        if self.base < 0 or self.base + self.count > 1 << 32:
            raise ValueError(f"MSRs {self.base:#x}+{self.count:#x} are not in 0..2**32-1")
        if len(self.bitmap) * 8 < self.count:
            raise ValueError(f"{len(self.bitmap)} bytes of bitmap for {self.count} MSRs")
        if not (self.read or self.write):
            raise ValueError("a range for neither reading nor writing")

    @classmethod
    def allow(
        cls, first: Key, count: int = 1, *, read: bool = True, write: bool = True
    ) -> MsrRange:
        """Allow ``count`` MSRs from ``first`` on, a number or a name.

        >>> kvmpy.MsrRange.allow("TSC", 2).allows(0x11)
        True
        """
        return cls._of_all(first, count, 0xFF, read, write)

    @classmethod
    def deny(cls, first: Key, count: int = 1, *, read: bool = True, write: bool = True) -> MsrRange:
        """Deny ``count`` MSRs from ``first`` on, a number or a name.

        >>> kvmpy.MsrRange.deny("TSC", write=False).allows("TSC")
        False
        """
        return cls._of_all(first, count, 0, read, write)

    @classmethod
    def only(
        cls,
        first: Key,
        count: int,
        allowed: Iterable[Key],
        *,
        read: bool = True,
        write: bool = True,
    ) -> MsrRange:
        """Of ``count`` MSRs from ``first`` on, allow ``allowed`` and deny the others.

        >>> kvmpy.MsrRange.only("STAR", 4, ["LSTAR", "SFMASK"]).bitmap.hex()
        '0a'
        """
        base = index_of(first)
        bitmap = bytearray((max(count, 0) + 7) // 8)
        for index in map(index_of, allowed):
            if not base <= index < base + count:
                raise ValueError(f"MSR {name_of(index)} is not in {base:#x}+{count:#x}")
            bitmap[(index - base) // 8] |= 1 << (index - base) % 8
        return cls(base, bytes(bitmap), count, read, write)

    @classmethod
    def _of_all(cls, first: Key, count: int, byte: int, read: bool, write: bool) -> MsrRange:
        size = (min(max(count, 0), MAX_MSRS) + 7) // 8
        return cls(index_of(first), bytes([byte]) * size, count, read, write)

    def allows(self, msr: Key, *, write: bool = False) -> bool | None:
        """What this range says of an access; None if nothing.

        >>> kvmpy.MsrRange.deny(0x10).allows(0x20) is None
        True
        """
        at = index_of(msr) - self.base
        if not 0 <= at < self.count or not (self.write if write else self.read):
            return None
        return bool(self.bitmap[at // 8] >> at % 8 & 1)


def allows(ranges: Iterable[MsrRange], default: Default, msr: Key, *, write: bool = False) -> bool:
    """What a filter of these ranges says of an access: KVM's rule, in Python.

    >>> kvmpy.msrs.filters.allows([kvmpy.MsrRange.deny("TSC")], "allow", "EFER")
    True
    """
    for one in ranges:
        verdict = one.allows(msr, write=write)
        if verdict is not None:
            return verdict
    return default == "allow"


class VmMsrs(VmFd):
    """Who answers a VM's accesses to MSRs."""

    _msr_ranges: tuple[MsrRange, ...] = ()
    _msr_default: Default = "allow"
    _msr_mask: int = 0
    #: (first, count, write) of the MSRs that have a Python handler.
    _msr_claims: tuple[tuple[int, int, bool], ...] = ()

    def set_msr_filter(self, ranges: Iterable[MsrRange] = (), default: Default = "allow") -> None:
        """KVM_X86_SET_MSR_FILTER: the first range that has an MSR and its direction decides,
        ``default`` for those in none. Replaces the filter before; no ranges allow everything.

        What is denied gives the guest #GP, or an Rdmsr or Wrmsr exit after
        ``user_space_msrs("filter")``, and goes to :meth:`on_rdmsr` and :meth:`on_wrmsr` before.
        The x2APIC's MSRs 0x800..0x8ff are always allowed. Raises ValueError for more than 16
        ranges (one is taken by every range of MSRs with a handler), and for "deny" with none.

        >>> vm.set_msr_filter([kvmpy.MsrRange.deny("TSC", write=False)])
        >>> vm.set_msr_filter()
        """
        chosen = tuple(ranges)
        if default not in ("allow", "deny"):
            raise ValueError(f"default={default!r}: give 'allow' or 'deny'")
        self._install(chosen, default, self._msr_claims)
        self._msr_ranges, self._msr_default = chosen, default

    def user_space_msrs(self, *reasons: str) -> None:
        """KVM_CAP_X86_USER_SPACE_MSR: which refused accesses come back as Rdmsr and Wrmsr instead
        of #GP: "filter" (denied by :meth:`set_msr_filter`), "unknown" (to KVM), "inval" (a value
        or mode that does not allow it). None: back to #GP.

        >>> vm.user_space_msrs("filter", "unknown", "inval")
        """
        unknown = set(reasons) - set(_REASON_BITS)
        if unknown:
            known = ", ".join(_REASON_BITS)
            raise ValueError(f"no such reason: {', '.join(sorted(unknown))} (there are {known})")
        mask = sum(_REASON_BITS[reason] for reason in set(reasons))
        self._ask(mask, self._msr_claims)
        self._msr_mask = mask

    def on_rdmsr(self, msr: Key | range) -> Callable[[_R], _R]:
        """Decorator: ``handler(index)`` gives the guest's RDMSR its value, 0..2**64-1, or None for
        #GP. An exception comes out of ``run()``.

        ``msr``: a number, a name, or a range of numbers. KVM is told to deny reads of them, in
        front of :meth:`set_msr_filter`'s ranges, and to ask user space. Raises ClaimError for one
        that has a handler or that no filter reaches (the x2APIC's).

        >>> @vm.on_rdmsr(0xC0DE)
        ... def secret(index):
        ...     return 42
        """

        def register(handler: _R) -> _R:
            self._claim_msrs(msr, False, handler)
            return handler

        return register

    def on_wrmsr(self, msr: Key | range) -> Callable[[_W], _W]:
        """Decorator: ``handler(index, value)`` takes the guest's WRMSR; False gives it #GP. Else
        as :meth:`on_rdmsr`.

        >>> @vm.on_wrmsr(0xC0DE)
        ... def log(index, value):
        ...     print(f"{index:#x} = {value:#x}")
        """

        def register(handler: _W) -> _W:
            self._claim_msrs(msr, True, handler)
            return handler

        return register

    def release_msr(self, msr: Key, *, write: bool = False) -> None:
        """Take back the handler whose MSRs start at ``msr``.

        >>> @vm.on_rdmsr(0xC0DE)
        ... def secret(index):
        ...     return 42
        >>> vm.release_msr(0xC0DE)
        """
        first = index_of(msr)
        left = tuple(claim for claim in self._msr_claims if (claim[0], claim[2]) != (first, write))
        self.bus.release_msr(first, is_write=write)
        self._install(self._msr_ranges, self._msr_default, left)
        self._ask(self._msr_mask, left)
        self._msr_claims = left

    def _claim_msrs(self, msr: Key | range, write: bool, handler: Callable[..., Any]) -> None:
        first, count = _span(msr)
        claims = (*self._msr_claims, (first, count, write))
        self.bus.handle_msr(first, count, handler, is_write=write)
        try:
            self._ask(self._msr_mask, claims)
            self._install(self._msr_ranges, self._msr_default, claims)
        except BaseException:
            self.bus.release_msr(first, is_write=write)
            self._ask(self._msr_mask, self._msr_claims)
            raise
        self._msr_claims = claims

    def _ask(self, mask: int, claims: tuple[tuple[int, int, bool], ...]) -> None:
        """Have KVM ask about what the mask says, and about denied MSRs when some have a handler;
        those without one stay #GP unless the mask has them too."""
        wanted = mask | (_FILTER_BIT if claims else 0)
        self.enable_capability("KVM_CAP_X86_USER_SPACE_MSR", wanted)
        lib.shim_bus_quiet_msrs(self.bus._bus, wanted != mask)

    def _install(
        self,
        chosen: tuple[MsrRange, ...],
        default: Default,
        claims: tuple[tuple[int, int, bool], ...],
    ) -> None:
        ranges = (*_denied(claims), *chosen)
        if len(ranges) > MAX_RANGES:
            raise ValueError(
                f"{len(chosen)} ranges, and {len(ranges) - len(chosen)} for MSRs with a handler: "
                f"KVM takes {MAX_RANGES}"
            )
        if default == "deny" and not ranges:
            raise ValueError("a filter that denies everything: KVM wants at least one range")
        table, kept = _to_c(ranges, default)
        ioctls.KVM_X86_SET_MSR_FILTER(self.fileno(), table, f"{len(ranges)} ranges, {default}")
        del kept  # the bitmaps lived until here


def _span(msr: Key | range) -> tuple[int, int]:
    if isinstance(msr, range):
        if msr.step != 1 or not msr:
            raise ClaimError(f"{msr!r} is not a contiguous range")
        first, count = index_of(msr.start), len(msr)
    else:
        first, count = index_of(msr), 1
    if first < X2APIC.stop and first + count > X2APIC.start:
        raise ClaimError("KVM filters no access to the x2APIC's MSRs, 0x800..0x8ff")
    return first, count


def _denied(claims: Iterable[tuple[int, int, bool]]) -> list[MsrRange]:
    """One range for each claim; for reads and writes of the same MSRs together."""
    directions: dict[tuple[int, int], set[bool]] = {}
    for first, count, write in claims:
        directions.setdefault((first, count), set()).add(write)
    return [
        MsrRange.deny(first, count, read=False in ways, write=True in ways)
        for (first, count), ways in directions.items()
    ]


def _to_c(ranges: Sequence[MsrRange], default: Default) -> tuple[Any, list[Any]]:
    """The structure, and the bitmaps it points to."""
    table = ffi.new("struct kvm_msr_filter *")
    table.flags = (
        lib.KVM_MSR_FILTER_DEFAULT_DENY if default == "deny" else lib.KVM_MSR_FILTER_DEFAULT_ALLOW
    )
    kept = []
    for entry, one in zip(table.ranges, ranges, strict=False):
        # KVM copies whole longs.
        bitmap = ffi.new("uint8_t[]", one.bitmap.ljust(-(-len(one.bitmap) // 8) * 8, b"\0"))
        kept.append(bitmap)
        entry.flags = one.read * lib.KVM_MSR_FILTER_READ | one.write * lib.KVM_MSR_FILTER_WRITE
        entry.nmsrs, entry.base, entry.bitmap = one.count, one.base, bitmap
    return table, kept
