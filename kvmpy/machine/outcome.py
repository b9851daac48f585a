"""How a machine ended, as a value and as an exit status for a shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..values import dataclass

if TYPE_CHECKING:
    from ..vcpu import VCPU

Ending = Literal[
    "debug-exit", "halt", "power-off", "reset", "panic", "timeout", "exit-limit", "interrupted",
    "failure",
]  # fmt: skip

#: Exit statuses that are not the guest's own.
FAILURE, RESET, PANIC, BUDGET, INTERRUPTED = 1, 3, 4, 124, 130
_IF = 1 << 9  # of RFLAGS


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a machine ended.

    ``status`` is the exit status for a shell: the guest's own for a debug exit; 0 for a halt or
    power-off, 3 for a reset, 4 for a kernel panic, 124 when a budget ran out, 130 when the host's
    user ended it, 1 for a failure. ``text`` says it for a person; for a failure with registers and
    likely cause.
    """

    ending: Ending
    status: int
    text: str
    exit: Exit
    seconds: float


def judge(vcpu: VCPU, exit: Exit) -> tuple[Ending, int, str]:
    """What it means that ``vcpu``'s run, and with it the machine's, ended with ``exit``.

    >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> kvmpy.machine.outcome.judge(cpu, cpu.run(timeout=60))
    ('halt', 0, 'the guest halted')
    """
    match exit:
        case exits.DebugExit(status=status):
            return "debug-exit", status & 0xFF, f"the guest ended with status {status}"
        case exits.Hlt():
            return "halt", 0, f"the guest halted{_in_vain(vcpu)}"
        case exits.PowerOff(source=source):
            return "power-off", 0, f"the guest powered off ({source})"
        case exits.Reset(source=source):
            return "reset", RESET, f"the guest asked for a reset ({source})"
        case exits.GuestPanic():
            return "panic", PANIC, "the guest's kernel panicked"
        case exits.Timeout():
            return "timeout", BUDGET, f"timeout: {_whereabouts(vcpu)}"
        case exits.ExitLimit():
            return "exit-limit", BUDGET, f"exit limit: {_whereabouts(vcpu)}"
        case exits.Kicked():
            return "interrupted", INTERRUPTED, "ended by the user"
        case _:
            return "failure", FAILURE, vcpu.explain(exit)


def _in_vain(vcpu: VCPU) -> str:
    if not vcpu.regs.rflags & _IF:
        return ""
    return (
        " to wait for an interrupt, and there is no interrupt controller (irqchip none): Linux and "
        "most kernels need one"
    )


def _whereabouts(vcpu: VCPU) -> str:
    sregs = vcpu.sregs
    mode = "real mode" if not sregs.cr0 & 1 else sregs.cs.kind
    who = f"the guest's vCPU {vcpu.id}" if len(vcpu.vm.vcpus) > 1 else "the guest"
    where = f"{sregs.cs.selector:04x}:{vcpu.regs.rip:#x} (ring {sregs.ss.dpl}, {mode})"
    return f"{who} was at {where}{_pace(sregs.ss.dpl)}"


def _pace(ring: int) -> str:
    """A reason for a guest not to be done yet."""
    from ..host.module import module_name

    slow = ring == 0 and module_name() == "kvm_pvm"
    return ", where kvm_pvm emulates every instruction" if slow else ""
