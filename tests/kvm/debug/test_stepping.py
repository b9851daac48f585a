"""Single steps: one per instruction, with what it did, whatever the instruction."""

import itertools

import pytest

import kvmpy
from kvmpy import Gate, GuestException, Hlt, IoIn, IoOut, Kicked, MmioRead, MmioWrite, Timeout

MMIO = 0xD000_0000
ring3 = pytest.mark.not_on("kvm_pvm", reason="no debug facility in native ring 3")


def rips(steps):
    return [step.rip for step in steps]


def test_plain_code(start):
    """Address, bytes, changes; as often as asked."""
    cpu = start("mov eax, 5; add eax, 3; nop; nop")
    one, two, three = cpu.steps(3, timeout=5)
    assert rips([one, two, three]) == [0x1000, 0x1005, 0x1008]
    assert one.instruction == b"\xb8\x05\x00\x00\x00"
    assert one.changed == {"rax": (0, 5)}
    assert two.changed["rax"] == (5, 8)
    assert three.changed == {}
    assert str(one) == "0x1000: b8 05 00 00 00 (rax 0x0 -> 0x5)"
    assert cpu.regs.rip == 0x1009
    assert list(cpu.steps(0)) == []
    with pytest.raises(ValueError, match="negative"):
        next(cpu.steps(-1))


def test_running_on_is_full_speed_again(start):
    """After the steps nothing steps."""
    cpu = start("nop; nop; nop; hlt")
    assert rips(cpu.steps(2, timeout=5)) == [0x1000, 0x1001]
    cpu.expect(Hlt, timeout=5)


def test_edits_between_steps(start):
    """Registers, RIP included, can be set at each step."""
    cpu = start("nop; nop; inc eax; hlt")
    for step in cpu.steps(2, timeout=5):
        if step.rip == 0x1000:
            cpu.regs.rip, cpu.regs.rax = 0x1002, 41
    assert (cpu.regs.rax, cpu.regs.rip) == (42, 0x1004)


def test_unclaimed_accesses(start):
    """A write is one Step with its exit; a read two: the exit, then the instruction, answered."""
    cpu = start(
        f"mov ebx, {MMIO:#x}; out 0x10, al; in al, 0x11; mov [rbx], eax; mov ecx, [rbx]; nop"
    )
    seen = []
    for step in cpu.steps(8, timeout=5):
        seen.append((step.rip, type(step.exit), step.finished))
        if isinstance(step.exit, (IoIn, MmioRead)):
            cpu.answer(0x5A)
    nothing = type(None)
    assert seen == [
        (0x1000, nothing, True),
        (0x1005, IoOut, True),
        (0x1007, IoIn, False),
        (0x1007, nothing, True),
        (0x1009, MmioWrite, True),
        (0x100B, MmioRead, False),
        (0x100B, nothing, True),
        (0x100D, nothing, True),
    ]
    assert (cpu.regs.rax, cpu.regs.rcx) == (0x5A, 0x5A)


def test_claimed_accesses(vm, start):
    """Served on the way, by Python and by C: one Step per instruction, none skipped."""
    vm.on_io(0x11)(lambda port, size, value: 0x33 if value is None else None)
    vm.on_mmio(MMIO, 8)(lambda gpa, size, value: 0x44 if value is None else None)
    counter = vm.count_io(0x10)
    cpu = start(
        f"mov ebx, {MMIO:#x}; out 0x10, al; in al, 0x11; mov [rbx], eax; mov ecx, [rbx]; nop"
    )
    assert rips(cpu.steps(6, timeout=5)) == [0x1000, 0x1005, 0x1007, 0x1009, 0x100B, 0x100D]
    assert (cpu.regs.rax, cpu.regs.rcx, counter.writes) == (0x33, 0x44, 1)


def test_msr_handlers(vm, start):
    """RDMSR with a handler, and one that is answered at its exit."""
    vm.on_rdmsr(0x4E4F4E45)(lambda index: 7)
    vm.user_space_msrs("unknown", "filter")
    cpu = start("mov ecx, 0x4e4f4e45; rdmsr; inc ecx; rdmsr; nop")
    seen = []
    for step in cpu.steps(6, timeout=5):
        seen.append((step.rip, step.after["rax"]))
        if step.exit is not None:
            cpu.answer(9)
    assert seen == [
        (0x1000, 0), (0x1005, 7), (0x1007, 7), (0x1009, 7), (0x1009, 9), (0x100B, 9),
    ]  # fmt: skip


def test_hlt(start):
    """HLT without an interrupt controller: a finished Step with the exit; then it goes on."""
    cpu = start("nop; hlt; nop; nop")
    steps = list(cpu.steps(3, timeout=5))
    assert rips(steps) == [0x1000, 0x1001, 0x1002]
    assert all(step.finished for step in steps)


def test_rep(start):
    """As many steps as the processor makes of it, all at one address, then the next."""
    cpu = start("mov ecx, 5; mov esi, 0x2000; mov edi, 0x3000; rep movsb; nop")
    steps = list(itertools.takewhile(lambda step: step.rip != 0x1011, cpu.steps(20, timeout=5)))
    assert set(rips(steps[3:])) == {0x100F}
    assert cpu.regs.rcx == 0
    assert cpu.regs.rdi == 0x3005


