"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c.

Imported one by one, when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...lazy import names_from

if TYPE_CHECKING:
    from .block import Block
    from .console import VirtioConsole
    from .device import Statistics, VirtioDevice
    from .net import Net, NetOptions, parse_mac, parse_net
    from .rng import Rng

_WHERE = {
    "Block": "block",
    "Net": "net",
    "NetOptions": "net",
    "Rng": "rng",
    "Statistics": "device",
    "VirtioConsole": "console",
    "VirtioDevice": "device",
    "parse_mac": "net",
    "parse_net": "net",
}

__all__ = [
    "Block", "Net", "NetOptions", "Rng", "Statistics", "VirtioConsole", "VirtioDevice",
    "parse_mac", "parse_net",
]  # fmt: skip

__getattr__ = names_from(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
