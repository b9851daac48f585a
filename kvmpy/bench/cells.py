"""The matrix: CPU modes, paths from ring 3 to ring 0, rungs of the ladder of handlers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .record import Kind

MODES: Final = ("long64", "compat32", "legacy32")
PATHS: Final = ("int80", "sysenter", "syscall", "callgate")
#: H0 bare return; H1 on ring 0's stack; H2 all registers saved, call dispatched; H3 also CR3
#: switched and back, every switch flushing the TLB; H3-pcid the same without (CR4.PCIDE, CR3 bit
#: 63), which exists in long mode only.
LEVELS: Final = ("H0", "H1", "H2", "H3", "H3-pcid")

#: What the instruction is called, in a row's name and where it fails.
INSTRUCTIONS: Final = {
    "int80": "int 0x80",
    "sysenter": "SYSENTER",
    "syscall": "SYSCALL",
    "callgate": "call gate",
    "nearcall": "near call",
    "empty": "empty loop",
    "adds": "64 dependent adds",
}
MODE_NAMES: Final = {"long64": "64-bit", "compat32": "compat 32-bit", "legacy32": "legacy 32-bit"}


@dataclass(frozen=True)
class Cell:
    """One thing to measure in a guest.

    ``mode`` of ``MODES``, ``path`` of ``PATHS`` or "nearcall", "empty", "adds"; ``level`` of
    ``LEVELS``, or "" for those that reach no handler; ``single``: single shots instead of slopes.
    """

    mode: str
    path: str
    level: str = ""
    single: bool = False

    @property
    def kind(self) -> Kind:
        """Of its row: "path", "baseline" or "calibration".

        >>> kvmpy.bench.cells.Cell("long64", "nearcall", "H1").kind
        'baseline'
        """
        if self.path == "adds":
            return "calibration"
        return "path" if self.path in PATHS else "baseline"

    @property
    def ring(self) -> int:
        """Ring in which its loop runs. A near call stays in ring 0: the handlers are ring 0's.

        >>> kvmpy.bench.cells.Cell("long64", "nearcall", "H1").ring
        0
        """
        return 0 if self.path == "nearcall" else 3

    @property
    def rings(self) -> tuple[int, ...]:
        """The rings its way goes through.

        >>> kvmpy.bench.cells.Cell("long64", "syscall", "H0").rings
        (3, 0)
        """
        return (3, 0) if self.path in PATHS else (self.ring,)

    @property
    def handler(self) -> str:
        """The guest's name for the handler's rung.

        >>> kvmpy.bench.cells.Cell("long64", "syscall", "H3-pcid").handler
        'H3'
        """
        return "stamp" if self.single else self.level.partition("-")[0] or "H0"

    @property
    def name(self) -> str:
        """In words.

        >>> kvmpy.bench.cells.Cell("long64", "syscall", "H0").name
        '64-bit SYSCALL H0'
        """
        return f"{MODE_NAMES[self.mode]} {INSTRUCTIONS[self.path]} {self.level}".rstrip()


def _levels(mode: str) -> tuple[str, ...]:
    return LEVELS[:4] if mode == "legacy32" else LEVELS


def every_cell(modes: Iterable[str] = MODES) -> tuple[Cell, ...]:
    """The whole table: baselines, calibration, each path on each rung, and its single shots.

    Near calls in compat32 would be those of long64: ring 0 is the same.

    >>> cells = kvmpy.bench.cells.every_cell()
    >>> len({cell for cell in cells if cell.level == "H0" and cell.kind == "path"})
    24
    """
    cells: list[Cell] = []
    for mode in modes:
        cells += [Cell(mode, "empty"), Cell(mode, "adds")]
        if mode != "compat32":
            cells += [Cell(mode, "nearcall", level) for level in _levels(mode)]
        for path in PATHS:
            cells += [Cell(mode, path, level) for level in _levels(mode)]
            cells.append(Cell(mode, path, "H0", single=True))
    return tuple(cells)
