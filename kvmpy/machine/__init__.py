"""A whole machine: memory, devices, a loaded image, vCPU threads, consoles, and how it ends.

What only scripts use is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .machine import Machine
from .outcome import Outcome
from .threads import VcpuThreads

if TYPE_CHECKING:
    from .console import Console
    from .expect import ScriptConsole
    from .output import Match
    from .shell import CommandResult

_WHERE = {
    "CommandResult": "shell",
    "Console": "console",
    "Match": "output",
    "ScriptConsole": "expect",
}

__all__ = [
    "CommandResult", "Console", "Machine", "Match", "Outcome", "ScriptConsole", "VcpuThreads",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
