"""The machine that ``boot`` runs: one vCPU, COM1, debug console, debug exit, POST port.

What a guest touches beyond that is not there: reads give all ones, writes vanish, and both are
counted. A keyboard controller's or chipset's reset ends the machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .. import exits
from ..boot import LoadedImage
from ..boot import detect as detect_format
from ..boot import load as load_image
from ..devices import DebugConsole, DebugExit, PostPort, Uart
from ..exits import Exit
from ..stats import RunStats
from ..vm import VM
from ..x86 import layout
from ..x86.modes import Mode, write_real_mode_stubs
from .console import Console

if TYPE_CHECKING:
    from ..boot.image import BytesLike
    from ..memory import Backing, GuestMemory

Ending = Literal["debug-exit", "halt", "reset", "timeout", "exit-limit", "interrupted", "failure"]

_I8042_COMMAND = 0x64
_I8042_RESET = 0xFE
_RESET_CONTROL = 0xCF9
_RESET_CPU = 0x04
#: Distinct addresses that are counted by name; a guest could make up 2**52 of them.
_MAX_COUNTED = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a machine ended.

    ``status`` is the exit status for a shell: the guest's own for a debug exit, 0 for a halt or
    reset, 124 when a budget ran out, 130 when the host's user ended it, 1 for a failure.
    ``text`` says it for a person; for a failure with registers and likely cause.
    """

    ending: Ending
    status: int
    text: str
    exit: Exit
    seconds: float


