"""Virtio 1.x devices behind virtio-mmio: the Python faces of native/virtio_*.c.

Made by native/names_stub.py: do not edit.
"""

from .block import (
    Block as Block,
)
from .console import (
    VirtioConsole as VirtioConsole,
)
from .device import (
    Statistics as Statistics,
    VirtioDevice as VirtioDevice,
)
from .net import (
    Net as Net,
    NetOptions as NetOptions,
    parse_mac as parse_mac,
    parse_net as parse_net,
)
from .rng import (
    Rng as Rng,
)
