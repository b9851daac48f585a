"""Each part of a vCPU's state, read and set on the real KVM."""

import dataclasses
import errno
import subprocess
import sys

import pytest

import kvmpy
from kvmpy.state import DebugRegs, MpState, VcpuEvents

CODE = 0x1000


@pytest.fixture
def cpu(vm):
    """A new vCPU."""
    return vm.vcpu()


@pytest.fixture
def lapic_cpu():
    """A new vCPU with an in-kernel LAPIC."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        yield vm.vcpu()


def test_fpu(cpu, monkeypatch):
    """The x87 and SSE registers, as XSAVE has them: KVM_SET_FPU alone leaves XSTATE_BV clear, and
    what it set would be gone; MXCSR it does not know at all."""
    fpu = dataclasses.replace(
        cpu.fpu, fcw=0x27F, mxcsr=0x1FA0, last_ip=0x1234, xmm=bytes(range(16)) + bytes(240)
    )
    cpu.fpu = fpu
    assert cpu.fpu == fpu
    assert cpu.fpu.xmm_register(0) == cpu.xsave.value("xmm0")
    assert "fcw 0x27f" in repr(fpu)
    assert (cpu.xsave.value("fcw"), cpu.xsave.value("mxcsr")) == (0x27F, 0x1FA0)
    monkeypatch.setattr(type(cpu), "_constant", lambda self, capability: 0)  # before XSAVE
    cpu.fpu = dataclasses.replace(fpu, fcw=0x37F)
    assert (cpu.fpu.fcw, cpu.fpu.xmm) == (0x37F, fpu.xmm)


def test_entering_resets_mxcsr(start):
    """enter() sets the FPU's control words, whatever the guest before left (correctness 13)."""
    cpu = start("hlt")
    cpu.xsave = cpu.xsave.replace(mxcsr=0x1FA0, fcw=0x27F)
    start("hlt", vcpu=cpu)
    assert (cpu.xsave.value("mxcsr"), cpu.xsave.value("fcw")) == (0x1F80, 0x37F)


def test_xsave_registers(cpu):
    """Every register this host has: set, read back by KVM, the rest untouched."""
    names = [name for name in ("xmm0", "xmm15", "ymm3", "zmm5", "zmm17", "k2", "pkru", "st0")
             if name in cpu.xsave]  # fmt: skip
    assert {"xmm0", "xmm15", "st0"} <= set(names)
    before = cpu.xsave
    for name in names:
        width = 8 * len(before[name])
        value = 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210 % (1 << width)
        cpu.xsave = before.replace(**{name: value})
        assert cpu.xsave.value(name) == value
        assert {part for part, *_ in cpu.xsave.differing(before)} <= {
            "sse", "avx", "zmm_hi256", "hi16_zmm", "opmask", "pkru", "x87",
        }  # fmt: skip
    assert len(cpu.xsave.data) == cpu.xsave_size == max(4096, cpu.vm.check_extension("XSAVE2"))


def test_xsave_of_an_older_kernel(cpu, monkeypatch):
    """Without KVM_CAP_XSAVE2 the page that KVM_GET_XSAVE gives."""
    with monkeypatch.context() as patch:
        patch.setattr(type(cpu), "_constant", lambda self, capability: 0)
        cpu.xsave = cpu.xsave.replace(xmm2=3)
        old = cpu.xsave
    assert len(old.data) == 4096
    assert old == cpu.xsave


def test_xsave_that_kvm_refuses(cpu):
    """A component the host has not."""
    odd = bytearray(cpu.xsave.data)
    odd[512:520] = (1 << 62).to_bytes(8, "little")
    with pytest.raises(kvmpy.KvmIoctlError, match="XSTATE_BV has a component"):
        cpu.xsave = kvmpy.state.Xsave(bytes(odd), cpu.xsave.layout)


