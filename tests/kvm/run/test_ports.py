"""Port I/O: every size, both directions, strings, to a C device, a Python handler and nobody."""

import pytest

import kvmpy
from kvmpy.devices import DebugConsole

REG = {1: "al", 2: "ax", 4: "eax"}
#: kvm_pvm, and the others for string instructions, go through KVM's emulator, which may hand a
#: string over whole or in parts. What arrives must be the same.
RING3 = pytest.mark.not_on("kvm_pvm", reason="gives #GP for ports in ring 3, whatever IOPL says")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_out_unclaimed(start, size):
    """An unclaimed OUT comes back as a value, little endian, no more bytes than its size."""
    cpu = start(f"mov eax, 0x44332211; mov dx, 0x1234; out dx, {REG[size]}")
    data = bytes((0x11, 0x22, 0x33, 0x44)[:size])
    assert cpu.run(timeout=5) == kvmpy.IoOut(0x1234, size, data, 1)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_in_unclaimed_gives_all_ones(start, size):
    """Nobody's port reads as all ones, in the bytes of its size only (correctness 5)."""
    cpu = start(f"mov rax, 0x1111111111111111; mov dx, 0x1234; in {REG[size]}, dx; out 0x10, al")
    assert cpu.run(timeout=5) == kvmpy.IoIn(0x1234, size, 1)
    cpu.expect(kvmpy.IoOut, timeout=5)
    ones = (1 << 8 * size) - 1
    kept = 0 if size == 4 else 0x1111_1111_1111_1111 & ~ones  # a 32-bit result clears the rest
    assert cpu.regs.rax == kept | ones


