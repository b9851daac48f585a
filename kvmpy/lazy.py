"""Names of a package that are imported when they are first used (PEP 562).

The one mechanism for it, here and in every room that offers names of its modules. Its tables are
also what ``native/names_stub.py`` makes the ``__init__.pyi`` beside them from, which is what type
checkers and editors read.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def entries(table: str) -> dict[str, tuple[str, str]]:
    """A table's names: name -> (module, attribute); a module itself has no attribute.

    One module a line: ``run.bus: ClaimError Counter`` offers two of its names, ``boot`` the module
    itself, and ``stats.kvm as binary_stats`` the module by another name.

    >>> kvmpy.lazy.entries("run.bus: Counter\\nstats.kvm as binary_stats")
    {'Counter': ('run.bus', 'Counter'), 'binary_stats': ('stats.kvm', '')}
    """
    found: dict[str, tuple[str, str]] = {}
    for line in table.strip().splitlines():
        module, _, names = line.partition(":")
        if names:
            found.update((name, (module, name)) for name in names.split())
        else:
            path, _, name = line.partition(" as ")
            found[name or path] = path, ""
    return found


def attach(
    package: str, table: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """A package's ``__getattr__``, ``__dir__`` and ``__all__``, for a table as :func:`entries`
    takes it.

    >>> find, names, public = kvmpy.lazy.attach("kvmpy.machine", "outcome: Outcome")
    >>> find("Outcome") is kvmpy.machine.Outcome
    True
    """
    where = entries(table)

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = where[name]
        value: Any = importlib.import_module(f".{module}", package)
        if attribute:
            value = getattr(value, attribute)
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    public = list(where)
    return find, lambda: sorted({*vars(sys.modules[package]), *public}), public
