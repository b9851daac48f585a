"""Breakpoints: hardware, software, watchpoints; the guest's own are given back."""

import pytest

import kvmpy
from kvmpy import Debug, ExitLimit, GuestException, Hlt, IoOut, Timeout

LOOP = "mov ecx, 3; l: inc eax; dec ecx; jnz l; hlt"
INC, HLT = 0x1005, 0x100B

svm = pytest.mark.not_on(
    "kvm_amd", reason="QEMU's TCG loses #DB by debug registers and #BP that the host set"
)
no_int3 = pytest.mark.not_on("kvm_pvm", reason="no INT3 in ring 0, and no #BP exits from ring 3")


@pytest.fixture(params=[False, True], ids=["hardware", "software"])
def software(request):
    return request.param


@svm
def test_stops_before_the_instruction(start, software):
    """Each time round; running on executes it; once removed nothing stops."""
    cpu = start(LOOP)
    with cpu.breakpoint(INC, software=software) as stop:
        for i in range(2):
            exit = cpu.expect(Debug, timeout=5)
            assert (exit.pc, cpu.regs.rip, cpu.regs.rax) == (INC, INC, i)
            assert exit.software == software
            assert exit.slots == (() if software else (0,))
        assert stop.hits == 2
        assert stop.is_set
    assert not stop.is_set
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 3


@svm
def test_budgets_go_on_over_breakpoints(start, software):
    """The step off a breakpoint is no exit of the caller's."""
    cpu = start("l: inc eax; out 0x10, al; jmp l")
    with cpu.breakpoint(0x1000, software=software):
        for count in range(3):
            assert isinstance(cpu.run(timeout=5, max_exits=1), Debug), count
            assert isinstance(cpu.run(timeout=5, max_exits=1), IoOut), count
        assert cpu.regs.rax == 3
    with cpu.breakpoint(0x5000):
        assert isinstance(cpu.run(timeout=5, max_exits=1), IoOut)
        cpu.vm.count_io(0x10)
        assert isinstance(cpu.run(timeout=5, max_exits=7), ExitLimit)
    with cpu.breakpoint(0x5000):
        assert isinstance(cpu.run(timeout=0.05), Timeout)


@svm
def test_breakpoint_on_an_access(start, software):
    """The instruction at the breakpoint makes an exit of its own: handed out once."""
    cpu = start("in al, 0x10; out 0x11, al; hlt")
    with cpu.breakpoint(0x1000, software=software), cpu.breakpoint(0x1002, software=software):
        cpu.expect(Debug, timeout=5)
        assert isinstance(cpu.run(timeout=5), kvmpy.IoIn)
        cpu.answer(0x42)
        assert cpu.expect(Debug, timeout=5).pc == 0x1002
        assert cpu.expect(IoOut, timeout=5).data == b"\x42"
        cpu.expect(Hlt, timeout=5)


def test_four_slots(start):
    """Four debug registers, then software ones only; a slot that is free again is taken again."""
    cpu = start(LOOP)
    points = [cpu.breakpoint(0x2000 + i) for i in range(4)]
    assert [point.slot for point in points] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="all four"):
        cpu.breakpoint(0x3000)
    with cpu.breakpoint(0x3000, software=True):
        assert len(cpu.breakpoints) == 5
    points[2].remove()
    points[2].remove()
    assert cpu.breakpoint(0x3000).slot == 2
    assert vars(points[2])["slot"] == 2
    assert not points[2].is_set


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0x1001, "write", 2), "aligned"),
        ((0x1000, "write", 3), "1, 2, 4 or 8"),
        ((0x1000, "execute", 2), "one byte"),
        ((0x1000, "read", 1), "kind="),
        ((-1, "execute", 1), "is not in"),
        ((1 << 64, "execute", 1), "is not in"),
    ],
)
def test_what_cannot_be(start, arguments, message):
    """Refused, and nothing is set."""
    cpu = start(LOOP)
    address, kind, length = arguments
    with pytest.raises(ValueError, match=message):
        cpu.breakpoint(address, kind, length=length)
    with pytest.raises(ValueError, match="'execute' only"):
        cpu.breakpoint(0x1000, "write", software=True)
    with pytest.raises(kvmpy.GuestMemoryError):
        cpu.breakpoint(0x9000_0000_0000_0000, software=True)
    assert cpu.breakpoints == ()
    cpu.expect(Hlt, timeout=5)


