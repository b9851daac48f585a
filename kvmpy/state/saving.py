"""A vCPU's state all at once: saved, restored, reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .parts import VcpuParts

if TYPE_CHECKING:
    from .differences import Differences
    from .vcpu import VcpuState


class VcpuSaving(VcpuParts):
    """Saving and restoring a vCPU."""

    def save(self) -> VcpuState:
        """The complete architectural state, as a plain value.

        The last exit's instruction is completed first, so that it is not run twice; a read that
        still waits for its answer (IoIn, MmioRead) has not happened yet, and is made again where
        the state is restored. The guest's clock stands still until then.

        Raises KvmpyError in the middle of an access that KVM makes in several exits: run() on.

        >>> state = cpu.save()
        >>> cpu.regs.rax = 5
        >>> _ = cpu.restore(state)
        >>> cpu.regs.rax
        0
        """
        from .transfer import save

        return save(self)

    def restore(self, state: VcpuState, *, force: bool = False) -> Differences:
        """Make the vCPU what it was when ``state`` was saved. Guest memory is the caller's.

        An instruction this vCPU has not finished ends (reads give all ones). CPUID is set if it
        differs, which KVM allows until the first run. The TSC goes on from its saved value; but
        one within a second of what the VM's TSC should be KVM takes for the VM's.

        Raises StateMismatchError, before anything is changed, if the state comes from another
        KVM module or processor model, or has what this VM lacks; its ``differences`` says what.
        ``force``: go ahead all the same. Returns the differences that were passed over, none
        unless forced. An error of KVM's own leaves a vCPU that is neither the one nor the other.

        >>> cpu.restore(cpu.save())
        no differences
        """
        from .transfer import restore

        return restore(self, state, force)

    def conflicts(self, state: VcpuState) -> Differences:
        """What stands against restoring ``state`` here: saved -> here. Empty if nothing does.

        >>> cpu.conflicts(cpu.save())
        no differences
        """
        from .transfer import conflicts

        return conflicts(self, state)

    def reset(self) -> None:
        """The state after power-on (SDM vol. 3, "Processor State After Reset"): real mode at
        F000:FFF0 for vCPU 0, waiting for INIT and SIPI for the others if there is a LAPIC.

        CPUID and the TSC's frequency stay; the TSC is the VM's, as for a vCPU that is plugged in.

        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.reset()
        >>> hex(cpu.regs.rip), hex(cpu.sregs.cs.base)
        ('0xfff0', '0xffff0000')
        """
        from .reset import after_reset
        from .transfer import restore

        restore(self, after_reset(self.save(), self.has_lapic), force=False)
