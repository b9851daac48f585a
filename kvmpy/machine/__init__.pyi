"""A whole machine: memory, devices, a loaded image, vCPU threads, and how it ends.

Made by native/names_stub.py: do not edit.
"""

from ..console.output import (
    Match as Match,
)
from ..console.script import (
    ScriptConsole as ScriptConsole,
)
from ..console.shell import (
    CommandResult as CommandResult,
)
from ..console.terminal import (
    Console as Console,
)
from .machine import (
    Machine as Machine,
)
from .outcome import (
    Outcome as Outcome,
)
from .threads import (
    VcpuThreads as VcpuThreads,
)
