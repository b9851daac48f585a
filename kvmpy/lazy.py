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
    package: str, table: str, *also: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``, for a table as :func:`entries` takes it. The
    first gives ``__all__``, too: the table's names, and ``also``.

    >>> find, names = kvmpy.lazy.attach("kvmpy.machine", "outcome: Outcome")
    >>> find("Outcome") is kvmpy.machine.Outcome
    True
    """
    where: dict[str, tuple[str, str]] = {}

    def find(name: str) -> Any:
        if not where:  # read when the first name is asked for
            where.update(entries(table))
        value: Any
        if name in where:
            module, attribute = where[name]
            value = importlib.import_module(f".{module}", package)
            if attribute:
                value = getattr(value, attribute)
        elif name == "__all__":
            value = [*where, *also]
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # found at once from now on
        return value

    return find, lambda: sorted({*vars(sys.modules[package]), *find("__all__")})