class Machine:
    """Loads ``image`` and runs it.

    ``memory`` as for VM; ``format``, ``cmdline``, ``initrd``, ``modules``, ``load_address`` and
    ``mode`` as for :func:`kvmpy.boot.load`. ``irqchip``: KVM's interrupt controllers and PIT; by
    default only for Linux, since with them KVM waits in HLT and a guest that is done never says so.
    ``output``: descriptor for the serial port and the debug console; None keeps their output in
    ``serial.output``. ``pin``: the pCPU for the vCPU's thread.

    Raises ImageError for a bad image, KvmUnavailableError without KVM.
    """

    def __init__(
        self,
        image: BytesLike,
        *,
        memory: int | str = "256M",
        backing: Backing = "anonymous",
        format: str | None = None,
        cmdline: str = "",
        initrd: BytesLike | None = None,
        modules: Iterable[BytesLike | tuple[BytesLike, str]] = (),
        load_address: int | None = None,
        mode: Mode | None = None,
        irqchip: bool | None = None,
        output: int | None = None,
        pin: int | None = None,
    ):
        format = format or detect_format(image)
        if irqchip is None:
            irqchip = format == "linux"
        self.vm = VM(memory, backing=backing, irqchip=irqchip, pit=irqchip)
        try:
            # Before loading: an image that lies here is right to overwrite it.
            _stand_in_for_firmware(self.vm.memory)
            self.loaded: LoadedImage = load_image(
                image, self.vm.memory, format=format, cmdline=cmdline, initrd=initrd,
                modules=modules, load_address=load_address, mode=mode,
            )  # fmt: skip
            self._attach_devices(output)
            self.cpu = self.vm.vcpu(pin=pin)
            entry = self.loaded.entry
            self.cpu.enter(
                entry.mode, rip=entry.rip, rsp=entry.rsp, regs=entry.regs, ring=entry.ring
            )
        except BaseException:
            self.vm.close()
            raise
        #: Accesses to what is not there: ("in", port), ("out", port), ("read"/"write", page gpa).
        self.unclaimed: Counter[tuple[str, int]] = Counter()

    def _attach_devices(self, output: int | None) -> None:
        self.serial = Uart(output)
        self.debug_console = DebugConsole(output)
        self.post = PostPort()
        self.vm.attach(self.serial, layout.COM1_PORT)
        self.vm.attach(self.debug_console, layout.DEBUGCON_PORT)
        self.vm.attach(DebugExit(), layout.DEBUG_EXIT_PORT)
        self.vm.attach(self.post, layout.POST_PORT)
        if self.vm.has_irqchip:
            self.serial.connect_line(self.vm.fileno(), layout.COM1_IRQ)

    # -- running

    def run(
        self,
        *,
        timeout: float | None = None,
        max_exits: int | None = None,
        stdin: int | None = None,
    ) -> Outcome:
        """Run to the end. ``timeout`` in seconds of wall time, ``max_exits`` in exits to user
        space. ``stdin``: a descriptor that feeds the serial port; a terminal is put in raw mode."""
        start = time.monotonic()
        console = None if stdin is None else Console(self.serial, stdin, self.cpu.kick)
        try:
            if console:
                console.start()
            exit = self._run(start, timeout, max_exits)
            self._flush(None if timeout is None else max(start + timeout, time.monotonic() + 1))
        finally:
            if console:
                console.close()
        ending, status, text = self._judge(exit)
        return Outcome(ending, status, text, exit, time.monotonic() - start)

    def _flush(self, deadline: float | None) -> None:
        """The last output, to a reader that may be slow: until it has taken all, or the time of the
        run, or a second, is up. Raises OSError when the reader is gone."""
        for sink in (self.serial.sink, self.debug_console.sink):
            while sink.flush() and (deadline is None or time.monotonic() < deadline):
                pass  # flush() itself waits for the reader

    def _run(self, start: float, timeout: float | None, max_exits: int | None) -> Exit:
        cpu, budget = self.cpu, max_exits
        while True:
            left = None if timeout is None else max(0.0, timeout - (time.monotonic() - start))
            exit = cpu.run(left, budget)
            if not self._absent(exit):
                return exit
            if budget is not None:
                budget = cpu.exits_left
                if not budget:
                    return exits.ExitLimit()

    def _absent(self, exit: Exit) -> bool:
        """Answer an access to what is not there; False for any exit that ends the machine."""
        match exit:
            case exits.IoOut(port=port):
                if _is_reset(exit):
                    return False
                self._count("out", port)
            case exits.IoIn(port=port):
                # An absent keyboard controller whose status reads all ones looks busy for ever.
                if port == _I8042_COMMAND:
                    self.cpu.answer(bytes(exit.size * exit.count))
                self._count("in", port)
            case exits.MmioWrite(gpa=gpa):
                self._count("write", gpa & ~0xFFF)
            case exits.MmioRead(gpa=gpa):
                self._count("read", gpa & ~0xFFF)
            case _:
                return False
        return True

    def _count(self, kind: str, address: int) -> None:
        key = (kind, address)
        if key not in self.unclaimed and len(self.unclaimed) >= _MAX_COUNTED:
            key = (kind, -1)  # all others
        self.unclaimed[key] += 1

    def _judge(self, exit: Exit) -> tuple[Ending, int, str]:
        match exit:
            case exits.DebugExit(status=status):
                text = f"the guest ended with status {status}"
                return "debug-exit", status & 0xFF, text
            case exits.Hlt():
                return "halt", 0, "the guest halted"
            case exits.IoOut():
                return "reset", 0, "the guest asked for a reset"
            case exits.Timeout():
                return "timeout", 124, f"timeout: the guest was {self._whereabouts()}"
            case exits.ExitLimit():
                return "exit-limit", 124, f"exit limit: the guest was {self._whereabouts()}"
            case exits.Kicked():
                return "interrupted", 130, "ended by the user"
            case _:
                return "failure", 1, self.cpu.explain(exit)

    def _whereabouts(self) -> str:
        sregs = self.cpu.sregs
        mode = "real mode" if not sregs.cr0 & 1 else sregs.cs.kind
        return f"at {sregs.cs.selector:04x}:{self.cpu.regs.rip:#x} (ring {sregs.ss.dpl}, {mode})"

    @property
    def stats(self) -> RunStats:
        """Exits by reason."""
        return self.cpu.run_stats

    # -- life

    def close(self) -> None:
        """Close the VM, its vCPU and its memory. What ``serial`` holds stays readable."""
        self.serial.disconnect()
        self.vm.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _stand_in_for_firmware(memory: GuestMemory) -> None:
    """There is no BIOS, so a call of it is reported by name. Of its data area the two fields that
    kernels look at: Xen places its trampoline by the size of base memory."""
    write_real_mode_stubs(memory)
    base_memory = min(memory.regions[0].size, layout.LOW_MEMORY_END) >> 10
    memory.write(layout.BDA_COM1, layout.COM1_PORT.to_bytes(2, "little"))
    memory.write(layout.BDA_BASE_MEMORY, base_memory.to_bytes(2, "little"))


def _is_reset(exit: exits.IoOut) -> bool:
    """A pulse of the keyboard controller's reset line, or the chipset's reset register."""
    if exit.port == _I8042_COMMAND:
        return exit.data[0] == _I8042_RESET
    return exit.port == _RESET_CONTROL and bool(exit.data[0] & _RESET_CPU)
