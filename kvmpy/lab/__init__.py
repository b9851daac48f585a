"""CPU virtualization, live: experiments on real KVM that show what they saw and explain it.

Each experiment is a module here, with a guest program of its own: ``run(pin=None)`` gives its
result, a frozen dataclass of plain values that ``dataclasses.asdict`` makes JSON of. What it says
of a result is in a module of ``show/``: ``blocks(result)``, as :mod:`kvmpy.report.blocks` has them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, Final

from ..report.blocks import Block, Section

#: name -> its title. In this order they tell a story.
EXPERIMENTS: Final = {
    "rings": "Rings 0 to 3, in root and non-root mode",
    "popek-goldberg": "Sensitive instructions that do not trap",
    "deprivilege": "A guest kernel in ring 1, and in non-root ring 0",
    "vmx": "VT-x and AMD-V: what is offered, and a guest that turns it on",
    "timeline": "One system call and one VM exit on one clock",
    "traps": "Three ways into the kernel: int 0x80, SYSENTER, SYSCALL",
    "sharing": "Two vCPUs on one pCPU, guest threads in each",
}


class Experiment:
    """An experiment, made by :func:`experiment`. Its modules are imported when they are used."""

    def __init__(self, name: str):
        #: As in :data:`EXPERIMENTS`.
        self.name = name
        self._module = name.replace("-", "_")

    @property
    def title(self) -> str:
        """What it shows.

        >>> kvmpy.lab.experiment("vmx").title
        'VT-x and AMD-V: what is offered, and a guest that turns it on'
        """
        return EXPERIMENTS[self.name]

    def run(self, pin: int | None = None) -> Any:
        """Run it, with the vCPU's thread pinned to pCPU ``pin`` unless that is None.

        Raises UnsupportedError when nothing of it is available here. What a module or CPU cannot
        show is in the result, with the reason.

        >>> kvmpy.lab.experiment("vmx").run().module[:3]
        'kvm'
        """
        return importlib.import_module(f".{self._module}", __name__).run(pin)

    def blocks(self, result: Any) -> Iterator[Block]:
        """A result, explained: sentences, tables, pictures.

        >>> rings = kvmpy.lab.experiment("rings")
        >>> next(rings.blocks(rings.run()))[:9]
        'A ring is'
        """
        yield from importlib.import_module(f".show.{self._module}", __name__).blocks(result)


def experiment(name: str) -> Experiment:
    """An experiment. Raises KeyError for an unknown name.

    >>> kvmpy.lab.experiment("popek-goldberg").title
    'Sensitive instructions that do not trap'
    """
    EXPERIMENTS[name]
    return Experiment(name)


def section(name: str, result: Any) -> Section:
    """An experiment's result under its title.

    >>> kvmpy.lab.section("rings", kvmpy.lab.experiment("rings").run()).anchor
    'rings'
    """
    return Section(EXPERIMENTS[name], tuple(experiment(name).blocks(result)), name)
