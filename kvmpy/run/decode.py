"""From the shim's words to an exit: the counterpart of native/exits.c."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..exits import reasons as exits
from ..exits.reasons import Exit

_Words = Sequence[int]


def _hyperv(words: _Words) -> Exit:
    match words[0]:
        case 1:
            return exits.HypervSynic(*words[1:5])
        case 2:
            return exits.HypervHypercall(words[1], tuple(words[2:4]))
        case 3:
            return exits.HypervSyndbg(*words[1:7])
        case other:
            return exits.HypervOther(other)


def _xen(words: _Words) -> Exit:
    if words[0] != 1:
        return exits.Xen(type=words[0])
    longmode, cpl, number = words[1:4]
    return exits.Xen(number, tuple(words[4:10]), bool(longmode), cpl)


# The words are shim_decode()'s, after the reason.
_DECODERS: dict[int, Callable[[_Words], Exit]] = {
    0: lambda w: exits.Unknown(w[0]),
    1: lambda w: exits.Exception_(w[0], w[1]),
    3: lambda w: exits.Hypercall(w[0], tuple(w[1:7]), bool(w[7])),
    4: lambda w: exits.Debug(w[0], w[1], w[2], w[3]),
    5: lambda w: exits.Hlt(),
    7: lambda w: exits.IrqWindowOpen(),
    8: lambda w: exits.Shutdown(),
    9: lambda w: exits.FailEntry(w[0], w[1]),
    10: lambda w: exits.Intr(),
    11: lambda w: exits.SetTpr(),
    12: lambda w: exits.TprAccess(w[0], bool(w[1])),
    16: lambda w: exits.Nmi(),
    17: lambda w: exits.InternalError(w[0], tuple(w[1:])),
    24: lambda w: exits.SystemEvent(w[0], tuple(w[1:])),
    26: lambda w: exits.IoapicEoi(w[0]),
    27: _hyperv,
    29: lambda w: exits.Rdmsr(w[0], w[2]),
    30: lambda w: exits.Wrmsr(w[0], w[1], w[2]),
    31: lambda w: exits.DirtyRingFull(),
    32: lambda w: exits.ApResetHold(),
    33: lambda w: exits.BusLock(),
    34: _xen,
    37: lambda w: exits.Notify(w[0]),
    39: lambda w: exits.MemoryFault(w[0], w[1], w[2]),
    40: lambda w: exits.Tdx(w[0], w[1], w[2], tuple(w[3:8])),
}


def decode(words: _Words, run_page: memoryview) -> Exit:
    """The exit that ``words`` (shim_decode's, the reason first) describe.

    ``run_page`` is the vCPU's kvm_run mapping: port data lies in it, beyond the structure.

    >>> kvmpy.run.decode.decode([6, 0, 0xD0000000, 4, 0], memoryview(b""))
    MmioRead(gpa=0xd0000000, size=4)
    """
    reason, rest = words[0], words[1:]
    if reason == 2:
        is_write, port, size, count, offset = rest
        if not is_write:
            return exits.IoIn(port, size, count)
        return exits.IoOut(port, size, bytes(run_page[offset : offset + size * count]), count)
    if reason == 6:
        is_write, gpa, size, data = rest
        if not is_write:
            return exits.MmioRead(gpa, size)
        return exits.MmioWrite(gpa, data.to_bytes(8, "little")[:size])
    decoder = _DECODERS.get(reason)
    return decoder(rest) if decoder else exits.OtherExit(reason)
