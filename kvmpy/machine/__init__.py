"""A whole machine: memory, devices, a loaded image, vCPU threads, consoles, and how it ends.

What only scripts use is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import names_from
from .machine import Machine
from .outcome import Outcome
from .threads import VcpuThreads

if TYPE_CHECKING:
    from ..console.output import Match
    from ..console.script import ScriptConsole
    from ..console.shell import CommandResult
    from ..console.terminal import Console

_WHERE = {
    "CommandResult": "shell",
    "Console": "console",
    "Match": "output",
    "ScriptConsole": "expect",
}

__all__ = [
    "CommandResult", "Console", "Machine", "Match", "Outcome", "ScriptConsole", "VcpuThreads",
]  # fmt: skip

__getattr__ = names_from(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
