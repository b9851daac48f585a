"""Names of a package that are imported when they are first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def names_from(package: str, where: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``, for names that its modules define: ``where``, name -> module.

    >>> find = kvmpy.lazy.names_from("kvmpy.machine", {"Console": "console"})
    >>> find("Console") is kvmpy.machine.Console
    True
    """

    def find(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{where[name]}", package), name)
        setattr(sys.modules[package], name, value)  # so that it is found at once from now on
        return value

    return find
