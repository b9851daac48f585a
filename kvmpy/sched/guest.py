"""A VM whose vCPUs run a preemptive kernel each, with threads in ring 3 (native/guests/sched.S).

Each vCPU has a block of memory: what its kernel works with, its threads, and the logs that the host
reads. Below the blocks is the code they share.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

from ..devices.ports import DebugConsole
from ..errors import KvmIoctlError, UnsupportedError
from ..guests import image
from ..vcpu import VCPU
from ..vm import VM
from ..x86 import descriptors as d, layout
from ..x86.modes import Mode
from .logs import Log, Ring

#: Bytes of the two-byte instruction that calls ring 0, by name.
SYSTEM_CALLS: Final = {"syscall": b"\x0f\x05", "int80": b"\xcd\x80", "int3": b"\xcd\x03"}
#: What guest threads do: "spin" looks at the clock for ever; "yield" uses some memory, looks at
#: the clock once and yields; "write" writes a line and yields, three times, and exits.
PROGRAMS: Final = ("spin", "yield", "write")
MOST_VCPUS: Final = 64
MOST_WORK: Final = 1 << 14

_IMAGE: Final = image.load("sched")
MOST_THREADS: Final = _IMAGE["THREADS_MOST"]
_BLOCK: Final = _IMAGE["BLOCK_SIZE"]
_STEAL_MSR: Final = 0x4B56_4D03  # KVM's CPUID document, "MSR_KVM_STEAL_TIME"
_STEAL_ENABLED: Final = 1
_RFLAGS_IF: Final = 1 << 9
_RFLAGS_FIXED: Final = 1 << 1
_WRITES: Final = 3
#: In the order in which the kernel saves them, lowest address first.
_SAVED: Final = (
    *("r15", "r14", "r13", "r12", "r11", "r10", "r9", "r8"),
    *("rbp", "rdi", "rsi", "rdx", "rcx", "rbx", "rax"),
)


class Kernel:
    """One vCPU's kernel: its memory filled in, its logs."""

    def __init__(self, vm: VM, cpu: VCPU):
        self._vm, self.cpu = vm, cpu
        self._block = _BLOCK * (1 + cpu.id)
        symbols = _IMAGE
        self.switches = Log(
            Ring(
                self._block + symbols["SWITCHES"], self._block + symbols["SWITCH_LOG"],
                symbols["SWITCH_RING"], 1 << symbols["SWITCH_SHIFT"], number=6,
            ),
            vm.memory.read,
        )  # fmt: skip
        self.gaps = Log(
            Ring(
                self._block + symbols["GAPS"], self._block + symbols["GAP_LOG"],
                symbols["GAP_RING"], 1 << symbols["GAP_SHIFT"], number=3,
            ),
            vm.memory.read,
        )  # fmt: skip
        self.has_steal = self._enter()

    def _enter(self) -> bool:
        """Everything to start with; whether KVM writes its steal time."""
        symbols, cpu = _IMAGE, self.cpu
        area = layout.SupervisorArea(self._block + symbols["SUPERVISOR"], layout.SUPERVISOR_SIZE)
        call = d.Gate(symbols["interrupt"], dpl=3)
        cpu.enter(
            Mode.LONG_64, rip=symbols["start"], base=area.base, syscall=symbols["syscall"],
            handlers={3: call, 0x80: call, symbols["VECTOR_TIMER"]: symbols["timer"]},
        )  # fmt: skip
        cpu.msrs["GS_BASE"] = self._block
        cpu.mp_state = 0  # with a LAPIC all vCPUs but the first wait for a startup IPI
        self._put("SELF", self._block, 8)
        self._put("VCPU", cpu.id)
        self._put("TSS_RSP0", area.tss + 4, 8)
        try:
            cpu.msrs[_STEAL_MSR] = self._block + symbols["STEAL"] | _STEAL_ENABLED
        except KvmIoctlError:
            return False  # the module has none, or the kernel keeps no scheduler statistics
        return True

    def _put(self, name: str, value: int, size: int = 4, at: int = 0) -> None:
        self._vm.load(value.to_bytes(size, "little"), at=self._block + _IMAGE[name] + at)

    def _record(self, thread: int) -> int:
        return self._block + _IMAGE["THREADS"] + (thread << _IMAGE["THREAD_SHIFT"])

    def start_threads(
        self, count: int, program: str, slice_ns: int, gap_ticks: int, work: int
    ) -> None:
        """Put ``count`` threads into the run queue. ``work``: bytes that each uses at a turn, where
        the program uses any.

        >>> with kvmpy.sched.guest.Guest([None]) as guest:
        ...     guest.kernels[0].start_threads(2, "spin", 10_000_000, 50_000, 0)
        """
        self._put("SLICE", slice_ns)
        for thread in range(count):
            self._make_thread(thread, program, gap_ticks, work)
            self._put("QUEUE", thread, at=4 * thread)
        self._put("QUEUE_TAIL", count)

    def _make_thread(self, thread: int, program: str, gap_ticks: int, work: int) -> None:
        symbols = _IMAGE
        memory = self._block + symbols["WORK"] + (thread << symbols["WORK_SHIFT"])
        registers = dict.fromkeys(_SAVED, 0)
        registers.update(r10=gap_ticks, r12=memory, r13=memory + work, r14=1)
        registers["r15"] = self._record(thread)
        if program == "write":
            text = f"vCPU {self.cpu.id} thread {thread}\n".encode()
            self._vm.load(text, at=memory)
            registers.update(r13=len(text), r14=_WRITES)
        stack = self._block + symbols["STACKS"] + (thread + 1 << symbols["STACK_SHIFT"])
        returns = (
            symbols[f"thread.{program}"], d.USER_CODE64, _RFLAGS_IF | _RFLAGS_FIXED, stack,
            d.USER_DATA,
        )  # fmt: skip
        frame = struct.pack("<20Q", *registers.values(), *returns)
        self._vm.load(frame, at=self._record(thread) + symbols["FRAME"])

    # -- what the guest says: to be judged by who reads it

    def _word(self, gpa: int) -> int:
        return int.from_bytes(self._vm.memory.read(gpa, 8), "little")

    @property
    def started(self) -> int:
        """TSC of its begin, as it says; 0 before.

        >>> with kvmpy.sched.guest.Guest([None]) as guest:
        ...     guest.kernels[0].started
        0
        """
        return self._word(self._block + _IMAGE["STARTED"])

    def counts(self, thread: int) -> tuple[int, int]:
        """A thread's own counts: looks at the clock, and turns.

        >>> with kvmpy.sched.guest.Guest([None]) as guest:
        ...     guest.kernels[0].counts(0)
        (0, 0)
        """
        record = self._record(thread)
        return self._word(record + _IMAGE["LOOPS"]), self._word(record + _IMAGE["SLICES"])

    def queue(self) -> tuple[int, ...]:
        """The run queue: the threads that wait for the vCPU, the next one first.

        >>> with kvmpy.sched.guest.Guest([None]) as guest:
        ...     guest.kernels[0].start_threads(3, "spin", 10_000_000, 50_000, 0)
        ...     guest.kernels[0].queue()
        (0, 1, 2)
        """
        symbols = _IMAGE
        head, tail = struct.unpack(
            "<2I", self._vm.memory.read(self._block + symbols["QUEUE_HEAD"], 8)
        )
        raw = self._vm.memory.read(self._block + symbols["QUEUE"], 4 * MOST_THREADS)
        places = struct.unpack(f"<{MOST_THREADS}I", raw)
        waiting = min(tail - head & 0xFFFF_FFFF, MOST_THREADS)
        found = (places[(head + i) % MOST_THREADS] for i in range(waiting))
        return tuple(thread for thread in found if thread < MOST_THREADS)


