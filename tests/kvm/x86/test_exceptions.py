"""Exceptions that nobody in the guest handles come back as values: vector, error code, place."""

import pytest
from conftest import RIG

import kvmpy

REAL, PROTECTED, PAGED, LONG = (
    kvmpy.REAL_MODE,
    kvmpy.PROTECTED_MODE,
    kvmpy.PAGED_MODE,
    kvmpy.LONG_MODE,
)
NO_PAGING32 = pytest.mark.not_on("kvm_pvm", reason="has no 32-bit paging")
FLAT = [PROTECTED, pytest.param(PAGED, marks=NO_PAGING32), LONG]


def exception(cpu):
    return cpu.expect(kvmpy.GuestException, timeout=5)


@pytest.mark.parametrize("ring", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", FLAT)
def test_undefined_opcode(start, mode, ring):
    """#UD has no error code; RIP is the instruction's, RSP and SS the interrupted code's."""
    cpu = start("nop; ud2", mode, ring)
    before = cpu.regs.rsp
    exit = exception(cpu)
    assert (exit.vector, exit.error_code, exit.rip, exit.cr2) == (6, None, 0x1001, None)
    assert exit.name == "#UD invalid opcode"
    assert (exit.report.cs & 3, exit.report.ss & 3) == (ring, ring)
    assert exit.report.rsp == before


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("mode", FLAT)
def test_divide_error(start, mode, ring):
    """#DE: RIP is the DIV's."""
    exit = exception(start("xor ecx, ecx; xor edx, edx; mov eax, 1; div ecx", mode, ring))
    assert (exit.vector, exit.error_code, exit.rip) == (0, None, 0x1009)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("mode", FLAT)
def test_general_protection_error_code(start, mode, ring):
    """#GP with a selector: loading one beyond the GDT."""
    exit = exception(start("mov eax, 0x3f8; mov ds, eax", mode, ring))
    assert (exit.vector, exit.error_code, exit.rip) == (13, 0x3F8, 0x1005)


@pytest.mark.parametrize(
    ("access", "code"), [("mov eax, [rcx]", 0), ("mov [rcx], eax", 2), ("jmp rcx", 0x10)]
)
@pytest.mark.parametrize("ring", [0, 3])
def test_page_fault_in_long_mode(start, ring, access, code):
    """#PF: CR2 is the address, the error code says read, write or fetch, and who."""
    address = 0x40_0000_0000  # past all RAM: not mapped
    exit = exception(start(f"mov rcx, {address}; {access}", LONG, ring))
    # RIP of a fetch is the address that could not be fetched.
    rip = address if "jmp" in access else 0x100A
    assert (exit.vector, exit.cr2, exit.rip) == (14, address, rip)
    assert exit.error_code == code | (4 if ring == 3 else 0)


def test_page_fault_on_supervisor_memory(start):
    """Ring 3 cannot read the supervisor area, where page tables and stacks are."""
    exit = exception(start("mov ecx, 0xfff000; mov eax, [rcx]", LONG, 3))
    assert (exit.vector, exit.error_code, exit.cr2) == (14, 5, 0xFFF000)
    exit = exception(start("mov ecx, 0xff0000; mov [rcx], eax", LONG, 3))
    assert (exit.vector, exit.error_code, exit.cr2) == (14, 7, 0xFF0000)


@NO_PAGING32
def test_page_fault_in_paged_mode(start):
    """32-bit paging: ring 3 on supervisor memory, user bit set."""
    exit = exception(start("mov ecx, 0xff0000; mov [ecx], eax", PAGED, 3))
    assert (exit.vector, exit.error_code, exit.cr2) == (14, 7, 0xFF0000)


NO_INT = pytest.mark.not_on("kvm_pvm", reason="cannot run INT n in ring 0")


@pytest.mark.parametrize("ring", [pytest.param(0, marks=NO_INT), 3])
@pytest.mark.parametrize("mode", FLAT)
def test_breakpoint(start, module, mode, ring):
    """INT3 is a trap: RIP is after it."""
    if module == "kvm_pvm" and mode is not LONG:
        pytest.skip("kvm_pvm: runs INT3 in 64-bit ring 3 only")
    exit = exception(start("nop; int3", mode, ring))
    assert (exit.vector, exit.error_code, exit.rip, exit.report.software) == (3, None, 0x1002, True)


@pytest.mark.not_on("kvm_pvm", reason="raises #UD for INT n other than 3 and 4")
@pytest.mark.parametrize("mode", FLAT)
def test_int_n_without_a_gate(start, mode):
    """INT 0x80 in ring 3 without a gate for it is #GP(vector * 8 + 2) at the instruction."""
    exit = exception(start("nop; int 0x80", mode, 3))
    # QEMU's emulated processor takes the size of a long-mode gate for the selector's.
    code = 0x802 if RIG == "svm" and mode is LONG else 0x402
    assert (exit.vector, exit.error_code, exit.rip) == (13, code, 0x1001)


@pytest.mark.not_on("kvm_pvm", reason="raises #UD for INT n other than 3 and 4")
@pytest.mark.parametrize("mode", FLAT)
def test_int_n_with_a_handler(start, vm, mode):
    """A handler of the guest's own is called in ring 0 and sees where it came from."""
    pop = "pop rbx; pop rcx" if mode is LONG else "pop ebx; pop ecx"
    vm.load(kvmpy.asm(f"{pop}; mov eax, cs; mov [0xd0000000], eax", mode.bits), at=0x2000)
    cpu = start("int 0x80", mode, 3, handlers={0x80: kvmpy.Gate(0x2000, dpl=3)})
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value & 3 == 0
    assert (cpu.regs.rbx, cpu.regs.rcx & 3) == (0x1002, 3)


@pytest.mark.parametrize("mode", FLAT)
def test_exception_with_a_handler(start, vm, mode):
    """The guest's own #UD handler runs in ring 0, skips the instruction and goes on in ring 3."""
    if mode is not LONG:
        vm.load(kvmpy.asm("mov eax, cs; mov [0xd0000000], eax", mode.bits), at=0x2000)
    else:
        vm.load(kvmpy.asm("add qword ptr [rsp], 2; iretq"), at=0x2000)
    cpu = start("ud2; mov eax, cs; mov [0xd0000000], eax", mode, 3, handlers={6: 0x2000})
    ring = 3 if mode is LONG else 0
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value & 3 == ring


@pytest.mark.parametrize("vector", [0, 6])
def test_real_mode_faults(start, vector):
    """Real mode goes through the vector table at 0; the frame has 16-bit FLAGS, CS and IP."""
    code = {0: "xor cx, cx; xor dx, dx; div cx", 6: "nop; nop; nop; nop; ud2"}[vector]
    exit = exception(start(code, REAL, at=0x7C00))
    assert (exit.vector, exit.error_code, exit.rip, exit.report.cs) == (vector, None, 0x7C04, 0)


NEGATIVE = pytest.mark.not_on(
    "kvm_pvm",
    reason="never gets past INT n with n >= 0x80 in real mode: the emulator takes n as signed",
)


@pytest.mark.parametrize(
    "vector",
    [0x10, 0x13, 0x21, pytest.param(0x80, marks=NEGATIVE), pytest.param(0xFF, marks=NEGATIVE)],
)
def test_real_mode_int_n(start, vector):
    """INT n in real mode, without a BIOS: which one is named."""
    exit = exception(start(f"nop; int {vector}", REAL, at=0x7C00))
    assert (exit.vector, exit.report.software, exit.rip) == (vector, True, 0x7C03)


def test_triple_fault(start, vm):
    """Without an IDT an exception ends the guest: Shutdown, which explains itself."""
    cpu = start("ud2", LONG, 0)
    cpu.sregs.idt.limit = 0
    exit = cpu.run(timeout=5)
    assert isinstance(exit, kvmpy.Shutdown)
    assert not exit.resumable
    text = cpu.explain(exit)
    assert "triple fault" in text
    assert "IDT" in text
    start("ud2; hlt", LONG, 0, vcpu=cpu)
    cpu.sregs.idt.limit = 0
    with pytest.raises(kvmpy.UnexpectedExitError, match="triple fault") as info:
        cpu.expect(kvmpy.Hlt, timeout=5)
    assert isinstance(info.value.exit, kvmpy.Shutdown)


def test_the_exception_port_is_the_guests_too(start):
    """A guest that writes to port 0xf5 by itself has written to a port, not had an exception."""
    cpu = start("mov al, 7; out 0xf5, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5) == kvmpy.IoOut(0xF5, 1, b"\x07")


def test_unreadable_stack_makes_a_shorter_report(start, vm):
    """The frame is guest memory, so hostile: a report without it, and nothing raised."""
    cpu = start("mov rsp, 0xd0001000; jmp stub; stub: mov al, 1; out 0xf5, al")
    cpu._stubs = type(cpu._stubs)(stubs=0x100E, lstar=0)
    exit = exception(cpu)
    assert exit.rip is None
    assert "unreadable" in str(exit.report)
    assert "unreadable" in cpu.explain(exit)


def test_nothing_escapes_after_the_end(start):
    """An exception's stub halts: running on gives Hlt, never random code."""
    cpu = start("ud2", LONG, 3)
    exception(cpu)
    assert isinstance(cpu.run(timeout=5), kvmpy.Hlt)


# ---------------------------------------------------------------- as explain() shows it


def test_explain_shows_the_code_of_the_fault(start, vm):
    """Where the guest was, not the stub that reported it; with what came before it."""
    cpu = start("nop; nop; ud2; nop")
    text = cpu.explain(cpu.run(timeout=5))
    assert "code at 0x1002: " in text
    assert "90 90 <0f> 0b 90" in text
    assert "vCPU 0, ring 0, " in text


def test_explain_in_real_mode(start, vm):
    """The segment counts."""
    vm.load(kvmpy.asm("nop; ud2", 16), at=0x2_0000)
    cpu = start("jmp 0x2000:0", mode=kvmpy.REAL_MODE)
    text = cpu.explain(cpu.run(timeout=5))
    assert "90 <0f> 0b" in text
    assert "real mode" in text


def test_explain_after_hlt(start):
    """RIP is behind it."""
    cpu = start("nop; hlt; ud2")
    assert "90 f4 <0f> 0b" in cpu.explain(cpu.run(timeout=5))


def test_explain_code_that_cannot_be_read(start, vm):
    """Pages that are not there before or behind it, or at it."""
    vm.memory.add(0x4000_0000, "4K")
    vm.memory.write(0x4000_0000, b"\x0f\x0b")
    cpu = start("mov eax, 0x40000000; jmp rax")
    text = cpu.explain(cpu.run(timeout=5))
    assert "code at 0x40000000: <0f> 0b 00" in text
    vm.memory.write(0x4000_0FFE, b"\x0f\x0b")
    cpu = start("mov eax, 0x40000ffe; jmp rax", vcpu=cpu)
    assert cpu.explain(cpu.run(timeout=5)).count("00 00 <0f> 0b\n") == 1