@svm
@pytest.mark.not_on("kvm_pvm", reason="no data watchpoints")
@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_watchpoints(start, length):
    """After the write; "access" after a read too; not for another address."""
    cpu = start("mov ebx, 0x2000; mov [rbx + 16], eax; mov [rbx + 8], rax; mov rdx, [rbx + 8]; hlt")
    address = 0x2008
    with cpu.breakpoint(address, "write", length=length):
        exit = cpu.expect(Debug, timeout=5)
        assert exit.slots == (0,)
        assert cpu.regs.rip == 0x100C
        cpu.expect(Hlt, timeout=5)
    cpu.regs.rip = 0x1000
    with cpu.breakpoint(address, "access", length=length) as stop:
        assert [type(cpu.run(timeout=5)) for _ in range(3)] == [Debug, Debug, Hlt]
        assert stop.hits == 2


def test_software_breakpoints_do_not_show(vm, start):
    """In read_virtual; memory written over one stays, and comes when it is removed."""
    cpu = start(LOOP)
    original = cpu.read_virtual(0x1000, 8)
    with cpu.breakpoint(INC, software=True):
        assert vm.memory.read(INC, 1) == b"\xcc"
        assert cpu.read_virtual(0x1000, 8) == original
        assert cpu.read_virtual(INC, 1) == original[5:6]
        cpu.write_virtual(INC - 1, b"\x00\x90\x90")
        assert vm.memory.read(INC - 1, 3) == b"\x00\xcc\x90"
        assert cpu.read_virtual(INC, 2) == b"\x90\x90"
        with pytest.raises(ValueError, match="there is a software breakpoint"):
            cpu.breakpoint(INC, software=True)
    assert vm.memory.read(INC - 1, 3) == b"\x00\x90\x90"
    with cpu.breakpoint(INC, software=True):
        vm.load(b"\xf4", at=INC)
    assert vm.memory.read(INC, 1) == b"\xf4"


@svm
@no_int3
def test_the_guests_own_int3_is_given_back(start):
    """With software breakpoints set, KVM hands every INT3 over; those of the guest go on."""
    cpu = start("int3; nop; hlt; h: inc ebx; iretq", handlers={3: 0x1003})
    with cpu.breakpoint(0x1001, software=True) as stop:
        exit = cpu.expect(Debug, timeout=5)
        assert (exit.pc, cpu.regs.rbx, stop.hits) == (0x1001, 1, 1)
        cpu.expect(Hlt, timeout=5)


@svm
@pytest.mark.not_on("kvm_pvm", reason="its emulator knows neither INT1 nor TF of the guest's own")
def test_the_guests_own_trap_flag_is_given_back(start):
    """A guest that steps itself, with a hardware breakpoint of the host's set elsewhere."""
    cpu = start(
        "pushfq; or qword ptr [rsp], 0x100; popfq; nop; hlt; h: inc ebx; "
        "and qword ptr [rsp + 16], -257; mov rdx, dr6; iretq",
        handlers={1: 0x100C},
    )
    with cpu.breakpoint(0x5000):
        cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rbx == 1
    assert cpu.regs.rdx & 0x4000


@svm
def test_until(start, software):
    """Stops there; an exit on the way comes first; leaves nothing set."""
    cpu = start("mov ecx, 3; l: inc eax; dec ecx; jnz l; out 0x10, al; hlt")
    others = [cpu.breakpoint(0x5000 + i) for i in range(4 if software else 0)]
    exit = cpu.until(0x100B, timeout=5)
    assert isinstance(exit, Debug)
    assert cpu.regs.rax == 3
    assert isinstance(cpu.until(0x100D, timeout=5), IoOut)
    assert isinstance(cpu.until(0x100D, timeout=5), Debug)
    assert cpu.breakpoints == tuple(others)


@svm
@pytest.mark.not_on("kvm_pvm", reason="no debug facility in native ring 3")
def test_ring_3(start, software):
    """The same in user code."""
    cpu = start("nop; nop; l: jmp l", ring=3)
    with cpu.breakpoint(0x1001, software=software):
        assert cpu.expect(Debug, timeout=5).pc == 0x1001
        assert cpu.regs.rip == 0x1001


@svm
def test_other_modes(start, software, module):
    """Addresses are linear: real mode's and protected mode's too."""
    if software and module == "kvm_pvm":
        pytest.skip("kvm_pvm: its emulator delivers a real-mode INT3 to the guest")
    cpu = None
    for mode in (kvmpy.REAL_MODE, kvmpy.PROTECTED_MODE):
        cpu = start("nop; inc eax; hlt", mode, vcpu=cpu)
        with cpu.breakpoint(0x1001, software=software):
            assert cpu.expect(Debug, timeout=5).pc == 0x1001
        cpu.expect(Hlt, timeout=5)
        assert cpu.regs.rax == 1


