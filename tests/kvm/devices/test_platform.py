"""The platform's devices with a guest: what it asks of its machine ends the run, in C."""

import datetime

import pytest

import kvmpy
from kvmpy._native import ffi
from kvmpy.x86 import layout


@pytest.fixture
def platform(vm):
    """All of them, where a PC has them."""
    i8042 = kvmpy.I8042()
    vm.attach(i8042.data, layout.I8042_DATA_PORT)
    vm.attach(i8042.command, layout.I8042_COMMAND_PORT)
    vm.attach(kvmpy.Rtc(), layout.RTC_PORT)
    vm.attach(kvmpy.PvPanic(), layout.PVPANIC_PORT)
    vm.attach(kvmpy.PowerManagement(), layout.ACPI_PM_PORT)
    vm.attach(kvmpy.ResetControl(), layout.RESET_CONTROL_PORT)
    return vm


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("mov al, 0xfe; out 0x64, al", kvmpy.Reset("i8042")),
        ("mov dx, 0xcf9; mov al, 0x06; out dx, al", kvmpy.Reset("reset-control")),
        ("mov dx, 0x604; mov ax, 0x3400; out dx, ax", kvmpy.PowerOff("acpi")),
        ("mov dx, 0x505; mov al, 1; out dx, al", kvmpy.GuestPanic("pvpanic")),
        ("mov dx, 0x505; mov al, 2; out dx, al", kvmpy.GuestCrashLoaded("pvpanic")),
    ],
)
def test_the_guest_ends_its_machine(start, platform, code, expected):
    """Each request is an exit of its own kind, seen once; a further run goes on behind it."""
    cpu = start(f"{code}; out 0x10, al; hlt")
    assert cpu.run(timeout=10) == expected
    assert isinstance(cpu.run(timeout=10), kvmpy.IoOut)
    assert cpu.explain(expected).startswith("the guest")


def test_iteration_ends_with_the_machine(start, platform):
    """`for exit in cpu` ends with a power-off; after a crash kernel has taken over it goes on."""
    cpu = start("mov dx, 0x505; mov al, 2; out dx, al; mov dx, 0x604; mov ax, 0x3400; out dx, ax")
    assert list(cpu) == [kvmpy.GuestCrashLoaded("pvpanic"), kvmpy.PowerOff("acpi")]


def test_requests_in_a_string_instruction(start, platform):
    """REP OUTSB to the reset line: the first byte that resets ends the run."""
    code = """
        lea rsi, [rip + bytes]
        mov dx, 0x64
        mov ecx, 3
        rep outsb
        hlt
    bytes:
        .byte 0xae, 0xfe, 0xae
    """
    assert start(code).run(timeout=10) == kvmpy.Reset("i8042")


def test_reads_the_clock(start, platform):
    """The date as a boot loader reads it: index out, data in."""
    code = "xor eax, eax; " + "".join(
        f"mov al, {index}; out 0x70, al; in al, 0x71; mov [0x2000 + {place}], al; "
        for place, index in enumerate((0x32, 9, 8, 7))
    )
    before = datetime.datetime.now(datetime.UTC).date()
    start(code + "hlt").expect(kvmpy.Hlt, timeout=10)
    century, year, month, day = (int(f"{byte:02x}") for byte in platform.memory.read(0x2000, 4))
    shown = datetime.date(century * 100 + year, month, day)
    assert before <= shown <= datetime.datetime.now(datetime.UTC).date()


def test_pvpanic_features(start, platform):
    cpu = start("mov dx, 0x505; in al, dx; movzx ebx, al; hlt")
    cpu.expect(kvmpy.Hlt, timeout=10)
    assert cpu.regs.rbx == 0x03


@pytest.fixture
def irqchip_vm():
    """A VM with KVM's interrupt controllers and PIT."""
    with kvmpy.VM("16M", irqchip=True, pit=True) as vm:
        yield vm


def value_out(vm, code):
    """Run `code` until it writes to port 0x10; the value it wrote."""
    vm.load(kvmpy.asm(code, 64, org=0x1000), at=0x1000)
    cpu = vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
    return cpu.expect(kvmpy.IoOut, timeout=20).value


# ICW1 to ICW4 of the second PIC, which takes interrupt requests only then.
INIT_PIC = """
    mov al, 0x11
    out 0xa0, al
    mov al, 0x28
    out 0xa1, al
    mov al, 2
    out 0xa1, al
    mov al, 1
    out 0xa1, al
"""
# OCW3: read the interrupt request register; IRQ 8 to 15 are the second PIC's.
WAIT_FOR_IRQ = """
    mov al, 0x0a
    out 0xa0, al
again:
    in al, 0xa0
    test al, {mask}
    jz again
    out 0x10, al
    hlt
"""


