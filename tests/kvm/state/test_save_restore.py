"""A guest that is saved, and goes on in another VM, ends as one that was left alone."""

import dataclasses

import pytest

import kvmpy
from kvmpy.state import MpState, Xsave

CODE, STRING = 0x1000, 0x3000
MODES = [
    pytest.param(kvmpy.REAL_MODE, 0, id="real"),
    pytest.param(kvmpy.PROTECTED_MODE, 0, id="protected"),
    pytest.param(kvmpy.LONG_MODE, 0, id="long-ring0"),
]


class Elsewhere:
    """Fresh VMs to go on in, closed at the end of the test."""

    def __init__(self):
        self._vms = []

    def __call__(self, cpu, **options):
        """A vCPU of a new VM that has ``cpu``'s memory and ``cpu``'s state, stored and read."""
        state = cpu.save()
        by_json = kvmpy.VcpuState.from_json(state.to_json())
        assert by_json == kvmpy.VcpuState.from_bytes(state.to_bytes()) == state
        memory = cpu.vm.memory
        vm = kvmpy.VM(memory.size, **options)
        self._vms.append(vm)
        for region in memory.regions:
            vm.memory.write(region.gpa, memory.read(region.gpa, region.size))
        new = vm.vcpu(cpu.id)
        assert not new.restore(by_json)
        return new

    def close(self):
        for vm in self._vms:
            vm.close()


@pytest.fixture
def elsewhere():
    """See Elsewhere."""
    vms = Elsewhere()
    yield vms
    vms.close()


#: What goes on by itself: the TSC, and Hyper-V's count of the time a vCPU has run.
TIME = {"msrs[TSC]", "msrs[HV_VP_RUNTIME]"}


def changed(before, after):
    """Where two states differ, but for the time that has passed."""
    return set(kvmpy.diff(before, after).paths()) - TIME


def same(a, b):
    """Whether two vCPUs are in the same state; raises AssertionError with what differs."""
    before, after = a.save(), b.save()
    assert not changed(before, after), kvmpy.diff(before, after)
    return True


# ---------------------------------------------------------------- the middle of string I/O


OUTSB = {
    16: "cld; mov si, 0x3000; mov cx, 3000; mov dx, 0x10; rep outsb; mov bx, 7; hlt",
    32: "cld; mov esi, 0x3000; mov ecx, 3000; mov edx, 0x10; rep outsb; mov ebx, 7; hlt",
    64: "cld; mov rsi, 0x3000; mov rcx, 3000; mov edx, 0x10; rep outsb; mov ebx, 7; hlt",
}
TEXT = bytes(i * 7 % 251 for i in range(3000))


def listen(vm, handler):
    """``handler(value)`` for every byte written to port 0x10."""
    vm.on_io(0x10)(lambda port, size, value: handler(value))


@pytest.mark.parametrize(("mode", "ring"), MODES)
@pytest.mark.parametrize("stop", ["exits", "error", "kick"])
def test_string_output(vm, start, elsewhere, mode, ring, stop):
    """REP OUTSB of 3000 bytes, moved to a new VM again and again: no byte twice, none lost."""
    seen = bytearray()
    cpu = start(OUTSB[mode.bits], mode, ring)
    vm.load(TEXT, at=STRING)
    whole = elsewhere(cpu)
    for part in range(1, 5):
        moved_at = 500 * part

        def handler(value, cpu=cpu, limit=moved_at):
            seen.append(value)
            if len(seen) == limit and stop == "error":
                raise InterruptedError
            if len(seen) == limit and stop == "kick":
                cpu.kick()

        listen(cpu.vm, handler)
        if stop == "exits":
            assert cpu.run(timeout=30, max_exits=moved_at - len(seen)) == kvmpy.ExitLimit()
        elif stop == "kick":
            assert cpu.run(timeout=30) == kvmpy.Kicked(0)
        else:
            with pytest.raises(InterruptedError):
                cpu.run(timeout=30)
        assert len(seen) == moved_at
        assert cpu.regs.rcx & 0xFFFF == 3000 - moved_at
        cpu = elsewhere(cpu)
    listen(cpu.vm, seen.append)
    cpu.expect(kvmpy.Hlt, timeout=30)
    assert seen == TEXT
    assert (cpu.regs.rbx & 0xFF, cpu.regs.rcx & 0xFFFF) == (7, 0)
    again = bytearray()
    listen(whole.vm, again.append)
    whole.expect(kvmpy.Hlt, timeout=30)
    assert again == seen
    assert same(whole, cpu)


