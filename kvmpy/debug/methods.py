"""Debugging a guest from outside: breakpoints and single steps (KVM API, "4.87
KVM_SET_GUEST_DEBUG")."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..exits.reasons import Exit
from .guest_debug import VcpuGuestDebug

if TYPE_CHECKING:
    from .breakpoints import Breakpoint, Kind
    from .stepping import Step


class VcpuDebug(VcpuGuestDebug):
    """Breakpoints and single steps.

    KVM's debugging takes the place of the guest's own: while hardware breakpoints are set, the
    guest's DR0..DR3 and DR7 keep their values and have no effect, and its RFLAGS.TF is not seen.
    """

    def breakpoint(
        self,
        address: int,
        kind: Kind = "execute",
        *,
        length: int = 1,
        software: bool = False,
    ) -> Breakpoint:
        """Have runs end with Debug before the instruction at a linear address is executed, or
        after ``length`` bytes there (1, 2, 4 or 8, aligned) are written ("write") or touched
        ("access"). In a ``with`` block it goes at the block's end; else by its ``remove()``.

        Without ``software`` it takes one of the four debug registers of the vCPU; raises
        ValueError when all are taken. ``software`` puts an INT3 into guest memory: any number,
        "execute" only, seen by every vCPU of the VM though only this one stops there, visible in
        ``vm.memory`` (not in :meth:`read_virtual`) and to a guest that reads its own code. INT3s
        of the guest's own, and its own #DB, are given back to it.

        Running on from a breakpoint executes its instruction.

        >>> vm.load(kvmpy.asm("nop; inc eax; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> with cpu.breakpoint(0x1001) as stop:
        ...     print(stop)
        <breakpoint at 0x1001, execute, debug register 0>
        """
        from .breakpoints import debugger_of

        debugger = debugger_of(self)
        try:
            return debugger.add(address, kind, length, software)
        finally:
            debugger.retire()

    @property
    def breakpoints(self) -> tuple[Breakpoint, ...]:
        """Those that are set.

        >>> with cpu.breakpoint(0x1000):
        ...     print(len(cpu.breakpoints))
        1
        """
        if self._debugger is None:
            return ()
        from .breakpoints import debugger_of

        return tuple(debugger_of(self).breakpoints)

    def until(self, address: int, *, timeout: float | None = None) -> Exit:
        """Run to the instruction at a linear address: Debug when it is there, or whatever exit
        comes first. Takes a debug register, or an INT3 when there is none left.

        >>> vm.load(kvmpy.asm("out 0x10, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.until(0x1002, timeout=5)  # the port is nobody's
        IoOut(port=0x10, size=1, data=b'\\x00', count=1)
        """
        taken = sum(not point.software for point in self.breakpoints)
        with self.breakpoint(address, software=taken == 4):
            return self.run(timeout)

    def steps(
        self,
        limit: int | None = None,
        *,
        timeout: float | None = None,
        block_interrupts: bool = False,
    ) -> Iterator[Step]:
        """Execute one instruction after the other, and yield a Step for each: where it was, its
        bytes, what changed. Claimed ports, addresses and MSRs are served as ever.

        An exit that nobody handled comes as a Step with that ``exit``; answer it and go on, and
        the instruction's own Step follows when it is finished. Ends after ``limit`` steps, after
        ``timeout`` seconds (with Timeout), with a kick, and with an exit that running again cannot
        help.

        What the architecture makes of it: an instruction after STI or a load of SS runs in the
        same step; with REP each step is an iteration, or several; an exception or interrupt is
        stepped over up to its IRET (``block_interrupts`` keeps interrupts out), while INT n,
        SYSCALL and SYSENTER are stepped into with the help of a debug register, if one is free.
        RFLAGS.TF, by which it works, is taken out of what PUSHF, INT n and SYSCALL save.

        >>> vm.load(kvmpy.asm("mov al, 5; mov bl, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> for step in cpu.steps(2):
        ...     print(step)
        0x1000: b0 05 (rax 0x0 -> 0x5)
        0x1002: 88 c3 (rbx 0x0 -> 0x5)
        """
        from .stepping import steps

        return steps(self, limit, timeout, block_interrupts)
