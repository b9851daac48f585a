"""Breakpoints of a vCPU, and runs that know about them.

What KVM gives is a Debug exit before the instruction, every time: so a run that begins at a
breakpoint takes the breakpoint away, makes one step, and puts it back. And with debugging on, KVM
hands the guest's own #BP and #DB to user space too: they are given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from .. import ioctls
from ..arguments import deadline, left
from ..errors import GuestMemoryError
from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..shim import ffi, lib
from ..x86.bits import linear_rip

if TYPE_CHECKING:
    from .guest_debug import VcpuGuestDebug


Kind = Literal["execute", "write", "access"]
SLOTS = 4
INT3 = 0xCC
#: DR7: what the field of a slot says (SDM vol. 3, "Debug Control Register (DR7)").
_CONDITIONS: dict[str, int] = {"execute": 0, "write": 1, "access": 3}
_LENGTHS = {1: 0, 2: 1, 4: 3, 8: 2}
_DR7_BASE = 0x600  # GE, and the bit that is always one


class Breakpoint:
    """One breakpoint, by :meth:`VCPU.breakpoint`. ``hits`` counts the times a run ended there."""

    def __init__(
        self, debugger: _Debugger, address: int, kind: Kind, length: int, slot: int | None
    ):
        self._debugger = debugger
        #: Linear address.
        self.address = address
        #: "execute", "write" or "access".
        self.kind = kind
        #: Bytes watched.
        self.length = length
        #: Debug register 0..3; None for a software breakpoint.
        self.slot = slot
        #: Runs that ended here.
        self.hits = 0
        #: A software breakpoint's place and the byte that INT3 stands for.
        self._gpa, self._original = -1, -1

    @property
    def software(self) -> bool:
        """Whether it is an INT3 in guest memory.

        >>> with cpu.breakpoint(0x1000, software=True) as stop:
        ...     print(stop.software)
        True
        """
        return self.slot is None

    @property
    def is_set(self) -> bool:
        """False after remove().

        >>> with cpu.breakpoint(0x1000) as stop:
        ...     pass
        >>> stop.is_set
        False
        """
        return self in self._debugger.breakpoints

    def remove(self) -> None:
        """Take it away; a second time does nothing.

        >>> stop = cpu.breakpoint(0x1000)
        >>> stop.remove()
        """
        if self.is_set:
            self._debugger.remove(self)

    def __enter__(self) -> Breakpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        width = "" if self.kind == "execute" else f" of {self.length} bytes"
        how = "INT3" if self.software else f"debug register {self.slot}"
        gone = "" if self.is_set else ", removed"
        return f"<breakpoint at {self.address:#x}, {self.kind}{width}, {how}{gone}>"

    def _in_slot(self) -> tuple[int, int, str, int]:
        assert self.slot is not None
        return self.slot, self.address, self.kind, self.length

    # INT3 in and out of memory. What was loaded over it meanwhile stays.

    def _plant(self) -> None:
        memory = self._debugger.cpu.vm.memory
        self._original = memory.read(self._gpa, 1)[0]
        memory.write(self._gpa, bytes([INT3]))

    def _lift(self) -> None:
        memory = self._debugger.cpu.vm.memory
        if memory.read(self._gpa, 1)[0] == INT3:
            memory.write(self._gpa, bytes([self._original]))


class _Budget:
    """What is left of a run's time and exits, over several KVM runs."""

    def __init__(self, timeout: float | None, max_exits: int | None = None):
        self._end = deadline(timeout)
        self.exits = max_exits

    @property
    def seconds(self) -> float | None:
        """Left; None for no limit."""
        return left(self._end)


