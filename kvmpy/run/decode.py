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


#: Of the kinds with one class each, what makes it of shim_decode()'s words after the reason.
_MAKERS: tuple[tuple[type[Exit], Callable[[_Words], Exit]], ...] = (
    (exits.Unknown, lambda w: exits.Unknown(w[0])),
    (exits.Exception_, lambda w: exits.Exception_(w[0], w[1])),
    (exits.Hypercall, lambda w: exits.Hypercall(w[0], tuple(w[1:7]), bool(w[7]))),
    (exits.Debug, lambda w: exits.Debug(w[0], w[1], w[2], w[3])),
    (exits.Hlt, lambda w: exits.Hlt()),
    (exits.IrqWindowOpen, lambda w: exits.IrqWindowOpen()),
    (exits.Shutdown, lambda w: exits.Shutdown()),
    (exits.FailEntry, lambda w: exits.FailEntry(w[0], w[1])),
    (exits.Intr, lambda w: exits.Intr()),
    (exits.SetTpr, lambda w: exits.SetTpr()),
    (exits.TprAccess, lambda w: exits.TprAccess(w[0], bool(w[1]))),
    (exits.Nmi, lambda w: exits.Nmi()),
    (exits.InternalError, lambda w: exits.InternalError(w[0], tuple(w[1:]))),
    (exits.SystemEvent, lambda w: exits.SystemEvent(w[0], tuple(w[1:]))),
    (exits.IoapicEoi, lambda w: exits.IoapicEoi(w[0])),
    (exits.Hyperv, _hyperv),
    (exits.Rdmsr, lambda w: exits.Rdmsr(w[0], w[2])),
    (exits.Wrmsr, lambda w: exits.Wrmsr(w[0], w[1], w[2])),
    (exits.DirtyRingFull, lambda w: exits.DirtyRingFull()),
    (exits.ApResetHold, lambda w: exits.ApResetHold()),
    (exits.BusLock, lambda w: exits.BusLock()),
    (exits.Xen, _xen),
    (exits.Notify, lambda w: exits.Notify(w[0])),
    (exits.MemoryFault, lambda w: exits.MemoryFault(w[0], w[1], w[2])),
    (exits.Tdx, lambda w: exits.Tdx(w[0], w[1], w[2], tuple(w[3:8]))),
)
_DECODERS = {kind.reason: make for kind, make in _MAKERS}


def decode(words: _Words, run_page: memoryview) -> Exit:
    """The exit that ``words`` (shim_decode's, the reason first) describe.

    ``run_page`` is the vCPU's kvm_run mapping: port data lies in it, beyond the structure.

    >>> kvmpy.run.decode.decode([6, 0, 0xD0000000, 4, 0], memoryview(b""))
    MmioRead(gpa=0xd0000000, size=4)
    """
    reason, rest = words[0], words[1:]
    if reason == exits.IoOut.reason:
        is_write, port, size, count, offset = rest
        if not is_write:
            return exits.IoIn(port, size, count)
        return exits.IoOut(port, size, bytes(run_page[offset : offset + size * count]), count)
    if reason == exits.MmioWrite.reason:
        is_write, gpa, size, data = rest
        if not is_write:
            return exits.MmioRead(gpa, size)
        return exits.MmioWrite(gpa, data.to_bytes(8, "little")[:size])
    decoder = _DECODERS.get(reason)
    return decoder(rest) if decoder else exits.OtherExit(reason)
