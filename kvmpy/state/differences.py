"""What differs between two registers sets, records or states: ``kvmpy.diff(before, after)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from ..cpuid.cpuid import Cpuid
from ..msrs.msrs import name_of
from ..record import Record, differences
from ..text import value_text
from .live import Registers, SpecialRegisters


@dataclass(frozen=True, slots=True)
class Difference:
    """``path``: which field ("sregs.cs.base", "msrs[LSTAR]"); ``a`` and ``b``: its two values,
    None where one has none."""

    path: str
    a: object
    b: object

    def __repr__(self) -> str:
        return f"{self.path}  {_short(self.a)} -> {_short(self.b)}"


class Differences(list[Difference]):
    """A list of differences that prints as a table. Empty: nothing differs."""

    def __repr__(self) -> str:
        if not self:
            return "no differences"
        width = max(len(difference.path) for difference in self)
        middle = max(len(_short(difference.a)) for difference in self)
        return "\n".join(
            f"{difference.path:<{width}}  {_short(difference.a):<{middle}} -> "
            f"{_short(difference.b)}"
            for difference in self
        )

    def paths(self) -> list[str]:
        """Only where, not what.

        >>> kvmpy.diff({"x": 1}, {"x": 2}).paths()
        ['x']
        """
        return [difference.path for difference in self]


def _short(value: object) -> str:
    match value:
        case None:
            return "absent"
        case bool():
            return repr(value)
        case int():
            return hex(value)
        case _:
            return value_text(value)


def diff(a: object, b: object) -> Differences:
    """The differences between two of a kind: ``cpu.regs``, ``cpu.sregs`` and their copies (live
    and copied may be mixed), records, Cpuid tables, VcpuStates, mappings.

    Raises TypeError for two things that cannot be compared.

    >>> before = cpu.regs.copy()
    >>> cpu.regs.update(rax=0x10, rip=0x2000)
    >>> kvmpy.diff(before, cpu.regs)
    rax  0x0    -> 0x10
    rip  0xfff0 -> 0x2000
    """
    left, right = _value(a), _value(b)
    if type(left) is not type(right):
        raise TypeError(f"{type(a).__name__} and {type(b).__name__} cannot be compared")
    if not _has_parts(left):
        raise TypeError(f"{type(a).__name__} has no parts to compare")
    return Differences(_compare(left, right, ""))


def _value(thing: object) -> object:
    if isinstance(thing, (Registers, SpecialRegisters)):
        return thing.copy()
    return dict(thing) if isinstance(thing, Mapping) else thing


def _has_parts(thing: object) -> bool:
    return is_dataclass(thing) or isinstance(thing, (dict, Cpuid))


def _compare(a: Any, b: Any, path: str) -> Iterator[Difference]:
    if type(a) is type(b):
        if isinstance(a, Cpuid):
            yield from _compare_cpuid(a, b, path)
            return
        if isinstance(a, Mapping):
            yield from _compare_mappings(a, b, path)
            return
        if hasattr(a, "differing"):
            named = ((f"{path}[{name}]" if path else name, x, y) for name, x, y in a.differing(b))
            yield from (Difference(*found) for found in named)
            return
        if isinstance(a, Record):
            yield from (Difference(*found) for found in differences(a, b, path))
            return
        if is_dataclass(a):
            for field in fields(a):
                name = f"{path}.{field.name}" if path else field.name
                yield from _compare(getattr(a, field.name), getattr(b, field.name), name)
            return
    if a != b:
        yield Difference(path, a, b)


def _compare_mappings(
    a: Mapping[Any, Any], b: Mapping[Any, Any], path: str
) -> Iterator[Difference]:
    for key in dict.fromkeys((*a, *b)):
        if path == "msrs" and isinstance(key, int):
            shown = f"msrs[{name_of(key)}]"
        else:
            text = f"{key:#x}" if isinstance(key, int) else str(key)
            shown = f"{path}[{text}]" if path else text
        yield from _compare(a.get(key), b.get(key), shown)


def _compare_cpuid(a: Cpuid, b: Cpuid, path: str) -> Iterator[Difference]:
    keys = dict.fromkeys((leaf.function, leaf.index) for leaf in (*a, *b))
    for function, index in keys:
        left, right = a.get(function, index), b.get(function, index)
        name = f"{path or 'cpuid'}[{function:#x}, {index}]"
        if left is None or right is None:
            yield Difference(name, left, right)
        else:
            yield from _compare(left, right, name)
