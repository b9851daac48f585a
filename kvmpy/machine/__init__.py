"""A whole machine: memory, devices, a loaded image, vCPU threads, consoles, and how it ends."""

from .console import Console
from .expect import ScriptConsole
from .machine import Machine
from .outcome import Outcome
from .output import Match
from .shell import CommandResult
from .threads import VcpuThreads

__all__ = [
    "CommandResult", "Console", "Machine", "Match", "Outcome", "ScriptConsole", "VcpuThreads",
]  # fmt: skip
