"""What the vCPU's kvm_run page says and takes beside the exit itself (KVM API, "5. The kvm_run
structure"), the signal mask of KVM_RUN, and SMIs."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Any

from .. import ioctls
from ..shim import ffi, lib
from ..vcpu_fd import VcpuFd

#: Signals that KVM_RUN must let through: the shim's kick, and what Python and the kernel need.
NEVER_BLOCKED = frozenset((signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP))
_SIGSET_BYTES = 8  # of the kernel: signals 1..64


class VcpuRunPage(VcpuFd):
    """The head of a vCPU's kvm_run page."""

    def _page(self) -> Any:
        self.fileno()
        return self._shim.run

    @property
    def request_interrupt_window(self) -> bool:
        """Whether runs end with IrqWindowOpen as soon as the guest can take an interrupt; stays
        set until it is cleared. For VMs without an in-kernel irqchip: :meth:`interrupt` is next.

        >>> vm.load(kvmpy.asm("sti; l: jmp l", 16), at=0x1000)
        >>> cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
        >>> cpu.request_interrupt_window = True
        >>> cpu.run(timeout=5)
        IrqWindowOpen()
        """
        return bool(self._page().request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, on: bool) -> None:
        self._page().request_interrupt_window = int(on)

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Whether, at the last exit, the guest could take an interrupt: RFLAGS.IF set, no shadow,
        none queued. Without an in-kernel irqchip.

        >>> cpu.ready_for_interrupt_injection  # has not run yet
        False
        """
        return bool(self._page().ready_for_interrupt_injection)

    @property
    def run_tsc(self) -> tuple[int, int]:
        """The host's TSC right before the last KVM_RUN and right after it, in ticks, taken in C
        from :meth:`measure` on; zeros before.

        Looking at registers may run once more, to finish the last exit's instruction.

        >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.measure()
        >>> exit = cpu.run(timeout=5)
        >>> before, after = cpu.run_tsc
        >>> 0 < before < after
        True
        """
        self.fileno()
        return self._shim.entry_tsc, self._shim.exit_tsc

    @property
    def if_flag(self) -> bool:
        """RFLAGS.IF at the last exit, without a system call.

        >>> cpu.if_flag
        False
        """
        return bool(self._page().if_flag)

    @property
    def cr8(self) -> int:
        """The task priority, CR8, as of the last exit. Assigning 0..15 sets it for the next run,
        in VMs without an in-kernel irqchip (with one it is the LAPIC's, and ValueError).

        >>> cpu.cr8 = 3
        >>> cpu.cr8
        3
        """
        value: int = self._page().cr8
        return value

    @cr8.setter
    def cr8(self, value: int) -> None:
        if not 0 <= value <= 15:
            raise ValueError(f"CR8 = {value!r}: not in 0..15")
        if self._page().cr8 != value:
            self.sregs.cr8 = value  # refetched after ioctls: the two must agree
            self._page().cr8 = value

    @property
    def in_smm(self) -> bool:
        """Whether the vCPU was in system management mode at the last exit.

        >>> cpu.in_smm
        False
        """
        return bool(self._page().flags & lib.KVM_RUN_X86_SMM)

    @property
    def in_guest_mode(self) -> bool:
        """Whether the vCPU was running a nested guest at the last exit (kernels since 6.11).

        >>> cpu.in_guest_mode
        False
        """
        return bool(self._page().flags & lib.KVM_RUN_X86_GUEST_MODE)

    @property
    def bus_locked(self) -> bool:
        """Whether the last exit, whichever it was, came with a bus lock
        (:meth:`VM.exit_on_bus_locks`).

        >>> cpu.bus_locked
        False
        """
        return bool(self._page().flags & lib.KVM_RUN_X86_BUS_LOCK)

    def smi(self) -> None:
        """KVM_SMI: queue a system management interrupt. In system management mode the guest sees
        the memory slots of address space 1, numbered from 1 << 16 on (KVM_CAP_MULTI_ADDRESS_SPACE):
        without any it cannot run there. Raises UnsupportedError without KVM_CAP_X86_SMM.

        >>> vm.check_extension("X86_SMM") in (0, 1)
        True
        """
        ioctls.KVM_SMI(self.fileno())

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK: the signals blocked while KVM_RUN runs, instead of the thread's
        own mask; None: the thread's own mask again.

        The signal by which kvmpy gets a vCPU out is never blocked, nor are SIGINT and SIGTERM:
        ValueError for one of these.

        >>> import signal
        >>> cpu.set_signal_mask([signal.SIGUSR1])
        >>> cpu.set_signal_mask(None)
        """
        if blocked is None:
            ioctls.KVM_SET_SIGNAL_MASK(self._settle(0))
            return
        mask = 0
        for number in blocked:
            if not 1 <= number <= 64:
                raise ValueError(f"signal {number} is not in 1..64")
            if number == lib.shim_kick_signal() or number in NEVER_BLOCKED:
                raise ValueError(f"signal {int(number)} must reach the vCPU: kicks need it")
            mask |= 1 << number - 1
        structure = ffi.new("struct kvm_signal_mask *", {"sigset": _SIGSET_BYTES})
        structure.len = _SIGSET_BYTES
        ffi.memmove(structure.sigset, mask.to_bytes(_SIGSET_BYTES, "little"), _SIGSET_BYTES)
        ioctls.KVM_SET_SIGNAL_MASK(self._settle(0), structure, f"mask {mask:#x}")