def test_rep_outs(start):
    """String output to nobody's port: the exits in order, and nothing lost."""
    cpu = start("mov ecx, 3; mov esi, 0x2000; mov edx, 0x10; rep outsb; nop")
    cpu.vm.load(b"abc", at=0x2000)
    data = b""
    for step in cpu.steps(20, timeout=5):
        if isinstance(step.exit, IoOut):
            data += step.exit.data
        if step.rip == 0x1011:
            break
    assert data == b"abc"
    assert cpu.regs.rcx == 0


def test_pushf_does_not_show_tf(start):
    """What PUSHF pushes is what it pushes without a debugger."""
    cpu = start("pushfq; pop rax; pushfq; popfq; nop; nop")
    assert rips(cpu.steps(5, timeout=5)) == [0x1000, 0x1001, 0x1002, 0x1003, 0x1004]
    assert cpu.regs.rax & 0x100 == 0


@pytest.mark.not_on("kvm_pvm", reason="its emulator lacks INT n in ring 0")
@pytest.mark.not_on("kvm_amd", reason="QEMU's TCG loses #DB by debug registers that the host set")
def test_into_an_interrupt_handler(start):
    """INT n is stepped into, and the RFLAGS it saves are without TF."""
    cpu = start("int 0x40; nop; h: mov rax, [rsp + 16]; iretq", handlers={0x40: Gate(0x1003)})
    assert rips(cpu.steps(4, timeout=5)) == [0x1000, 0x1003, 0x1008, 0x1002]
    assert cpu.regs.rax & 0x100 == 0


@ring3
@pytest.mark.not_on("kvm_amd", reason="QEMU's TCG loses #DB by debug registers that the host set")
def test_into_a_system_call(start):
    """SYSCALL masks TF: a debug register takes over; R11 is without it; SYSRET goes on."""
    cpu = start("nop; syscall; nop; h: mov eax, r11d; nop", ring=3, syscall=0x1004)
    assert rips(cpu.steps(4, timeout=5)) == [0x1000, 0x1001, 0x1004, 0x1007]
    assert cpu.regs.rax & 0x100 == 0
    assert cpu.sregs.cs.dpl == 0


def test_an_exception_is_stepped_over(start):
    """To the instruction behind its IRET, or into the handler: never lost."""
    cpu = start("ud2; nop; nop; nop; h: add qword ptr [rsp], 2; iretq", handlers={6: Gate(0x1005)})
    seen = rips(cpu.steps(4, timeout=5))
    assert seen[0] == 0x1000
    assert {0x1003, 0x1004} & set(seen)


def test_ends_with_an_exit_that_is_the_end(start):
    """The guest's unhandled exception is the last Step."""
    cpu = start("nop; ud2")
    *_, last = cpu.steps(10, timeout=5)
    assert isinstance(last.exit, GuestException)
    assert last.exit.vector == 6


def test_ends_with_a_kick_and_with_the_time(start):
    """Kicked and Timeout come as the last Step's exit."""
    cpu = start("l: nop; jmp l")
    steps = cpu.steps(timeout=60)
    next(steps)
    cpu.kick()
    assert [type(step.exit) for step in steps] == [Kicked]
    *_, last = cpu.steps(timeout=0.2)
    assert isinstance(last.exit, Timeout)


def test_over_breakpoints(start):
    """Steps pass breakpoints, show the code without them, and leave them set."""
    cpu = start("nop; inc eax; inc eax; hlt")
    with cpu.breakpoint(0x1001, software=True), cpu.breakpoint(0x1003):
        steps = list(cpu.steps(3, timeout=5))
        assert rips(steps) == [0x1000, 0x1001, 0x1003]
        assert steps[1].instruction == b"\xff\xc0"
        assert cpu.regs.rax == 2
        assert len(cpu.breakpoints) == 2


@ring3
def test_ring_3(start):
    """User code steps like any other."""
    cpu = start("nop; nop; nop; l: jmp l", ring=3)
    assert rips(cpu.steps(4, timeout=5)) == [0x1000, 0x1001, 0x1002, 0x1003]


@pytest.mark.parametrize("mode", [kvmpy.REAL_MODE, kvmpy.PROTECTED_MODE], ids=["real", "protected"])
def test_other_modes(start, mode):
    """Linear addresses, and flags pushed by 16- and 32-bit code."""
    cpu = start(
        "pushf; pop ax; inc ax; nop" if mode.bits == 16 else "pushfd; pop eax; nop; nop", mode
    )
    assert rips(cpu.steps(2, timeout=5)) == [0x1000, 0x1001]
    assert cpu.regs.rax & 0x100 == 0


def test_interrupts_kept_out():
    """block_interrupts: one that is pending waits until the steps are over."""
    with kvmpy.VM(memory="16M", irqchip=True) as vm:
        if not vm.check_extension("SET_GUEST_DEBUG2") >> 20 & 1:
            pytest.skip("this KVM has no KVM_GUESTDBG_BLOCKIRQ")
        cpu = vm.vcpu()
        vm.load(kvmpy.asm("sti; nop; nop; nop; nop; out 0x10, al; h: inc ebx; iretq"), at=0x1000)
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000, handlers={4: 0x1007})
        list(cpu.steps(2, timeout=5))
        vm.irq_line(4, 1)  # the PIC as it comes: its vectors begin at 0
        seen = rips(cpu.steps(2, timeout=5, block_interrupts=True))
        assert all(0x1001 <= rip <= 0x1005 for rip in seen)
        assert cpu.regs.rbx == 0
        cpu.expect(IoOut, timeout=5)
        assert cpu.regs.rbx == 1
