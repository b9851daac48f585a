"""Devices answered in C: the Python faces of native/uart.c, ports.c, platform.c, rtc.c, ioapic.c;
:mod:`kvmpy.devices.virtio` has those of native/virtio_*.c."""

from ..lazy import attach

_TABLE = """
ioapic: Ioapic
platform: I8042 PowerManagement PvPanic ResetControl
ports: DebugConsole DebugExitPort PostPort
rtc: Rtc
sink: Sink
uart: Uart
virtio
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
