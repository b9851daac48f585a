"""Debian's kernels for guests, and the modules that kvmpy's devices need in them.

They come from Debian's archive by way of the rigs' cache. A rig's guest has no network: ``run.py
--linux-guests`` calls :func:`prepare` on the host before it starts the rig.
"""

from __future__ import annotations

from pathlib import Path

from rigs import guest, kernel
from rigs.kernel import Kernel

CLOUD, FULL = "linux-image-cloud-amd64", "linux-image-amd64"

_MODULES = (
    *("virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng"),
    *("pvpanic_mmio", "button", "crc32c_generic", "ext4"),
)


def fetch(package: str) -> Kernel:
    """The kernel that ``package`` (:data:`CLOUD` or :data:`FULL`) stands for, from the cache or
    Debian's archive. Raises rigs.host.Unavailable where neither has it."""
    return kernel.fetch(package, _MODULES)


def prepare(packages: tuple[str, ...] = (CLOUD, FULL)) -> list[Path]:
    """Have all in the cache that guests need, and give its paths there."""
    return [fetch(package).bzimage.parent for package in packages] + [guest.busybox().parent]