def test_string_input(vm, start, elsewhere):
    """REP INSB: what was read is in memory, what was not is read where the guest went."""
    code = "cld; mov rdi, 0x3000; mov ecx, 2500; mov edx, 0x10; rep insb; hlt"
    cpu, count = start(code), 0

    def handler(port, size, value):
        nonlocal count
        count += 1
        return count % 251

    for _ in range(3):
        cpu.vm.on_io(0x10)(handler)
        cpu.run(timeout=30, max_exits=1)
        cpu = elsewhere(cpu)
    cpu.vm.on_io(0x10)(handler)
    cpu.expect(kvmpy.Hlt, timeout=30)
    assert count == 2500
    assert cpu.vm.memory.read(STRING, 2500) == bytes(i % 251 for i in range(1, 2501))


def test_unanswered_read_is_made_again(start, elsewhere):
    """IoIn without an answer: the instruction has not happened; the copy makes the read itself,
    and the original still waits for its answer."""
    cpu = start("in al, 0x10; out 0x11, al; hlt")
    cpu.expect(kvmpy.IoIn, timeout=5)
    copy = elsewhere(cpu)
    for vcpu, value in ((copy, 5), (cpu, 6)):
        if vcpu is copy:
            vcpu.expect(kvmpy.IoIn, timeout=5)
        vcpu.answer(value)
        assert vcpu.expect(kvmpy.IoOut, timeout=5).value == value


def test_answered_read_is_in_the_state(start, elsewhere):
    """After answer() the instruction is completed by saving, and not run again."""
    cpu = start("in al, 0x10; out 0x11, al; hlt")
    cpu.expect(kvmpy.IoIn, timeout=5)
    cpu.answer(9)
    copy = elsewhere(cpu)
    assert (copy.regs.rip, copy.regs.rax) == (CODE + 2, 9)
    assert copy.expect(kvmpy.IoOut, timeout=5).value == 9


def test_middle_of_an_mmio_access(start):
    """Two exits for one access that crosses a page: there is no state in between, which is said."""
    cpu = start("mov [rcx], rax; hlt", regs={"rcx": 0xD000_0FFC, "rax": 0x1122334455667788})
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    with pytest.raises(kvmpy.KvmpyError, match="in the middle of its memory accesses"):
        cpu.save()
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).gpa == 0xD000_1000
    assert cpu.save().regs.rip == CODE + 3


# ---------------------------------------------------------------- modes, registers


@pytest.mark.parametrize(("mode", "ring"), [*MODES, pytest.param(kvmpy.LONG_MODE, 3, id="ring3")])
def test_every_mode(start, elsewhere, mode, ring):
    """Moved between two instructions; both end alike."""
    code = {
        16: "mov ax, 0x1234; mov [0x6000], ax; out 0x10, al; add ax, [0x6000]; out 0x10, al",
        32: "mov eax, 0x1234; mov [0x6000], eax; out 0x10, al; add eax, [0x6000]; out 0x10, al",
        64: "mov eax, 0x1234; mov [0x6000], eax; mov [rcx], al; add eax, [0x6000]; mov [rcx], al",
    }[mode.bits]  # fmt: skip
    exit = kvmpy.MmioWrite if mode.bits == 64 else kvmpy.IoOut
    cpu = start(code, mode, ring, regs={"rcx": 0xD000_0000} if mode.bits == 64 else {})
    cpu.expect(exit, timeout=5)
    copy = elsewhere(cpu)
    assert same(cpu, copy)
    assert repr(copy.sregs) == repr(cpu.sregs)
    for vcpu in (cpu, copy):
        assert vcpu.expect(exit, timeout=5).value == 0x68
    assert same(cpu, copy)


