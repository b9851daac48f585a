"""State is architectural after every exit, and no edit is lost (correctness 1 and 20).

All of it with KVM_CAP_SYNC_REGS and without: a host that lacks it must behave the same.
"""

import pytest

import kvmpy

BASE = 0xD000_0000


@pytest.fixture(params=["sync regs", "no sync regs"], autouse=True)
def sync_regs(request, vm):
    """Whether the register page is KVM's or filled by ioctls."""
    if request.param == "no sync regs":
        vm.sync_fields = 0
    elif not vm.sync_fields:
        pytest.skip("this KVM lacks KVM_CAP_SYNC_REGS")
    return request.param


def raw_regs(cpu):
    """What KVM_GET_REGS says, past all of our caching."""
    regs = kvmpy._native.ffi.new("struct kvm_regs *")
    kvmpy.ioctls.KVM_GET_REGS(cpu.fileno(), regs)
    return regs


def test_out_is_complete(start):
    """After IoOut RIP is past the instruction, in the view and in what KVM has."""
    cpu = start("out 0x10, al; hlt")
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.regs.rip == 0x1002
    assert raw_regs(cpu).rip == 0x1002
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rip == 0x1003


def test_in_is_complete_once_answered(start):
    """After IoIn and answer() RAX has the value and RIP is past the IN."""
    cpu = start("in al, 0x10; hlt", regs={"rax": 0x1100})
    cpu.expect(kvmpy.IoIn, timeout=5)
    cpu.answer(0x42)
    assert (cpu.regs.rax, cpu.regs.rip) == (0x1142, 0x1002)
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert cpu.regs.rax == 0x1142


def test_mmio_is_complete(start):
    """The same for MMIO, in ring 3."""
    cpu = start("mov [rcx], eax; mov eax, [rcx]; ud2", ring=3, regs={"rcx": BASE})
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert cpu.regs.rip == 0x1002
    cpu.expect(kvmpy.MmioRead, timeout=5)
    cpu.answer(77)
    assert (cpu.regs.rax, cpu.regs.rip) == (77, 0x1004)


def test_looking_changes_nothing(start):
    """Completion runs no guest instruction: the next exit is the next one."""
    cpu = start("out 0x10, al; inc eax; out 0x10, al; inc eax; out 0x10, al")
    for value in range(3):
        assert cpu.expect(kvmpy.IoOut, timeout=5).value == value
        assert cpu.regs.rax == value
        assert cpu.regs.rip == 0x1002 + 4 * value
        assert cpu.sregs.cs.selector == 0x10
    assert cpu.run_stats["IO"] == 3


def test_edit_between_runs(start):
    """An edit takes effect at the next run, and is in KVM's state before it, if KVM is asked."""
    cpu = start("out 0x10, al; out 0x10, al; out 0x10, al")
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.regs.rax += 5
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 5
    cpu.regs.rax = 9
    assert cpu.mp_state == 0  # an ioctl of another kind writes edits back first
    assert raw_regs(cpu).rax == 9
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 9


def test_edit_of_rip(start):
    """A jump made by the host."""
    cpu = start("out 0x10, al; hlt; 1: mov al, 3; out 0x11, al")
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.regs.rip == 0x1002
    cpu.regs.rip = 0x1003
    assert cpu.expect(kvmpy.IoOut, timeout=5) == kvmpy.IoOut(0x11, 1, b"\x03")


def test_edit_without_looking_first(start):
    """The first thing done after an exit is a write: the rest of the state is kept."""
    cpu = start("mov rbx, 0x1234; out 0x10, al; out 0x10, al; hlt")
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.regs.rax = 3
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 3
    assert cpu.regs.rbx == 0x1234