def test_guest_permission_for_tile_data():
    """AMX: given, or refused with the reason; asked for in a process of its own."""
    code = (
        "import kvmpy\n"
        "try:\n    kvmpy.state.request_guest_permission()\n    print('given')\n"
        "except kvmpy.UnsupportedError as error:\n    print(error)\n"
        "with kvmpy.VM('1M') as vm:\n"
        "    assert vm.vcpu().xsave_size == max(4096, vm.check_extension('XSAVE2'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(("given", "this host has no tiledata for guests"))


def test_xcr0(cpu):
    """x87 must be in it; SSE may be."""
    cpu.xcr0 = 3
    assert cpu.xcr0 == cpu.xcrs.xcr0 == 3
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_SET_XCRS\(XCR0 0x2\).*XCR0 has"):
        cpu.xcr0 = 2
    cpu.xcrs = cpu.xcrs.with_xcr0(1)
    assert cpu.xcr0 == 1


def test_debug_registers(cpu):
    """As set, and decoded."""
    cpu.debugregs = DebugRegs(db=(0x1000, 0x2000, 0, 0), dr7=0x400 | 1 | 8 | 0xD << 20)
    found = cpu.debugregs.breakpoints
    assert repr(found[0]) == "<execute at 0x1000, local>"
    assert repr(found[1]) == "<write 4 bytes at 0x2000, global>"


def test_events(cpu):
    """An exception of our making arrives in the guest; an NMI waits."""
    cpu.nmi()
    assert cpu.events.nmi.pending == 1
    cpu.events = VcpuEvents(flags=1)
    assert cpu.events.nmi.pending == 0
    assert "NMI_PENDING" in repr(cpu.events)


def test_injected_exception(start):
    """#GP with an error code, through KVM_SET_VCPU_EVENTS."""
    cpu = start("out 0x10, al; 1: jmp 1b")
    cpu.expect(kvmpy.IoOut, timeout=5)
    exception = kvmpy.state.ExceptionEvent(injected=1, nr=13, has_error_code=1, error_code=0x18)
    cpu.events = dataclasses.replace(cpu.events, exception=exception)
    assert repr(cpu.events.exception) == "#GP injected error code 0x18"
    report = cpu.expect(kvmpy.GuestException, timeout=5).report
    assert (report.vector, report.error_code) == (13, 0x18)


def test_exception_payload(start):
    """With KVM_CAP_EXCEPTION_PAYLOAD a pending #PF keeps its address: not in CR2 yet, and it
    travels in the state."""
    with kvmpy.VM("16M") as vm, kvmpy.VM("16M") as plain:
        vm.enable_capability("KVM_CAP_EXCEPTION_PAYLOAD", 1)
        vm.load(kvmpy.asm("out 0x10, al; 1: jmp 1b"), at=CODE)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=CODE)
        cpu.expect(kvmpy.IoOut, timeout=5)
        fault = kvmpy.state.ExceptionEvent(pending=1, nr=14, has_error_code=1, error_code=2)
        cpu.events = dataclasses.replace(
            cpu.events, exception=fault, exception_has_payload=1, exception_payload=0xABC000
        )
        assert "#PF pending error code 0x2, payload 0xabc000" in repr(cpu.events)
        assert cpu.sregs.cr2 == 0
        state = cpu.save()
        assert state.events.exception_payload == 0xABC000
        with pytest.raises(kvmpy.KvmIoctlError, match="has not enabled"):
            plain.vcpu().restore(state)
        assert cpu.restore(state) == []
        report = cpu.expect(kvmpy.GuestException, timeout=5).report
        assert (report.vector, report.cr2) == (14, 0xABC000)


def test_mp_state(cpu, lapic_cpu):
    """Named, and an int; without a LAPIC there is one only."""
    assert cpu.mp_state is MpState.RUNNABLE
    with pytest.raises(kvmpy.KvmIoctlError, match="there is only RUNNABLE"):
        cpu.mp_state = MpState.HALTED
    lapic_cpu.mp_state = MpState.HALTED
    assert lapic_cpu.mp_state is MpState.HALTED
    assert lapic_cpu.mp_state == 3


def test_lapic(lapic_cpu, cpu):
    """Registers by name; without an irqchip an error that says so."""
    lapic_cpu.lapic = lapic_cpu.lapic.replace(svr=0x1FF, lvt_timer=0x20030, tpr=0x20)
    lapic = lapic_cpu.lapic
    assert (lapic["svr"], lapic.lvt("timer"), lapic["tpr"]) == (
        0x1FF, "vector 0x30 periodic", 0x20,
    )  # fmt: skip
    assert lapic.enabled
    assert lapic_cpu.has_lapic
    assert not cpu.has_lapic
    with pytest.raises(kvmpy.KvmIoctlError, match="no in-kernel LAPIC"):
        _ = cpu.lapic


