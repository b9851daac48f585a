"""The difference between two CPUID tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from ..values import dataclass
from . import features as cf
from .table import Leaf, Table

_REGISTERS = ("eax", "ebx", "ecx", "edx")


_T = TypeVar("_T", bound=Table)


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A register of a leaf that differs; None where the leaf is missing."""

    function: int
    index: int
    register: str
    before: int | None
    after: int | None

    def __str__(self) -> str:
        def show(value: int | None) -> str:
            return "(no leaf)" if value is None else f"{value:08x}"

        where = f"{self.function:08x}.{self.index:x} {self.register}"
        return f"{where}: {show(self.before)} -> {show(self.after)}"


@dataclass(frozen=True, slots=True, repr=False)
class CpuidDiff:
    """What :meth:`Cpuid.diff` found; false if nothing. Iteration gives the registers that differ.

    ``added`` and ``removed`` are the names of features; ``changes`` the leaves before and after,
    None for one that is not there.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changes: tuple[tuple[Leaf | None, Leaf | None], ...]

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        """The registers that differ.

        >>> {field.function for field in cpu.cpuid.diff(cpu.cpuid.without("mca")).fields} >= {1}
        True
        """
        return tuple(self)

    def apply(self, table: _T) -> _T:
        """``table`` with every leaf of the difference as it is afterwards.

        >>> before, after = cpu.cpuid, cpu.cpuid.without("cx8")
        >>> before.diff(after).apply(before) == after
        True
        """
        leaves = {leaf.key: leaf for leaf in reversed(list(table))}
        for before, after in self.changes:
            if after is not None:
                leaves[after.key] = after
            elif before is not None:
                leaves.pop(before.key, None)
        return type(table)(reversed(leaves.values()))

    def __iter__(self) -> Iterator[FieldChange]:
        for before, after in self.changes:
            leaf = after or before
            assert leaf is not None
            for register in _REGISTERS:
                old = None if before is None else getattr(before, register)
                new = None if after is None else getattr(after, register)
                if old != new:
                    yield FieldChange(leaf.function, leaf.index, register, old, new)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        names = [f"+{name}" for name in self.added] + [f"-{name}" for name in self.removed]
        return "\n".join(([" ".join(names)] if names else []) + [str(field) for field in self])

    def __repr__(self) -> str:
        return f"<CPUID diff\n{self}>" if self else "<CPUID diff: none>"


def diff(before: Table, after: Table) -> CpuidDiff:
    """See :meth:`Cpuid.diff`."""
    old, new = set(before.features), set(after.features)
    left = {leaf.key: leaf for leaf in reversed(list(before))}
    right = {leaf.key: leaf for leaf in reversed(list(after))}
    return CpuidDiff(
        added=tuple(name for name in cf.table() if name in new - old),
        removed=tuple(name for name in cf.table() if name in old - new),
        changes=tuple(
            (left.get(key), right.get(key))
            for key in sorted(left.keys() | right.keys())
            if left.get(key) != right.get(key)
        ),
    )
