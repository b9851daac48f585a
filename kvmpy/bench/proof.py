"""Proof that a cell's round trip is real: made once, with everything known before and looked at
after."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from .cells import Cell
from .lab import Lab

_REGISTERS_64: Final = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rsp"),
)
_REGISTERS_32: Final = ("eax", "ebx", "ecx", "edx", "esi", "edi", "ebp", "esp")
#: What the paths themselves use: SYSCALL keeps RIP and RFLAGS there (in legacy mode only ECX),
#: SYSEXIT takes RSP and RIP from there. EAX has the service's number, and then its result.
_USED: Final = {
    "int80": frozenset[str](),
    "callgate": frozenset[str](),
    "syscall": frozenset({"cx", "r11"}),
    "sysenter": frozenset({"cx", "dx"}),
}
_LONG: Final = "long64"


@dataclass(frozen=True)
class Proof:
    """What one trip did.

    ``entered``: times the handler ran; None for rungs that do not count (H0, H1). ``kernel_cpl``:
    privilege level in the handler, None where it does not look. ``user_cpl``: after the return.
    ``changed``: registers that came back wrong. ``result``: EAX at the end.
    """

    entered: int | None
    kernel_cpl: int | None
    user_cpl: int
    changed: tuple[str, ...]
    result: int

    @property
    def trouble(self) -> str:
        """What is wrong with it, "" if nothing is.

        >>> kvmpy.bench.proof.Proof(1, 0, 3, (), 1).trouble
        ''
        """
        if self.entered not in (None, 1):
            return f"the handler ran {self.entered} times, not once"
        if self.kernel_cpl not in (None, 0):
            return f"the handler runs in ring {self.kernel_cpl}"
        if self.user_cpl != 3:
            return f"it comes back to ring {self.user_cpl}"
        return f"{', '.join(self.changed)} came back changed" if self.changed else ""


def prove(lab: Lab, cell: Cell, copy: int = 0, *, handler: str | None = None) -> Proof:
    """Make the trip of ``cell`` once, to the rung's own handler, or to the one named ("proof").

    Raises GuestFailed when it does not come back.

    >>> Cell, Lab = kvmpy.bench.cells.Cell, kvmpy.bench.lab.Lab
    >>> with Lab("legacy32", paging=False) as lab:
    ...     try:
    ...         trouble = kvmpy.bench.proof.prove(lab, Cell("legacy32", "sysenter", "H0")).trouble
    ...     except kvmpy.bench.failures.GuestFailed as error:
    ...         trouble = str(error)
    >>> isinstance(trouble, str)
    True
    """
    wanted = Cell(cell.mode, cell.path, handler or cell.level)
    image = lab.image
    lab.enter(f"prove.{cell.path}", wanted, copy)
    names = _REGISTERS_64 if cell.mode == _LONG else _REGISTERS_32
    width, letter = (8, "Q") if cell.mode == _LONG else (4, "I")
    patterns = [(0x1111_1111_1111_1111 * (i + 1)) & ((1 << 8 * width) - 1) for i in range(15)]
    values = patterns[: len(names) - 1]
    lab.vm.load(struct.pack(f"<{len(values)}{letter}", *values), at=image["REGISTERS_IN"])
    stack = lab.cpu.regs.rsp
    for name in ("SEEN_KERNEL_CS", "SEEN_USER_CS"):
        lab.vm.load(bytes(8), at=image[name])
    lab.run(1)

    raw = lab.vm.memory.read(image["REGISTERS_OUT"], width * len(names))
    after = dict(zip(names, struct.unpack(f"<{len(names)}{letter}", raw), strict=True))
    before = dict(zip(names, (*values, stack), strict=True))
    dispatched = wanted.handler in ("H2", "H3")
    before[names[0]] = image["RESULT"] if dispatched else image["SERVICE"]
    used = _USED[cell.path]
    changed = tuple(
        name for name in names
        if after[name] != before[name] and name not in used and name[1:] not in used
    )  # fmt: skip
    noted = wanted.handler == "proof"
    return Proof(
        entered=lab.calls_seen if noted or dispatched else None,
        kernel_cpl=_word(lab, "SEEN_KERNEL_CS") & 3 if noted else None,
        user_cpl=_word(lab, "SEEN_USER_CS") & 3,
        changed=changed,
        result=after[names[0]],
    )


def _word(lab: Lab, name: str) -> int:
    return int.from_bytes(lab.vm.memory.read(lab.image[name], 2), "little")