@pytest.mark.parametrize("wide", [False, True])
def test_lapic_id_in_x2apic_mode(wide):
    """In the high byte, or with KVM_X2APIC_API_USE_32BIT_IDS the whole register."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        if wide:
            vm.enable_capability(
                "KVM_CAP_X2APIC_API", kvmpy._native.lib.KVM_X2APIC_API_USE_32BIT_IDS
            )
        vm.vcpu()
        cpu = vm.vcpu()
        assert cpu.lapic.id == 1
        cpu.sregs.apic_base |= 1 << 10
        assert cpu.lapic.id == 1
        assert cpu.lapic["id"] == (1 if wide else 1 << 24)
        assert cpu.restore(cpu.save()) == []


def test_sregs2(cpu):
    """What KVM_GET_SREGS says, and it can be set."""
    cpu.sregs2 = dataclasses.replace(cpu.sregs2, cr2=0x1234)
    assert cpu.sregs.cr2 == 0x1234
    assert kvmpy.diff(cpu.sregs2.without_pdptrs(), cpu.sregs) == []
    assert "cr0" in repr(cpu.sregs2)


def test_state_without_sregs2(cpu, monkeypatch):
    """A KVM before 5.14 has no KVM_GET_SREGS2: the same by KVM_GET_SREGS."""
    wanted = cpu.save()
    constant = type(cpu)._constant
    with monkeypatch.context() as patch:
        patch.setattr(
            type(cpu), "_constant",
            lambda self, name: 0 if name == "KVM_CAP_SREGS2" else constant(self, name),
        )  # fmt: skip
        state = cpu.save()
        assert cpu.restore(state) == []
    assert state.sregs == wanted.sregs


def test_nested_state(cpu):
    """Read, set, decoded; UnsupportedError where KVM has none."""
    if not cpu.vm.check_extension("KVM_CAP_NESTED_STATE"):
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_NESTED_STATE"):
            _ = cpu.nested_state
        return
    state = cpu.nested_state
    assert not state.is_guest_mode
    assert state.format == {"kvm_intel": "VMX", "kvm_amd": "SVM"}[cpu.save().host.module]
    cpu.nested_state = state
    assert cpu.nested_state == state


def test_clock(vm):
    """Set, it goes on from there; a stopped clock with REALTIME catches up."""
    vm.vcpu()
    vm.clock = 5_000_000_000
    clock = vm.clock
    assert 5_000_000_000 <= clock.clock < 60_000_000_000
    assert "ns" in repr(clock)
    if clock.flags & 4:
        vm.clock = dataclasses.replace(clock, realtime=clock.realtime - 100 * 10**9)
        assert vm.clock.clock >= clock.clock + 99 * 10**9


def test_tsc_frequency(cpu, vm):
    """The same can be set; half of it needs an abler processor."""
    khz = cpu.tsc_khz
    assert khz > 1000
    cpu.tsc_khz = khz
    assert cpu.tsc_khz == khz
    if not vm.check_extension("KVM_CAP_TSC_CONTROL"):
        with pytest.raises(kvmpy.KvmpyError, match="KVM_SET_TSC_KHZ"):
            cpu.tsc_khz = khz // 2
    assert vm.tsc_khz == khz
    if vm.check_extension("KVM_CAP_VM_TSC_CONTROL"):
        vm.tsc_khz = khz
    else:
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_VM_TSC_CONTROL"):
            vm.tsc_khz = khz


def test_kvmclock_ctrl(start):
    """False until the guest has enabled kvmclock, then True."""
    cpu = start("hlt")
    assert cpu.kvmclock_ctrl() is False
    cpu.msrs["KVM_SYSTEM_TIME_NEW"] = 0x7000 | 1
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.kvmclock_ctrl() is True
    assert cpu.restore(cpu.save()) == []


def test_machine_check(cpu, vm):
    """Banks, a corrected error; what KVM refuses has its reason; the state has it all."""
    with kvmpy.KVM() as kvm:
        flags = kvm.mce_capabilities
    cpu.mce.setup(6, flags)
    assert cpu.msrs[0x179] | flags == 6 | flags  # kvm_amd takes fewer abilities than KVM names
    cpu.mce.inject(2, 1 << 63 | 0x151, addr=0x5000, misc=0x86)
    assert (cpu.msrs[0x409], cpu.msrs[0x40A], cpu.msrs[0x40B]) == (1 << 63 | 0x151, 0x5000, 0x86)
    with pytest.raises(kvmpy.KvmIoctlError, match="no such bank"):
        cpu.mce.inject(7, 1 << 63)
    with pytest.raises(kvmpy.KvmIoctlError, match="more banks than KVM has"):
        cpu.mce.setup(200)
    with pytest.raises(ValueError, match="0 banks"):
        cpu.mce.setup(0)
    copy = vm.vcpu()
    copy.restore(cpu.save())
    assert (copy.msrs[0x179], copy.msrs[0x409]) == (cpu.msrs[0x179], 1 << 63 | 0x151)


def test_uncorrected_machine_check(start):
    """#MC in a guest that has CR4.MCE set."""
    cpu = start("out 0x10, al; 1: jmp 1b")
    cpu.mce.setup(4)
    cpu.sregs.cr4 |= 1 << 6
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.mce.inject(1, 1 << 63 | 1 << 61 | 1 << 60, mcg_status=5)
    assert cpu.expect(kvmpy.GuestException, timeout=5).report.vector == 18


