"""Taking features out of a CPUID table and putting them in, so that it stays one a CPU could have.

What goes with a feature: all that cannot exist without it, its copies in other leaves, the leaves
that only describe it, and its part of the XSAVE area (leaf 0Dh).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from ..errors import UnsupportedError
from ..values import replace
from . import features as cf
from .table import HAS_INDEX, Leaf, Table

_T = TypeVar("_T", bound=Table)
_Leaves = dict[tuple[int, int], Leaf]

_XSAVE = 0xD
#: The FXSAVE area and the XSAVE header, which come before every other component.
_LEGACY_AND_HEADER = 576


def without(table: _T, names: Iterable[str]) -> _T:
    """See :meth:`Cpuid.without`."""
    names = cf.with_dependents(names)
    gone = [name for name in names if name in cf.GROUPS or table.has(name)]
    leaves = _leaves(table)
    for name in gone:
        if name not in cf.GROUPS:
            for function, index, register, bit in cf.table()[name].places:
                _set_bit(leaves, (function, index), register, bit, False)
        for function in cf.LEAVES_OF.get(name, ()):
            for key in [key for key in leaves if key[0] == function]:
                leaves[key] = replace(leaves[key], eax=0, ebx=0, ecx=0, edx=0)
    return type(table)(_finished(leaves, gone, table))


def with_features(table: _T, names: Iterable[str], supported: Table) -> _T:
    """See :meth:`Cpuid.with_features`."""
    names = tuple(names)
    groups = [name for name in cf.expand(names) if name in cf.GROUPS]
    members = {member for group in groups for member in cf.GROUPS[group].split()}
    single = [name for name in cf.expand(names) if name not in cf.GROUPS and name not in members]
    wanted = cf.with_requirements(single)
    for name in wanted:
        if not supported.has(name):
            needed = "" if name in single else f", which {' and '.join(single)} needs"
            raise UnsupportedError(
                f"CPUID feature {name}{needed}: KVM on this host does not support it"
            )
    added = [
        name
        for name in (*wanted, *cf.with_requirements(members))
        if supported.has(name) and not table.has(name)
    ]
    leaves = _leaves(table)
    for name in (*groups, *added):
        for function in cf.LEAVES_OF.get(name, ()):
            leaves.update((leaf.key, leaf) for leaf in supported if leaf.function == function)
    for name in added:
        for function, index, register, bit in cf.table()[name].places:
            source = supported.get(function, index)
            if source is not None and getattr(source, register) >> bit & 1:
                leaves.setdefault((function, index), Leaf(function, index, source.flags))
                _set_bit(leaves, (function, index), register, bit, True)
                _raise_limits(leaves, function, index)
    return type(table)(_finished(leaves, added, supported))


def mask(table: _T, changes: str, supported: Table) -> _T:
    """See :meth:`Cpuid.mask`."""
    for change in filter(None, (part.strip() for part in changes.split(","))):
        if change[0] not in "+-" or not change[1:].strip():
            raise ValueError(f"CPUID change {change!r}: write -feature or +feature")
        if change[0] == "-":
            table = without(table, [change[1:]])
        else:
            table = with_features(table, [change[1:]], supported)
    return table


# ---------------------------------------------------------------- single leaves


def _leaves(table: Table) -> _Leaves:
    return {leaf.key: leaf for leaf in reversed(list(table))}


def _set_bit(leaves: _Leaves, key: tuple[int, int], register: str, bit: int, value: bool) -> None:
    leaf = leaves.get(key)
    if leaf is not None:
        old: int = getattr(leaf, register)
        new = old | 1 << bit if value else old & ~(1 << bit)
        leaves[key] = replace(leaf, **{register: new})


def _raise_limits(leaves: _Leaves, function: int, index: int) -> None:
    """The highest leaf is in EAX of the first of its range; of leaf 7, so is the last subleaf."""
    first = leaves.get((function & 0xFFFF_0000, 0))
    if first is not None and first.eax < function:
        leaves[first.key] = replace(first, eax=function)
    if function == 7 and index > 0:
        main = leaves.setdefault((7, 0), Leaf(7, 0, HAS_INDEX))
        leaves[7, 0] = replace(main, eax=max(main.eax, index))


def _finished(leaves: _Leaves, changed: list[str], source: Table) -> list[Leaf]:
    """In order; ``source`` has the leaves 0Dh to choose components from."""
    relevant = {"xsave", "xsaves", "xsavec", *" ".join(cf.XSAVE_COMPONENTS.values()).split()}
    if relevant.intersection(changed):
        _fit_xsave(leaves, source)
    return [leaves[key] for key in sorted(leaves, key=_order)]


def _order(key: tuple[int, int]) -> tuple[bool, int, int]:
    return (0x4000_0000 <= key[0] < 0x8000_0000, *key)  # KVM gives the hypervisor's leaves last


# ---------------------------------------------------------------- leaf 0Dh


def _fit_xsave(leaves: _Leaves, source: Table) -> None:
    """Leave in leaf 0Dh the components whose feature is there, and the sizes they add up to
    (SDM vol. 1, "Enumeration of CPU Support for XSAVE Instructions and XSAVE-Supported
    Features"). KVM recomputes the current sizes, EBX, when the guest sets XCR0 or XSS."""
    main, extended = source.get(_XSAVE), source.get(_XSAVE, 1)
    if main is None:
        return
    now = Table(leaves.values())
    keep = _components_kept(now.has)
    user = _pair(main.eax, main.edx) & keep
    supervisor = 0
    if extended is not None and now.has("xsaves"):  # which alone saves supervisor state
        supervisor = _pair(extended.ecx, extended.edx) & keep
    for key in [key for key in leaves if key[0] == _XSAVE]:
        if key[1] >= 2:
            del leaves[key]
    kept = [
        leaf
        for leaf in source
        if leaf.function == _XSAVE and leaf.index >= 2 and (user | supervisor) >> leaf.index & 1
    ]
    leaves.update((leaf.key, leaf) for leaf in kept)
    size = _LEGACY_AND_HEADER if user else 0
    size = max([size, *(leaf.ebx + leaf.eax for leaf in kept if user >> leaf.index & 1)])
    leaves[_XSAVE, 0] = replace(main, eax=user & 0xFFFF_FFFF, edx=user >> 32, ebx=size, ecx=size)
    if extended is not None:
        instructions = leaves.get((_XSAVE, 1), Leaf(_XSAVE, 1, HAS_INDEX)).eax
        leaves[_XSAVE, 1] = replace(
            extended,
            eax=instructions,
            ebx=_compacted_size(kept) if now.has("xsavec") or now.has("xsaves") else 0,
            ecx=supervisor & 0xFFFF_FFFF,
            edx=supervisor >> 32,
        )


def _pair(low: int, high: int) -> int:
    return low | high << 32


def _components_kept(has: Callable[[str], bool]) -> int:
    if not has("xsave"):
        return 0
    kept = (1 << 64) - 1
    for component, features in cf.XSAVE_COMPONENTS.items():
        # x87 and SSE state are part of every XSAVE area.
        if component >= 2 and not any(has(name) for name in features.split()):
            kept &= ~(1 << component)
    return kept


def _compacted_size(components: list[Leaf]) -> int:
    """Bytes of an area with all of them in XSAVEC's format; ECX bit 1: begins at 64 bytes."""
    size = _LEGACY_AND_HEADER
    for leaf in sorted(components, key=lambda leaf: leaf.index):
        if leaf.ecx & 2:
            size = (size + 63) & ~63
        size += leaf.eax
    return size


# ---------------------------------------------------------------- modules


class MaskedFeature(NamedTuple):
    """A feature that was taken out, and why."""

    feature: str
    reason: str


_NO_HYPERCALL = "kvm_pvm does not answer hypercalls, and this makes the guest's kernel wait for one"

#: module -> feature -> why a kernel in ring 0 must not see it. Only what the module lets go: on
#: kvm_pvm most of leaves 1 and 7 shows the host's bits in ring 0, whatever is set.
_CANNOT_RUN: dict[str, dict[str, str]] = {
    "kvm_pvm": {
        "cx16": "kvm_pvm emulates ring 0, and its emulator lacks CMPXCHG16B",
        "clzero": "kvm_pvm emulates ring 0, and its emulator lacks CLZERO",
        "rdtscp": "kvm_pvm emulates ring 0, and its emulator lacks RDTSCP",
        "monitor": "kvm_pvm emulates ring 0, and its emulator lacks MONITOR and MWAIT",
        "kvm_pv_unhalt": _NO_HYPERCALL,
        "kvm_pv_ipi": _NO_HYPERCALL,
        "kvm_pv_sched_yield": _NO_HYPERCALL,
        "kvm_hc_map_gpa_range": _NO_HYPERCALL,
    }
}


def for_module(table: _T, module: str) -> tuple[_T, tuple[MaskedFeature, ...]]:
    """See :meth:`Cpuid.for_module`."""
    masked = tuple(
        MaskedFeature(name, reason)
        for name, reason in _CANNOT_RUN.get(module, {}).items()
        if table.has(name)
    )
    return (without(table, [name for name, _ in masked]) if masked else table), masked
