"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c."""

from .block import Block
from .device import Statistics, VirtioDevice
from .rng import Rng

__all__ = ["Block", "Rng", "Statistics", "VirtioDevice"]