def test_exception_of_a_restored_guest_is_recognized(start, elsewhere):
    """enter()'s reporting stubs are in guest memory, and where they are is in the state."""
    cpu = start("out 0x10, al; ud2")
    cpu.expect(kvmpy.IoOut, timeout=5)
    copy = elsewhere(cpu)
    assert copy.expect(kvmpy.GuestException, timeout=5) == cpu.expect(
        kvmpy.GuestException, timeout=5
    )


def test_msrs(start, elsewhere):
    """System-call MSRs, and KERNEL_GS_BASE, which SWAPGS changes without WRMSR."""
    cpu = start("swapgs; out 0x10, al; swapgs; out 0x10, al")
    cpu.msrs.write({"GS_BASE": 0x1111_0000, "KERNEL_GS_BASE": 0x2222_0000, "LSTAR": 0x7654_3210,
                    "SYSENTER_ESP": 0x9000, "TSC_AUX": 5})  # fmt: skip
    cpu.expect(kvmpy.IoOut, timeout=5)
    copy = elsewhere(cpu)
    wanted = ("GS_BASE", "KERNEL_GS_BASE", "LSTAR", "SYSENTER_ESP", "TSC_AUX")
    assert copy.msrs.read(wanted) == cpu.msrs.read(wanted)
    assert (copy.msrs["GS_BASE"], copy.msrs["KERNEL_GS_BASE"]) == (0x2222_0000, 0x1111_0000)
    copy.expect(kvmpy.IoOut, timeout=5)
    assert copy.msrs["KERNEL_GS_BASE"] == 0x2222_0000


@pytest.mark.not_on("kvm_pvm", reason="guests read the host's own TSC, whatever is set")
def test_tsc_goes_on(start, elsewhere):
    """The guest's TSC does not go back, nor does it jump to the host's."""
    read = "rdtsc; shl rdx, 32; or rax, rdx; mov [rcx], rax;"
    cpu = start(read * 2, regs={"rcx": 0xD000_0000})
    cpu.msrs["TSC"] = 1 << 50
    first = cpu.expect(kvmpy.MmioWrite, timeout=5).value
    copy = elsewhere(cpu)
    second = copy.expect(kvmpy.MmioWrite, timeout=5).value
    assert 1 << 50 <= first < second < (1 << 50) + (1 << 45)


def test_task_priority_without_a_lapic(start, elsewhere):
    """CR8, which KVM takes from kvm_run if there is no LAPIC."""
    cpu = start("mov rax, 5; out 0x10, al; mov rax, cr8; out 0x10, al")
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.sregs.cr8 = 9
    assert elsewhere(cpu).expect(kvmpy.IoOut, timeout=5).value == 9
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 9


def test_debug_registers(start, elsewhere):
    """DR0 to DR7, as the guest reads them."""
    cpu = start("out 0x10, al; mov rax, dr0; mov [rcx], rax; mov rax, dr7; mov [rcx], rax",
                regs={"rcx": 0xD000_0000})  # fmt: skip
    cpu.debugregs = kvmpy.state.DebugRegs(db=(0x1234, 0, 0, 0x5678), dr7=0x400)
    cpu.expect(kvmpy.IoOut, timeout=5)
    copy = elsewhere(cpu)
    assert copy.debugregs.db == (0x1234, 0, 0, 0x5678)
    assert copy.expect(kvmpy.MmioWrite, timeout=5).value == 0x1234
    assert copy.expect(kvmpy.MmioWrite, timeout=5).value & 0xFF == 0


def test_vector_registers(start, elsewhere):
    """XMM as the guest stores them, in ring 3; and whatever else of XSAVE the host has."""
    cpu = start("mov [rcx], al; movups [0x6000], xmm3; mov [rcx], al", kvmpy.LONG_MODE, 3,
                regs={"rcx": 0xD000_0000})  # fmt: skip
    cpu.xsave = cpu.xsave.replace(xmm3=0x1234_5678_9ABC_DEF0_1122_3344_5566_7788, mxcsr=0x1FA0)
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    copy = elsewhere(cpu)
    assert copy.xsave == cpu.xsave
    copy.expect(kvmpy.MmioWrite, timeout=5)
    assert copy.vm.memory.read(0x6000, 16)[::-1].hex() == "123456789abcdef01122334455667788"
    assert copy.xsave.value("mxcsr") == 0x1FA0


