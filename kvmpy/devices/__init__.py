"""Devices answered in C: the Python faces of native/uart.c, ports.c, platform.c, rtc.c, ioapic.c;
:mod:`kvmpy.devices.virtio` has those of native/virtio_*.c."""

from . import virtio
from .ioapic import Ioapic
from .platform import I8042, PowerManagement, PvPanic, ResetControl
from .ports import DebugConsole, DebugExit, PostPort
from .rtc import Rtc
from .sink import Sink
from .uart import Uart

__all__ = [
    "I8042",
    "DebugConsole",
    "DebugExit",
    "Ioapic",
    "PostPort",
    "PowerManagement",
    "PvPanic",
    "ResetControl",
    "Rtc",
    "Sink",
    "Uart",
    "virtio",
]