def test_one_regs(cpu, vm):
    """Listed, read and set where KVM has them; a clear error elsewhere."""
    if not vm.check_extension("KVM_CAP_ONE_REG"):
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_ONE_REG"):
            cpu.one_reg_list()
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_ONE_REG"):
            cpu.get_one_reg(0x2030_0003_0000_0000)
        return
    for register in cpu.one_reg_list():
        cpu.set_one_reg(register, cpu.get_one_reg(register))
    lstar = 0x2030_0002_0000_0000 | 0xC000_0082  # x86, 8 bytes, an MSR
    cpu.set_one_reg(lstar, (0x1234_5678).to_bytes(8, "little"))
    assert cpu.msrs["LSTAR"] == int.from_bytes(cpu.get_one_reg(lstar), "little") == 0x1234_5678
    with pytest.raises(kvmpy.KvmIoctlError, match="register 0x20300000ffffffff") as caught:
        cpu.get_one_reg(0x2030_0000_FFFF_FFFF)
    assert caught.value.errno in (errno.EINVAL, errno.ENOENT)
    with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_ONE_REG"):
        cpu.set_one_reg(0x2030_0000_FFFF_FFFF, bytes(8))
    with pytest.raises(ValueError, match="identifier"):
        cpu.get_one_reg(1 << 64)


def test_cpuid_by_the_older_call(vm, cpu):
    """KVM_SET_CPUID: leaves without subleaves."""
    plain = vm.vcpu(cpuid=None)
    plain.set_cpuid1(cpu.cpuid)
    assert plain.cpuid[0] == cpu.cpuid[0]
    assert plain.cpuid[1].eax == cpu.cpuid[1].eax


def test_difference_of_live_and_saved(start):
    """Any mixture of views, copies and states."""
    cpu = start("mov rax, 5; out 0x10, al; hlt")
    before, sregs, state = cpu.regs.copy(), cpu.sregs.copy(), cpu.save()
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert kvmpy.diff(before, cpu.regs).paths() == ["rax", "rip"]
    assert kvmpy.diff(sregs, cpu.sregs) == []
    cpu.sregs.cs.dpl, cpu.sregs.cr2 = 3, 9
    assert kvmpy.diff(sregs, cpu.sregs).paths() == ["cs.dpl", "cr2"]
    cpu.sregs.cs.dpl = 0
    cpu.msrs["LSTAR"] = 0x777
    found = set(kvmpy.diff(state, cpu.save()).paths())
    assert {"regs.rax", "regs.rip", "sregs.cr2", "msrs[LSTAR]"} <= found
    with pytest.raises(TypeError, match="cannot be compared"):
        kvmpy.diff(cpu.regs, cpu.sregs)
