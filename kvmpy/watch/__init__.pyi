"""Watching vCPUs: those of the machines in this process, or of any of this user's processes.

Made by native/names_stub.py: do not edit.
"""

from .find import (
    MachineInfo as MachineInfo,
    PeerError as PeerError,
    machines as machines,
)
from .samples import (
    MachineSample as MachineSample,
    Sample as Sample,
    VcpuSample as VcpuSample,
)
from .watch import (
    Watch as Watch,
)