@pytest.mark.not_on("kvm_amd", reason="the emulated CPU's AVX does not work in a guest")
def test_avx_registers(start, elsewhere):
    """YMM, with CR4.OSXSAVE and XCR0 set (correctness 13): moved, then stored by the guest."""
    cpu = start("mov [rcx], al; vmovups [0x6000], ymm9; mov [rcx], al", kvmpy.LONG_MODE, 3,
                regs={"rcx": 0xD000_0000})  # fmt: skip
    if "avx" not in cpu.xsave or not cpu.cpuid[1].ecx >> 28 & 1:
        pytest.skip("this host's processor has no AVX")
    cpu.sregs.cr4 |= 1 << 18
    cpu.xcr0 = 7
    value = int.from_bytes(bytes(range(32)), "little")
    cpu.xsave = cpu.xsave.replace(ymm9=value)
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    copy = elsewhere(cpu)
    assert copy.xcr0 == 7
    assert copy.xsave.value("ymm9") == value
    copy.expect(kvmpy.MmioWrite, timeout=5)
    assert copy.vm.memory.read(0x6000, 32) == bytes(range(32))


# ---------------------------------------------------------------- events, LAPIC, halting


def test_pending_nmi(start, elsewhere):
    """An NMI that was queued reaches the guest where it went."""
    # IRET unblocks NMIs: Bochs 2.7 keeps them blocked for the next VM when a guest ends in its
    # handler of one.
    unblock = """
        mov rax, rsp; mov ecx, ss; push rcx; push rax; pushfq
        mov ecx, cs; push rcx; lea rcx, [rip + 1f]; push rcx; iretq; 1:
    """
    cpu = start(f"{unblock}; out 0x10, al; 2: jmp 2b")
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.nmi()
    copy = elsewhere(cpu)
    assert copy.events.nmi.pending == 1
    assert copy.expect(kvmpy.GuestException, timeout=5).report.vector == 2


def test_pending_interrupt(vm, start, elsewhere):
    """An external interrupt that KVM_INTERRUPT queued and the guest has not taken."""
    vm.load(kvmpy.asm("mov al, 2; out 0x10, al"), at=0x2000)
    cpu = start("sti; nop; out 0x10, al; 1: jmp 1b", handlers={0x40: kvmpy.Gate(0x2000)})
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.interrupt(0x40)
    state = cpu.save()
    assert (state.events.interrupt.injected, state.events.interrupt.nr) == (1, 0x40)
    copy = elsewhere(cpu)
    assert copy.expect(kvmpy.IoOut, timeout=5).value == 2


def test_halted(start, elsewhere):
    """After Hlt without a LAPIC the guest goes on behind the HLT, here and there."""
    cpu = start("hlt; out 0x10, al")
    cpu.expect(kvmpy.Hlt, timeout=5)
    elsewhere(cpu).expect(kvmpy.IoOut, timeout=5)
    cpu.expect(kvmpy.IoOut, timeout=5)


TIMER = """
    mov ebx, 0xfee00000
    mov dword ptr [rbx + 0xf0], 0x1ff      # enabled, spurious vector 0xff
    mov dword ptr [rbx + 0x3e0], 0xb       # divide by 1
    mov dword ptr [rbx + 0x320], 0x40      # one-shot, vector 0x40
    mov dword ptr [rbx + 0x380], 600000000 # at 1 GHz: 0.6 s
    sti
    hlt
    mov al, 1
    out 0x10, al
    1: jmp 1b
"""
HANDLER = "mov dword ptr [rbx + 0xb0], 0; mov al, 2; out 0x10, al; iretq"


@pytest.fixture
def timer_guest():
    """A guest halted until its local APIC's timer fires."""
    with kvmpy.VM("16M", irqchip=True) as vm:
        vm.load(kvmpy.asm(TIMER.replace("\n", ";\n"), 64, org=CODE), at=CODE)
        vm.load(kvmpy.asm(HANDLER, 64, org=0x2000), at=0x2000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=CODE, handlers={0x40: kvmpy.Gate(0x2000)})
        yield cpu


