"""Entropy device."""

from __future__ import annotations

from ...shim import lib
from .device import VirtioDevice


class Rng(VirtioDevice):
    """The host kernel's random numbers (getrandom) for the guest, at most 64 KiB a request.

    VIRTIO 1.2, "5.4 Entropy Device". Linux: ``/dev/hwrng``, and early entropy.

    >>> with kvmpy.devices.virtio.Rng() as rng:
    ...     rng.connect(vm, 0xD000_0000)
    ...     rng.connected
    True
    """

    def __init__(self) -> None:
        super().__init__(lib.shim_virtio_rng_new())
