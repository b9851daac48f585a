"""An unexpected exit explains itself: what happened, where, and what usually causes it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from ..errors import KvmpyError
from . import reasons as exits

if TYPE_CHECKING:
    from ..vcpu_fd import VcpuFd

#: Bytes of code shown from an address on: an x86 instruction has at most 15.
CODE_BYTES = 15
#: And before it.
BYTES_BEFORE = 12


def explain(vcpu: VcpuFd, exit: exits.Exit) -> str:
    """A text of a few lines: the exit, its likely cause, the code there, the registers.

    The code is that at RIP, or where an exception without a handler happened; ``<`` and ``>`` mark
    the byte at that address.

    >>> vm.load(kvmpy.asm("ud2"), at=0x1000)
    >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    >>> print(kvmpy.exits.explain.explain(cpu, cpu.run(timeout=5)).splitlines()[0])
    the guest has no handler for: #UD invalid opcode (vector 6) at 0010:0x1000...
    """
    parts = [headline(exit)]
    cause = likely_cause(exit, _module())
    if cause:
        parts.append(textwrap.fill(f"Likely: {cause}", 79, subsequent_indent="  "))
    try:
        parts.append(_code(vcpu, exit))
        parts.append(f"vCPU {vcpu.id}, ring {vcpu.sregs.ss.dpl}, {_mode(vcpu)}")
        parts.append(repr(vcpu.regs))
        if isinstance(exit, (exits.Shutdown, exits.FailEntry, exits.InternalError)):
            parts.append(repr(vcpu.sregs))
    except KvmpyError as error:
        parts.append(f"(the registers cannot be read: {error})")
    return "\n".join(parts)


def headline(exit: exits.Exit) -> str:
    """One line: what kind of exit, with its data.

    >>> kvmpy.exits.explain.headline(kvmpy.Hlt())
    '...'
    """
    match exit:
        case exits.IoOut():
            return (
                f"the guest wrote {exit.data.hex(' ')} to port {exit.port:#x}, which nobody claimed"
            )
        case exits.IoIn():
            return f"the guest read {exit.size} bytes from port {exit.port:#x}, unclaimed"
        case exits.MmioWrite():
            return (
                f"the guest wrote {exit.data.hex(' ')} to guest physical address {exit.gpa:#x}, "
                "where there is neither memory nor a device"
            )
        case exits.MmioRead():
            return (
                f"the guest read {exit.size} bytes at guest physical address {exit.gpa:#x}, where "
                "there is neither memory nor a device"
            )
        case exits.Hlt():
            return "the guest executed HLT, and no interrupt can wake it"
        case exits.Shutdown():
            return "the guest shut down: triple fault"
        case exits.InternalError():
            code = f": {exit.instruction.hex(' ')}" if exit.instruction else ""
            return f"KVM internal error, suberror {exit.suberror} ({exit.kind}){code}"
        case exits.FailEntry():
            return (
                "the processor refused the guest's state on entry, hardware reason "
                f"{exit.hardware_entry_failure_reason:#x} on pCPU {exit.cpu}"
            )
        case exits.GuestException() | exits.UnexpectedSyscall():
            return f"the guest has no handler for: {exit.report}"
        case exits.MemoryFault():
            kind = "a private" if exit.private else "an"
            return f"KVM cannot resolve {kind} access to {exit.gpa:#x} ({exit.size} bytes)"
        case exits.DirtyRingFull():
            return "the vCPU's dirty ring is full"
        case exits.Timeout():
            return "the run's time is up"
        case exits.ExitLimit():
            return "the run's exits are used up"
        case exits.Kicked():
            return "the run was ended by a signal" if exit.signal else "the run was ended by a kick"
        case exits.DebugExit():
            return f"the guest ended with status {exit.status}"
        case exits.Reset():
            return f"the guest reset its machine ({exit.source})"
        case exits.PowerOff():
            return f"the guest turned its machine off ({exit.source})"
        case exits.GuestPanic():
            return f"the guest's kernel panicked ({exit.source})"
        case exits.GuestCrashLoaded():
            return f"the guest's kernel panicked, its crash kernel goes on ({exit.source})"
        case _:
            return f"the guest exited: {exit!r}"


def likely_cause(exit: exits.Exit, module: str) -> str:
    """What usually causes such an exit, on this KVM module; "" when it says it all.

    >>> "real mode" in kvmpy.exits.explain.likely_cause(kvmpy.FailEntry(0x80000021, 0), "kvm_intel")
    True
    """
    match exit:
        case exits.Shutdown() if module == "kvm_pvm":
            return (
                "an exception whose handler could not be reached (no IDT, a bad stack), or a step "
                "that kvm_pvm cannot take: 32-bit paging and PAE, for example."
            )
        case exits.Shutdown():
            note = (
                " On AMD the registers below may be those after INIT and not the fault's."
                if module == "kvm_amd"
                else ""
            )
            return (
                "an exception whose handler could not be reached: IDT, GDT, TSS or stack missing "
                "from guest memory, or not mapped." + note
            )
        case exits.InternalError(suberror=1) if module == "kvm_pvm":
            return (
                "kvm_pvm emulates everything but 64-bit ring 3, and its emulator lacks this "
                "instruction. kvm_intel and kvm_amd run it."
            )
        case exits.InternalError(suberror=1):
            return (
                "the instruction touches memory that KVM must emulate (MMIO, a read-only slot, "
                "page tables), and KVM's emulator lacks it; or the guest runs data as code."
            )
        case exits.InternalError(suberror=3):
            return "an exception was delivered through memory that is not there (IDT, stack)."
        case exits.FailEntry():
            return (
                "a segment or control register that entry checks refuse (SDM vol. 3, 'Checks on "
                "the Guest State Area'; APM vol. 2, 'Canonicalization and Consistency Checks'): TR "
                "not busy, base unequal to selector * 16 in real mode, CR0, CR4 and EFER at odds."
            )
        case exits.MmioRead() | exits.MmioWrite():
            return "a wild pointer, or a device that this machine does not have."
        case exits.MemoryFault():
            return (
                "the slot's guest_memfd is closed, or the page is private where the guest takes it "
                "for shared, or the other way round; see vm.set_memory_attributes()."
            )
        case exits.DirtyRingFull():
            return "nobody has harvested it: cpu.dirty_ring.harvest(), vm.reset_dirty_rings(), run."
        case exits.IoIn() | exits.IoOut():
            return "a device that this machine does not have; claim the port with vm.on_io()."
        case _:
            return ""


def _module() -> str:
    from ..host.module import module_name

    return module_name()


def _mode(vcpu: VcpuFd) -> str:
    sregs = vcpu.sregs
    return sregs.cs.kind if sregs.cr0 & 1 else "real mode"


def _code(vcpu: VcpuFd, exit: exits.Exit) -> str:
    from ..x86.bits import linear_rip

    if not isinstance(exit, (exits.GuestException, exits.UnexpectedSyscall)):
        return f"code at rip: {_bytes_around(vcpu, linear_rip(vcpu.regs, vcpu.sregs))}"
    # RIP is in a stub of ours: what counts is where the guest came from.
    rip = exit.report.rip
    if rip is None:
        return "code: where it came from is not known"
    after = " (after the call)" if isinstance(exit, exits.UnexpectedSyscall) else ""
    selector = getattr(exit.report, "cs", None)
    base = selector << 4 if selector is not None and not vcpu.sregs.cr0 & 1 else 0
    return f"code at {rip:#x}{after}: {_bytes_around(vcpu, base + rip)}"


def _bytes_around(vcpu: VcpuFd, linear: int) -> str:
    """What lies around a linear address, through the guest's own page tables."""
    before = _readable(vcpu, linear - BYTES_BEFORE, BYTES_BEFORE, at_the_end=True)
    there = _readable(vcpu, linear, CODE_BYTES)
    if not there:
        return "not readable"
    shown = [f"{byte:02x}" for byte in before]
    return " ".join([*shown, f"<{there[0]:02x}>", *(f"{byte:02x}" for byte in there[1:])])


def _readable(vcpu: VcpuFd, linear: int, size: int, *, at_the_end: bool = False) -> bytes:
    """As much of [linear, linear + size) as can be read from its beginning on; or to its end."""
    from ..x86 import walk

    sregs, memory = vcpu.sregs, vcpu.vm.memory
    layout = walk.Paging.of(sregs.cr0, sregs.cr4, sregs.efer)
    found = b""
    for offset in reversed(range(size)) if at_the_end else range(size):
        gpa = walk.walk(memory, sregs.cr3, (linear + offset) % (1 << 64), layout).gpa
        if gpa is None or not memory.contains(gpa):
            break
        byte = memory.read(gpa, 1)
        found = byte + found if at_the_end else found + byte
    return found
