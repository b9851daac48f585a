"""MMIO: widths, page ends, all ones, order."""

import pytest

import kvmpy

BASE = 0xD000_0000
STORES = {
    1: ("mov [rcx], al", "mov al, [rcx]"),
    2: ("mov [rcx], ax", "mov ax, [rcx]"),
    4: ("mov [rcx], eax", "mov eax, [rcx]"),
    8: ("mov [rcx], rax", "mov rax, [rcx]"),
}
VALUE = 0x8877_6655_4433_2211
RINGS = pytest.mark.parametrize("ring", [0, 3])


@RINGS
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_write_unclaimed(start, size, ring):
    """The bytes written, little endian, and no more."""
    cpu = start(STORES[size][0], ring=ring, regs={"rax": VALUE, "rcx": BASE + 0x10})
    exit = cpu.run(timeout=5)
    assert exit == kvmpy.MmioWrite(BASE + 0x10, VALUE.to_bytes(8, "little")[:size])
    assert (exit.size, exit.value) == (size, VALUE & (1 << 8 * size) - 1)


@RINGS
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_read_unclaimed_gives_all_ones(start, size, ring):
    """All ones, and never the bytes of the write before (correctness 5)."""
    cpu = start(
        f"mov [rcx], rax; mov rax, 0; {STORES[size][1]}; mov [rcx], rax",
        ring=ring,
        regs={"rax": VALUE, "rcx": BASE},
    )
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert cpu.run(timeout=5) == kvmpy.MmioRead(BASE, size)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == (1 << 8 * size) - 1


@RINGS
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_answer(start, size, ring):
    """answer() as bytes and as a number; only once, and only the right length."""
    cpu = start(f"xor eax, eax; {STORES[size][1]}; mov [rcx], rax", ring=ring, regs={"rcx": BASE})
    cpu.expect(kvmpy.MmioRead, timeout=5)
    with pytest.raises(ValueError, match="bytes for a read of"):
        cpu.answer(bytes(size + 1))
    data = VALUE.to_bytes(8, "little")[:size]
    cpu.answer(data if ring else int.from_bytes(data, "little"))
    with pytest.raises(ValueError, match="has been answered"):
        cpu.answer(data)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).data[:size] == data


def test_answer_to_a_write_is_refused(start):
    """Only reads are answered."""
    cpu = start("mov [rcx], eax", regs={"rcx": BASE})
    cpu.expect(kvmpy.MmioWrite, timeout=5)
    with pytest.raises(ValueError, match="not a read"):
        cpu.answer(0)


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_answer_out_of_range(start, value):
    """A number that does not fit is a ValueError, and the read is still open."""
    cpu = start("mov eax, [rcx]; mov [rcx], eax", regs={"rcx": BASE})
    cpu.expect(kvmpy.MmioRead, timeout=5)
    with pytest.raises((ValueError, OverflowError)):
        cpu.answer(value)
    cpu.answer(7)
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).value == 7


@RINGS
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_handler(start, vm, size, ring):
    """A Python device: sees each access, and answers reads."""
    seen = []

    @vm.on_mmio(BASE, 0x1000)
    def device(gpa, width, value):
        seen.append((gpa, width, value))
        return VALUE & (1 << 8 * width) - 1 if value is None else None

    store, load = STORES[size]
    cpu = start(f"{store}; xor eax, eax; {load}; ud2", ring=ring,
                regs={"rax": VALUE, "rcx": BASE + 0xFF0})  # fmt: skip
    cpu.expect(kvmpy.GuestException, timeout=5)
    value = VALUE & (1 << 8 * size) - 1
    assert seen == [(BASE + 0xFF0, size, value), (BASE + 0xFF0, size, None)]
    assert cpu.regs.rax == value


