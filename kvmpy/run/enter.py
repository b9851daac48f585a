"""Setting a vCPU up to start: mode, ring, tables, registers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .. import ioctls
from ..shim import ffi, lib
from ..state.parts import VcpuParts
from ..x86.bits import FCW_RESET, MXCSR_RESET

if TYPE_CHECKING:
    from ..x86.modes import Handlers, Mode
    from ..x86.state import CpuState


#: FCW, MXCSR and XSTATE_BV of an XSAVE area (SDM vol. 1, "Legacy Region of an XSAVE Area").
_FPU = struct.Struct("<H22xI484xQ")


class VcpuEnter(VcpuParts):
    """Where a vCPU begins."""

    def enter(
        self,
        mode: Mode,
        *,
        rip: int,
        ring: int = 0,
        rsp: int | None = None,
        regs: Mapping[str, int] | None = None,
        handlers: Handlers | None = None,
        **options: Any,
    ) -> None:
        """Set the vCPU up to start at ``rip`` in a mode and ring, tables and all.

        See :func:`kvmpy.x86.modes.prepare` for the parameters and what is written to guest
        memory. An exception or system call without a handler comes back from :meth:`run` as
        GuestException or UnexpectedSyscall.

        >>> vm.load(kvmpy.asm("mov eax, cs; and eax, 3; ud2"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=3)
        >>> cpu.run(timeout=60).name, cpu.regs.rax
        ('#UD invalid opcode', 3)
        """
        from ..x86.modes import prepare

        self.fileno()
        state = prepare(
            self.vm.memory, mode, rip=rip, ring=ring, rsp=rsp, regs=regs, handlers=handlers,
            **options,
        )  # fmt: skip
        self.apply(state)

    def apply(self, state: CpuState) -> None:
        """Set all of a CpuState: SREGS, then MSRs (FS and GS base are in both), FPU, REGS last.

        >>> state = kvmpy.x86.modes.prepare(vm.memory, kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.apply(state)
        >>> hex(cpu.regs.rip)
        '0x1000'
        """
        fd = self._settle(lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS)
        self._set_sregs(fd, state)
        self.msrs.write(state.msrs)
        self._set_fpu_control(state.fcw, state.mxcsr)
        ioctls.KVM_SET_REGS(fd, ffi.new("struct kvm_regs *", dict(state.regs)))
        self._stubs = state.stub_table

    def _set_fpu_control(self, fcw: int, mxcsr: int) -> None:
        """By XSAVE: KVM_SET_FPU does not know MXCSR, and what it sets is lost if XSTATE_BV says
        that the component is in its initial state."""
        # Looked at in the bytes: most vCPUs have the right values, and need no Xsave made of them.
        area = self._xsave_area(self._settle(0))
        now_fcw, now_mxcsr, in_use = _FPU.unpack_from(area)
        if not in_use & 1:  # x87 in its initial state: its bytes do not count
            now_fcw = FCW_RESET
        if not in_use & 6:  # neither SSE nor AVX in use
            now_mxcsr = MXCSR_RESET
        if (now_fcw, now_mxcsr) != (fcw, mxcsr):
            self.xsave = self.xsave.replace(fcw=fcw, mxcsr=mxcsr)

    def _set_sregs(self, fd: int, state: CpuState) -> None:
        sregs = ffi.new("struct kvm_sregs *")
        ioctls.KVM_GET_SREGS(fd, sregs)  # APIC base and the interrupt bitmap stay
        new = state.sregs
        for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt", "gdt", "idt"):
            setattr(sregs, name, vars(getattr(new, name)))  # same field names: cffi takes a dict
        for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            setattr(sregs, name, getattr(new, name))
        detail = f"cr0 {new.cr0:#x}, cr4 {new.cr4:#x}, efer {new.efer:#x}"
        ioctls.KVM_SET_SREGS(fd, sregs, detail)
        self._shim.run.cr8 = new.cr8  # what KVM takes at entry if it has no LAPIC
