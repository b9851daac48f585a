"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c."""

from .device import Statistics, VirtioDevice
from .rng import Rng

__all__ = ["Rng", "Statistics", "VirtioDevice"]