@RINGS
def test_write_across_a_page_end(start, ring):
    """One instruction, two accesses: both come, in order, with their bytes."""
    cpu = start("mov [rcx], rax; ud2", ring=ring, regs={"rax": VALUE, "rcx": BASE + 0xFFD})
    got = b""
    address = BASE + 0xFFD
    while isinstance(exit := cpu.run(timeout=5), kvmpy.MmioWrite):
        assert exit.gpa == address
        got, address = got + exit.data, address + exit.size
    assert isinstance(exit, kvmpy.GuestException), exit
    assert got == VALUE.to_bytes(8, "little")


@RINGS
@pytest.mark.parametrize("look", [False, True])
def test_read_across_a_page_end(start, ring, look):
    """Both halves are answered, also when the registers are looked at in between: the completion
    that this needs brings the second access, which must not be lost (correctness 1)."""
    cpu = start("mov rax, [rcx]; ud2", ring=ring, regs={"rcx": BASE + 0xFFD})
    offset = 0
    while isinstance(exit := cpu.run(timeout=5), kvmpy.MmioRead):
        assert exit.gpa == BASE + 0xFFD + offset
        cpu.answer(VALUE.to_bytes(8, "little")[offset : offset + exit.size])
        offset += exit.size
        if look:
            assert cpu.regs.rcx == BASE + 0xFFD
    assert isinstance(exit, kvmpy.GuestException), exit
    assert offset == 8
    assert cpu.regs.rax == VALUE


def test_from_memory_into_mmio(start, vm):
    """An access that begins in RAM and ends where there is none."""
    cpu = start("mov [rcx], rax; ud2", regs={"rax": VALUE, "rcx": (16 << 20) - 4})
    exit = cpu.expect(kvmpy.MmioWrite, timeout=5)
    assert exit == kvmpy.MmioWrite(16 << 20, VALUE.to_bytes(8, "little")[4:])
    assert vm.memory.read((16 << 20) - 4, 4) == VALUE.to_bytes(8, "little")[:4]
    cpu.expect(kvmpy.GuestException, timeout=5)


def test_order_of_ports_and_mmio(start, vm):
    """Handlers are called in the order of the guest's accesses (correctness 24)."""
    seen = []
    vm.on_io(0x10)(lambda port, size, value: seen.append(("port", value)))
    vm.on_mmio(BASE, 8)(lambda gpa, size, value: seen.append(("mmio", value)))
    cpu = start("mov ebx, 3; 1: mov eax, ebx; out 0x10, al; mov [rcx], al; dec ebx; jnz 1b; hlt",
                regs={"rcx": BASE})  # fmt: skip
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == [(kind, n) for n in (3, 2, 1) for kind in ("port", "mmio")]


def test_read_modify_write(start, vm):
    """A read-modify-write instruction reads, then writes what the read gave."""
    seen = []
    vm.on_mmio(BASE, 8)(lambda gpa, size, value: seen.append(value) or 41)
    cpu = start("inc dword ptr [rcx]; hlt", regs={"rcx": BASE})
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == [None, 42]


def test_string_store_to_mmio(start, vm):
    """REP STOS: one access per element."""
    seen = []
    vm.on_mmio(BASE, 0x100)(lambda gpa, size, value: seen.append((gpa - BASE, value)))
    cpu = start("mov edi, edi; mov ecx, 4; mov eax, 7; rep stosd; hlt", regs={"rdi": BASE})
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert seen == [(0, 7), (4, 7), (8, 7), (12, 7)]


def test_device_range_ends(start, vm):
    """The first byte decides: before and after the range it is nobody's."""
    seen = []
    vm.on_mmio(BASE + 8, 8)(lambda gpa, size, value: seen.append((gpa, size)))
    cpu = start("mov [rcx + 7], eax; mov [rcx + 15], eax; mov [rcx + 16], eax", regs={"rcx": BASE})
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).gpa == BASE + 7
    assert cpu.expect(kvmpy.MmioWrite, timeout=5).gpa == BASE + 16
    assert seen == [(BASE + 15, 4)]
