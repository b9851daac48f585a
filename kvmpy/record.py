"""KVM's structures as plain values: frozen dataclasses whose fields are named as in the kernel.

A :class:`Record` goes to and from its C structure by field name, to and from JSON, and prints in
a way that a person can read. The compiler has the last word on the layout, as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from .shim import ffi
from .text import flags_text, value_text
from .values import dataclass, names

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, repr=False)
class Record:
    """Base of the structures. A subclass names its C type and declares its fields:

        @dataclass(frozen=True, repr=False)
        class MpState(Record):
            c_name = "struct kvm_mp_state"
            mp_state: int = 0

    A field is an int, bytes (an array of bytes), a tuple of ints, a Record or a tuple of Records;
    or what a subclass with a :meth:`from_c` and :meth:`fill` of its own makes of it.
    What the C structure has beyond these (padding) is zero.
    """

    c_name: ClassVar[str]
    #: field -> {bit number: name}, of fields that print as flags.
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {}

    @classmethod
    def from_c(cls, structure: Any) -> Self:
        """From a C structure (a cffi object: for the package's own use)."""
        return cls(**{name: read(getattr(structure, name)) for name, read in _readers(cls)})

    def fill(self, structure: Any) -> None:
        """Write the fields into a C structure."""
        for name in names(self):
            _write(structure, name, getattr(self, name))

    def to_c(self) -> Any:
        """A new C structure, padding zero."""
        structure = ffi.new(self.c_name + " *")
        self.fill(structure)
        return structure

    def to_json(self) -> dict[str, Any]:
        """A dict of what JSON knows: ints, lists, dicts, and bytes as hex.

        >>> kvmpy.state.Xcrs().to_json()
        {'xcrs': [{'xcr': 0, 'value': 1}], 'flags': 0}
        """
        return {name: _plain(getattr(self, name)) for name in names(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`. Raises ValueError for a field too many or too few.

        >>> kvmpy.state.Xcrs.from_json({"xcrs": [{"xcr": 0, "value": 7}], "flags": 0}).xcr0
        7
        """
        shapes = _shapes(cls)
        if set(data) != set(shapes):
            odd = ", ".join(sorted(set(data) ^ set(shapes)))
            raise ValueError(f"{cls.__name__}: fields missing or unknown: {odd}")
        return cls(**{name: _unplain(data[name], shape) for name, shape in shapes.items()})

    def __repr__(self) -> str:
        parts = (f"{name}={self._text(name)}" for name in names(self))
        return f"{type(self).__name__}({', '.join(parts)})"

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        if name in self.flag_names:
            return flags_text(value, self.flag_names[name])
        return value_text(value)


_known_shapes: dict[type, dict[str, Any]] = {}
_known_readers: dict[type, tuple[tuple[str, Callable[[Any], Any]], ...]] = {}


def _shapes(cls: type[Record]) -> dict[str, Any]:
    if cls not in _known_shapes:
        hints = get_type_hints(cls)
        _known_shapes[cls] = {name: hints[name] for name in names(cls)}
    return _known_shapes[cls]


def _readers(cls: type[Record]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    if cls not in _known_readers:
        pairs = _shapes(cls).items()
        _known_readers[cls] = tuple((name, _reader(shape)) for name, shape in pairs)
    return _known_readers[cls]


def _reader(shape: Any) -> Callable[[Any], Any]:
    if shape is int or shape is bool:
        return shape
    if shape is bytes:
        return lambda array: bytes(ffi.buffer(array))
    if isinstance(shape, type) and issubclass(shape, Record):
        return shape.from_c
    item = shape.__args__[0]
    if item is int:
        return tuple
    return lambda array: tuple(item.from_c(element) for element in array)


def _write(structure: Any, name: str, value: Any) -> None:
    if isinstance(value, Record):
        value.fill(getattr(structure, name))
    elif isinstance(value, bytes):
        array = getattr(structure, name)
        if len(value) != ffi.sizeof(array):
            raise ValueError(f"{name} is {len(value)} bytes, not {ffi.sizeof(array)}")
        ffi.memmove(array, value, len(value))
    elif isinstance(value, tuple):
        array = getattr(structure, name)
        if len(value) != len(array):
            raise ValueError(f"{name} has {len(value)} elements, not {len(array)}")
        for i, item in enumerate(value):
            if isinstance(item, Record):
                item.fill(array[i])
            else:
                array[i] = item
    else:
        setattr(structure, name, value)


def _plain(value: Any) -> Any:
    match value:
        case Record():
            return value.to_json()
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _unplain(data: Any, shape: Any) -> Any:
    if shape is int or shape is bool:
        if not isinstance(data, int):
            raise ValueError(f"{data!r} is not an integer")
        return data
    if shape is str:
        if not isinstance(data, str):
            raise ValueError(f"{data!r} is not a string")
        return data
    if shape is bytes:
        return bytes.fromhex(data)
    if isinstance(shape, type) and issubclass(shape, Record):
        return shape.from_json(data)
    return tuple(_unplain(item, shape.__args__[0]) for item in data)


def differences(a: object, b: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """``(where, in a, in b)`` for every field in which two records of a kind differ.

    >>> list(kvmpy.record.differences(kvmpy.state.Xcrs(), kvmpy.state.Xcrs(flags=1)))
    [('flags', 0, 1)]
    """
    if isinstance(a, Record) and type(a) is type(b):
        for name in names(a):
            where = f"{path}.{name}" if path else name
            yield from differences(getattr(a, name), getattr(b, name), where)
    elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, f"{path}[{i}]")
    elif a != b:
        yield path, a, b
