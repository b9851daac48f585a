"""MSR filter, MSR exits and their answers, handlers in Python."""

import pytest

import kvmpy
from kvmpy import GuestException, Hlt, MsrRange, Rdmsr, Wrmsr

#: No MSR of any processor, as far as KVM knows.
NONE = 0x4E4F4E45


def read(msr):
    return f"mov ecx, {msr:#x}; rdmsr; hlt"


def write(msr, value):
    low, high = value & 0xFFFFFFFF, value >> 32
    return f"mov ecx, {msr:#x}; mov eax, {low:#x}; mov edx, {high:#x}; wrmsr; hlt"


def test_unknown_msr_is_a_fault_by_default(start):
    """Without user space KVM gives #GP."""
    exit = start(read(NONE)).run(timeout=5)
    assert isinstance(exit, GuestException)
    assert exit.vector == 13


def test_answered_read(vm, start):
    """The answer is EDX:EAX, and RIP is past the instruction."""
    vm.user_space_msrs("unknown")
    cpu = start(read(NONE))
    exit = cpu.expect(Rdmsr, timeout=5)
    assert (exit.index, exit.reasons) == (NONE, {"unknown"})
    cpu.answer(0x1122334455667788)
    cpu.expect(Hlt, timeout=5)
    assert (cpu.regs.rax, cpu.regs.rdx) == (0x55667788, 0x11223344)
    with pytest.raises(ValueError, match="takes no answer"):
        cpu.answer(1)


@pytest.mark.parametrize(
    "act", [lambda cpu: cpu.refuse(), lambda cpu: None], ids=["refused", "left"]
)
def test_refused_read_is_a_fault(vm, start, act):
    """refuse(), and running on without an answer: #GP at the RDMSR."""
    vm.user_space_msrs("unknown")
    cpu = start(read(NONE))
    cpu.expect(Rdmsr, timeout=5)
    act(cpu)
    exit = cpu.expect(GuestException, timeout=5)
    assert (exit.vector, exit.rip) == (13, 0x1005)


def test_writes(vm, start):
    """A write is done unless it is refused; looking at registers does not settle it."""
    vm.user_space_msrs("unknown")
    cpu = start(write(NONE, 0xDEADBEEF_01020304))
    exit = cpu.expect(Wrmsr, timeout=5)
    assert (exit.index, exit.data) == (NONE, 0xDEADBEEF_01020304)
    assert cpu.regs.rip == 0x100F
    cpu.expect(Hlt, timeout=5)
    cpu.regs.rip = 0x1000
    cpu.expect(Wrmsr, timeout=5)
    assert cpu.regs.rip == 0x100F
    cpu.refuse()
    assert cpu.expect(GuestException, timeout=5).vector == 13
    with pytest.raises(ValueError, match="nothing to refuse"):
        cpu.refuse()


def test_registers_edited_before_the_answer(vm, start):
    """An edit at the exit comes on top of the finished instruction."""
    vm.user_space_msrs("unknown")
    cpu = start(read(NONE))
    cpu.expect(Rdmsr, timeout=5)
    cpu.regs.rbx = 77
    cpu.answer(5)
    cpu.expect(Hlt, timeout=5)
    assert (cpu.regs.rax, cpu.regs.rbx) == (5, 77)


def test_filter_denies_by_direction(vm, start):
    """Reads of one MSR denied, writes of another; both with the reason "filter"."""
    vm.set_msr_filter(
        [MsrRange.deny("SYSENTER_CS", write=False), MsrRange.deny("SYSENTER_ESP", read=False)]
    )
    vm.user_space_msrs("filter")
    cpu = start(
        "mov ecx, 0x174; mov eax, 8; xor edx, edx; wrmsr; mov ecx, 0x175; rdmsr; wrmsr; "
        "mov ecx, 0x174; rdmsr; hlt"
    )
    exit = cpu.expect(Wrmsr, timeout=5)
    assert (exit.index, exit.reasons) == (0x175, {"filter"})
    exit = cpu.expect(Rdmsr, timeout=5)
    assert (exit.index, exit.reasons) == (0x174, {"filter"})
    cpu.answer(0x77)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 0x77
    assert cpu.msrs["SYSENTER_CS"] == 8  # the host's own access is not filtered


def test_filter_default_deny(vm, start):
    """All but the listed; and nothing filtered once it is taken away."""
    vm.set_msr_filter([MsrRange.allow("SYSENTER_CS", 3)], "deny")
    vm.user_space_msrs("filter")
    cpu = start("mov ecx, 0x175; rdmsr; mov ecx, 0x10; rdmsr; mov ecx, 0x10; rdmsr; hlt")
    assert cpu.expect(Rdmsr, timeout=5).index == 0x10
    cpu.answer(0)
    vm.set_msr_filter()
    cpu.expect(Hlt, timeout=5)


