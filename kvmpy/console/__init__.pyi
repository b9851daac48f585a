"""A guest's console: the terminal, and a script that talks to it.

Made by native/names_stub.py: do not edit.
"""

from .output import (
    Match as Match,
)
from .script import (
    ScriptConsole as ScriptConsole,
)
from .shell import (
    CommandResult as CommandResult,
)
from .terminal import (
    Console as Console,
)
