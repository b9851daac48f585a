"""A copy of QEMU's emulator with one mistake about the task register corrected.

QEMU's LTR leaves the cached TR type "available", and its checks expect that.  A nested guest's TR
comes out of a VMCB instead, where it is "busy", as the architecture has it (AMD APM volume 2, "Task
State Segments").  So QEMU 7.2 aborts ("invalid tss type") when a 32-bit nested guest takes an
interrupt into another ring, and denies it every port of the I/O permission bitmap.

Both checks are a mask and a comparison; without the busy bit in the mask they accept both types.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

from . import host

_BUSY = 0x02  # of a TSS descriptor's type

# and reg, 7; cmp reg, 1; jne target: the target then passes this text to cpu_abort()
_STACK_CHECK = re.compile(rb"\x83[\xe0-\xe7]\x07\x83[\xf8-\xff]\x01\x0f\x85(....)", re.DOTALL)
_ABORT_TEXT = b"invalid tss type\0"
# and reg, 15; cmp reg, 9; jne target; cmp dword [tr.limit], 102
_PORT_CHECK = re.compile(
    rb"\x83[\xe0-\xe7]\x0f\x83[\xf8-\xff]\x09\x0f\x85....\x83[\xb8-\xbf]....\x66", re.DOTALL
)


def corrected(program: str) -> Path:
    """The corrected copy of ``program`` in the cache; ``program`` itself where nothing matches."""
    original = Path(shutil.which(program) or program).resolve()
    data = original.read_bytes()
    sites = find_sites(data)
    if not sites:
        host.say(f"{original.name}: not the code that aborts on a busy TSS; used as it is")
        return original

    def build(directory: Path) -> None:
        image = bytearray(data)
        for offset in sites:
            image[offset] &= ~_BUSY
        copy = directory / original.name
        copy.write_bytes(image)
        copy.chmod(0o755)

    return host.cached("qemu", host.fingerprint("1", data), build) / original.name


def find_sites(data: bytes) -> list[int]:
    """File offsets of the masks to change: one of each check, or none at all."""
    stack = [m.start() + 2 for m in _STACK_CHECK.finditer(data) if _aborts(data, m)]
    port = [match.start() + 2 for match in _PORT_CHECK.finditer(data)]
    return stack + port if len(stack) == len(port) == 1 else []


def _aborts(data: bytes, check: re.Match[bytes]) -> bool:
    """Whether the jump goes to ``lea rsi, [text]``.

    Displacements are between addresses; within .text they are differences of file offsets as well,
    and from .text to .rodata too, in an executable whose segments are mapped where they lie in the
    file, as the linker does for these.
    """
    target = check.end() + struct.unpack("<i", check[1])[0]
    if data[target : target + 3] != b"\x48\x8d\x35":
        return False
    text = target + 7 + struct.unpack_from("<i", data, target + 3)[0]
    return data[text : text + len(_ABORT_TEXT)] == _ABORT_TEXT
