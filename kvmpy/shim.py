"""The one door to the compiled shim: what is called (``lib``), and C's types and memory (``ffi``).

Private: no cdata object leaves the package.
"""

from typing import TYPE_CHECKING

from ._native import ffi as ffi, lib as lib

if TYPE_CHECKING:
    from typing_extensions import Buffer


def address_of(buffer: "Buffer") -> int:
    """The host virtual address of a buffer's first byte. It holds while the buffer does.

    >>> kvmpy.shim.address_of(bytearray(8)) > 0
    True
    """
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))
