"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c.

Imported one by one, when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
