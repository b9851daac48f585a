"""Frozen values: the part of ``dataclasses`` that this package needs, at a tenth of the price.

The standard library compiles five methods for a frozen dataclass, 0.2 ms and more, and brings
``inspect`` with it: for some hundred exits and structures longer than a short script runs. Here
only ``__init__`` is compiled for each, and all share the other methods.

To a type checker these are the standard library's; ``dataclasses.fields()``, ``replace()`` and
``asdict()`` take them, and standard dataclasses can inherit from them.
"""

from __future__ import annotations

import operator
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from dataclasses import dataclass as dataclass

_T = TypeVar("_T")
#: Of each field its annotation, and its default or _REQUIRED.
_Fields = dict[str, tuple[Any, Any]]
_REQUIRED = object()


def names(value: object) -> tuple[str, ...]:
    """The names of a value's fields, or of a class's, in order; keyword-only ones of a standard
    dataclass are not among them.

    >>> kvmpy.values.names(kvmpy.IoIn)
    ('port', 'size', 'count')
    """
    found: tuple[str, ...] = value.__match_args__  # type: ignore[attr-defined]
    return found


def replace(value: _T, **changes: Any) -> _T:
    """A copy with other values in some fields, as ``dataclasses.replace()``.

    >>> kvmpy.values.replace(kvmpy.IoIn(0x60, 1), port=0x64)
    IoIn(port=0x64, size=1, count=1)
    """
    kept = {name: getattr(value, name) for name in names(value) if name not in changes}
    return type(value)(**kept, **changes)


def _dataclass(
    *, frozen: bool, slots: bool = False, repr: bool = True, eq: bool = True, order: bool = False
) -> Callable[[type[_T]], type[_T]]:
    """As ``dataclasses.dataclass``, but ``frozen`` must be True, and no default is a ``field()``.

    >>> @kvmpy.values.dataclass(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1)
    Point(x=1, y=0)
    """
    assert frozen

    def decorate(cls: type[_T]) -> type[_T]:
        own = _own_fields(cls)
        inherited = {n: x for base in cls.__mro__[:0:-1] for n, x in _declared(base).items()}
        fields = inherited | own
        unwanted = ("__repr__",) * (not repr) + ("__eq__", "__hash__") * (not eq)
        shared = _SHARED | _ORDER if order else _SHARED
        parts = {
            name: part
            for name, part in shared.items()
            if name not in unwanted and _lacks(cls, name, part)
        }
        parts["__init__"] = _init(cls, fields)
        parts["__match_args__"] = tuple(fields)
        parts["_value_fields"] = fields
        parts["_value_key"] = operator.attrgetter(*fields or ("__match_args__",))
        if slots:
            slot_names = tuple(name for name in own if name not in inherited)
            return _remade(cls, {**parts, "__slots__": slot_names}, own)
        for name, part in parts.items():
            setattr(cls, name, part)
        return cls

    return decorate


if not TYPE_CHECKING:
    dataclass = _dataclass


def _declared(cls: type) -> _Fields:
    fields: _Fields = cls.__dict__.get("_value_fields", {})
    return fields


def _own_fields(cls: type) -> _Fields:
    return {
        name: (annotation, cls.__dict__.get(name, _REQUIRED))
        for name, annotation in cls.__annotations__.items()
        if not str(annotation).removeprefix("typing.").startswith("ClassVar")
    }


def _lacks(cls: type, name: str, part: object) -> bool:
    """Whether the class neither has a method of its own by that name nor inherits this one."""
    if cls.__dict__.get(name) is not None:  # None: __hash__ beside an __eq__
        return False
    return next((b.__dict__[name] for b in cls.__mro__ if name in b.__dict__), None) is not part


def _init(cls: type, fields: _Fields) -> Callable[..., None]:
    scope = {"put": object.__setattr__}
    parameters, body = ["self"], []
    for name, (_, default) in fields.items():
        parameters.append(name if default is _REQUIRED else f"{name}=default_{name}")
        scope[f"default_{name}"] = default
        body.append(f"put(self, {name!r}, {name})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}): {'; '.join(body) or 'pass'}", scope)
    init: Any = scope["__init__"]
    init.__module__, init.__qualname__ = cls.__module__, f"{cls.__qualname__}.__init__"
    init.__annotations__ = {name: annotation for name, (annotation, _) in fields.items()}
    init.__annotations__["return"] = None
    made: Callable[..., None] = init
    return made


def _remade(cls: type[_T], parts: dict[str, Any], own: _Fields) -> type[_T]:
    """The class anew, with these parts: slots are laid out when a class is made."""
    left_out = {*own, "__dict__", "__weakref__"}
    kept = {name: value for name, value in cls.__dict__.items() if name not in left_out}
    metaclass: Any = type(cls)
    made: type[_T] = metaclass(cls.__name__, cls.__bases__, {**_PICKLING, **kept, **parts})
    made.__qualname__ = cls.__qualname__
    return made


# -- what all share


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    key = self._value_key
    return key(self) == key(other)


def _comparison(name: str) -> Callable[[Any, Any], Any]:
    compare: Callable[[Any, Any], Any] = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        key = self._value_key
        return compare(key(self), key(other))

    return method


def _hash(self: Any) -> int:
    return hash(self._value_key(self))


def _repr(self: Any) -> str:
    parts = (f"{name}={getattr(self, name)!r}" for name in names(self))
    return f"{self.__class__.__qualname__}({', '.join(parts)})"


def _refuse(self: object, name: str, what: str) -> None:
    """A class that inherits from values without being one may have attributes beside fields."""
    if "_value_fields" in type(self).__dict__ or name in names(self):
        from dataclasses import FrozenInstanceError

        raise FrozenInstanceError(f"cannot {what} field {name!r}")


def _setattr(self: object, name: str, value: object) -> None:
    _refuse(self, name, "assign to")
    object.__setattr__(self, name, value)


def _delattr(self: object, name: str) -> None:
    _refuse(self, name, "delete")
    object.__delattr__(self, name)


def _getstate(self: object) -> list[Any]:
    return [getattr(self, name) for name in names(self)]


def _setstate(self: object, state: list[Any]) -> None:
    for name, value in zip(names(self), state, strict=True):
        object.__setattr__(self, name, value)


@cache
def _standard(cls: Any) -> Any:
    """A standard dataclass with the same fields."""
    from dataclasses import dataclass as standard

    fields: _Fields = cls._value_fields
    namespace = {name: default for name, (_, default) in fields.items() if default is not _REQUIRED}
    namespace["__annotations__"] = {name: annotation for name, (annotation, _) in fields.items()}
    namespace["__module__"] = cls.__module__
    return standard(frozen=True)(type(cls.__name__, (), namespace))


class _Standard:
    """What ``dataclasses`` looks for in a class: made when it looks."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, value: object, owner: type) -> Any:
        return getattr(_standard(owner), self._name)


_SHARED: dict[str, Any] = {
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
    "__replace__": replace,
    "__dataclass_fields__": _Standard("__dataclass_fields__"),
    "__dataclass_params__": _Standard("__dataclass_params__"),
}
_ORDER = {name: _comparison(name) for name in ("__lt__", "__le__", "__gt__", "__ge__")}
#: For classes with slots, which have no __dict__ to be pickled and copied by.
_PICKLING = {"__getstate__": _getstate, "__setstate__": _setstate}
