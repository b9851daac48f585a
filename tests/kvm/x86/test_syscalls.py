"""SYSCALL and SYSENTER: where they land, with a target and without one."""

import pytest

import kvmpy
from kvmpy.x86 import layout

LONG, PROTECTED = kvmpy.LONG_MODE, kvmpy.PROTECTED_MODE
STAYS = "64-bit SYSCALL jumps to LSTAR and stays in ring 3"


@pytest.mark.not_on("kvm_pvm", reason=STAYS)
def test_syscall_lands_in_ring_0(start, vm):
    """RCX is the return address, R11 the flags, CS ring 0; SYSRET goes back."""
    vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax; sysretq", org=0x2000), at=0x2000)
    cpu = start("syscall; mov eax, cs; mov [0xd0000000], eax", LONG, 3, syscall=0x2000)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 0x10
    assert cpu.regs.rcx == 0x1002
    assert cpu.regs.r11 & 2
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 0x33


def test_syscall_on_kvm_pvm_stays_in_ring_3(start, vm, module):
    """What kvm_pvm does instead is known: the target runs, in ring 3."""
    if module != "kvm_pvm":
        pytest.skip(f"{module}: runs SYSCALL as the hardware does")
    vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax"), at=0x2000)
    cpu = start("syscall", LONG, 3, syscall=0x2000)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value & 3 == 3
    assert cpu.regs.rcx == 0x1002


@pytest.mark.not_on("kvm_pvm", reason=STAYS)
def test_syscall_without_a_target(start):
    """Reported, with the place it came from."""
    exit = start("nop; syscall", LONG, 3).expect(kvmpy.UnexpectedSyscall, timeout=5)
    assert exit.report.kind == "SYSCALL"
    assert exit.report.rip == 0x1003


def test_syscall_without_a_target_on_kvm_pvm(start, module):
    """The landing stub is ring 0's page: a page fault, whose note says why."""
    if module != "kvm_pvm":
        pytest.skip(f"{module}: runs SYSCALL as the hardware does")
    exit = start("nop; syscall", LONG, 3).expect(kvmpy.GuestException, timeout=5)
    assert exit.vector == 14
    assert "LSTAR" in exit.report.note


@pytest.mark.not_on("kvm_pvm", reason="raises #UD for SYSENTER in 64-bit code")
@pytest.mark.not_on("kvm_amd", reason="AMD has no SYSENTER in long mode (#UD)")
def test_sysenter_from_long_mode(start, vm):
    """CS and SS come from SYSENTER_CS, RSP from SYSENTER_ESP."""
    vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax"), at=0x2000)
    cpu = start("sysenter", LONG, 3, sysenter=0x2000)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 0x10
    assert cpu.regs.rsp == layout.supervisor_area(vm.memory).ring0_stack_top


@pytest.mark.not_on("kvm_intel", reason="runs SYSENTER in long mode")
def test_sysenter_where_there_is_none(start):
    """#UD, whose note says why."""
    exit = start("sysenter", LONG, 3).expect(kvmpy.GuestException, timeout=5)
    assert (exit.vector, exit.rip) == (6, 0x1000)
    assert "SYSENTER" in exit.report.note


@pytest.mark.not_on("kvm_pvm", reason="has no SYSENTER in legacy 32-bit ring 3")
def test_sysenter_in_protected_mode(start, vm):
    """Every processor has it there."""
    vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax", 32), at=0x2000)
    cpu = start("sysenter", PROTECTED, 3, sysenter=0x2000)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 0x10


@pytest.mark.not_on("kvm_pvm", reason="has no SYSENTER in legacy 32-bit ring 3")
def test_sysenter_without_a_target(start):
    """Reported as such: it saves no return address."""
    exit = start("sysenter", PROTECTED, 3).expect(kvmpy.UnexpectedSyscall, timeout=5)
    assert exit.report.kind == "SYSENTER"
    assert exit.report.rip is None


@pytest.mark.not_on("kvm_intel", reason="Intel has no SYSCALL outside 64-bit code (#UD)")
@pytest.mark.not_on("kvm_pvm", reason="has no SYSCALL in legacy 32-bit ring 3")
def test_legacy_syscall(start, vm):
    """AMD: EIP from STAR[31:0], ECX the return address."""
    vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax", 32), at=0x2000)
    cpu = start("syscall", PROTECTED, 3, syscall=0x2000)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 0x10
    assert cpu.regs.rcx == 0x1002


@pytest.mark.not_on("kvm_amd", reason="runs SYSCALL in 32-bit code")
def test_syscall_where_there_is_none(start, module):
    """#UD in 32-bit code on Intel (kvm_pvm is seen as what it is)."""
    if module == "kvm_pvm":
        pytest.skip("kvm_pvm: depends on the CPU vendor the guest sees")
    exit = start("syscall", PROTECTED, 3).expect(kvmpy.GuestException, timeout=5)
    assert (exit.vector, exit.rip) == (6, 0x1000)
