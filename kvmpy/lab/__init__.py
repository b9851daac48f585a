"""CPU virtualization, live: experiments on real KVM that show what they saw and explain it.

Each experiment is a module here, with a guest program of its own: ``run(pin=None)`` gives its
result, a frozen dataclass of plain values that ``dataclasses.asdict`` makes JSON of;
``show(result)`` gives what it says, as blocks of :mod:`kvmpy.report.blocks`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, Final, Protocol, cast

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


class Experiment(Protocol):
    """What a module of this package gives.

    ``run``: with the vCPU's thread pinned to pCPU ``pin``, if it is not None; raises
    UnsupportedError when nothing of it can be had here. What of it a module or CPU cannot show is
    in the result, with the reason. ``show``: the result, explained.
    """

    def run(self, pin: int | None = None) -> Any: ...

    def show(self, result: Any) -> Iterable[Block]: ...


def experiment(name: str) -> Experiment:
    """The module of an experiment. Raises KeyError for a name that is none.

    >>> kvmpy.lab.experiment("popek-goldberg").__name__
    'kvmpy.lab.popek_goldberg'
    """
    EXPERIMENTS[name]
    module = importlib.import_module(f".{name.replace('-', '_')}", __name__)
    return cast(Experiment, module)


def section(name: str, result: Any) -> Section:
    """An experiment's result under its title.

    >>> kvmpy.lab.section("rings", kvmpy.lab.experiment("rings").run()).anchor
    'rings'
    """
    return Section(EXPERIMENTS[name], tuple(experiment(name).show(result)), name)
