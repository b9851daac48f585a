"""A vCPU's state, part by part, as typed properties."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

from .. import ioctls
from ..cpuid.vcpu import VcpuCpuid
from ..ioctls.growing import read_table
from ..shim import address_of, ffi, lib

if TYPE_CHECKING:
    from ..record import Record
    from .interrupts import Lapic, VcpuEvents
    from .nested import NestedState
    from .registers import DebugRegs, Fpu, Sregs2, Xcrs
    from .xsave import Xsave


_REG_SIZE_SHIFT: int = lib.KVM_REG_SIZE_SHIFT
#: Bytes of struct kvm_xsave, which every area has at least.
_LEAST_XSAVE: int = ffi.sizeof("struct kvm_xsave")

R = TypeVar("R", bound="Record")


class VcpuParts(VcpuCpuid):
    """A vCPU's state, part by part. Every access completes the last exit's instruction first."""

    def _record(self, kind: type[R], ioctl: ioctls.Ioctl) -> R:
        structure = ffi.new(kind.c_name + " *")
        ioctl(self._settle(0), structure)
        return kind.from_c(structure)

    def _set_record(self, value: Record, ioctl: ioctls.Ioctl) -> None:
        ioctl(self._settle(0), value.to_c(), f"{value!r}")

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
        return self._xsave(self._settle(0))

    @xsave.setter
    def xsave(self, value: Xsave) -> None:
        area = bytearray(value.resized(self.xsave_size).data)
        ioctls.KVM_SET_XSAVE(self._settle(0), area, f"{value!r}")

    def _xsave(self, fd: int) -> Xsave:
        from .xsave import Xsave, host_layout

        return Xsave(bytes(self._xsave_area(fd)), host_layout())

    def _xsave_area(self, fd: int) -> bytearray:
        """The whole area: KVM_GET_XSAVE2 where it can be larger than a page."""
        area = bytearray(self.xsave_size)
        wide = self._constant("KVM_CAP_XSAVE2")
        ioctl = ioctls.KVM_GET_XSAVE2 if wide else ioctls.KVM_GET_XSAVE
        ioctl(fd, area, f"{len(area)} bytes")
        return area

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
    def nested_state(self) -> NestedState:
        """The state of a guest that is a hypervisor, a :class:`kvmpy.state.NestedState`. Assigning
        sets it (KVM API, "4.114 KVM_GET_NESTED_STATE"). Raises UnsupportedError where KVM has no
        nested virtualization.

        >>> if vm.check_extension("KVM_CAP_NESTED_STATE"):
        ...     assert cpu.nested_state.format in ("VMX", "SVM")
        """
        fd = self._settle(0)
        state = self._nested(fd)
        if state is None:
            raise ioctls.KVM_GET_NESTED_STATE.error(fd, errno.EINVAL, f"vCPU {self.id}")
        return state

    @nested_state.setter
    def nested_state(self, value: NestedState) -> None:
        ioctls.KVM_SET_NESTED_STATE(self._settle(0), bytearray(value.data), f"{value!r}")

    def _nested(self, fd: int) -> NestedState | None:
        """None where KVM has no nested virtualization."""
        from .nested import NestedState

        size = self._constant("KVM_CAP_NESTED_STATE")
        if not size:
            return None
        area = ffi.new("char[]", size)
        state = ffi.cast("struct kvm_nested_state *", area)
        state.size = size
        ioctls.KVM_GET_NESTED_STATE(fd, area, f"{size} bytes")
        return NestedState(bytes(ffi.buffer(area, state.size)))

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

    # -- registers by identifier

    def one_reg_list(self) -> tuple[int, ...]:
        """Identifiers of the registers that only KVM_GET_ONE_REG has: on x86 the shadow-stack
        pointer, with CET in CPUID (KVM API, "4.84 KVM_GET_REG_LIST"). Raises UnsupportedError
        before Linux 6.18.

        >>> if vm.check_extension("KVM_CAP_ONE_REG"):
        ...     assert all(register >> 60 == 2 for register in cpu.one_reg_list())
        """
        table = read_table(ioctls.KVM_GET_REG_LIST, self._settle(0))
        return tuple(table.reg[i] for i in range(table.n))

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


def _size_of(register: int) -> int:
    """Bytes of a register, from KVM_REG_SIZE_* in its identifier."""
    if not 0 <= register < 1 << 64:
        raise ValueError(f"register identifier {register:#x}: not in 0..2**64-1")
    exponent = (register & lib.KVM_REG_SIZE_MASK) >> _REG_SIZE_SHIFT
    if exponent > 8:
        raise ValueError(f"register identifier {register:#x}: size 2**{exponent}")
    size: int = 1 << exponent
    return size
