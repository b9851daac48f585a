"""What the checked form of an ioctl costs above the system call."""

from __future__ import annotations

import timeit
from collections.abc import Iterator

import kvmpy
from kvmpy import guests

from .bare import Library
from .exits import MEMORY
from .rows import Row, alternate

LOOPS = 5000

#: name, whether the ioctl takes a structure, statement
_CALLS = (
    ("checked ioctl, integer", False, "CHECK_EXTENSION(fd, 0)"),
    ("checked ioctl, structure", True, "GET_MCE_CAP(fd, buffer)"),
)


def call_rows(rounds: int) -> Iterator[Row]:
    """On /dev/kvm's own descriptor: what KVM does in these is next to nothing, so that the
    difference stands out."""
    library = Library(guests.load("exits.bin"), MEMORY)
    with kvmpy.KVM() as kvm:
        fd = kvm.fileno()
        names = {
            "fd": fd,
            "buffer": bytearray(8),
            "CHECK_EXTENSION": kvmpy.ioctls.KVM_CHECK_EXTENSION,
            "GET_MCE_CAP": kvmpy.ioctls.KVM_X86_GET_MCE_CAP_SUPPORTED,
        }
        for name, structure, statement in _CALLS:
            timer = timeit.Timer(statement, globals=names)
            samples = alternate(
                {
                    "bare": lambda s=structure: (  # type: ignore[misc]
                        library.ioctls(fd, LOOPS, structure=s) / LOOPS / 1e3
                    ),
                    "ours": lambda t=timer: t.timeit(LOOPS) / LOOPS * 1e6,  # type: ignore[misc]
                },
                rounds,
            )
            yield Row(name, "difference", "us", 0.5, samples["ours"], samples["bare"])