def test_running_lapic_timer(timer_guest, elsewhere):
    """Halted with the timer running: the copy wakes by its own."""
    cpu = timer_guest
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()
    state = cpu.save()
    assert state.mp_state == MpState.HALTED
    assert 0 < state.lapic["timer_current"] <= state.lapic["timer_initial"] == 600_000_000
    copy = elsewhere(cpu, irqchip=True)
    assert copy.mp_state is MpState.HALTED
    assert [copy.expect(kvmpy.IoOut, timeout=20).value for _ in range(2)] == [2, 1]


def test_requested_interrupt_in_the_lapic(timer_guest, elsewhere):
    """In IRR when saved: delivered where the guest went."""
    cpu = timer_guest
    cpu.run(timeout=0.05)
    lapic = cpu.lapic
    area = bytearray(lapic.regs)
    area[0x200 + 0x40 // 32 * 16] |= 1 << 0x40 % 32
    cpu.lapic = dataclasses.replace(lapic, regs=bytes(area))
    assert cpu.lapic.irr == {0x40}
    copy = elsewhere(cpu, irqchip=True)
    assert copy.lapic.irr == {0x40}
    assert copy.expect(kvmpy.IoOut, timeout=20).value == 2


def test_application_processor(elsewhere):
    """One that waits for INIT waits there, too."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        first, second = vm.vcpu(), vm.vcpu()
        assert first.mp_state is MpState.RUNNABLE
        assert second.mp_state is MpState.UNINITIALIZED
        copy = elsewhere(second, irqchip=True)
        assert copy.mp_state is MpState.UNINITIALIZED
        assert copy.save().lapic.id == 1


# ---------------------------------------------------------------- going back


def test_going_back_in_the_same_vm(start, vm):
    """A snapshot, restored again and again into the vCPU it was taken of."""
    cpu = start("1: inc rax; out 0x10, al; jmp 1b")
    cpu.expect(kvmpy.IoOut, timeout=5)
    state = cpu.save()
    for _ in range(3):
        assert cpu.expect(kvmpy.IoOut, timeout=5).value == 2
        cpu.run(timeout=5, max_exits=3)
        assert cpu.restore(state) == []
    assert not changed(state, cpu.save())


def test_number_of_system_calls(start, monkeypatch):
    """A handful of ioctls, none per MSR."""
    cpu = start("hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    cpu.restore(cpu.save())  # what never changes has been asked
    made = []
    raw = kvmpy.ioctls.Ioctl.raw

    def counting(self, fd, argument=0):
        made.append(self.name)
        return raw(self, fd, argument)

    monkeypatch.setattr(kvmpy.ioctls.Ioctl, "raw", counting)
    state = cpu.save()
    assert len(made) <= 16, made
    made.clear()
    cpu.restore(state)
    assert len(made) <= 22, made
    assert made.count("KVM_SET_MSRS") <= 2


# ---------------------------------------------------------------- what cannot go on


def test_state_of_another_host(vm):
    """Refused with all that differs, and nothing is changed; unless forced."""
    cpu = vm.vcpu()
    state = cpu.save()
    host = dataclasses.replace(state.host, module="kvm_other", vendor="ImaginaryCPU")
    leaf = state.cpuid[7]
    cpuid = state.cpuid.with_leaf(dataclasses.replace(leaf, ecx=leaf.ecx | 1 << 31))
    alien = dataclasses.replace(
        state, host=host, cpuid=cpuid, regs=dataclasses.replace(state.regs, rax=5)
    )
    with pytest.raises(kvmpy.StateMismatchError, match="kvm_other") as caught:
        cpu.restore(alien)
    paths = caught.value.differences.paths()
    assert paths == ["host.module", "host.vendor", "cpuid[0x7, 0].ecx bit 31"]
    assert cpu.regs.rax == 0
    assert cpu.restore(alien, force=True).paths() == paths
    assert cpu.regs.rax == 5


def test_lapic_or_none(vm):
    """A state with a LAPIC needs a VM with an irqchip, and the same vCPU id."""
    with kvmpy.VM("1M", irqchip=True) as other:
        cpu = other.vcpu()
        with pytest.raises(kvmpy.StateMismatchError, match="lapic"):
            vm.vcpu().restore(cpu.save())
        with pytest.raises(kvmpy.StateMismatchError, match="vcpu_id  0x0 -> 0x1"):
            other.vcpu().restore(cpu.save())


def test_cpuid_that_cannot_be_set_any_more(start, vm):
    """A vCPU that has run keeps its CPUID: another is KVM's error, with its reason."""
    cpu = start("hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    state = cpu.save()
    leaf = state.cpuid[1]
    other = dataclasses.replace(
        state, cpuid=state.cpuid.with_leaf(dataclasses.replace(leaf, eax=leaf.eax ^ 1))
    )
    with pytest.raises(kvmpy.KvmIoctlError, match="cannot change once the vCPU has run"):
        cpu.restore(other)


def test_msr_that_is_refused(vm):
    """Named with both values; what KVM refuses and has anyway does not count."""
    cpu = vm.vcpu()
    state = cpu.save()
    wrong = dataclasses.replace(state, msrs={**state.msrs, 0x1234_5678: 9})
    with pytest.raises(kvmpy.StateMismatchError, match=r"msrs\[0x12345678\]  0x9 -> absent"):
        cpu.restore(wrong)
    assert cpu.restore(wrong, force=True).paths() == ["msrs[0x12345678]"]


def test_larger_xsave_area(vm):
    """More state than this VM's area holds is refused; zeros are not."""
    cpu = vm.vcpu()
    state = cpu.save()
    size = len(state.xsave.data)
    roomy = state.xsave.resized(size + 4096)
    assert cpu.restore(dataclasses.replace(state, xsave=roomy)) == []
    full = Xsave(roomy.data[:-1] + b"\1", roomy.layout)
    with pytest.raises(kvmpy.StateMismatchError, match=r"xsave\.size"):
        cpu.restore(dataclasses.replace(state, xsave=full))


# ---------------------------------------------------------------- reset


@pytest.mark.parametrize("irqchip", [False, True])
def test_reset_is_power_on(irqchip):
    """After a long-mode guest a reset vCPU is what a new one is: no MSR, no register is left over
    (correctness 22)."""
    with kvmpy.VM("16M", irqchip=irqchip) as vm, kvmpy.VM("1M", irqchip=irqchip) as other:
        cpu, new = vm.vcpu(), other.vcpu()
        vm.load(kvmpy.asm("swapgs; out 0x10, al; hlt"), at=CODE)
        cpu.enter(kvmpy.LONG_MODE, rip=CODE)
        cpu.msrs.write({"STAR": 5 << 32, "LSTAR": 1, "SYSENTER_EIP": 7, "GS_BASE": 0x1000,
                        "PAT": 0x0606_0606_0606_0606})  # fmt: skip
        cpu.xsave = cpu.xsave.replace(xmm1=5, fcw=0x27F)
        cpu.debugregs = kvmpy.state.DebugRegs(db=(1, 2, 3, 4))
        cpu.expect(kvmpy.IoOut, timeout=5)
        cpu.nmi()
        cpu.reset()
        left = kvmpy.diff(new.save(), cpu.save())
        allowed = {
            *TIME,
            "regs.rdx",  # the processor's signature, which a new vCPU has not got yet
            # kvm_amd's new vCPU has descriptors that nobody accessed, and a 16-bit TSS.
            *("sregs.cs.type", "sregs.ss.type", "sregs.tr.type"),
        }
        cpuid = {path for path in left.paths() if path.startswith("cpuid")}  # follows CR4 and XCR0
        assert set(left.paths()) - cpuid <= allowed, left
        assert cpu.regs.rdx == cpu.cpuid[1].eax


def test_reset_guest_runs(vm):
    """From F000:FFF0, once its segment's base is where the RAM is."""
    cpu = vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=CODE)
    cpu.reset()
    cpu.sregs.cs.base, cpu.sregs.cs.selector = 0xF0000, 0xF000
    vm.load(kvmpy.asm("out 0x10, al; hlt", bits=16), at=0xFFFF0)
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.regs.rip == 0xFFF2
