"""A vCPU's state: the typed properties, saving, restoring, resetting."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar, cast

from .. import ioctls
from ..cpuid.cpuid import Cpuid
from ..shim import address_of, ffi, lib

if TYPE_CHECKING:
    from ..record import Record
    from ..vcpu import VCPU
    from ..vm import VM
    from .differences import Differences
    from .interrupts import Lapic, VcpuEvents
    from .nested import NestedState
    from .registers import DebugRegs, Fpu, Sregs2, Xcrs
    from .vcpu import VcpuState
    from .xsave import Xsave


_REG_SIZE_SHIFT: int = lib.KVM_REG_SIZE_SHIFT
#: Bytes of struct kvm_xsave, which every area has at least.
_LEAST_XSAVE: int = ffi.sizeof("struct kvm_xsave")

R = TypeVar("R", bound="Record")


def _vcpu(methods: StateMethods) -> VCPU:
    return cast("VCPU", methods)  # which is all that inherits them


class StateMethods:
    """What VCPU has for its state. Every access completes the last exit's instruction first."""

    if TYPE_CHECKING:
        vm: VM
        id: int

        def fileno(self) -> int: ...
        def _settle(self, fields: int) -> int: ...
        def get_cpuid(self, entries: int = 256) -> Cpuid: ...
        def set_cpuid(self, cpuid: Cpuid) -> None: ...

    # What cannot change in a vCPU's life, asked once.
    _constants: dict[str, int] | None = None

    def _constant(self, capability: str) -> int:
        """KVM_CHECK_EXTENSION of the VM, remembered."""
        known = self._constants
        if known is None:
            known = self._constants = {}
        if capability not in known:
            known[capability] = self.vm.check_extension(capability)
        return known[capability]

    def _record(self, kind: type[R], ioctl: ioctls.Ioctl) -> R:
        structure = ffi.new(kind.c_name + " *")
        ioctl(self._settle(0), structure)
        return kind.from_c(structure)

    def _set_record(self, value: Record, ioctl: ioctls.Ioctl) -> None:
        ioctl(self._settle(0), value.to_c(), f"{value!r}")

    # -- everything at once

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

        return save(_vcpu(self))

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

        return restore(_vcpu(self), state, force)

    def conflicts(self, state: VcpuState) -> Differences:
        """What stands against restoring ``state`` here: saved -> here. Empty if nothing does.

        >>> cpu.conflicts(cpu.save())
        no differences
        """
        from .transfer import conflicts

        return conflicts(_vcpu(self), state)

    def reset(self) -> None:
        """The state after power-on (SDM vol. 3, "Processor State After Reset"): real mode at
        F000:FFF0 for vCPU 0, waiting for INIT and SIPI for the others if there is a LAPIC.

        CPUID and the TSC's frequency stay; the TSC is the VM's, as for a vCPU that is plugged in.

        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.reset()
        >>> hex(cpu.regs.rip), hex(cpu.sregs.cs.base)
        ('0xfff0', '0xffff0000')
        """
        from .reset import reset

        reset(_vcpu(self))

    # -- parts

    @property
    def xcrs(self) -> Xcrs:
        """The extended control registers, a :class:`kvmpy.state.Xcrs`.

        >>> cpu.xcrs
        Xcrs(<XCR0 0x1[x87]>)
        """
        from .registers import Xcrs

        return self._record(Xcrs, ioctls.KVM_GET_XCRS)

    @xcrs.setter
    def xcrs(self, value: Xcrs) -> None:
        self._set_record(value, ioctls.KVM_SET_XCRS)

    @property
    def debugregs(self) -> DebugRegs:
        """The guest's debug registers, a :class:`kvmpy.state.DebugRegs`.

        >>> hex(cpu.debugregs.dr7)
        '0x400'
        """
        from .registers import DebugRegs

        return self._record(DebugRegs, ioctls.KVM_GET_DEBUGREGS)

    @debugregs.setter
    def debugregs(self, value: DebugRegs) -> None:
        self._set_record(value, ioctls.KVM_SET_DEBUGREGS)

    @property
    def events(self) -> VcpuEvents:
        """Events on their way, a :class:`kvmpy.state.VcpuEvents`.

        >>> cpu.events.exception
        none
        """
        from .interrupts import VcpuEvents

        return self._record(VcpuEvents, ioctls.KVM_GET_VCPU_EVENTS)

    @events.setter
    def events(self, value: VcpuEvents) -> None:
        self._set_record(value, ioctls.KVM_SET_VCPU_EVENTS)

    @property
    def lapic(self) -> Lapic:
        """The in-kernel local APIC, a :class:`kvmpy.state.Lapic`. Raises KvmIoctlError if the VM
        has none.

        >>> with kvmpy.VM("1M", irqchip=True) as machine:
        ...     machine.vcpu().lapic.enabled
        False
        """
        from .interrupts import Lapic

        return self._record(Lapic, ioctls.KVM_GET_LAPIC)

    @lapic.setter
    def lapic(self, value: Lapic) -> None:
        self._set_record(value, ioctls.KVM_SET_LAPIC)

    @property
    def sregs2(self) -> Sregs2:
        """Special registers with the PAE page-directory pointers, a :class:`kvmpy.state.Sregs2`.

        >>> cpu.sregs2.cr0 == cpu.sregs.cr0
        True
        """
        from .registers import Sregs2

        return self._record(Sregs2, ioctls.KVM_GET_SREGS2)

    @sregs2.setter
    def sregs2(self, value: Sregs2) -> None:
        self._set_record(value, ioctls.KVM_SET_SREGS2)

    @property
    def fpu(self) -> Fpu:
        """x87 and SSE registers, a :class:`kvmpy.state.Fpu` (KVM API, "4.22 KVM_GET_FPU").

        Where KVM has XSAVE they are taken from there and set there: KVM_GET_FPU shows stale bytes
        for a component in its initial state, and what KVM_SET_FPU puts there is lost.

        >>> hex(cpu.fpu.fcw)
        '0x37f'
        """
        from .registers import Fpu

        if self._constant("KVM_CAP_XSAVE"):
            return Fpu.of(self.xsave)
        return self._record(Fpu, ioctls.KVM_GET_FPU)

    @fpu.setter
    def fpu(self, value: Fpu) -> None:
        if self._constant("KVM_CAP_XSAVE"):
            self.xsave = value.into(self.xsave)
        else:
            self._set_record(value, ioctls.KVM_SET_FPU)

    @property
    def xcr0(self) -> int:
        """XCR0, which KVM takes only with what CPUID leaf 0DH has.

        >>> cpu.xcr0 = 3
        >>> cpu.xcr0
        3
        """
        return self.xcrs.xcr0

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        from .registers import Xcrs

        structure = Xcrs().with_xcr0(value).to_c()
        ioctls.KVM_SET_XCRS(self._settle(0), structure, f"XCR0 {value:#x}")

    @property
    def xsave_size(self) -> int:
        """Bytes of the XSAVE area: KVM_CHECK_EXTENSION(KVM_CAP_XSAVE2), 4096 before Linux 5.17.

        >>> cpu.xsave_size >= 4096
        True
        """
        return max(self._constant("KVM_CAP_XSAVE2"), _LEAST_XSAVE)

    @property
    def xsave(self) -> Xsave:
        """The vector and other extended registers, a :class:`kvmpy.state.Xsave`. Assigning sets
        them (KVM API, "4.42 KVM_GET_XSAVE", "4.43 KVM_SET_XSAVE").

        >>> cpu.xsave = cpu.xsave.replace(xmm0=7)
        >>> cpu.xsave.value("xmm0")
        7
        """
        from .xsave import get_xsave

        return get_xsave(_vcpu(self), self._settle(0))

    @xsave.setter
    def xsave(self, value: Xsave) -> None:
        area = bytearray(value.resized(self.xsave_size).data)
        ioctls.KVM_SET_XSAVE(self._settle(0), area, f"{value!r}")

    @property
    def mp_state(self) -> int:
        """What it does instead of running: a :class:`kvmpy.state.MpState`, which is an int.

        >>> cpu.mp_state
        <MpState.RUNNABLE: 0>
        """
        from .interrupts import MpState

        state = ffi.new("struct kvm_mp_state *")
        ioctls.KVM_GET_MP_STATE(self._settle(0), state)
        value: int = state.mp_state
        return MpState(value) if value in frozenset(MpState) else value

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        state = ffi.new("struct kvm_mp_state *", {"mp_state": value})
        ioctls.KVM_SET_MP_STATE(self._settle(0), state, f"{value}")

    @property
    def has_lapic(self) -> bool:
        """Whether KVM has a local APIC for it: the VM's irqchip is KVM's, whole or split.

        >>> cpu.has_lapic
        False
        """
        known = self._constants
        if known is None:
            known = self._constants = {}
        if "lapic" not in known:  # it cannot get one once it exists
            area = ffi.new("struct kvm_lapic_state *")
            known["lapic"] = ioctls.KVM_GET_LAPIC.raw(self.fileno(), area) == 0
        return bool(known["lapic"])

    @property
    def nested_state(self) -> NestedState:
        """The state of a guest that is a hypervisor, a :class:`kvmpy.state.NestedState`. Assigning
        sets it (KVM API, "4.114 KVM_GET_NESTED_STATE"). Raises UnsupportedError where KVM has no
        nested virtualization.

        >>> if vm.check_extension("KVM_CAP_NESTED_STATE"):
        ...     assert cpu.nested_state.format in ("VMX", "SVM")
        """
        from .transfer import get_nested

        fd = self._settle(0)
        state = get_nested(_vcpu(self), fd)
        if state is None:
            raise ioctls.KVM_GET_NESTED_STATE.error(fd, errno.EINVAL, f"vCPU {self.id}")
        return state

    @nested_state.setter
    def nested_state(self, value: NestedState) -> None:
        ioctls.KVM_SET_NESTED_STATE(self._settle(0), bytearray(value.data), f"{value!r}")

    # -- time

    @property
    def tsc_khz(self) -> int:
        """Frequency of the guest's TSC in kHz. Assigning another needs KVM_CAP_TSC_CONTROL, or
        is refused below the host's (KVM API, "4.55 KVM_SET_TSC_KHZ").

        >>> cpu.tsc_khz = cpu.tsc_khz
        """
        return ioctls.KVM_GET_TSC_KHZ(self._settle(0))

    @tsc_khz.setter
    def tsc_khz(self, value: int) -> None:
        ioctls.KVM_SET_TSC_KHZ(self._settle(0), value, f"{value} kHz")

    def kvmclock_ctrl(self) -> bool:
        """Tell a guest with kvmclock that it was paused, so that its watchdog does not take the
        gap for a lockup. False if the guest has not enabled kvmclock (KVM API, "4.69
        KVM_KVMCLOCK_CTRL").

        >>> cpu.kvmclock_ctrl()
        False
        """
        fd = self._settle(0)
        result = ioctls.KVM_KVMCLOCK_CTRL.raw(fd)
        if result == -errno.EINVAL and self._constant("KVM_CAP_KVMCLOCK_CTRL"):
            return False
        if result < 0:
            raise ioctls.KVM_KVMCLOCK_CTRL.error(fd, -result)
        return True

    # -- machine checks

    def setup_mce(self, banks: int, flags: int = 0) -> None:
        """Give it ``banks`` machine-check banks (1..32) and the abilities ``flags``, bits of
        IA32_MCG_CAP from 8 on (SDM vol. 3, "IA32_MCG_CAP MSR"), of which KVM.mce_capabilities has
        those KVM knows. Empties all banks (KVM API, "4.105 KVM_X86_SETUP_MCE").

        >>> cpu.setup_mce(4)
        >>> cpu.msrs[0x179] & 0xFF
        4
        """
        if not 0 < banks < 256 or flags & 0xFF:
            raise ValueError(f"{banks} banks, flags {flags:#x}: 1..255, and bits 0-7 clear")
        self._set_mcg_cap(banks | flags)

    def _set_mcg_cap(self, mcg_cap: int) -> None:
        value = ffi.new("uint64_t *", mcg_cap)
        ioctls.KVM_X86_SETUP_MCE(self._settle(0), value, f"MCG_CAP {mcg_cap:#x}")

    def inject_mce(
        self, bank: int, status: int, *, addr: int = 0, misc: int = 0, mcg_status: int = 0
    ) -> None:
        """Report a machine check in ``bank``: the values of its MCi_STATUS (bit 63, VAL, set),
        MCi_ADDR and MCi_MISC, and of MCG_STATUS. An uncorrected one (bit 61, UC) raises #MC, or
        a triple fault if CR4.MCE is clear or one is under way (KVM API, "4.106 KVM_X86_SET_MCE").

        >>> cpu.setup_mce(4)
        >>> cpu.inject_mce(1, 1 << 63, addr=0x1000)
        >>> hex(cpu.msrs[0x400 + 4 * 1 + 2])
        '0x1000'
        """
        event = ffi.new("struct kvm_x86_mce *")
        event.bank, event.status, event.addr, event.misc = bank, status, addr, misc
        event.mcg_status = mcg_status
        ioctls.KVM_X86_SET_MCE(self._settle(0), event, f"bank {bank}, status {status:#x}")

    # -- registers by identifier

    def one_reg_list(self) -> tuple[int, ...]:
        """Identifiers of the registers that only KVM_GET_ONE_REG has: on x86 the shadow-stack
        pointer, with CET in CPUID (KVM API, "4.84 KVM_GET_REG_LIST"). Raises UnsupportedError
        before Linux 6.18.

        >>> if vm.check_extension("KVM_CAP_ONE_REG"):
        ...     assert all(register >> 60 == 2 for register in cpu.one_reg_list())
        """
        fd = self._settle(0)
        room = 0
        while True:
            table = ffi.new("struct kvm_reg_list *", {"reg": room})
            table.n = room
            result = ioctls.KVM_GET_REG_LIST.raw(fd, table)
            if result == 0:
                return tuple(table.reg[i] for i in range(min(table.n, room)))
            if result != -errno.E2BIG or table.n <= room:
                raise ioctls.KVM_GET_REG_LIST.error(fd, -result, f"{room} registers")
            room = table.n

    def get_one_reg(self, register: int) -> bytes:
        """The register's bytes, as many as its identifier encodes (KVM API, "4.69
        KVM_GET_ONE_REG"). On x86 that is also any MSR: 0x2030_0002_0000_0000 plus its number.

        >>> if vm.check_extension("KVM_CAP_ONE_REG"):
        ...     _ = {register: cpu.get_one_reg(register) for register in cpu.one_reg_list()}
        """
        area = bytearray(_size_of(register))
        self._one_reg(ioctls.KVM_GET_ONE_REG, register, area)
        return bytes(area)

    def set_one_reg(self, register: int, value: bytes) -> None:
        """Set a register. Raises ValueError for a value not of its size.

        >>> cpu.set_one_reg(0x2030_0000_0000_0000, b"")
        Traceback (most recent call last):
        ...
        ValueError: register 0x2030000000000000 has 8 bytes, not 0
        """
        if len(value) != _size_of(register):
            raise ValueError(
                f"register {register:#x} has {_size_of(register)} bytes, not {len(value)}"
            )
        self._one_reg(ioctls.KVM_SET_ONE_REG, register, bytearray(value))

    def _one_reg(self, ioctl: ioctls.Ioctl, register: int, area: bytearray) -> None:
        request = ffi.new("struct kvm_one_reg *")
        request.id, request.addr = register, address_of(area)
        ioctl(self._settle(0), request, f"register {register:#x}")

    # -- CPUID of old

    def set_cpuid1(self, cpuid: Cpuid) -> None:
        """KVM_SET_CPUID: as :meth:`set_cpuid`, by the older call, which knows no subleaves: of
        each leaf the first is taken.

        >>> cpu.set_cpuid1(cpu.cpuid)
        >>> cpu.cpuid.get(0xD, 1) is None
        True
        """
        leaves = {leaf.function: leaf for leaf in reversed(tuple(cpuid))}
        table = ffi.new("struct kvm_cpuid *", {"nent": len(leaves), "entries": len(leaves)})
        for entry, leaf in zip(table.entries, reversed(leaves.values()), strict=True):
            entry.function = leaf.function
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        ioctls.KVM_SET_CPUID(self._settle(0), table, f"{len(leaves)} leaves")


def _size_of(register: int) -> int:
    """Bytes of a register, from KVM_REG_SIZE_* in its identifier."""
    if not 0 <= register < 1 << 64:
        raise ValueError(f"register identifier {register:#x}: not in 0..2**64-1")
    exponent = (register & lib.KVM_REG_SIZE_MASK) >> _REG_SIZE_SHIFT
    if exponent > 8:
        raise ValueError(f"register identifier {register:#x}: size 2**{exponent}")
    size: int = 1 << exponent
    return size
