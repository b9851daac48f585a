"""Devices answered in C: the Python faces of native/uart.c, ports.c, platform.c, rtc.c, ioapic.c;
:mod:`kvmpy.devices.virtio` has those of native/virtio_*.c."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import virtio
from .platform import I8042, PowerManagement, PvPanic, ResetControl
from .ports import DebugConsole, DebugExit, PostPort
from .rtc import Rtc
from .sink import Sink
from .uart import Uart

if TYPE_CHECKING:
    from .ioapic import Ioapic as Ioapic

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


def __getattr__(name: str) -> Any:
    if name != "Ioapic":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .ioapic import Ioapic  # which brings KVM's routes and interrupt controllers

    return Ioapic
