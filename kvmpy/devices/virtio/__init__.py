"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c.

Imported one by one, when they are first used.
"""

from ...lazy import attach

_TABLE = """
block: Block
console: VirtioConsole
device: Statistics VirtioDevice
net: Net NetOptions parse_mac parse_net
rng: Rng
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
