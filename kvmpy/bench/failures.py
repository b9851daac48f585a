"""How a guest's trip failed, in one line: which exception, at which instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..errors import KvmpyError
from ..exits.explain import headline
from ..exits.reasons import Exit, GuestException, Timeout
from ..guests.image import ORIGIN, GuestProgram
from ..x86.exceptions import VECTORS

if TYPE_CHECKING:
    from ..vcpu import VCPU

#: First bytes of the instructions that a guest can fail at.
_INSTRUCTIONS: Final = {
    b"\xcd\x80": "int 0x80",
    b"\x0f\x05": "syscall",
    b"\x0f\x34": "sysenter",
    b"\xff": "the far call",
    b"\x48\xcf": "iretq",
    b"\xcf": "iret",
    b"\x48\x0f\x07": "sysretq",
    b"\x0f\x07": "sysret",
    b"\x48\x0f\x35": "sysexitq",
    b"\x0f\x35": "sysexit",
    b"\x48\xcb": "the far return",
    b"\xcb": "the far return",
    b"\x0f\x22": "mov to cr3",
    b"\x0f\xae\xe8": "lfence",
    b"\x0f\x01\xf9": "rdtscp",
    b"\x0f\x01\xc1": "vmcall",
    b"\x0f\x01\xd9": "vmmcall",
    b"\x0f\xa2": "cpuid",
    b"\x0f\x32": "rdmsr",
    b"\x0f\x30": "wrmsr",
    b"\xe6": "out",
    b"\xf4": "hlt",
}


class GuestFailed(KvmpyError):
    """A guest that did not do what it was to do. ``vector``: of its exception, or None."""

    def __init__(self, text: str, vector: int | None = None):
        super().__init__(text)
        self.vector = vector


def instruction_at(image: GuestProgram, address: int) -> str:
    """The instruction at an address of the guest, by name; else the address with its label.

    >>> image = kvmpy.guests.image.load("syscall-long64")
    >>> kvmpy.bench.failures.instruction_at(image, 0x10)
    '0x10'
    """
    at = address - ORIGIN
    code = image.code[at : at + 4] if at >= 0 else b""
    for start, name in _INSTRUCTIONS.items():
        if code and code.startswith(start):
            return name
    label = image.nearest(address)
    return f"{label}+{address - image[label]:#x}" if label else f"{address:#x}"


def describe(cpu: VCPU, image: GuestProgram, exit: Exit, timeout: float) -> GuestFailed:
    """The failure that an exit stands for.

    >>> image = kvmpy.guests.image.load("syscall-long64")
    >>> print(kvmpy.bench.failures.describe(cpu, image, kvmpy.Timeout(), 2.0))
    no end within 2 s, at 0xfff0
    """
    if isinstance(exit, Timeout):
        where = instruction_at(image, cpu.regs.rip)
        return GuestFailed(f"no end within {timeout:g} s, at {where}")
    if not isinstance(exit, GuestException):
        where = instruction_at(image, cpu.regs.rip)
        return GuestFailed(f"{headline(exit)}, at {where}")
    report = exit.report
    mnemonic = VECTORS[report.vector][0] if report.vector in VECTORS else report.name
    code = f"({report.error_code:#x})" if report.error_code else ""
    if report.rip is None or report.cs is None:
        return GuestFailed(f"{mnemonic}{code} at an unknown place", report.vector)
    text = f"{mnemonic}{code} at {instruction_at(image, report.rip)}"
    if image["kernel"] <= report.rip < image.end:
        text += f", in the handler, which runs in ring {report.cs & 3}"
    elif report.cs & 3 == 3 and report.cs != image.user_cs:
        text += f": the way back has loaded CS with {report.cs:#x}, not {image.user_cs:#x}"
    return GuestFailed(text, report.vector)