def test_rtc_interrupt_line(irqchip_vm):
    """The periodic interrupt reaches line 8 of KVM's own PIC."""
    vm = irqchip_vm
    rtc = kvmpy.Rtc()
    rtc.connect_line(vm.fileno(), layout.RTC_IRQ)
    vm.attach(rtc, layout.RTC_PORT)
    start = "mov ax, 0x420b; out 0x70, ax;"
    assert value_out(vm, INIT_PIC + start + WAIT_FOR_IRQ.format(mask=1)) & 1


def test_power_button_line(irqchip_vm):
    """The button raises the SCI once the guest has enabled it; a cleared status lowers it."""
    vm = irqchip_vm
    pm = kvmpy.PowerManagement()
    pm.connect_line(vm.fileno(), layout.SCI_IRQ)
    vm.attach(pm, layout.ACPI_PM_PORT)
    assert not pm.press_power_button()
    enable = "mov dx, 0x602; mov ax, 0x100; out dx, ax;"
    assert value_out(vm, INIT_PIC + enable + WAIT_FOR_IRQ.format(mask=2)) & 2


def test_closing_the_vm_disconnects(irqchip_vm):
    """The devices outlive the VM whose lines they drove."""
    vm = irqchip_vm
    rtc, pm = kvmpy.Rtc(), kvmpy.PowerManagement()
    rtc.connect_line(vm.fileno(), layout.RTC_IRQ)
    pm.connect_line(vm.fileno(), layout.SCI_IRQ)
    vm.attach(rtc, layout.RTC_PORT)
    vm.attach(pm, layout.ACPI_PM_PORT)
    vm.close()
    assert pm.press_power_button() is False
    assert rtc.offset == 0


def test_pit_gate_of_channel_2(irqchip_vm):
    """Port 0x61 is KVM's: bit 5 shows channel 2's output, by which kernels measure the TSC."""
    code = """
        in al, 0x61
        and al, 0xfc
        out 0x61, al
        mov al, 0xb0
        out 0x43, al
        mov al, 0xff
        out 0x42, al
        mov al, 0x01
        out 0x42, al
        in al, 0x61
        or al, 1
        out 0x61, al
    count:
        in al, 0x61
        test al, 0x20
        jz count
        out 0x10, al
        hlt
    """
    assert value_out(irqchip_vm, code) & 0x20


def test_no_pci_bus_answers():
    """Reads of PCI's configuration ports give all ones, by C alone: a kernel makes thousands."""
    code = "mov eax, 0x80000000; mov dx, 0xcf8; out dx, eax; mov dx, 0xcfc; in eax, dx; hlt"
    with kvmpy.Machine(kvmpy.asm(code, 16), format="flat", memory="2M") as machine:
        assert machine.cpu.run(timeout=20) == kvmpy.Hlt()  # and nothing that nobody claimed
        assert machine.cpu.regs.rax == 0xFFFF_FFFF
        assert machine.unclaimed == {("out", 0xCF8): 1, ("in", 0xCFC): 1}


# ---------------------------------------------------------------- as a PC's firmware leaves it


def test_interrupt_vectors_of_a_pc():
    """PICs that nobody has programmed give what the BIOS had them give: IRQ 4 is vector 0x0C."""
    code = kvmpy.asm("hlt", 16)
    with kvmpy.Machine(code, format="flat", memory="2M", irqchip="kernel") as machine:
        bases = [machine.vm.get_irqchip(chip).irq_base for chip in ("pic-master", "pic-slave")]
    assert bases == [0x08, 0x70]


def test_a_line_that_is_up_when_the_chip_is_set(kernel_irqchip_uart):
    """A saved chip does not know where lines are now: the device says so."""
    vm, uart, before = kernel_irqchip_uart
    assert uart.receive(b"x") == 1
    assert vm.get_irqchip("pic-master").irr & 1 << 4
    vm.set_irqchip("pic-master", before)
    assert vm.get_irqchip("pic-master").irr & 1 << 4


@pytest.fixture
def kernel_irqchip_uart():
    """A UART on line 4, its receive interrupt enabled, and the chip before it had anything."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        uart = kvmpy.Uart()
        uart.connect_line(vm.fileno(), 4)
        before = vm.get_irqchip("pic-master")
        device = ffi.cast("struct shim_device *", uart._device)
        for offset, value in ((4, 0x08), (1, 0x01)):
            device.access(device, ffi.NULL, offset, ffi.new("uint8_t[1]", [value]), 1, True)
        yield vm, uart, before


def test_the_vcpu_that_a_timeout_is_about():
    """Not one that waits for its first interrupt."""
    code = kvmpy.asm("1: jmp 1b", 16)
    with kvmpy.Machine(code, format="flat", memory="2M", cpus=2, irqchip="kernel") as machine:
        outcome = machine.run(timeout=0.3)
        assert outcome.ending == "timeout"
        assert "the guest's vCPU 0 was at 0000:0x7c00 (ring 0, real mode)" in outcome.text
