"""What all exits are: frozen values that print readably."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeVar, dataclass_transform

from ..text import flags_text, value_text
from ..values import dataclass, names

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True)
def exit_value(cls: type[_T]) -> type[_T]:
    """Decorator: a frozen dataclass that keeps :class:`Exit`'s ``repr``.

    >>> @kvmpy.exits.base.exit_value
    ... class Mine(kvmpy.Exit):
    ...     gpa: int
    >>> Mine(0x1000)
    Mine(gpa=0x1000)
    """
    return dataclass(frozen=True, slots=True, repr=False)(cls)


@exit_value
class Exit:
    """Base of all exits."""

    #: KVM_EXIT_* number; -1 for the host's own.
    reason: ClassVar[int] = -1
    #: False when running again cannot help: the guest is over.
    resumable: ClassVar[bool] = True
    #: True when the guest waits for a number: ``cpu.answer(value)`` or ``cpu.refuse()``.
    answerable: ClassVar[bool] = False
    #: field -> {bit: name}, of fields that print as flags.
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {}

    def __repr__(self) -> str:
        parts = (f"{name}={self._text(name)}" for name in names(self))
        return f"{type(self).__name__}({', '.join(parts)})"

    def _text(self, name: str) -> str:
        value = getattr(self, name)
        if name in self.flag_names:
            return flags_text(value, self.flag_names[name])
        return repr(value) if isinstance(value, bytes) else value_text(value)
