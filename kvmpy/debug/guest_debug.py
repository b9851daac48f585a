"""KVM_SET_GUEST_DEBUG itself (KVM API, "4.87 KVM_SET_GUEST_DEBUG")."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ioctls
from ..run.loop import VcpuRun
from ..shim import ffi, lib
from .translate import VcpuTranslate


class VcpuGuestDebug(VcpuRun, VcpuTranslate):
    """What breakpoints and single steps are built on."""

    def set_guest_debug(
        self,
        *,
        enable: bool = True,
        single_step: bool = False,
        software: bool = False,
        hardware: Sequence[int] | None = None,
        block_interrupts: bool = False,
        inject_debug: bool = False,
        inject_breakpoint: bool = False,
    ) -> None:
        """KVM_SET_GUEST_DEBUG itself; :meth:`breakpoint` and :meth:`steps` are built on it, and
        overwrite what is set here.

        ``single_step``: Debug after each instruction. ``software``: INT3 gives Debug. ``hardware``:
        DR0..DR7 for the host's use. ``block_interrupts``: none is delivered while stepping.
        ``inject_debug``, ``inject_breakpoint``: the guest gets a #DB, a #BP. ``enable=False`` turns
        all off. Raises UnsupportedError for a flag KVM_CAP_SET_GUEST_DEBUG2 does not have,
        KvmIoctlError (EBUSY) for an injection while another exception is pending.

        >>> vm.load(kvmpy.asm("inc eax; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.set_guest_debug(single_step=True)
        >>> cpu.run(timeout=5).single_step, hex(cpu.regs.rip)
        (True, '0x1002')
        """
        chosen = (
            (enable, lib.KVM_GUESTDBG_ENABLE),
            (single_step, lib.KVM_GUESTDBG_SINGLESTEP),
            (software, lib.KVM_GUESTDBG_USE_SW_BP),
            (hardware is not None, lib.KVM_GUESTDBG_USE_HW_BP),
            (block_interrupts, lib.KVM_GUESTDBG_BLOCKIRQ),
            (inject_debug, lib.KVM_GUESTDBG_INJECT_DB),
            (inject_breakpoint, lib.KVM_GUESTDBG_INJECT_BP),
        )
        structure = ffi.new("struct kvm_guest_debug *")
        structure.control = sum(bit for on, bit in chosen if on)
        if hardware is not None:
            if len(hardware) != 8:
                raise ValueError(f"hardware needs eight debug registers, got {len(hardware)}")
            structure.arch.debugreg = list(hardware)
        detail = f"control {structure.control:#x}"
        ioctls.KVM_SET_GUEST_DEBUG(self._settle(0), structure, detail)