def test_filter_limits(vm):
    """16 ranges, the handlers' included; "deny" needs one."""
    with pytest.raises(ValueError, match="at least one range"):
        vm.set_msr_filter([], "deny")
    with pytest.raises(ValueError, match="KVM takes 16"):
        vm.set_msr_filter([MsrRange.deny(i) for i in range(17)])
    vm.set_msr_filter([MsrRange.deny(i) for i in range(16)])
    with pytest.raises(ValueError, match="KVM takes 16"):
        vm.on_rdmsr(NONE)(lambda index: 1)
    vm.set_msr_filter([MsrRange.deny(0, kvmpy.msrs.filters.MAX_MSRS)])
    vm.on_rdmsr(NONE)(lambda index: 1)
    with pytest.raises(kvmpy.ClaimError, match="have a handler"):
        vm.on_rdmsr(NONE)(lambda index: 2)
    with pytest.raises(kvmpy.ClaimError, match="x2APIC"):
        vm.on_wrmsr(range(0x7F0, 0x801))(lambda index, value: None)
    with pytest.raises(ValueError, match="no such reason"):
        vm.user_space_msrs("because")


def test_handlers(vm, start):
    """Reads and writes of known and unknown MSRs go to Python, in the run loop."""
    log = []

    @vm.on_rdmsr(range(NONE, NONE + 4))
    def pattern(index):
        log.append(index)
        return index * 2

    @vm.on_wrmsr("SYSENTER_ESP")
    def taken(index, value):
        log.append((index, value))

    cpu = start(f"mov ecx, {NONE + 3:#x}; rdmsr; mov ecx, 0x175; wrmsr; mov ecx, 0x174; rdmsr; hlt")
    cpu.msrs["SYSENTER_ESP"] = 0x1234
    cpu.expect(Hlt, timeout=5)
    value = (NONE + 3) * 2
    assert log == [NONE + 3, (0x175, value)]
    assert cpu.msrs["SYSENTER_ESP"] == 0x1234  # the handler has it, KVM has not


def test_handlers_refuse(vm, start):
    """None from a read, False from a write: #GP."""

    @vm.on_rdmsr(NONE)
    def nothing(index):
        return None

    @vm.on_wrmsr(NONE)
    def never(index, value):
        return False

    for code in (read(NONE), write(NONE, 1)):
        vcpu = vm.vcpus[0] if vm.vcpus else None
        cpu = start(code, vcpu=vcpu)
        assert cpu.expect(GuestException, timeout=5).vector == 13
        keep = cpu  # noqa: F841  the VM holds its vCPUs weakly


def test_handlers_mistakes_come_out(vm, start):
    """An exception unchanged, an answer that is none as ValueError; the guest gets #GP then."""
    answers = [ZeroDivisionError("mine"), 1 << 64, "text"]

    @vm.on_rdmsr(NONE)
    def bad(index):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cpu = start(f"l: {read(NONE)}", handlers={13: 0x1000})
    with pytest.raises(ZeroDivisionError, match="mine"):
        cpu.run(timeout=5)
    for _ in range(2):
        with pytest.raises(ValueError, match="handler of a read of MSR"):
            cpu.run(timeout=5)


def test_handlers_leave_other_denied_msrs_alone(vm, start):
    """What the filter denies and no handler has is #GP in the guest still; or an exit, if asked."""
    vm.set_msr_filter([MsrRange.deny("SYSENTER_CS")])
    vm.on_rdmsr(NONE)(lambda index: 1)
    cpu = start(read(0x174))
    assert cpu.expect(GuestException, timeout=5).vector == 13
    vm.user_space_msrs("filter")
    cpu = start(read(0x174), vcpu=cpu)
    assert cpu.expect(Rdmsr, timeout=5).index == 0x174
    vm.user_space_msrs()
    vm.release_msr(NONE)
    cpu = start(read(0x174), vcpu=cpu)
    assert cpu.expect(GuestException, timeout=5).vector == 13


def test_release(vm, start):
    """A handler taken back: KVM answers again, and others still do not."""
    vm.on_rdmsr("SYSENTER_CS")(lambda index: 99)
    cpu = start(read(0x174))
    cpu.msrs["SYSENTER_CS"] = 7
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 99
    vm.release_msr("SYSENTER_CS")
    cpu.regs.rip = 0x1000
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 7
    with pytest.raises(kvmpy.ClaimError, match="no handler"):
        vm.release_msr("SYSENTER_CS")


def test_an_invalid_value_is_asked_about(vm, start):
    """ "inval": a value that an MSR KVM knows does not take."""
    vm.user_space_msrs("inval")
    cpu = start(write(0xC0000080, 1 << 60))  # EFER, a reserved bit
    exit = cpu.expect(Wrmsr, timeout=5)
    assert exit.index == 0xC0000080
    assert exit.reasons == {"inval"}