class _Debugger:
    """The breakpoints of one vCPU."""

    def __init__(self, cpu: Any):
        self.cpu: VcpuGuestDebug = cpu
        self.breakpoints: list[Breakpoint] = []
        #: The vCPU's run() is to run the vCPU, and not to come back here.
        self.inside = False
        #: What arm() was told last.
        self._armed: dict[str, Any] = {}
        #: Where the last run ended because of an "execute" breakpoint.
        self._stopped_at: int | None = None

    # -- setting

    def add(self, address: int, kind: Kind, length: int, software: bool) -> Breakpoint:
        """A new breakpoint, set."""
        _check(address, kind, length, software)
        slot = None if software else self._free_slot()
        point = Breakpoint(self, address, kind, length, slot)
        if software:
            self._place(point)
            point._plant()
        self.breakpoints.append(point)
        try:
            self.arm()
        except BaseException:
            self.breakpoints.remove(point)
            if software:
                point._lift()
            raise
        return point

    def remove(self, point: Breakpoint) -> None:
        """Take a breakpoint away."""
        self.breakpoints.remove(point)
        if point.software and not self.cpu.vm.closed:
            point._lift()
        if not self.cpu.closed:
            self.arm()
        self.retire()

    def retire(self) -> None:
        """With no breakpoints left the vCPU runs as if there had never been any."""
        if not self.breakpoints:
            self.cpu._debugger = None

    def free_slots(self) -> list[int]:
        """The debug registers that nobody uses."""
        taken = {point.slot for point in self.breakpoints}
        return [slot for slot in range(SLOTS) if slot not in taken]

    def _free_slot(self) -> int:
        free = self.free_slots()
        if not free:
            raise ValueError("all four debug registers are taken: software=True needs none")
        return free[0]

    def _place(self, point: Breakpoint) -> None:
        found = self.cpu.walk(point.address)
        if found.gpa is None:
            raise GuestMemoryError(str(found))
        if any(other._gpa == found.gpa for other in self.breakpoints):
            raise ValueError(f"there is a software breakpoint at {point.address:#x}")
        point._gpa = found.gpa

    def arm(
        self,
        *,
        step: bool = False,
        block_interrupts: bool = False,
        without: Breakpoint | None = None,
        target: int | None = None,
        **inject: bool,
    ) -> None:
        """Tell KVM: all breakpoints but one, and a step if wanted, that ends at ``target`` too."""
        self._armed = {
            "step": step, "block_interrupts": block_interrupts, "without": without,
            "target": target,
        }  # fmt: skip
        chosen = [point for point in self.breakpoints if point is not without]
        hardware = [point._in_slot() for point in chosen if point.slot is not None]
        free = self.free_slots()
        if target is not None and free:
            hardware.append((free[-1], target, "execute", 1))
        self.cpu.set_guest_debug(
            enable=bool(chosen) or step or bool(inject),
            single_step=step,
            software=any(point.software for point in chosen),
            hardware=_debug_registers(hardware) if hardware else None,
            block_interrupts=block_interrupts,
            **inject,
        )

    # -- reading and writing code

    def hide(self, gva: int, data: bytearray) -> None:
        """Show the code as it would be without INT3s, in memory read at ``gva``."""
        for point in self.breakpoints:
            if point.software and 0 <= point.address - gva < len(data):
                data[point.address - gva] = point._original

    def replace(self, gva: int, data: bytearray) -> None:
        """Keep INT3s in memory about to be written at ``gva``, and what comes for them."""
        for point in self.breakpoints:
            if point.software and 0 <= point.address - gva < len(data):
                point._original = data[point.address - gva]
                data[point.address - gva] = INT3

    # -- running

    def linear_rip(self) -> int:
        """RIP as a linear address."""
        return linear_rip(self.cpu.regs, self.cpu.sregs)

    def standing_on(self) -> Breakpoint | None:
        """The "execute" breakpoint at RIP, if there is one."""
        rip = self.linear_rip()
        points = [p for p in self.breakpoints if p.kind == "execute" and p.address == rip]
        return points[0] if points else None

    def run(self, timeout: float | None, max_exits: int | None) -> Exit:
        """As VCPU.run()."""
        budget = _Budget(timeout, max_exits)
        exit = self._leave(budget)
        while exit is None:
            exit = self._judge(self._one_run(budget), budget)
        return exit

    def take_over(self, exit: Exit, timeout: float | None, max_exits: int | None) -> Exit:
        """Breakpoints came while a run was under way, set by a handler or during a pause: what it
        ended with may be one of them, or for the guest; then it goes on."""
        budget = _Budget(timeout, max_exits)
        if budget.exits is not None:
            budget.exits = self.cpu.exits_left
        judged = self._judge(exit, budget)
        while judged is None:
            judged = self._judge(self._one_run(budget), budget)
        return judged

    def _kvm_run(self, timeout: float | None, max_exits: int | None) -> Exit:
        self.inside = True
        try:
            return self.cpu.run(timeout, max_exits)
        finally:
            self.inside = False

    def _one_run(self, budget: _Budget) -> Exit:
        exit = self._kvm_run(budget.seconds, budget.exits)
        if budget.exits is not None:
            budget.exits = self.cpu.exits_left
        return exit

    def _leave(self, budget: _Budget) -> Exit | None:
        """Execute the instruction of the breakpoint that the last run ended at."""
        stopped_at, self._stopped_at = self._stopped_at, None
        if stopped_at is None:
            return None
        point = self.standing_on()
        if point is None or point.address != stopped_at:
            return None
        return self.step(budget, without=point)

    def step(
        self,
        budget: _Budget,
        *,
        without: Breakpoint | None = None,
        block_interrupts: bool = False,
        target: int | None = None,
    ) -> Exit | None:
        """One instruction with a breakpoint taken away. None when it is finished, or the exit that
        nobody handled."""
        if without is not None and without.software:
            without._lift()
        try:
            self.arm(step=True, block_interrupts=block_interrupts, without=without, target=target)
            return self._finish(budget)
        finally:
            if without is not None and without.software and not self.cpu.vm.closed:
                without._plant()
            if not self.cpu.closed:
                self.arm()
                self._drop_step()

    def _drop_step(self) -> None:
        """Where KVM raises #DB only when a write is completed, arm() has got it just now, after
        the write itself was handed out."""
        shim = self.cpu._shim
        if shim.deferred and shim.run.exit_reason == lib.KVM_EXIT_DEBUG:
            self._kvm_run(None, 1)  # enters nothing: the exit is there

    def _finish(self, budget: _Budget) -> Exit | None:
        while True:
            # One exit at a time: after a write that somebody took KVM raises no #DB, and would
            # go on with the next instruction.
            exit = self._kvm_run(budget.seconds, 1)
            if isinstance(exit, exits.Debug):
                if exit.software:
                    self._give_back(exit)  # the guest's own INT3 is what is being stepped
                    continue
                return None
            if not isinstance(exit, exits.ExitLimit):
                return exit
            if not self.complete():
                return None

    def complete(self) -> bool:
        """Finish the last exit's instruction; True if it gives a further exit."""
        result = lib.shim_complete(self.cpu._shim)
        if result < 0:
            raise ioctls.KVM_RUN.error(self.cpu.fileno(), -result, "completing the last exit")
        self.cpu.regs._fresh = self.cpu.sregs._fresh = False
        return bool(result)

    def _judge(self, exit: Exit, budget: _Budget) -> Exit | None:
        """The exit, or None for one that is nobody's business: run on."""
        if isinstance(exit, exits.InternalError):
            exit = self._int3_not_emulated(exit)
        if not isinstance(exit, exits.Debug):
            return exit
        hit = self._hit(exit)
        if hit is None:
            self._give_back(exit)
            if budget.exits is not None:
                budget.exits += 1  # not an exit of the caller's
            return None
        hit.hits += 1
        if hit.kind == "execute":
            self._stopped_at = hit.address
        return exit

    def _int3_not_emulated(self, exit: exits.InternalError) -> Exit:
        """kvm_pvm emulates ring 0, and not INT3: it stops there all the same."""
        point = self.standing_on()
        if exit.suberror != 1 or point is None or not point.software:
            return exit
        return exits.Debug(exception=3, pc=point.address, dr6=0, dr7=0)

    def _hit(self, exit: exits.Debug) -> Breakpoint | None:
        for point in self.breakpoints:
            if exit.software if point.software else point.slot in exit.slots:
                if point.software and point.address != exit.pc:
                    continue
                return point
        return None

    def _give_back(self, exit: exits.Debug) -> None:
        """The guest's own INT3, or #DB: by INT1, or by RFLAGS.TF."""
        if exit.software:
            self.arm(**self._armed, inject_breakpoint=True)
            return
        fd = self.cpu._settle(0)
        registers = ffi.new("struct kvm_debugregs *")
        ioctls.KVM_GET_DEBUGREGS(fd, registers)
        registers.dr6 = exit.dr6
        ioctls.KVM_SET_DEBUGREGS(fd, registers, f"dr6 {exit.dr6:#x}")
        self.arm(**self._armed, inject_debug=True)