@svm
def test_guests_debug_registers_stay(start):
    """DR0 and DR7 as the guest set them are what it reads while the host's are in effect."""
    cpu = start("mov eax, 0x7000; mov dr0, rax; mov eax, 0x401; mov dr7, rax; nop; "
                "mov rbx, dr0; mov rcx, dr7; hlt")  # fmt: skip
    with cpu.breakpoint(0x1010):
        cpu.run(timeout=5)
        cpu.run(timeout=5)
    assert (cpu.regs.rbx, cpu.regs.rcx & ~0x200) == (0x7000, 0x401)


def test_low_level(start):
    """set_guest_debug(): eight registers, and a stop after each instruction."""
    cpu = start("nop; nop; hlt")
    with pytest.raises(ValueError, match="needs eight"):
        cpu.set_guest_debug(hardware=[0])
    cpu.set_guest_debug(single_step=True)
    exit = cpu.expect(Debug, timeout=5)
    assert exit.single_step
    assert cpu.regs.rip == 0x1001
    cpu.set_guest_debug(enable=False)
    cpu.expect(Hlt, timeout=5)


def test_injecting(start):
    """KVM_GUESTDBG_INJECT_DB and _BP: the guest gets the exception."""
    cpu = start("nop; hlt")
    cpu.set_guest_debug(enable=False, inject_debug=True)
    exit = cpu.expect(GuestException, timeout=5)
    assert exit.vector == 1


def test_a_closed_vcpu(vm, start):
    """Removing what is set on a vCPU that is gone is no error, and restores the byte."""
    cpu = start(LOOP)
    original = vm.memory.read(INC, 1)
    with cpu.breakpoint(INC, software=True), cpu.breakpoint(INC):
        cpu.close()
    assert vm.memory.read(INC, 1) == original


# ---------------------------------------------------------------- set while a run is under way


@svm
def test_set_in_a_handler(start, vm, software):
    """The run that is under way stops there, once; the next goes on."""
    cpu = start("out 0x10, al; inc eax; inc eax; out 0x11, al; hlt")
    points = []
    vm.on_io(0x10)(lambda *_: points.append(cpu.breakpoint(0x1004, software=software)))
    exit = cpu.expect(Debug, timeout=5)
    assert (exit.pc, cpu.regs.rip, cpu.regs.rax) == (0x1004, 0x1004, 1)
    assert points[0].hits == 1
    assert cpu.expect(IoOut, timeout=5).data == b"\x02"
    points[0].remove()
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 2


@svm
def test_set_during_a_pause(start, run_in_thread, software):
    """Of a guest that spins."""
    cpu = start("1: inc eax; jmp 1b", ring=0)
    runner = run_in_thread(cpu)
    assert cpu.pause()
    stop = cpu.breakpoint(0x1002, software=software)
    cpu.resume()
    exit = runner.result()
    assert isinstance(exit, Debug)
    assert exit.pc == cpu.regs.rip == 0x1002
    before = cpu.regs.rax
    for i in range(2):
        assert cpu.expect(Debug, timeout=5).pc == 0x1002
        assert cpu.regs.rax == before + 1 + i
    assert stop.hits == 3
    stop.remove()
    assert isinstance(cpu.run(timeout=0.02), Timeout)


@svm
def test_set_in_a_handler_and_taken_away_in_the_next(start, vm, software):
    """Nothing is left of it: the guest runs as if there had never been any."""
    cpu = start("out 0x10, al; out 0x12, al; inc eax; hlt")
    points = []
    vm.on_io(0x10)(lambda *_: points.append(cpu.breakpoint(0x1004, software=software)))
    vm.on_io(0x12)(lambda *_: points.pop().remove())
    assert cpu.expect(Hlt, timeout=5) == Hlt()
    assert cpu.regs.rax == 1
    assert cpu.breakpoints == ()


@svm
@no_int3
def test_the_guests_own_int3_with_breakpoints_set_meanwhile(start, vm):
    """It is given back, by the run that began without a debugger."""
    cpu = start("out 0x10, al; int3; hlt", handlers={3: 0x3000})
    vm.load(kvmpy.asm("mov bl, 7; iretq"), at=0x3000)
    vm.on_io(0x10)(lambda *_: cpu.breakpoint(0x5000, software=True))
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rbx & 0xFF == 7