def test_unclaimed_in_does_not_leak_the_last_bytes(start, vm):
    """The buffer of an OUT is the next IN's: what it held must not be read (correctness 5)."""
    cpu = start("mov eax, 0x12345678; out 0x10, eax; in eax, 0x11; mov ebx, eax; out 0x12, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0x1234_5678
    assert cpu.expect(kvmpy.IoIn, timeout=5).port == 0x11
    assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x12
    assert cpu.regs.rbx == 0xFFFF_FFFF


@pytest.mark.parametrize("owner", ["counter", "ring", "device"])
def test_reads_of_write_only_owners_give_all_ones(start, vm, owner):
    """A counter's, a ring's or the debug exit's port reads as all ones too."""
    if owner == "counter":
        counter = vm.count_io(0x11)
    elif owner == "ring":
        vm.on_io_batch(0x11)(lambda batch: None)
    else:
        vm.attach(kvmpy.devices.DebugExitPort(), 0x11)
    cpu = start("mov eax, 0x12345678; out 0x10, eax; in eax, 0x11; mov ebx, eax; out 0x12, al")
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x12
    assert cpu.regs.rbx == 0xFFFF_FFFF
    if owner == "counter":
        assert (counter.reads, counter.writes) == (1, 0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_python_handler_both_ways(start, vm, size):
    """A handler sees address, size and value; what it returns for a read arrives, and no more."""
    seen = []

    @vm.on_io(range(0x200, 0x204))
    def port(address, width, value):
        seen.append((address, width, value))
        return 0x8765_4321 & (1 << 8 * width) - 1 if value is None else None

    reg = REG[size]
    cpu = start(
        f"mov dx, 0x203; mov eax, 0xaabbccdd; out dx, {reg}; mov rax, -1; in {reg}, dx; hlt"
    )
    cpu.expect(kvmpy.Hlt, timeout=5)
    mask = (1 << 8 * size) - 1
    assert seen == [(0x203, size, 0xAABB_CCDD & mask), (0x203, size, None)]
    high = 0 if size == 4 else (1 << 64) - 1 & ~mask
    assert cpu.regs.rax == high | 0x8765_4321 & mask


@RING3
@pytest.mark.parametrize("how", ["iopl", "bitmap"])
def test_port_from_ring_3(start, how):
    """Ring 3 reaches ports by IOPL or by the TSS's bitmap, and gets #GP without either."""
    options = {"iopl": 3} if how == "iopl" else {"io_ports": [0x10]}
    cpu = start("mov al, 9; out 0x10, al; out 0x11, al", ring=3, **options)
    assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x10
    if how == "iopl":
        assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x11
    else:
        assert cpu.expect(kvmpy.GuestException, timeout=5).vector == 13


def test_port_from_ring_3_without_privilege(start):
    """#GP(0), on every module."""
    exit = start("mov al, 9; out 0x10, al", ring=3).expect(kvmpy.GuestException, timeout=5)
    assert (exit.vector, exit.error_code, exit.rip) == (13, 0, 0x1002)


# ---------------------------------------------------------------- strings


def gather(cpu, port):
    """All bytes of unclaimed string writes to ``port``, up to HLT."""
    data, elements = b"", 0
    while isinstance(exit := cpu.run(timeout=5), kvmpy.IoOut):
        assert exit.port == port
        assert len(exit.data) == exit.size * exit.count
        data, elements = data + exit.data, elements + exit.count
    assert isinstance(exit, kvmpy.Hlt), exit
    return data, elements


def source(count, size):
    return bytes(i * 7 + 3 & 0xFF for i in range(count * size))


@pytest.mark.parametrize(("size", "letter"), [(1, "b"), (2, "w"), (4, "d")])
def test_rep_outs_unclaimed(start, vm, size, letter):
    """REP OUTS: all elements, in order, none twice (correctness 4)."""
    vm.load(source(37, size), at=0x3000)
    cpu = start(f"mov esi, 0x3000; mov ecx, 37; mov dx, 0x55; rep outs{letter}; hlt")
    assert gather(cpu, 0x55) == (source(37, size), 37)
    assert (cpu.regs.rcx, cpu.regs.rsi) == (0, 0x3000 + 37 * size)


@pytest.mark.parametrize(("size", "letter"), [(1, "b"), (2, "w"), (4, "d")])
def test_rep_outs_to_a_handler(start, vm, size, letter):
    """A handler is called once per element, in order."""
    vm.load(source(20, size), at=0x3000)
    seen = []
    vm.on_io(0x55)(lambda port, width, value: seen.append((width, value)))
    cpu = start(f"mov esi, 0x3000; mov ecx, 20; mov dx, 0x55; rep outs{letter}; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    data = source(20, size)
    assert seen == [
        (size, int.from_bytes(data[i : i + size], "little")) for i in range(0, len(data), size)
    ]


def test_rep_outs_to_a_c_device(start, vm):
    """A device in C gets the same bytes, across a page."""
    console = DebugConsole()
    vm.attach(console, 0xE9)
    text = bytes(range(32, 127)) * 2
    vm.load(text, at=0x3F80)
    cpu = start(f"mov esi, 0x3f80; mov ecx, {len(text)}; mov dx, 0xe9; rep outsb; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert console.output == text


def test_rep_outs_downwards(start, vm):
    """With DF set the elements come from high to low."""
    vm.load(b"ABCD", at=0x3000)
    cpu = start("std; mov esi, 0x3003; mov ecx, 4; mov dx, 0x55; rep outsb; cld; hlt")
    assert gather(cpu, 0x55) == (b"DCBA", 4)


@pytest.mark.parametrize(("size", "letter"), [(1, "b"), (2, "w"), (4, "d")])
def test_rep_ins_from_a_handler(start, vm, size, letter):
    """REP INS: the handler's answers land in memory in order; nothing around them changes."""
    mask = (1 << 8 * size) - 1
    answers = iter(range(1, 1000))
    vm.on_io(0x56)(lambda port, width, value: next(answers) * 0x1020304 & mask)
    cpu = start(f"mov edi, 0x3000; mov ecx, 33; mov dx, 0x56; rep ins{letter}; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    expected = b"".join((i * 0x1020304 & mask).to_bytes(size, "little") for i in range(1, 34))
    assert vm.memory.read(0x3000, len(expected)) == expected
    assert vm.memory.read(0x3000 + len(expected), 8) == bytes(8)
    assert cpu.regs.rcx == 0


def test_rep_ins_unclaimed_answered(start, vm):
    """cpu.answer() takes size * count bytes; the guest finds them in order."""
    cpu = start("mov edi, 0x3000; mov ecx, 12; mov dx, 0x57; rep insw; hlt")
    expected = b""
    while isinstance(exit := cpu.run(timeout=5), kvmpy.IoIn):
        assert (exit.port, exit.size) == (0x57, 2)
        answer = source(exit.count, 2)
        with pytest.raises(ValueError, match=f"for a read of {len(answer)}"):
            cpu.answer(answer + b"x")
        cpu.answer(answer)
        expected += answer
    assert isinstance(exit, kvmpy.Hlt)
    assert vm.memory.read(0x3000, 24) == expected


def test_rep_ins_unclaimed_unanswered(start, vm):
    """Without an answer memory gets all ones."""
    vm.load(b"\x11" * 16, at=0x3000)
    cpu = start("mov edi, 0x3000; mov ecx, 12; mov dx, 0x57; rep insb; hlt")
    while isinstance(exit := cpu.run(timeout=5), kvmpy.IoIn):
        pass
    assert isinstance(exit, kvmpy.Hlt)
    assert vm.memory.read(0x3000, 16) == b"\xff" * 12 + b"\x11" * 4


def test_rep_ins_handler_fails_in_the_middle(start, vm):
    """The exception comes out unchanged; elements without an answer read as all ones, the answered
    ones stay, and the guest goes on."""
    calls = []

    @vm.on_io(0x56)
    def port(port, width, value):
        calls.append(None)
        if len(calls) == 3:
            raise LookupError("third")
        return len(calls)

    cpu = start("mov edi, 0x3000; mov ecx, 6; mov dx, 0x56; rep insb; hlt")
    with pytest.raises(LookupError, match="third"):
        cpu.run(timeout=5)
    cpu.expect(kvmpy.Hlt, timeout=5)
    data = vm.memory.read(0x3000, 6)
    assert data[:3] == b"\x01\x02\xff"
    # KVM may ask for the rest in one go (all ones) or element by element (answered).
    assert data[3:] in (b"\xff\xff\xff", b"\x04\x05\x06")


def test_rep_ins_from_ports_of_one_device(start, vm):
    """A string does not walk over ports: all elements come from one."""
    seen = set()
    vm.on_io(range(0x300, 0x310))(lambda port, width, value: seen.add((port, width)) or 1)
    cpu = start("mov edi, 0x3000; mov ecx, 5; mov dx, 0x308; rep insd; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == {(0x308, 4)}


# ---------------------------------------------------------------- who gets what


def test_wide_access_belongs_to_its_first_port(start, vm):
    """A 32-bit OUT to a one-port range is that range's, as wide as it is."""
    seen = []
    vm.on_io(0x61)(lambda *access: seen.append(access))
    vm.on_io(0x62)(lambda *access: seen.append(access))
    cpu = start("mov eax, 0x11223344; out 0x61, eax; out 0x60, eax; hlt")
    assert cpu.run(timeout=5) == kvmpy.IoOut(0x60, 4, b"\x44\x33\x22\x11")
    assert seen == [(0x61, 4, 0x1122_3344)]


def test_claims_while_the_guest_lives(start, vm):
    """A claim made between runs is seen by the next one; a released one is gone."""
    cpu = start("1: mov al, 5; out 0x60, al; jmp 1b")
    cpu.expect(kvmpy.IoOut, timeout=5)
    counter = vm.count_io(0x60)
    assert cpu.run(timeout=5, max_exits=10) == kvmpy.ExitLimit()
    assert counter.writes == 10
    vm.release(0x60)
    cpu.expect(kvmpy.IoOut, timeout=5)
    assert counter.writes == 10


def test_claim_from_a_handler(start, vm):
    """A handler may claim further ports: the same run sees them."""
    late = []

    @vm.on_io(0x60)
    def first(port, size, value):
        vm.on_io(0x61)(lambda port, size, value: late.append(value))

    cpu = start("mov al, 5; out 0x60, al; inc al; out 0x61, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert late == [6]


def test_last_port(start, vm):
    """Port 0xffff, as wide as 32 bits."""
    seen = []
    vm.on_io(0xFFFF)(lambda *access: seen.append(access))
    cpu = start("mov dx, 0xffff; mov eax, 1; out dx, al; out 0x10, al")
    assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x10
    assert seen == [(0xFFFF, 1, 1)]
