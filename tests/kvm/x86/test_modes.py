"""Every mode and ring a guest can start in: the guest itself says where it is."""

import pytest

import kvmpy

REAL, PROTECTED, PAGED, LONG = (
    kvmpy.REAL_MODE,
    kvmpy.PROTECTED_MODE,
    kvmpy.PAGED_MODE,
    kvmpy.LONG_MODE,
)
NO_PAGING32 = pytest.mark.not_on("kvm_pvm", reason="has no 32-bit paging")

RINGS = [
    pytest.param(mode, ring, id=f"{mode.value}-ring{ring}", marks=marks)
    for mode, marks in ((PROTECTED, ()), (PAGED, NO_PAGING32), (LONG, ()))
    for ring in range(4)
]


def test_real_mode_says_real_mode(start):
    """CR0.PE is clear, and segments are 16 times their selectors."""
    cpu = start("smsw ax; mov bx, cs; mov cx, ss; out 0x10, ax; hlt", REAL, at=0x7C00)
    exit = cpu.expect(kvmpy.IoOut, timeout=5)
    assert exit.value & 1 == 0
    assert (cpu.regs.rbx, cpu.regs.rcx) == (0, 0)
    assert cpu.sregs.cs.base == 16 * cpu.sregs.cs.selector
    cpu.expect(kvmpy.Hlt, timeout=5)


def test_real_mode_above_64k(start):
    """An entry point above 64 KiB comes with a code segment that reaches it."""
    cpu = start("mov ax, cs; out 0x10, ax", REAL, at=0x2_1234)
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x2000
    assert cpu.regs.rip == 0x1234 + 4


@pytest.mark.parametrize(("mode", "ring"), RINGS)
def test_cpl_as_the_guest_reads_it(start, vm, mode, ring):
    """CS.RPL is the CPL; the guest tells it by MMIO, which needs no I/O privilege."""
    cpu = start("mov eax, cs; mov ecx, ss; mov [0xd0000000], eax", mode, ring)
    exit = cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert exit.gpa == 0xD000_0000
    assert exit.value & 3 == ring
    assert cpu.regs.rcx & 3 == ring
    assert cpu.sregs.cs.dpl == cpu.sregs.ss.dpl == ring


@pytest.mark.parametrize(("mode", "ring"), RINGS)
def test_operand_size_is_the_modes(start, mode, ring):
    """The same bytes mean another thing in 32- and 64-bit code: 48 is DEC EAX or REX.W."""
    code = bytes.fromhex("31c0 48 83e801 8901")  # sub rax, 1 | dec eax; sub eax, 1
    cpu = start(code, mode, ring, regs={"rcx": 0xD000_0000})
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).size == 4
    assert cpu.regs.rax == ((1 << 64) - 1 if mode is LONG else 0xFFFF_FFFE)


@pytest.mark.parametrize("mode", [PROTECTED, pytest.param(PAGED, marks=NO_PAGING32), LONG])
def test_privileged_instruction_in_ring_3_is_refused(start, mode):
    """HLT in ring 3 is #GP(0), with the place where it happened."""
    cpu = start("nop; hlt", mode, 3)
    exit = cpu.expect(kvmpy.GuestException, timeout=5)
    assert (exit.vector, exit.error_code, exit.rip) == (13, 0, 0x1001)
    assert exit.report.cs & 3 == 3
    assert exit.report.ss & 3 == 3


@pytest.mark.parametrize("mode", [PROTECTED, pytest.param(PAGED, marks=NO_PAGING32), LONG])
def test_stack_of_each_ring_is_usable(start, mode):
    """PUSH, CALL and RET work on the stack a ring starts with, and move it by the mode's width."""
    for ring in (0, 3):
        cpu = start("push 0x1234; call f; mov [0xd0000000], eax; f: mov eax, 7; ret", mode, ring)
        before = cpu.regs.rsp
        assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 7
        assert before - cpu.regs.rsp == (8 if mode is LONG else 4)
        cpu.close()


