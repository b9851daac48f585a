"""The experiments: what system calls and VM exits cost, measured and disclosed.

`kvmpy.bench.syscall.run()` and `kvmpy.bench.exits.run()` give a `Report` (`kvmpy.bench.record`).
From there: `figures` are its rows with their statistics, `tables`, `html`, `svg` and `pyperf` show
them, `compare` sets two reports against each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:
    """The modules, imported when they are asked for."""
    if name in __dir__():
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__))
