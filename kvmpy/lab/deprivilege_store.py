"""Who may store where: the ring against the page's U/S bit, and against a segment's limit.

Source: SDM vol. 3, "Paging", "Access Rights" (rings 0, 1 and 2 are supervisor mode) and
"Protection", "Limit Checking in 64-bit Mode".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ..exits.explain import headline
from ..exits.reasons import GuestException
from ..guests import image
from ..vm import VM
from ..x86 import descriptors as d, layout
from ..x86.exceptions import VECTORS
from ..x86.modes import Mode

_MEMORY: Final = 2 << 20
_TIMEOUT: Final = 10.0
_SELECTOR: Final = 0x80  # behind the shared GDT
_LIMIT: Final = 0xFFF
_PATTERN: Final = 0x600D_C0DE
#: Mode, ring, and whether through the segment with a limit.
_TRIES: Final = (
    (Mode.LONG_64, 3, False),
    (Mode.LONG_64, 2, False),
    (Mode.LONG_64, 1, False),
    (Mode.PAGED_32, 3, False),
    (Mode.PAGED_32, 1, False),
    (Mode.PROTECTED_32, 1, True),
    (Mode.LONG_64, 1, True),
)


@dataclass(frozen=True)
class Store:
    """A store from ``ring`` of 32- or 64-bit code (``bits``), with ``paging`` or without.

    ``barrier``: "page", one with U/S = 0, or "segment", a limit far below the address.
    ``stored``: whether memory has changed. ``exception``: what came instead, as "#PF(0x7)".
    ``failure``: why it could not be tried here, or "".
    """

    bits: int
    paging: bool
    ring: int
    barrier: str
    stored: bool
    exception: str
    failure: str


def stores(pin: int | None) -> tuple[Store, ...]:
    """Try them all, each in a VM of its own.

    >>> from kvmpy.lab import deprivilege_store
    >>> with kvmpy.KVM():
    ...     first = deprivilege_store.stores(None)[0]
    >>> first.ring, first.exception  # user write, page present
    (3, '#PF(0x7)')
    """
    return tuple(_store(mode, ring, limited, pin) for mode, ring, limited in _TRIES)


def _store(mode: Mode, ring: int, limited: bool, pin: int | None) -> Store:
    guest = image.load("lab-store")
    with VM(_MEMORY) as vm:
        vm.load(guest.code, at=image.ORIGIN)
        # A page of the supervisor area that nothing needs: U/S = 0 in its table entry.
        target = layout.supervisor_area(vm.memory).end - 64
        cpu = vm.vcpu(pin=pin)
        cpu.enter(
            mode, rip=guest["store_in_segment" if limited else "store"], ring=ring,
            regs={"rdi": target, "rsi": _SELECTOR | ring, "rax": _PATTERN},
        )  # fmt: skip
        if limited:
            segment = d.Descriptor(limit=_LIMIT, type=d.DATA_RW, dpl=ring, big=True)
            table = cpu.sregs.gdt
            vm.load(segment.encode(), at=table.base + _SELECTOR)
            table.limit = _SELECTOR + 7
        exit = cpu.run(timeout=_TIMEOUT, max_exits=100)
        (now,) = struct.unpack("<I", vm.memory.read(target, 4))
    exception = failure = ""
    if isinstance(exit, GuestException):
        if exit.report.rip != guest["stored"]:
            exception = _named(exit)
    else:
        failure = headline(exit)
    return Store(
        bits=mode.bits,
        paging=mode is not Mode.PROTECTED_32,
        ring=ring,
        barrier="segment" if limited else "page",
        stored=now == _PATTERN,
        exception=exception,
        failure=failure,
    )


def _named(exit: GuestException) -> str:
    vector, code = exit.report.vector, exit.report.error_code
    mnemonic = VECTORS[vector][0] if vector in VECTORS else exit.report.name
    return mnemonic if code is None else f"{mnemonic}({code:#x})" if code else f"{mnemonic}(0)"