def debugger_of(cpu: Any) -> _Debugger:
    """The vCPU's debugger, a new one if it has none.

    >>> kvmpy.debug.breakpoints.debugger_of(cpu).breakpoints
    []
    """
    if cpu._debugger is None:
        cpu._debugger = _Debugger(cpu)
    found: _Debugger = cpu._debugger
    return found


def _check(address: int, kind: Kind, length: int, software: bool) -> None:
    if not 0 <= address < 1 << 64:
        raise ValueError(f"address {address:#x} is not in 0..2**64-1")
    if kind not in _CONDITIONS:
        raise ValueError(f"kind={kind!r}: give 'execute', 'write' or 'access'")
    if length not in _LENGTHS or address % length:
        raise ValueError(
            f"a watched range is 1, 2, 4 or 8 bytes, aligned: got {length} at {address:#x}"
        )
    if kind == "execute" and length != 1:
        raise ValueError("an 'execute' breakpoint is one byte long")
    if software and kind != "execute":
        raise ValueError("a software breakpoint is an INT3: 'execute' only")


def _debug_registers(chosen: Sequence[tuple[int, int, str, int]]) -> list[int]:
    registers = [0] * 8
    registers[7] = _DR7_BASE
    for slot, address, kind, length in chosen:
        registers[slot] = address
        field = _CONDITIONS[kind] | _LENGTHS[length] << 2
        registers[7] |= 2 << 2 * slot | field << 16 + 4 * slot
    return registers
