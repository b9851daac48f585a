"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c."""

from .block import Block
from .console import VirtioConsole
from .device import Statistics, VirtioDevice
from .net import Net, NetOptions, parse_mac, parse_net
from .rng import Rng

__all__ = [
    "Block", "Net", "NetOptions", "Rng", "Statistics", "VirtioConsole", "VirtioDevice",
    "parse_mac", "parse_net",
]  # fmt: skip
