"""Taking a vCPU's state and setting it, each part at its place in the order (KVM imposes it)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .. import ioctls
from ..cpuid.cpuid import Cpuid
from ..errors import KvmpyError, StateMismatchError
from ..record import Record
from ..shim import ffi, lib
from ..values import replace
from . import msr_list
from .differences import Difference, Differences
from .host import HostIdentity, at_rest, missing_features
from .interrupts import Lapic, VcpuEvents
from .mce import VcpuMce
from .nested import HEADER_SIZE, NestedState
from .registers import DebugRegs, Regs, Sregs, Sregs2, Xcrs
from .vcpu import VcpuState
from .xsave import Xsave, host_layout

if TYPE_CHECKING:
    from .parts import VcpuParts


_PAGE: Final = lib.KVM_SYNC_X86_REGS | lib.KVM_SYNC_X86_SREGS | lib.KVM_SYNC_X86_EVENTS
_PAYLOAD: Final = 1 << 4
_TRIPLE_FAULT: Final = 1 << 5
#: Up to 250 ppm KVM takes two TSC frequencies for the same (kvm.tsc_tolerance_ppm).
_TSC_TOLERANCE: Final = 250e-6


def get(cpu: VcpuParts, fd: int, kind: type[Record], ioctl: ioctls.Ioctl) -> Any:
    """A record that ``ioctl`` reads."""
    structure = ffi.new(kind.c_name + " *")
    ioctl(fd, structure, f"vCPU {cpu.id}")
    return kind.from_c(structure)


# ---------------------------------------------------------------- saving


def save(cpu: VcpuParts) -> VcpuState:
    """See :meth:`kvmpy.VCPU.save`."""
    fd = cpu._settle(0)
    if cpu._shim.deferred:
        raise KvmpyError(
            "the instruction at RIP is in the middle of its memory accesses, and KVM has no state "
            "for that: run() until the remaining accesses have been made, then save"
        )
    # First what changes registers by being read: MP_STATE has KVM act on an INIT or SIPI that
    # waits; EVENTS put an exception's payload into CR2 or DR6 if the VM has not enabled payloads.
    mp_state = cpu.mp_state
    ioctls.KVM_GET_VCPU_EVENTS(fd, ffi.new("struct kvm_vcpu_events *"))
    values = {
        "regs": get(cpu, fd, Regs, ioctls.KVM_GET_REGS),
        "sregs": get_sregs2(cpu, fd),
        "xsave": cpu._xsave(fd),
        "xcrs": get(cpu, fd, Xcrs, ioctls.KVM_GET_XCRS),
        "debugregs": get(cpu, fd, DebugRegs, ioctls.KVM_GET_DEBUGREGS),
        "lapic": get(cpu, fd, Lapic, ioctls.KVM_GET_LAPIC) if cpu.has_lapic else None,
    }
    cpuid, mcg_cap = cpu.get_cpuid(), get_mcg_cap(fd)
    msrs, refused = msr_list.read(fd, msr_list.state_msrs(cpu.vm._kvm._listed_msrs, mcg_cap, cpuid))
    return VcpuState(
        host=HostIdentity.here(),
        vcpu_id=cpu.id,
        cpuid=cpuid,
        tsc_khz=ioctls.KVM_GET_TSC_KHZ(fd),
        mcg_cap=mcg_cap,
        mp_state=mp_state,
        msrs=msrs,
        refused_msrs=tuple(refused),
        one_regs={register: cpu.get_one_reg(register) for register in _one_regs(cpu)},
        nested=cpu._nested(fd),
        # Last: whatever was read before may have queued an event.
        events=get(cpu, fd, VcpuEvents, ioctls.KVM_GET_VCPU_EVENTS),
        stubs=cpu._stubs,
        **values,
    )


def get_sregs2(cpu: VcpuParts, fd: int) -> Sregs2:
    """With PDPTRs if KVM can tell them."""
    if cpu._constant("KVM_CAP_SREGS2"):
        found: Sregs2 = get(cpu, fd, Sregs2, ioctls.KVM_GET_SREGS2)
        return found
    return Sregs2.of(get(cpu, fd, Sregs, ioctls.KVM_GET_SREGS))


def get_mcg_cap(fd: int) -> int:
    """IA32_MCG_CAP; 0 where KVM has no machine checks."""
    values, _ = msr_list.read(fd, [msr_list.MCG_CAP])
    return values.get(msr_list.MCG_CAP, 0)


def _one_regs(cpu: VcpuParts) -> tuple[int, ...]:
    return cpu.one_reg_list() if cpu._constant("KVM_CAP_ONE_REG") else ()


# ---------------------------------------------------------------- what stands against restoring


def conflicts(cpu: VcpuParts, state: VcpuState) -> Differences:
    """Why ``state`` cannot go on exactly as it was on ``cpu``; empty if it can."""
    return _against(cpu, state, cpu.get_cpuid())


def _against(cpu: VcpuParts, state: VcpuState, shown: Cpuid) -> Differences:
    found = Differences()
    here = HostIdentity.here()
    for name in ("module", "vendor", "model"):
        _note(found, f"host.{name}", getattr(state.host, name), getattr(here, name))
    if state.cpuid != shown:
        # What the vCPU shows counts too: kvm_pvm shows more than it says it supports.
        offered = cpu.vm._kvm.host_cpuid(cpu.id, lapic=cpu.has_lapic)
        found += missing_features(state.cpuid, offered, shown)
    _note(found, "lapic", state.lapic is not None, cpu.has_lapic)
    if state.lapic is not None:  # whose APIC id is KVM's number in x2APIC mode
        _note(found, "vcpu_id", state.vcpu_id, cpu.id)
    _note_xsave(found, cpu, state.xsave)
    khz = ioctls.KVM_GET_TSC_KHZ(cpu.fileno())
    if abs(state.tsc_khz - khz) > khz * _TSC_TOLERANCE and not cpu._constant("KVM_CAP_TSC_CONTROL"):
        _note(found, "tsc_khz", state.tsc_khz, khz)
    if state.nested is not None and not cpu._constant("KVM_CAP_NESTED_STATE"):
        found.append(Difference("nested", state.nested, None))
    if state.one_regs and not cpu._constant("KVM_CAP_ONE_REG"):
        found.append(Difference("one_regs", tuple(state.one_regs), None))
    return found


def _note(found: Differences, path: str, saved: object, here: object) -> None:
    if saved != here:
        found.append(Difference(path, saved, here))


def _note_xsave(found: Differences, cpu: VcpuParts, xsave: Xsave) -> None:
    places = {component.bit: component for component in host_layout()}
    for component in xsave.layout:
        if xsave.xstate_bv >> component.bit & 1:
            _note(found, f"xsave.{component.name}", component, places.get(component.bit))
    if any(xsave.data[cpu.xsave_size :]):
        found.append(Difference("xsave.size", len(xsave.data), cpu.xsave_size))


# ---------------------------------------------------------------- restoring


def restore(cpu: VcpuParts, state: VcpuState, force: bool) -> Differences:
    """See :meth:`kvmpy.VCPU.restore`."""
    shown = cpu.get_cpuid()
    against = _against(cpu, state, shown)
    if against and not force:
        raise StateMismatchError("this state cannot continue here (saved -> here):", against)
    fd = cpu._settle(_PAGE)
    # CPUID before MSRs: since 6.13 MSRs that depend on it read as zero until it is set. The TSC's
    # frequency before the TSC, and the banks before what is in them.
    # Not if it is the same, which KVM refuses once the vCPU has run: the one it shows then differs
    # by the bits that mirror control registers.
    if state.cpuid != shown and at_rest(state.cpuid) != at_rest(shown):
        cpu.set_cpuid(state.cpuid)
    if state.tsc_khz != ioctls.KVM_GET_TSC_KHZ(fd) and not _is_in(against, "tsc_khz"):
        ioctls.KVM_SET_TSC_KHZ(fd, state.tsc_khz, f"{state.tsc_khz} kHz")
    if state.mcg_cap != get_mcg_cap(fd):
        VcpuMce(cpu).set_mcg_cap(state.mcg_cap)
    if state.nested is not None and not _is_in(against, "nested"):
        _leave_nested(fd, state.nested)
    # MP_STATE first: setting registers of a vCPU at its reset vector can change it.
    cpu.mp_state = state.mp_state
    _put(fd, ioctls.KVM_SET_REGS, state.regs)  # clears pending exceptions: before EVENTS
    _set_sregs2(cpu, fd, state.sregs)
    ioctls.KVM_SET_XSAVE(fd, bytearray(state.xsave.resized(cpu.xsave_size).data))
    _put(fd, ioctls.KVM_SET_XCRS, state.xcrs)
    _put(fd, ioctls.KVM_SET_DEBUGREGS, state.debugregs)
    # The LAPIC after SREGS, which have the APIC base, and before the MSRs: setting it stops the
    # timer that the TSC deadline starts.
    if state.lapic is not None and cpu.has_lapic:
        _put(fd, ioctls.KVM_SET_LAPIC, state.lapic)
    unset = _set_msrs(fd, state)
    if not _is_in(against, "one_regs"):
        for register, value in state.one_regs.items():
            cpu.set_one_reg(register, value)
    # VMX's capability MSRs cannot change in VMX operation: nested state after MSRs.
    if state.nested is not None and not _is_in(against, "nested"):
        ioctls.KVM_SET_NESTED_STATE(fd, bytearray(state.nested.data))
    _set_events(cpu, fd, state.events)
    cpu._stubs = state.stubs
    if any(state.msrs.get(index, 0) & 1 for index in (0x12, 0x4B56_4D01)):
        cpu.kvmclock_ctrl()  # its watchdog is not to take the pause for a lockup
    if unset and not force:
        raise StateMismatchError("KVM refused to set some MSRs (saved -> here):", unset)
    return Differences((*against, *unset))


def _is_in(against: Differences, path: str) -> bool:
    return path in against.paths()


def _put(fd: int, ioctl: ioctls.Ioctl, record: Record) -> None:
    ioctl(fd, record.to_c(), type(record).__name__)


def _set_sregs2(cpu: VcpuParts, fd: int, sregs: Sregs2) -> None:
    detail = f"cr0 {sregs.cr0:#x}, cr4 {sregs.cr4:#x}, efer {sregs.efer:#x}"
    if cpu._constant("KVM_CAP_SREGS2"):
        ioctls.KVM_SET_SREGS2(fd, sregs.to_c(), detail)
    else:
        ioctls.KVM_SET_SREGS(fd, sregs.without_pdptrs().to_c(), detail)
    cpu._shim.run.cr8 = sregs.cr8  # what KVM takes at entry if it has no LAPIC


def _set_msrs(fd: int, state: VcpuState) -> Differences:
    """What KVM refuses to set and has another value here."""
    refused = msr_list.write(fd, state.msrs)
    if not refused:
        return Differences()
    here, _ = msr_list.read(fd, refused)
    unset = Differences()
    for index in refused:
        _note(unset, f"msrs[{index:#x}]", state.msrs[index], here.get(index))
    return unset


def _leave_nested(fd: int, saved: NestedState) -> None:
    """Out of nested guest mode, which what comes next must not be set in."""
    area = ffi.new("char[]", HEADER_SIZE)
    state = ffi.cast("struct kvm_nested_state *", area)
    state.size = HEADER_SIZE
    state.format = int.from_bytes(saved.data[2:4], "little")
    if state.format == lib.KVM_STATE_NESTED_FORMAT_VMX:
        state.hdr.vmx.vmxon_pa = state.hdr.vmx.vmcs12_pa = (1 << 64) - 1
    else:
        state.flags = lib.KVM_STATE_NESTED_GIF_SET
    ioctls.KVM_SET_NESTED_STATE(fd, area, "none")


def _set_events(cpu: VcpuParts, fd: int, events: VcpuEvents) -> None:
    """Parts that this VM has not enabled are left out where they say nothing."""
    enabled = get(cpu, fd, VcpuEvents, ioctls.KVM_GET_VCPU_EVENTS).flags
    flags = events.flags
    if not events.exception.pending and not events.exception_has_payload:
        flags &= enabled | ~_PAYLOAD
    if not events.triple_fault.pending:
        flags &= enabled | ~_TRIPLE_FAULT
    _put(fd, ioctls.KVM_SET_VCPU_EVENTS, replace(events, flags=flags))
