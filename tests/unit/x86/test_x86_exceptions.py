"""Reports of the stubs: frames of every width, notes, and guests that lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as some

from kvmpy.memory.guest import GuestMemory
from kvmpy.state import Segment
from kvmpy.x86 import exceptions, layout
from kvmpy.x86.exceptions import ExceptionReport, SyscallReport, identify
from kvmpy.x86.modes import Mode, prepare, write_real_mode_stubs
from kvmpy.x86.state import CpuState, real_segment

STACK = 0x8000
COMPATIBILITY = "SYSCALL from compatibility mode"
CODE = 0x1000


class Regs:
    def __init__(self, **values: int) -> None:
        self.rip = self.rsp = self.rflags = self.rcx = self.r11 = 0
        self.__dict__.update(values)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("2M") as ram:
        yield ram


def ring0(state: CpuState) -> CpuState:
    """The state in a stub: CS and SS of ring 0, whatever ring was interrupted."""
    sregs = state.sregs
    cs = replace(sregs.cs, selector=0x10, dpl=0)
    return replace(state, sregs=replace(sregs, cs=cs, ss=replace(sregs.ss, selector=0x18, dpl=0)))


def report(
    memory: GuestMemory,
    mode: Mode,
    vector: int,
    *frame: int,
    cr2: int = 0,
    rsp: int | None = None,
    step: int = 0,
    syscall: int | None = None,
) -> ExceptionReport:
    """Identify `vector` with `frame` on the stack; frames have the alignment the CPU gives."""
    state = ring0(prepare(memory, mode, rip=CODE, ring=3, syscall=syscall))
    size = 8 if mode is Mode.LONG_64 else 4
    if rsp is None:
        rsp = STACK - size * len(frame)
        memory.write(rsp, struct.pack(f"<{len(frame)}{'Q' if size == 8 else 'I'}", *frame))
    rip = layout.supervisor_area(memory).stub(vector) + step
    sregs = replace(state.sregs, cr2=cr2)
    found = identify(state.stub_table, Regs(rip=rip, rsp=rsp), sregs, memory)
    assert isinstance(found, ExceptionReport)
    return found


@pytest.mark.parametrize("step", [0, 2, 3])
def test_page_fault_in_long_mode(memory: GuestMemory, step: int) -> None:
    found = report(
        memory, Mode.LONG_64, 14, 7, 0x401000, 0x33, 0x10202, 0x7000, 0x2B, cr2=0x1F0010, step=step
    )
    assert found == ExceptionReport(
        vector=14,
        name="#PF page fault",
        error_code=7,
        rip=0x401000,
        cs=0x33,
        rflags=0x10202,
        rsp=0x7000,
        ss=0x2B,
        cr2=0x1F0010,
    )
    assert str(found) == (
        "#PF page fault (vector 14) at 0033:0x401000, error code 0x7 (user write, protection of "
        "page translation), CR2 0x1f0010, stack 002b:0x7000"
    )


def test_exception_without_error_code(memory: GuestMemory) -> None:
    found = report(memory, Mode.LONG_64, 6, 0x401000, 0x33, 0x202, 0x7000, 0x2B)
    assert (found.name, found.error_code, found.cr2) == ("#UD invalid opcode", None, None)
    assert (found.rip, found.cs, found.rsp, found.ss) == (0x401000, 0x33, 0x7000, 0x2B)
    assert str(found) == "#UD invalid opcode (vector 6) at 0033:0x401000, stack 002b:0x7000"


def test_protected_mode_frames_with_and_without_a_change_of_ring(memory: GuestMemory) -> None:
    found = report(memory, Mode.PROTECTED_32, 13, 0x1238, 0x1005, 0x23, 0x202, 0x7000, 0x2B)
    assert (found.error_code, found.rip, found.cs) == (0x1238, 0x1005, 0x23)
    assert (found.rsp, found.ss) == (0x7000, 0x2B)
    found = report(memory, Mode.PAGED_32, 13, 0x1238, 0x1005, 0x10, 0x202)
    assert (found.error_code, found.rip, found.cs) == (0x1238, 0x1005, 0x10)
    assert (found.rsp, found.ss) == (STACK, 0x18)  # what was above the frame


def test_gp_with_error_code_zero_in_protected_mode(memory: GuestMemory) -> None:
    """Taken for a frame without error code, it would have CS = EIP."""
    found = report(memory, Mode.PROTECTED_32, 13, 0, 0x1000, 0x23, 0x202, 0x7000, 0x2B)
    assert (found.error_code, found.rip, found.software) == (0, 0x1000, False)


@pytest.mark.parametrize("mode", [Mode.PROTECTED_32, Mode.LONG_64])
def test_int_13_is_no_general_protection_fault(memory: GuestMemory, mode: Mode) -> None:
    memory.write(CODE, b"\xcd\x0d")
    found = report(memory, mode, 13, CODE + 2, 0x10, 0x202, 0x7000, 0x18)
    assert (found.name, found.error_code, found.software) == ("interrupt 0xd", None, True)
    assert found.rip == CODE + 2
    assert "ran `int 0xd` and has no handler" in found.note


@pytest.mark.parametrize("code", [b"\xcd\x03", b"\x90\xcc"])
def test_breakpoints_are_software_interrupts(memory: GuestMemory, code: bytes) -> None:
    memory.write(CODE, code)
    found = report(memory, Mode.LONG_64, 3, CODE + 2, 0x33, 0x202, 0x7000, 0x2B)
    assert (found.name, found.software) == ("#BP breakpoint", True)


def real_report(memory: GuestMemory, vector: int, *frame: int, sp: int = 0x7BFA) -> ExceptionReport:
    state = prepare(memory, Mode.REAL_16, rip=CODE)
    for index, word in enumerate(frame):
        memory.write(sp + 2 * index & 0xFFFF, struct.pack("<H", word))
    segment, offset = layout.real_vector_pointer(vector)
    sregs = replace(state.sregs, cs=real_segment(segment))
    found = identify(state.stub_table, Regs(rip=offset + 2, rsp=sp), sregs, memory)
    assert isinstance(found, ExceptionReport)
    return found


@pytest.mark.parametrize("vector", [0x10, 0x13, 0x21, 0x80, 0xFF])
def test_bios_calls_in_real_mode_are_named(memory: GuestMemory, vector: int) -> None:
    memory.write(0x1_2345, bytes((0xCD, vector)))
    found = real_report(memory, vector, 0x2347, 0x1000, 0x0202)
    assert (found.vector, found.software, found.error_code) == (vector, True, None)
    assert (found.cs, found.rip, found.rflags, found.rsp) == (0x1000, 0x2347, 0x202, 0x7C00)
    assert found.name == f"interrupt {vector:#x}"
    assert "real mode starts without a BIOS" in str(found)


def test_real_mode_faults_push_no_error_code(memory: GuestMemory) -> None:
    found = real_report(memory, 13, CODE, 0, 0x202)
    assert (found.name, found.error_code, found.rip) == ("#GP general protection", None, CODE)


def test_real_mode_stack_wraps_at_64_kib(memory: GuestMemory) -> None:
    found = real_report(memory, 6, CODE, 0x10, 0x202, sp=0xFFFE)
    assert (found.rip, found.cs, found.rflags, found.rsp) == (CODE, 0x10, 0x202, 4)


def test_syscall_on_kvm_pvm_is_named(memory: GuestMemory) -> None:
    lstar = layout.supervisor_area(memory).stub(layout.SYSCALL_SLOT)
    found = report(memory, Mode.LONG_64, 14, 0x15, lstar, 0x33, 2, 0x7000, 0x2B, cr2=lstar)
    assert "a SYSCALL: this host jumped to LSTAR without leaving CPL 3" in found.note
    found = report(memory, Mode.LONG_64, 13, 0, 0x3002, 0x33, 2, 0x7000, 0x2B, syscall=0x3000)
    assert "the SYSCALL handler runs in ring 3" in found.note
    found = report(memory, Mode.LONG_64, 13, 0, 0x4000, 0x33, 2, 0x7000, 0x2B, syscall=0x3000)
    assert found.note == ""


@pytest.mark.parametrize(
    ("code", "note"),
    [
        (b"\xcd\x80", "`int 0x80`: kvm_pvm runs only"),
        (b"\xcc\x90", "`int 0x3`: kvm_pvm runs only"),
        (b"\x0f\x34", "SYSENTER: "),
        (b"\x0f\x05", "SYSCALL: Intel has none outside 64-bit code"),
        (b"\x0f\x0b", ""),
    ],
)
def test_undefined_instructions_that_exist_elsewhere(
    memory: GuestMemory, code: bytes, note: str
) -> None:
    memory.write(CODE, code)
    found = report(memory, Mode.LONG_64, 6, CODE, 0x33, 0x202, 0x7000, 0x2B)
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)


def test_missing_gate_is_named(memory: GuestMemory) -> None:
    found = report(memory, Mode.LONG_64, 13, 0x402, CODE, 0x33, 2, 0x7000, 0x2B)
    assert found.note == "`int 0x80` in ring 3: the gate is not present or its DPL too low"
    assert "(IDT gate 0x80)" in str(found)


@pytest.mark.parametrize(
    ("slot", "mode", "kind", "rip", "rflags"),
    [
        (layout.SYSCALL_SLOT, Mode.LONG_64, "SYSCALL", 0x1_0000_4000, 0x246),
        (layout.SYSCALL_SLOT, Mode.PROTECTED_32, "SYSCALL", 0x4000, None),
        (layout.SYSCALL32_SLOT, Mode.LONG_64, COMPATIBILITY, 0x1_0000_4000, 0x246),
        (layout.SYSENTER_SLOT, Mode.LONG_64, "SYSENTER", None, None),
    ],
)  # fmt: skip
def test_unexpected_system_calls(
    memory: GuestMemory, slot: int, mode: Mode, kind: str, rip: int | None, rflags: int | None
) -> None:
    state = prepare(memory, mode, rip=CODE)
    regs = Regs(
        rip=layout.supervisor_area(memory).stub(slot), rcx=0x1_0000_4000, r11=0x246, rsp=0x7000
    )
    found = identify(state.stub_table, regs, state.sregs, memory)
    assert isinstance(found, SyscallReport)
    assert (found.kind, found.rip, found.rflags) == (kind, rip, rflags)
    assert str(found).startswith(f"{kind} without a handler")


@pytest.mark.parametrize("mode", list(Mode))
def test_other_code_that_uses_the_port_is_no_exception(memory: GuestMemory, mode: Mode) -> None:
    state = prepare(memory, mode, rip=CODE)
    table = state.stub_table
    real = mode is Mode.REAL_16
    end = layout.STUB_SIZE * (layout.EXCEPTION_VECTORS if real else layout.STUB_SLOTS)
    outside = [CODE, table.stubs + end]
    outside += [] if real else [table.stubs - 1]
    for rip in outside:
        assert identify(table, Regs(rip=rip), state.sregs, memory) is None


@pytest.mark.parametrize("rsp", [0x40_0000, 1 << 47, (1 << 64) - 4096, 0xD000_0000])
def test_unreadable_stack_shortens_the_report(memory: GuestMemory, rsp: int) -> None:
    found = report(memory, Mode.LONG_64, 14, rsp=rsp, cr2=0x123)
    assert (found.vector, found.rip, found.cs, found.rsp) == (14, None, None, None)
    assert found.cr2 == 0x123
    assert "the stack frame is unreadable" in str(found)


@pytest.mark.parametrize(
    ("vector", "code", "words"),
    [
        (14, 0, "supervisor read, no page translation"),
        (14, 0x15, "user fetch, protection of page translation"),
        (14, 0xB, "supervisor write, reserved bit in page translation"),
        (13, 0, "no selector"),
        (13, 0x1238, "GDT selector 0x1238"),
        (10, 0x1C, "LDT selector 0x18"),
        (11, 0x103, "IDT gate 0x20, external event"),
        (17, 0, "no detail"),
    ],
)
def test_error_codes_in_words(vector: int, code: int, words: str) -> None:
    assert exceptions.describe_error_code(vector, code) == words


def test_vector_names() -> None:
    assert exceptions.vector_name(8) == "#DF double fault"
    assert exceptions.vector_name(0x80) == "interrupt 0x80"
    assert all(0 <= vector < 32 for vector in exceptions.VECTORS)
    assert set(exceptions.VECTORS) > exceptions.ERROR_CODE_VECTORS


words64 = some.integers(0, (1 << 64) - 1)


@settings(max_examples=300, deadline=None)
@given(
    mode=some.sampled_from(Mode),
    slot=some.integers(0, layout.STUB_SLOTS),
    rsp=words64 | some.integers(0, 0x2_0000),
    stack=some.binary(max_size=64),
    controls=some.tuples(words64, words64, words64, words64),
    keep=some.booleans(),
    base=words64,
)
def test_nothing_a_guest_does_makes_identify_fail(
    mode: Mode,
    slot: int,
    rsp: int,
    stack: bytes,
    controls: tuple[int, int, int, int],
    keep: bool,
    base: int,
) -> None:
    with GuestMemory(256 * 1024) as memory:
        state = prepare(memory, mode, rip=CODE)
        if rsp < 0x2_0000:
            memory.write(rsp, stack)
        cr0, cr3, cr4, efer = controls
        sregs = state.sregs
        if not keep:
            sregs = replace(sregs, cr0=cr0, cr3=cr3, cr4=cr4, efer=efer, ss=Segment(base=base))
        regs = Regs(rip=state.stub_table.stubs + 8 * slot, rsp=rsp, rcx=base, r11=cr4)
        found = identify(state.stub_table, regs, sregs, memory)
        if sregs.cr0 & 1:  # in real mode the slot belongs to the fixed stubs, or to none
            is_area = mode is not Mode.REAL_16 or slot < layout.STUB_SLOTS
            assert (found is None) == (slot >= layout.STUB_SLOTS or not is_area)
        assert str(found)


def test_a_fall_back_to_real_mode_is_named(memory: GuestMemory) -> None:
    """GRUB, started by Multiboot, leaves protected mode to call a BIOS that is not there."""
    state = prepare(memory, Mode.PROTECTED_32, rip=CODE)
    write_real_mode_stubs(memory)
    segment, offset = layout.real_vector_pointer(0x15)
    sregs = replace(state.sregs, cr0=state.sregs.cr0 & ~1, cs=real_segment(segment))
    found = identify(state.stub_table, Regs(rip=offset + 2, rsp=0x7000), sregs, memory)
    assert isinstance(found, ExceptionReport)
    assert found.vector == 0x15
