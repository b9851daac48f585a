"""Devices answered in C: the Python faces of native/uart.c and native/ports.c."""

from .ports import DebugConsole, DebugExit, PostPort
from .sink import Sink
from .uart import Uart

__all__ = ["DebugConsole", "DebugExit", "PostPort", "Sink", "Uart"]
