"""The machine that ``boot`` runs: vCPUs, a PC's devices around them, a kernel in its memory.

What a guest touches beyond that is not there: reads give all ones, writes vanish, and both are
counted.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal

from ..arguments import deadline, left
from ..boot import LoadedImage, detect as detect_format, load as load_image
from ..boot.files import content
from ..console.terminal import Console
from ..errors import KvmpyError, StillRunningError, UnsupportedError
from ..exits import reasons as exits
from ..exits.reasons import Exit
from ..fd import Owner, gone, hears_of_forks
from ..host.module import kernel_trouble, module_name
from ..run.thread import pause_all, resume_all
from ..stats.run import RunStats
from ..vm import VM
from ..watch.publish import Publication
from ..x86.modes import Mode
from .outcome import Ending, Outcome, judge
from .pc import Pc, stand_in_for_firmware
from .threads import Ending as ThreadEnding, VcpuThreads

if TYPE_CHECKING:
    from ..boot.files import ImageSource
    from ..boot.image import BytesLike
    from ..console.script import Receiver, ScriptConsole
    from ..cpuid.cpuid import Cpuid
    from ..cpuid.edit import MaskedFeature
    from ..devices.virtio.device import VirtioDevice
    from ..host.topology import Pin
    from ..memory.guest import Backing
    from ..vcpu import VCPU
    from ..watch.watch import Watch

#: Seconds that the last output of a guest with a script may take on its way to it.
_LAST_OUTPUT = 5.0
#: Distinct addresses that are counted by name; a guest could make up 2**52 of them.
_MAX_COUNTED = 1024
#: Formats whose kernels look for ACPI's tables, and want KVM's interrupt controllers.
_WITH_TABLES = ("linux", "pvh")
#: IA32_MTRR_DEF_TYPE as firmware leaves it: MTRRs on, write-back everywhere.
_MTRR_DEF_TYPE, _MTRR_WRITE_BACK = 0x2FF, 0x806
_APIC_ENABLE = 1 << 11  # of IA32_APIC_BASE
_RNG_SEED = 32


class Machine(Owner):
    """Loads ``kernel`` and runs it: :meth:`run` in the calling thread, or :meth:`start`,
    :attr:`console` and :meth:`wait` for a script beside it.

    ``kernel`` and ``initrd``: a path, or the bytes themselves. ``memory`` as for VM; ``format``,
    ``append`` (the command line), ``modules``, ``load_address`` and ``mode`` as for
    :func:`kvmpy.boot.load`. ``cpus``: vCPUs, 1 or more; the others wait for the first to start
    them by INIT and SIPI. ``irqchip``: "kernel" (KVM's interrupt controllers and PIT), "split"
    (KVM's LAPICs and their timers, an I/O APIC in user space, no PIC and no PIT: all that a kernel
    needs that reads the tables and knows the LAPIC's timer), "none", or "auto": kernel for Linux
    and PVH kernels and wherever vCPUs or virtio devices need it. Without interrupt controllers a
    guest that is done ends the machine with HLT, as does Linux at its first wait; with them KVM
    waits, and Linux and PVH kernels get ACPI tables, unless ``acpi`` is False, and an MP table.

    ``devices``: virtio devices (:mod:`kvmpy.devices.virtio`), connected in this order and closed
    with the machine; they are closed too when it cannot be made. ``cpuid``: changes to what the
    host can give, as for :meth:`kvmpy.Cpuid.mask`: "-avx512f,+x2apic". Features that this KVM
    module cannot run in ring 0 are masked unless named; ``masked`` tells which.

    ``output``: descriptor for the serial port and the debug console; None keeps their output in
    ``serial.output``, or gives the serial port to :attr:`console`. ``console_log``: a file's path,
    or a descriptor, for all that the console gets. ``pin``: the pCPUs of the vCPUs' threads, as
    for :attr:`VCPU.pin`: a number, set or text for all of them; a list or tuple with one for each.

    Raises ImageError for a bad image, KvmUnavailableError without KVM.

    >>> hello = kvmpy.asm("mov dx, 0x3f8; mov al, 'A'; out dx, al; hlt", 16)
    >>> with kvmpy.Machine(hello, format="flat", memory="16M") as m: m.run(timeout=60).ending
    'halt'
    """

    def __init__(
        self,
        kernel: ImageSource,
        *,
        memory: int | str = "256M",
        backing: Backing = "anonymous",
        cpus: int = 1,
        format: str | None = None,
        append: str = "",
        initrd: ImageSource | None = None,
        modules: Iterable[BytesLike | tuple[BytesLike, str]] = (),
        load_address: int | None = None,
        mode: Mode | None = None,
        irqchip: Literal["auto", "kernel", "split", "none"] = "auto",
        acpi: bool = True,
        devices: Sequence[VirtioDevice] = (),
        cpuid: str = "",
        output: int | None = None,
        console_log: str | os.PathLike[str] | int | None = None,
        pin: Pin | Sequence[Pin] | None = None,
    ):
        self._output, self._console_log = output, console_log
        self._console: ScriptConsole | None = None
        self._console_input = -1  # the guest's end of the console's pipe
        self._life = threading.Lock()  # guards the next two and the making of the console
        self._threads: VcpuThreads[Exit] | None = None
        self._closed = False
        self._outcome: Outcome | None = None
        self._publication: Publication | None = None
        self._unseen_because: Exception | None = None
        self._made_at, self._started_at = time.monotonic(), 0.0
        self._unclaimed: Counter[tuple[str, int]] = Counter()
        self._counting = threading.Lock()
        self._process = os.getpid()
        hears_of_forks(self)
        pins = _pins(pin, cpus)
        with ExitStack() as files, ExitStack() as undo:
            for device in devices:
                undo.callback(device.close)
            image = files.enter_context(content(kernel))
            ramdisk = None if initrd is None else files.enter_context(content(initrd))
            # All but a boot sector's signature, a flat binary has nothing that says it is one.
            self._guessed = format is None
            format = format or detect_format(image)
            needed = format in _WITH_TABLES or cpus > 1 or bool(devices)
            if irqchip == "auto":
                irqchip = "kernel" if needed else "none"
            self.vm = VM(
                memory, backing=backing, pit=irqchip == "kernel",
                irqchip="split" if irqchip == "split" else irqchip == "kernel",
            )  # fmt: skip
            undo.callback(self.vm.close)
            # Before loading: an image that lies here is right to overwrite it.
            stand_in_for_firmware(self.vm.memory)
            self.pc = Pc(self.vm, output, devices)
            self.serial, self.post = self.pc.serial, self.pc.post
            self.debug_console = self.pc.debug_console
            with_tables = self.vm.has_irqchip and format in _WITH_TABLES
            rsdp = self.pc.write_tables(range(cpus), acpi=acpi) if with_tables else None
            #: Why a kernel will not come up on this KVM module, "" when it is to.
            self.trouble = kernel_trouble(module_name()) if with_tables else ""
            self.loaded: LoadedImage = load_image(
                image, self.vm.memory, format=format, cmdline=append, initrd=ramdisk,
                modules=modules, load_address=load_address, mode=mode, acpi_rsdp=rsdp,
                rng_seed=os.urandom(_RNG_SEED) if format == "linux" else b"",
            )  # fmt: skip
            self.vm.memory.prefer_huge_pages()  # the guest's own; an image may be sparse
            #: What ``kvmpy top`` calls it: the kernel's file, or what it is.
            self.name = self.loaded.description
            if isinstance(kernel, (str, os.PathLike)):
                self.name = os.path.basename(os.fspath(kernel))
            self.masked: tuple[MaskedFeature, ...] = ()
            #: All vCPUs; the first is the bootstrap processor.
            self.cpus = self._make_cpus(cpus, cpuid, pins)
            #: The bootstrap processor.
            self.cpu = self.cpus[0]
            entry = self.loaded.entry
            self.cpu.enter(
                entry.mode, rip=entry.rip, rsp=entry.rsp, regs=entry.regs, ring=entry.ring
            )
            undo.pop_all()

    def _make_cpus(self, count: int, changes: str, pins: Sequence[Pin | None]) -> tuple[VCPU, ...]:
        table, lapic = self._host_cpuid(changes), self.vm.has_irqchip
        cpus = tuple(
            self.vm.vcpu(number, pin=pin, cpuid=table.for_vcpu(number, count, lapic=lapic))
            for number, pin in enumerate(pins)
        )
        for cpu in cpus:
            if lapic:  # a kernel; others expect the CPU as it comes out of reset
                cpu.msrs[_MTRR_DEF_TYPE] = _MTRR_WRITE_BACK
            else:  # or KVM shows the APIC's bit in CPUID, and kernels wait for its registers
                cpu.sregs.apic_base &= ~_APIC_ENABLE
        return cpus

    def _host_cpuid(self, changes: str) -> Cpuid:
        """What this host can give, with the changes asked for."""
        supported = table = self.vm._kvm.supported_cpuid()
        if self.vm.has_irqchip:
            table, self.masked = table.for_module(module_name())
        return table.mask(changes, supported) if changes else table

    # -- running

    def run(
        self,
        *,
        timeout: float | None = None,
        max_exits: int | None = None,
        stdin: int | None = None,
        terminal: Receiver | None = None,
    ) -> Outcome:
        """Run to the end. ``timeout`` in seconds of wall time, ``max_exits`` in exits to user
        space, of each vCPU. ``stdin``: a descriptor that feeds the serial port, or ``terminal`` (a
        VirtioConsole); if it is a terminal it is put in raw mode.

        >>> end = kvmpy.asm("mov al, 3; out 0xf4, al", 16)
        >>> with kvmpy.Machine(end, format="flat", memory="2M") as m: m.run(timeout=60).status
        3
        """
        until = deadline(timeout)
        self._publish()
        start = self._started_at = time.monotonic()
        console = None if stdin is None else Console(terminal or self.serial, stdin, self._kick)
        try:
            if console:
                console.start()
            vcpu, exit = self._run_all(until, max_exits)
            self._flush(max(until, time.monotonic() + 1))
        finally:
            if console:
                console.close()
        ending, status, text = self._judge(vcpu, exit)
        return Outcome(ending, status, text, exit, time.monotonic() - start)

    def _judge(self, vcpu: VCPU, exit: Exit) -> tuple[Ending, int, str]:
        if isinstance(exit, (exits.Timeout, exits.ExitLimit)):
            vcpu = self._busiest(vcpu)
        ending, status, text = judge(vcpu, exit)
        if ending == "failure" and self._guessed and self.loaded.format == "flat":
            text += (
                "\nthe image was taken for machine code by guess: nothing in it says what it is "
                "(format= or --format does)"
            )
        return ending, status, text

    def _busiest(self, vcpu: VCPU) -> VCPU:
        """That whose budget ended first may be one that has had nothing to do."""
        from ..state.interrupts import MpState

        busy = (cpu for cpu in self.cpus if cpu.has_lapic and cpu.mp_state == MpState.RUNNABLE)
        return next(busy, vcpu)

    def _kick(self) -> None:
        for cpu in self.cpus:
            cpu.kick()

    def _run_all(self, until: float, max_exits: int | None) -> tuple[VCPU, Exit]:
        """One vCPU runs in this thread, several have one each; what ended the first to end."""
        if len(self.cpus) == 1:
            return self.cpu, self._run(self.cpu, until, max_exits)
        threads = VcpuThreads(self.cpus, lambda vcpu: self._run(vcpu, until, max_exits))
        threads.start()
        try:
            ending = threads.wait()
        finally:
            threads.stop()
        assert ending.value is not None
        return ending.vcpu, ending.value

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
                    raise gone("machine", self._process)
                self._console = self._make_console()
            return self._console

    def _make_console(self) -> ScriptConsole:
        from ..console.script import ScriptConsole

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
        until = deadline(timeout)
        if self._output is None:
            _ = self.console
        self._started_at = time.monotonic()

        def body(vcpu: VCPU) -> Exit:
            return self._run(vcpu, until, max_exits)

        threads = VcpuThreads(self.cpus, body, on_end=self._on_end)
        with self._life:
            if self._closed:
                raise gone("machine", self._process)
            if self._threads is not None:
                raise RuntimeError("this machine has been started before")
            self._publish()
            self._threads = threads
            threads.start()

    def _on_end(self, ending: ThreadEnding[Exit]) -> None:
        """In the last vCPU thread, when all have ended."""
        if ending.value is not None:
            status = self._judge(ending.vcpu, ending.value)
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
            from ..console.output import printable

            tail, title = printable(self._console.tail), self._console.tail_title
            raise StillRunningError(f"{error}\n{title}:\n{tail}") from None
        assert self._outcome is not None
        return self._outcome

    def stop(self, timeout: float | None = 5.0) -> None:
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

    def pause(self, timeout: float | None = 5.0) -> bool:
        """Have all vCPUs out of the guest until :meth:`resume`, as :meth:`VCPU.pause`. The guest's
        clocks go on, and what its devices do by themselves does.

        >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.pause(), hex(m.cpu.regs.rip), m.resume()
        (True, '0x7c00', None)
        """
        return pause_all(self.cpus, timeout)

    def resume(self) -> None:
        """Take a :meth:`pause` back. Raises RuntimeError if there is none.

        >>> with kvmpy.Machine(kvmpy.asm("hlt", 16), format="flat", memory="2M") as m:
        ...     m.pause(), m.resume()
        (True, None)
        """
        resume_all(self.cpus)

    @property
    def running(self) -> bool:
        """Whether a guest that :meth:`start` started has not ended yet.

        >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
        ...     m.start()
        ...     m.running
        True
        """
        return self._threads is not None and self._threads.running

    def _flush(self, until: float) -> None:
        """The last output, to a reader that may be slow: until it has taken all, or the time of the
        run, or a second, is up. Raises OSError when the reader is gone."""
        for sink in (self.serial.sink, self.debug_console.sink):
            while sink.flush() and time.monotonic() < until:
                pass  # flush() itself waits for the reader

    def _run(self, cpu: VCPU, until: float, max_exits: int | None) -> Exit:
        budget = max_exits
        while True:
            exit = cpu.run(left(until), budget)
            if not self._absent(exit):
                return exit
            if budget is not None:
                budget = cpu.exits_left
                if not budget:
                    return exits.ExitLimit()

    def _absent(self, exit: Exit) -> bool:
        """Note an access to what is not there; False for any exit that ends the machine."""
        match exit:
            case exits.IoOut(port=port):
                self._count("out", port)
            case exits.IoIn(port=port):
                self._count("in", port)
            case exits.MmioWrite(gpa=gpa):
                self._count("write", gpa & ~0xFFF)
            case exits.MmioRead(gpa=gpa):
                self._count("read", gpa & ~0xFFF)
            case exits.GuestCrashLoaded():
                pass  # its crash kernel takes over
            case _:
                return False
        return True

    def _count(self, kind: str, address: int) -> None:
        key = (kind, address)
        with self._counting:
            if key not in self._unclaimed and len(self._unclaimed) >= _MAX_COUNTED:
                key = (kind, -1)  # all others
            self._unclaimed[key] += 1

    @property
    def unclaimed(self) -> Counter[tuple[str, int]]:
        """Accesses to what is not there: ("in", port), ("out", port), ("read"/"write", page gpa).

        >>> with kvmpy.Machine(kvmpy.asm("in al, 0x91; hlt", 16), format="flat") as m:
        ...     _ = m.run(timeout=60); m.unclaimed
        Counter({('in', 145): 1})
        """
        with self._counting:
            return self._unclaimed + self.pc.absent

    @property
    def stats(self) -> RunStats:
        """Exits by reason, of all vCPUs together.

        >>> with kvmpy.Machine(kvmpy.asm("hlt", 16), format="flat", memory="2M") as m:
        ...     m.run(timeout=60).ending, m.stats.total
        ('halt', 1)
        """
        first, *others = (cpu.run_stats for cpu in self.cpus)
        return sum(others, first)

    @property
    def phases(self) -> dict[str, float | None]:
        """Seconds from the making of this object to the first entry of the guest, the first exit
        to user space and the first byte on the serial port; None for what has not been.

        >>> with kvmpy.Machine(kvmpy.asm("hlt", 16), format="flat", memory="2M") as m:
        ...     _ = m.run(timeout=60)
        ...     m.phases["entry"] <= m.phases["first_exit"], m.phases["first_serial_byte"]
        (True, None)
        """
        moments = {
            "entry": self._started_at or None,
            "first_exit": min(
                (at for cpu in self.cpus if (at := cpu.first_exit_at) is not None), default=None
            ),
            "first_serial_byte": self.serial.sink.first_at,
        }
        return {name: at and at - self._made_at for name, at in moments.items()}

    # -- life

    def _publish(self) -> None:
        """A guest is not to fail because nobody can look at it: :meth:`watch` says why."""
        if self._publication is None and self._unseen_because is None:
            try:
                self._publication = Publication(self.vm, self.cpus, self.name)
            except (OSError, KvmpyError) as error:
                self._unseen_because = error

    def _unpublish(self) -> None:
        publication, self._publication = self._publication, None
        if publication is not None:
            publication.close()

    def watch(self) -> Watch:
        """What the vCPUs do, sample by sample: a :class:`kvmpy.watch.Watch` of this machine alone.

        Raises UnsupportedError, with the reason, when the machine could not be published.

        >>> with kvmpy.Machine(kvmpy.asm("1: jmp 1b", 16), format="flat", memory="2M") as m:
        ...     m.start()
        ...     with m.watch() as watch:
        ...         machine, = watch.sample().machines
        ...         [vcpu.id for vcpu in machine.vcpus]
        [0]
        """
        from ..watch.watch import Watch

        self._publish()
        if self._publication is None:
            raise UnsupportedError(f"this machine cannot be watched: {self._unseen_because}")
        return Watch(os.getpid(), socket=self._publication.socket)

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
            self._unpublish()
            self.pc.disconnect()
            self.vm.close()  # ends a run that stop() could not, as soon as its handler returns
            if not self.running:
                self._end_console_output()
            if self._console is not None:
                self._console.close()
            self.pc.close()

    def _in_child(self) -> None:
        self._life, self._counting = threading.Lock(), threading.Lock()
        self._closed = True
        if self._console_input >= 0:
            os.close(self._console_input)
            self._console_input = -1

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _pins(pin: Pin | Sequence[Pin] | None, cpus: int) -> Sequence[frozenset[int] | None]:
    if cpus < 1:
        raise ValueError(f"cpus={cpus}: a machine has 1 or more")
    if pin is None:
        return (None,) * cpus
    from ..host.topology import check_pins_of

    return check_pins_of(pin, cpus)
