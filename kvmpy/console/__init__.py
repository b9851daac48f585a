"""A guest's console: the terminal, and a script that talks to it."""

from ..lazy import attach

_TABLE = """
output: Match
script: ScriptConsole
shell: CommandResult
terminal: Console
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