class Guest:
    """A VM with a vCPU for each of ``pins``: the pCPU that its thread is bound to, or None.

    ``system_call``: one of ``SYSTEM_CALLS``. ``on_finished(vcpu)`` is called, in a vCPU's thread,
    with the number of a vCPU all of whose threads have ended.

    Raises UnsupportedError where KVM cannot give all vCPUs one clock.
    """

    def __init__(
        self,
        pins: Sequence[int | None],
        system_call: str = "int3",
        on_finished: Callable[[int], None] | None = None,
    ):
        if not 1 <= len(pins) <= MOST_VCPUS:
            raise ValueError(f"{len(pins)} vCPUs: not in 1..{MOST_VCPUS}")
        size = _BLOCK * (1 + len(pins)) + 2 * layout.MIB  # the last: the area that VMs have on top
        self.console = DebugConsole()
        self.vm = VM(size, irqchip="split")  # LAPICs are all it needs
        try:
            self._load(system_call)
            self.vm.attach(self.console, _IMAGE["PORT_CONSOLE"])

            @self.vm.on_io(_IMAGE["PORT_FINISHED"])
            def finished(port: int, size: int, value: int | None) -> int | None:
                if value is not None and on_finished is not None:
                    on_finished(value)
                return 0 if value is None else None

            cpus = [self.vm.vcpu(pin=pin) for pin in pins]
            for cpu in cpus:
                _share_clock(cpu)
            self.kernels = tuple(Kernel(self.vm, cpu) for cpu in cpus)
        except BaseException:
            self.vm.close()
            raise

    def _load(self, system_call: str) -> None:
        code = bytearray(_IMAGE.code)
        for name, address in _IMAGE.symbols.items():
            if name.startswith("call."):
                at = address - image.ORIGIN
                code[at : at + 2] = SYSTEM_CALLS[system_call]
        self.vm.load(code, at=image.ORIGIN)

    def close(self) -> None:
        """Close the VM.

        >>> kvmpy.sched.guest.Guest([None]).close()
        """
        self.vm.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _share_clock(cpu: VCPU) -> None:
    """All vCPUs read the host's TSC."""
    try:
        cpu.tsc_offset = 0
    except UnsupportedError:
        if cpu.vm.check_extension("VCPU_ATTRIBUTES"):
            return  # KVM ignores offsets: its guests read the host's TSC already
        raise