def test_every_register_can_be_edited(start):
    """All eighteen, to the guest and back."""
    names = [name for name in kvmpy.state.live.GENERAL if name not in ("rip", "rsp", "rflags")]
    cpu = start("hlt; 1: hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    values = {name: 0x1111_1111_1111_1111 * (i + 1) % (1 << 64) for i, name in enumerate(names)}
    cpu.regs.update(values, rsp=0x9000, rflags=0x8D7)
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert {name: getattr(cpu.regs, name) for name in names} == values
    assert (cpu.regs.rip, cpu.regs.rsp, cpu.regs.rflags & 0x8D5) == (0x1002, 0x9000, 0x8D5)


def test_edit_of_sregs(start):
    """Special registers: CR3 to a copy of the page tables, a segment base, CR2."""
    cpu = start("mov rax, fs:[0]; out 0x10, eax; mov rax, cr2; out 0x10, eax; mov rax, cr3;"
                "out 0x10, eax")  # fmt: skip
    memory = cpu.vm.memory
    memory.write(0x5000, (0xABCD).to_bytes(8, "little"))
    cpu.sregs.fs.base = 0x5000
    cpu.sregs.cr2 = 0x7777
    root = cpu.sregs.cr3
    memory.write(0x6000, memory.read(root, 4096))
    cpu.sregs.cr3 = 0x6000
    assert [cpu.expect(kvmpy.IoOut, timeout=5).value for _ in range(3)] == [0xABCD, 0x7777, 0x6000]
    assert cpu.sregs.fs.base == 0x5000


def test_edit_of_task_priority(start):
    """CR8: without an in-kernel LAPIC KVM takes it from kvm_run at entry, whatever SREGS say."""
    cpu = start("mov rax, cr8; out 0x10, al; mov rax, cr8; out 0x10, al")
    cpu.sregs.cr8 = 5
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 5
    cpu.sregs.cr8 = 9
    assert cpu.mp_state == 0  # an ioctl in between writes the edit back by KVM_SET_SREGS
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 9


def test_edit_of_both_pages(start):
    """General and special registers in one go."""
    cpu = start("hlt; mov rbx, cr2; out 0x10, al")
    cpu.expect(kvmpy.Hlt, timeout=5)
    cpu.sregs.cr2, cpu.regs.rax = 0x55, 0x66
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x66
    assert cpu.regs.rbx == 0x55


def test_edit_is_kept_through_a_kick(start):
    """A run that ends before the guest did anything has not eaten the edit."""
    cpu = start("hlt; out 0x10, al")
    cpu.expect(kvmpy.Hlt, timeout=5)
    cpu.regs.rax = 8
    cpu.kick()
    assert cpu.run(timeout=5) == kvmpy.Kicked(0)
    assert cpu.regs.rax == 8
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 8


def test_edit_is_kept_through_an_expired_timeout(start):
    """The same with a timeout of zero."""
    cpu = start("1: jmp 1b; out 0x10, al")
    cpu.run(timeout=0)
    cpu.regs.update(rax=8, rip=0x1002)
    cpu.run(timeout=0)
    cpu.regs.rip = 0x1002
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 8


def test_edit_that_kvm_refuses(start):
    """A refused edit is an error that names the call, not silence; a good one makes up for it."""
    cpu = start("hlt; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    good = cpu.sregs.cr4
    cpu.sregs.cr4 = 1 << 63
    with pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        cpu.run(timeout=5)
    cpu.sregs.cr4 = good
    cpu.expect(kvmpy.Hlt, timeout=5)


def test_edit_from_a_handler(start, vm):
    """A handler sees the registers after the instruction, and changes them."""
    seen = []

    @vm.on_io(0x10)
    def port(port, size, value):
        seen.append((cpu.regs.rip, cpu.regs.rax, cpu.sregs.cs.dpl))
        cpu.regs.rbx = 0x99
        cpu.regs.rip += 2  # skips the UD2

    cpu = start("mov eax, 4; out 0x10, al; ud2; mov eax, ebx; out 0x11, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x99
    assert seen == [(0x1007, 4, 0)]


def test_handler_of_a_read_sees_the_state_before(start, vm):
    """A read is not finished before its handler has answered: RIP is still the IN's."""
    seen = []

    @vm.on_io(0x10)
    def port(port, size, value):
        seen.append(cpu.regs.rip)
        return 0x21

    cpu = start("nop; in al, 0x10; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == [0x1001]
    assert cpu.regs.rax == 0x21


def test_edit_in_a_read_handler(start, vm):
    """An edit of another register by the handler of a read holds."""

    @vm.on_io(0x10)
    def port(port, size, value):
        cpu.regs.rbx = 0x77
        return 0x21

    cpu = start("in al, 0x10; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert (cpu.regs.rax, cpu.regs.rbx, cpu.regs.rip) == (0x21, 0x77, 0x1003)


def test_entering_anew_after_an_unanswered_read(start, vm):
    """The old instruction must not come after the new state: enter() is where the guest goes on."""
    for code in ("in al, 0x10", "mov eax, [rcx]", "mov edi, 0x8000; mov ecx, 3; rep insb"):
        cpu = start(code, regs={"rcx": BASE, "rdx": 0x20})
        assert isinstance(cpu.run(timeout=5), (kvmpy.IoIn, kvmpy.MmioRead))
        start("mov eax, 5; out 0x11, al", at=0x2000, vcpu=cpu)
        assert cpu.run(timeout=5) == kvmpy.IoOut(0x11, 1, b"\x05")
        assert cpu.regs.rip == 0x2007
        cpu.close()


def test_entering_anew_after_an_unfinished_write(start, vm):
    """The same after the first half of a write across a page end."""
    cpu = start("mov [rcx], rax", regs={"rcx": BASE + 0xFFD})
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    start("mov eax, 5; out 0x11, al", at=0x2000, vcpu=cpu)
    assert cpu.run(timeout=5) == kvmpy.IoOut(0x11, 1, b"\x05")


def test_jump_after_an_unanswered_read(start):
    """RIP set by hand instead of an answer: the host's word is the last (correctness 20)."""
    cpu = start("in al, 0x10; hlt; 1: mov al, 3; out 0x11, al")
    cpu.expect(kvmpy.IoIn, timeout=5)
    assert cpu.regs.rip == 0x1000
    cpu.regs.rip = 0x1003
    assert cpu.expect(kvmpy.IoOut, timeout=5) == kvmpy.IoOut(0x11, 1, b"\x03")


def test_emulated_in_then_new_value(start):
    """RAX set by hand after an answered IN wins over the answer."""
    cpu = start("in al, 0x10; out 0x11, al")
    cpu.expect(kvmpy.IoIn, timeout=5)
    cpu.answer(1)
    cpu.regs.rax = 2
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 2


def test_exit_limit_leaves_complete_state(start, vm):
    """The exit that used up the budget is finished when the registers are read."""
    vm.count_io(0x10)
    cpu = start("1: inc ebx; out 0x10, al; jmp 1b")
    assert cpu.run(timeout=5, max_exits=3) == kvmpy.ExitLimit()
    assert (cpu.regs.rbx, cpu.regs.rip) == (3, 0x1004)


def test_msr_access_after_an_exit(start):
    """MSRs by ioctl, right after an exit: completed first, and edits are not lost."""
    cpu = start("out 0x10, al; rdmsr; out 0x10, eax", regs={"rcx": 0xC000_0082})
    cpu.expect(kvmpy.IoOut, timeout=5)
    cpu.regs.rbx = 5
    cpu.msrs["LSTAR"] = 0x1234
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x1234
    assert cpu.regs.rbx == 5


def test_unstarted_application_processor_keeps_edits():
    """A vCPU that waits for INIT takes no state at KVM_RUN: edits survive until it does."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        if vm.sync_fields == 0:
            pytest.skip("this KVM lacks KVM_CAP_SYNC_REGS")
        vm.vcpu()
        second = vm.vcpu()
        assert second.mp_state == 1
        second.regs.rbx = 5
        second.run(timeout=0.02)
        second.run(timeout=0.02)
        assert second.regs.rbx == 5
        second.mp_state = 0
        assert raw_regs(second).rbx == 5