@NO_PAGING32
def test_paged_mode_pages(start):
    """CR0.PG is set as the guest sees it, and CR4.PSE makes 4 MiB pages of the identity map."""
    cpu = start("mov eax, cr0; mov ecx, cr4; mov [0xd0000000], eax", PAGED)
    exit = cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert exit.value >> 31 == 1
    assert cpu.regs.rcx >> 4 & 1


def test_long_mode_is_long(start):
    """EFER.LMA as RDMSR gives it, and 64-bit registers."""
    cpu = start(
        "mov ecx, 0xc0000080; rdmsr; mov rbx, 0x123456789abcdef0; mov [0xd0000000], eax", LONG
    )
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value >> 10 & 1
    assert cpu.regs.rbx == 0x1234_5678_9ABC_DEF0


def test_entry_registers(start):
    """enter(regs=) sets them all; the ones not named are zero."""
    cpu = start("hlt", LONG, regs={"rax": 1, "r15": 1 << 63, "rdi": 0xFFFF_FFFF})
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert (cpu.regs.rax, cpu.regs.r15, cpu.regs.rdi) == (1, 1 << 63, 0xFFFF_FFFF)
    assert (cpu.regs.rbx, cpu.regs.r8) == (0, 0)


def test_entering_again_starts_anew(start, vm):
    """One vCPU goes through all the modes, one after the other, and nothing sticks."""
    cpu = vm.vcpu()
    for mode, ring in ((LONG, 3), (REAL, 0), (PROTECTED, 0), (LONG, 0), (PROTECTED, 3), (REAL, 0)):
        at = 0x7C00 if mode is REAL else 0x1000
        if mode is REAL:
            start("mov ax, 5; out 0x10, ax", mode, ring, at=at, vcpu=cpu)
            assert cpu.expect(kvmpy.IoOut, timeout=5).value == 5
        else:
            start("mov eax, cs; mov [0xd0000000], eax", mode, ring, at=at, vcpu=cpu)
            assert cpu.expect(kvmpy.MmioWrite, timeout=5).value & 3 == ring


def test_protected_segment_state(start):
    """Hidden descriptor state as KVM has it: flat, 32 bits, TR busy (correctness: VM entry)."""
    cpu = start("hlt", PROTECTED)
    cpu.expect(kvmpy.Hlt, timeout=5)
    cs, tr = cpu.sregs.cs, cpu.sregs.tr
    assert (cs.base, cs.limit, cs.db, cs.l, cs.kind) == (
        0, 0xFFFF_FFFF, 1, 0, "code32 execute/read",
    )  # fmt: skip
    assert tr.kind == "TSS busy"
    assert "code32" in repr(cpu.sregs)


@pytest.mark.parametrize("mode", [PROTECTED, LONG])
def test_segment_reload_from_the_gdt(start, mode):
    """What SREGS says is in guest memory too: the GDT can be loaded from (correctness 19)."""
    cpu = start(
        "mov eax, 0x2b; mov ds, eax; mov eax, 0x18; mov ss, eax; mov [0xd0000000], eax", mode
    )
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert (cpu.sregs.ss.selector, cpu.sregs.ds.selector, cpu.sregs.ds.dpl) == (0x18, 0x2B, 3)


def test_fpu_is_reset(start, vm):
    """FCW 0x37f and MXCSR 0x1f80: SSE code in ring 3 works at once (correctness 13)."""
    cpu = start(
        "stmxcsr [0x8000]; fnstcw [0x8008]; mov eax, 3; cvtsi2sd xmm0, eax; mulsd xmm0, xmm0;"
        "cvttsd2si eax, xmm0; mov [0xd0000000], eax",
        LONG,
        3,
    )
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 9
    assert vm.memory.read(0x8000, 4) == (0x1F80).to_bytes(4, "little")
    assert vm.memory.read(0x8008, 2) == (0x37F).to_bytes(2, "little")
