"""A guest program that exports names to the host (native/guests/exports.inc).

Its code, its symbols by name, and where its time stamps are.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ..x86.descriptors import USER_CODE32, USER_CODE64
from . import load as load_bytes

#: Where the code is linked to run (native/guests/exports.ld).
ORIGIN: Final = 0x10_0000

_HEADER: Final = struct.Struct("<4I")
#: What an interpreted ring runs in place of the stamps' instructions, of the same length: LFENCE
#: becomes a NOP, RDTSCP an RDTSC and a NOP.
_PLAIN: Final = {b"\x0f\xae\xe8": b"\x0f\x1f\x00", b"\x0f\x01\xf9": b"\x0f\x31\x90"}


@dataclass(frozen=True)
class GuestProgram:
    """``symbols``: exported addresses and numbers by name. ``stamps``: addresses of the stamps'
    instructions that the instruction emulator does not know. ``user_cs``: selector of ring 3's
    code."""

    code: bytes
    user_cs: int
    symbols: Mapping[str, int]
    stamps: tuple[int, ...]

    def __getitem__(self, name: str) -> int:
        return self.symbols[name]

    @property
    def end(self) -> int:
        """First address behind the code.

        >>> image = kvmpy.guests.image.load("syscall-long64")
        >>> image["kernel"] < image.end
        True
        """
        return ORIGIN + len(self.code)

    def variant(self, plain_user: bool, plain_kernel: bool) -> bytes:
        """The code with plain stamps in ring 3's part, in ring 0's, or in both.

        >>> image = kvmpy.guests.image.load("syscall-long64")
        >>> image.variant(False, False) == image.code, image.variant(True, False) == image.code
        (True, False)
        """
        code = bytearray(self.code)
        for address in self.stamps:
            if plain_kernel if address >= self["kernel"] else plain_user:
                at = address - ORIGIN
                code[at : at + 3] = _PLAIN[bytes(code[at : at + 3])]
        return bytes(code)

    def nearest(self, address: int) -> str:
        """The last exported label at or below an address of the code, "" if there is none.

        >>> image = kvmpy.guests.image.load("syscall-long64")
        >>> image.nearest(image["canary"] + 3)
        'canary'
        """
        found = [
            (value, name) for name, value in self.symbols.items() if ORIGIN <= value <= address
        ]
        return max(found)[1] if found and address < self.end else ""


@functools.cache
def load(name: str) -> GuestProgram:
    """The image NAME.bin of the package, linked with exports.ld.

    >>> kvmpy.guests.image.load("syscall-compat32").stamps != ()
    True
    """
    code = load_bytes(f"{name}.bin")
    bounds = [address - ORIGIN for address in _HEADER.unpack_from(code)]
    exports, exports_end, stamps, stamps_end = bounds
    symbols: dict[str, int] = {}
    at = exports
    while at < exports_end:
        (value,) = struct.unpack_from("<I", code, at)
        end = code.index(b"\0", at + 4)
        symbols[code[at + 4 : end].decode()] = value
        at = end + 1
    addresses = struct.unpack_from(f"<{(stamps_end - stamps) // 4}I", code, stamps)
    user_cs = USER_CODE32 if name.endswith("32") else USER_CODE64
    return GuestProgram(code, user_cs, MappingProxyType(symbols), addresses)
