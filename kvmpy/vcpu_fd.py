"""What every topic of a vCPU is built on: its descriptor, its VM, the shim's part of it, and its
registers.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any, Final

from . import ioctls
from .errors import KvmIoctlError
from .fd import Descriptor
from .ioctls import capabilities
from .msrs.msrs import Msrs
from .shim import ffi, lib
from .state.live import Registers, SpecialRegisters

if TYPE_CHECKING:
    from typing import Protocol

    from .exits.reasons import Exit
    from .run.bus import Bus
    from .vm_fd import VmFd
    from .x86.state import StubTable

    class Debugger(Protocol):
        """What has breakpoints in a vCPU, for those that run it and read its memory."""

        #: Whether it is the debugger that runs the vCPU.
        inside: bool

        def run(self, timeout: float | None, max_exits: int | None) -> Exit:
            """VCPU.run(), with breakpoints."""

        def take_over(self, exit: Exit, timeout: float | None, max_exits: int | None) -> Exit:
            """What a run gives that began without it, and ended with ``exit``."""

        def hide(self, gva: int, data: bytearray) -> None:
            """Put the guest's own bytes for INT3s into what was read at ``gva``."""

        def replace(self, gva: int, data: bytearray) -> None:
            """Keep the INT3s in what is about to be written at ``gva``."""


class VcpuFd(Descriptor):
    """A vCPU's descriptor (KVM API, "4.7 KVM_CREATE_VCPU"). :class:`kvmpy.VCPU` is all of its
    topics."""

    _what = "vCPU"
    _debugger: Debugger | None = None
    #: The exception stubs of the last enter(), by which their reports are known.
    _stubs: StubTable | None = None

    def __init__(self, vm: VmFd, id: int):
        #: The VM it belongs to.
        self.vm = vm
        #: KVM's number for it, which is its APIC id.
        self.id = id
        # What cannot change in a vCPU's life, asked once.
        self._constants: dict[str, int] = {}
        fd = ioctls.KVM_CREATE_VCPU(vm.fileno(), id, f"id {id}")
        error = ffi.new("int *")
        # Everything the C side points into lives at least as long as this object.
        self._bus: Bus = vm.bus
        shim = lib.shim_vcpu_new(fd, vm.run_size, self._bus._bus, vm.sync_fields, error)
        if shim == ffi.NULL:
            os.close(fd)
            raise KvmIoctlError("mmap", -error[0], "the kvm_run page of a new vCPU")
        # A register view may outlive this object: it, too, keeps the bus.
        self._shim: Any = ffi.gc(shim, lambda shim, bus=self._bus._bus: lib.shim_vcpu_free(shim))
        self._opened(fd, vm.fileno())
        whole = memoryview(ffi.buffer(self._shim)).cast("B")
        report = ffi.offsetof("struct shim_vcpu", "report")
        #: What the shim says of a stop: five words, the last of which takes the answer.
        self._report = whole[report : report + 40]
        self._answer = self._report[32:40].cast("Q")
        self._words: Any = ffi.new(f"uint64_t[{lib.SHIM_DECODE_WORDS}]")
        # Plain attributes: a property would double what cpu.regs.rax costs.
        #: General registers, RIP and RFLAGS, live.
        self.regs: Final = Registers(self._shim)
        #: Segments, control registers and descriptor tables, live.
        self.sregs: Final = SpecialRegisters(self._shim)
        #: Model-specific registers by number or name.
        self.msrs: Final = Msrs(weakref.WeakMethod(self._settled_fd))

    def _stale(self) -> None:
        """The registers may have changed: who looks next asks KVM."""
        self.regs._fresh = self.sregs._fresh = False

    def _settle(self, fields: int) -> int:
        """The descriptor, for an ioctl that reads or sets state: the last exit's instruction is
        completed and edits of the live views are in."""
        fd = self.fileno()
        error = lib.shim_settle(self._shim, fields)
        if error:
            raise ioctls.KVM_RUN.error(fd, -error, "completing the last exit")
        self._stale()
        return fd

    def _settled_fd(self) -> int:
        return self._settle(0)

    def _constant(self, capability: str) -> int:
        """KVM_CHECK_EXTENSION of the VM, remembered."""
        if capability not in self._constants:
            self._constants[capability] = self.vm.check_extension(capability)
        return self._constants[capability]

    @property
    def has_lapic(self) -> bool:
        """Whether KVM has a local APIC for it: the VM's irqchip is KVM's, whole or split.

        >>> cpu.has_lapic
        False
        """
        if "lapic" not in self._constants:  # it cannot get one once it exists
            area = ffi.new("struct kvm_lapic_state *")
            self._constants["lapic"] = ioctls.KVM_GET_LAPIC.raw(self.fileno(), area) == 0
        return bool(self._constants["lapic"])

    def enable_capability(self, capability: int | str, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the vCPU; else as :meth:`VM.enable_capability`.

        >>> cpu.enable_capability("ENFORCE_PV_FEATURE_CPUID", 1)
        """
        capabilities.enable(self.fileno(), "vcpu", capability, args, flags, True)

    def _in_child(self) -> None:
        self._fd = -1  # the shim has closed it
        self._stale()

    def close(self) -> None:
        """Close the vCPU. A run in another thread ends with ClosedError first.

        >>> cpu.close()
        >>> cpu
        <VCPU 0, closed>
        """
        if self._fd < 0:
            return
        self._fd = -1
        self._stale()
        error = lib.shim_vcpu_close(self._shim)
        if error:
            raise OSError(-error, os.strerror(-error))

    def __del__(self) -> None:
        """Nothing to do: the shim's part closes itself when the last view of it has gone."""
