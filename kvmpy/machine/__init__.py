"""A whole machine: memory, devices, a loaded image, vCPU threads, and how it ends."""

from ..lazy import attach

_TABLE = """
.console.output: Match
.console.script: ScriptConsole
.console.shell: CommandResult
.console.terminal: Console
machine: Machine
outcome: Outcome
threads: VcpuThreads
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
