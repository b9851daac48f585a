"""The machine that ``boot`` runs: one vCPU, COM1, debug console, debug exit, POST port.

What a guest touches beyond that is not there: reads give all ones, writes vanish, and both are
counted. A keyboard controller's or chipset's reset ends the machine.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .. import exits
from ..boot import LoadedImage
from ..boot import detect as detect_format
from ..boot import load as load_image
from ..boot.files import content
from ..devices import DebugConsole, DebugExit, PostPort, Uart
from ..errors import ClosedError, StillRunningError
from ..exits import Exit
from ..stats import RunStats
from ..vm import VM
from ..x86 import layout
from ..x86.modes import Mode, write_real_mode_stubs
from .console import Console
from .expect import ScriptConsole
from .output import printable
from .threads import Ending as ThreadEnding
from .threads import VcpuThreads

if TYPE_CHECKING:
    from ..boot.files import Image
    from ..boot.image import BytesLike
    from ..memory import Backing, GuestMemory
    from ..vcpu import VCPU

Ending = Literal["debug-exit", "halt", "reset", "timeout", "exit-limit", "interrupted", "failure"]

_I8042_COMMAND = 0x64
_I8042_RESET = 0xFE
_RESET_CONTROL = 0xCF9
_RESET_CPU = 0x04
#: Seconds that the last output of a guest with a script may take on its way to it.
_LAST_OUTPUT = 5.0
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
    """Loads ``kernel`` and runs it: :meth:`run` in the calling thread, or :meth:`start`,
    :attr:`console` and :meth:`wait` for a script beside it.

    ``kernel`` and ``initrd``: a path, or the bytes themselves. ``memory`` as for VM; ``format``,
    ``append`` (the command line), ``modules``, ``load_address`` and ``mode`` as for
    :func:`kvmpy.boot.load`. ``irqchip``: KVM's interrupt controllers and PIT; by default only for
    Linux, since with them KVM waits in HLT and a guest that is done never says so.
    ``output``: descriptor for the serial port and the debug console; None keeps their output in
    ``serial.output``, or gives the serial port to :attr:`console`. ``console_log``: path of a file
    for all that the console gets. ``pin``: the pCPU for the vCPU's thread.

    Raises ImageError for a bad image, KvmUnavailableError without KVM.

    >>> hello = kvmpy.asm("mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt", 16)
    >>> with kvmpy.Machine(hello, format="flat", memory="16M") as m: m.run(timeout=60).ending
    'halt'
    """

    def __init__(
        self,
        kernel: Image,
        *,
        memory: int | str = "256M",
        backing: Backing = "anonymous",
        format: str | None = None,
        append: str = "",
        initrd: Image | None = None,
        modules: Iterable[BytesLike | tuple[BytesLike, str]] = (),
        load_address: int | None = None,
        mode: Mode | None = None,
        irqchip: bool | None = None,
        output: int | None = None,
        console_log: str | os.PathLike[str] | None = None,
        pin: int | None = None,
    ):
        self._output, self._console_log = output, console_log
        self._console: ScriptConsole | None = None
        self._console_input = -1  # the guest's end of the console's pipe
        self._life = threading.Lock()  # guards the next two and the making of the console
        self._threads: VcpuThreads[Exit] | None = None
        self._closed = False
        self._outcome: Outcome | None = None
        self._started_at = 0.0
        with ExitStack() as files:
            image = files.enter_context(content(kernel))
            ramdisk = None if initrd is None else files.enter_context(content(initrd))
            format = format or detect_format(image)
            if irqchip is None:
                irqchip = format == "linux"
            self.vm = VM(memory, backing=backing, irqchip=irqchip, pit=irqchip)
            try:
                # Before loading: an image that lies here is right to overwrite it.
                _stand_in_for_firmware(self.vm.memory)
                self.loaded: LoadedImage = load_image(
                    image, self.vm.memory, format=format, cmdline=append, initrd=ramdisk,
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
        space. ``stdin``: a descriptor that feeds the serial port; a terminal is put in raw mode.

        >>> end = kvmpy.asm("mov al, 3; out 0xf4, al", 16)
        >>> with kvmpy.Machine(end, format="flat", memory="2M") as m: m.run(timeout=60).status
        3
        """
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

    # -- beside a script

    @property
    def console(self) -> ScriptConsole:
        """The serial port, for a script: see :class:`ScriptConsole`. From its first use on the
        port's output goes there. Raises ValueError when ``output`` has been given.

        >>> hello = kvmpy.asm("mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt", 16)
        >>> with kvmpy.Machine(hello, format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.console.expect("A", timeout=60).after
        b'A'
        """
        with self._life:
            if self._console is None:
                if self._output is not None:
                    raise ValueError("the serial port goes to the descriptor given as output")
                if self._closed:
                    raise ClosedError("this machine is closed")
                self._console = self._make_console()
            return self._console

    def _make_console(self) -> ScriptConsole:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            console = ScriptConsole(
                reader, self.serial, ended=self._how_it_ended, log=self._console_log
            )
        except BaseException:
            os.close(reader)
            os.close(writer)
            raise
        self._console_input = writer
        self.serial.sink.redirect(writer)
        return console

    def _how_it_ended(self) -> str:
        if self._outcome is not None:
            return self._outcome.text.partition("\n")[0]
        return "the guest ended with an error of its host (wait() raises it)"

    def start(self, *, timeout: float | None = None, max_exits: int | None = None) -> None:
        """Run the guest in a thread of its own, within budgets as for :meth:`run`. Once only.

        >>> hello = kvmpy.asm("mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt", 16)
        >>> with kvmpy.Machine(hello, format="flat", memory="16M") as m:
        ...     m.start()
        ...     m.console.expect("A", timeout=60).after, m.wait(60).text
        (b'A', 'the guest halted')
        """
        if self._output is None:
            _ = self.console
        self._started_at = time.monotonic()

        def body(vcpu: VCPU) -> Exit:
            return self._run(self._started_at, timeout, max_exits)

        threads = VcpuThreads([self.cpu], body, on_end=self._on_end)
        with self._life:
            if self._closed:
                raise ClosedError("this machine is closed")
            if self._threads is not None:
                raise RuntimeError("this machine has been started before")
            self._threads = threads
            threads.start()

    def _on_end(self, ending: ThreadEnding[Exit]) -> None:
        """In the last vCPU thread, when all have ended."""
        if ending.value is not None:
            status = self._judge(ending.value)
            seconds = time.monotonic() - self._started_at
            self._outcome = Outcome(*status, ending.value, seconds)
        try:
            self._flush(time.monotonic() + _LAST_OUTPUT)
        finally:
            self._end_console_output()

    def _end_console_output(self) -> None:
        """The console comes to its end once it has read what was sent."""
        if self._console is not None and self._console_input >= 0:
            self.serial.sink.redirect(None)
            os.close(self._console_input)
            self._console_input = -1
            self._console.drain(_LAST_OUTPUT)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the end of the guest that :meth:`start` started; all of its output is then in
        :attr:`console`. ``timeout`` in seconds.

        Raises StillRunningError, with the output's tail, when the time is up: the guest goes on.
        A handler's exception that ended the guest comes out unchanged.

        >>> with kvmpy.Machine(kvmpy.asm("mov al, 3; out 0xf4, al", 16), format="flat") as m:
        ...     m.start()
        ...     m.wait(60).status
        3
        """
        if self._threads is None:
            raise RuntimeError("this machine was not started")
        try:
            self._threads.wait(timeout)
        except StillRunningError as error:
            if self._console is None:
                raise
            tail, title = printable(self._console.tail), self._console.tail_title
            raise StillRunningError(f"{error}\n{title}:\n{tail}") from None
        assert self._outcome is not None
        return self._outcome

    def stop(self, timeout: float = 5.0) -> None:
        """End the guest, from any thread; one that has ended stays as it is. Its registers and
        memory can be read afterwards. From a handler, on the vCPU's own thread, it takes effect
        when the handler returns.

        Raises StillRunningError when a handler holds a vCPU for longer than ``timeout`` seconds.

        >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.stop()
        ...     m.wait().ending, hex(m.cpu.regs.rip)
        ('interrupted', '0x7c00')
        """
        threads = self._threads
        if threads is None or threads.stop(timeout) or threads.is_own_thread():
            return
        raise StillRunningError(
            f"a handler has held a vCPU for {timeout:g} s: it cannot be stopped"
        )

    @property
    def running(self) -> bool:
        """Whether a guest that :meth:`start` started has not ended yet.

        >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.running
        True
        """
        return self._threads is not None and self._threads.running

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
        """Exits by reason.

        >>> with kvmpy.Machine(kvmpy.asm("hlt", 16), format="flat", memory="2M") as m:
        ...     m.run(timeout=60).ending, m.stats.total
        ('halt', 1)
        """
        return self.cpu.run_stats

    # -- life

    def close(self) -> None:
        """End the guest, then close console, VM, vCPU and memory. What ``serial`` and ``console``
        hold stays readable.

        >>> m = kvmpy.Machine(kvmpy.asm("hlt", 16), format="flat", memory="2M")
        >>> m.close()
        >>> m.vm.closed
        True
        """
        with self._life:
            self._closed = True
        try:
            self.stop()
        finally:
            self.serial.disconnect()
            self.vm.close()  # ends a run that stop() could not, as soon as its handler returns
            if not self.running:
                self._end_console_output()
            if self._console is not None:
                self._console.close()

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
