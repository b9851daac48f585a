"""Devices answered in C: the Python faces of native/uart.c, ports.c, platform.c, rtc.c, ioapic.c;

Made by native/names_stub.py: do not edit.
"""

from . import (
    virtio as virtio,
)
from .ioapic import (
    Ioapic as Ioapic,
)
from .platform import (
    I8042 as I8042,
    PowerManagement as PowerManagement,
    PvPanic as PvPanic,
    ResetControl as ResetControl,
)
from .ports import (
    DebugConsole as DebugConsole,
    DebugExitPort as DebugExitPort,
    PostPort as PostPort,
)
from .rtc import (
    Rtc as Rtc,
)
from .sink import (
    Sink as Sink,
)
from .uart import (
    Uart as Uart,
)
