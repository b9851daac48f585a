"""A split irqchip with its I/O APIC in user space: interrupts into a guest's handler."""

import os
import threading
import time

import pytest
from hypothesis import given, settings, strategies as st
from irq_guest import IOAPIC, XAPIC, boot, interrupted, quiet, redirect

import kvmpy
from kvmpy import MsiMessage, MsiRoute, RedirectionEntry, _native
from kvmpy.x86 import layout

EDGE, LEVEL, MSI = 0x44, 0x55, 0x66
GUEST = f"{XAPIC}; {redirect(4, EDGE)}; {redirect(9, LEVEL, level=True)}"


@pytest.fixture
def vm():
    with kvmpy.VM("1M", irqchip="split") as vm:
        kvmpy.Ioapic().connect(vm)
        yield vm


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def again():
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def no_event(fd):
    with pytest.raises(BlockingIOError):
        os.eventfd_read(fd)


def resampled(cpu, fd):
    """What the eventfd counts once the guest's EOI has come, on a busy host too."""
    end = time.monotonic() + 20
    while True:
        quiet(cpu)
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            assert time.monotonic() < end


# ---------------------------------------------------------------- pins


def test_edge_by_irqfd(vm, event):
    """From the eventfd to the LAPIC by the route that the guest's entry became."""
    vm.irqfd(event, 4)
    cpu = boot(vm, GUEST, [EDGE])
    assert vm.gsi_routes == (
        MsiRoute.of(4, MsiMessage(vector=EDGE)),
        MsiRoute.of(9, MsiMessage(vector=LEVEL, trigger="level")),
    )
    for _ in range(2):
        os.eventfd_write(event, 1)
        interrupted(cpu, EDGE)
        quiet(cpu)


def test_masked(vm, event):
    """A masked pin's interrupts go nowhere, those of irqfds too, and edges are not made up for."""
    mask = f"mov ecx, {IOAPIC}; mov dword ptr [rcx], 0x18; mov dword ptr [rcx + 0x10], 0x10044"
    cpu = boot(vm, f"{GUEST}; {mask}", [EDGE])
    vm.irqfd(event, 4)
    os.eventfd_write(event, 1)
    vm.ioapic.set_line(4, True)
    quiet(cpu)
    assert [route.gsi for route in vm.gsi_routes] == [9]


def test_level_by_irqfd(vm, event, again):
    """The EOI stays in C and signals the second eventfd; whoever is still up writes again."""
    vm.irqfd(event, 9, resample=again)
    cpu = boot(vm, GUEST, [LEVEL])
    assert os.eventfd_read(again) == 1  # unmasked: what came before is lost
    for _ in range(2):
        os.eventfd_write(event, 1)
        interrupted(cpu, LEVEL)
        assert resampled(cpu, again) == 1
    assert cpu.run_stats["IOAPIC_EOI"] == 2
    vm.irqfd(event, 9, deassign=True)
    vm.ioapic.set_line(9, True)
    interrupted(cpu, LEVEL)
    vm.ioapic.set_line(9, False)
    quiet(cpu)
    no_event(again)


def test_one_resample_for_a_pin(vm, event, again):
    """A second one is refused, with its irqfd; a pin takes it again afterwards."""
    vm.irqfd(event, 9, resample=again)
    other = os.eventfd(0)
    try:
        with pytest.raises(kvmpy.KvmpyError, match="has an eventfd"):
            vm.irqfd(other, 9, resample=again)
        with pytest.raises(ValueError, match="pin 24"):
            vm.irqfd(other, 24, resample=again)
        for _ in range(2):
            vm.irqfd(event, 9, deassign=True)
            vm.irqfd(event, 9, resample=again)
        vm.irqfd(other, 9)
        vm.irqfd(other, 9, deassign=True)  # leaves the other's alone
        with pytest.raises(kvmpy.KvmpyError, match="has an eventfd"):
            vm.ioapic.resample(9, again)
    finally:
        os.close(other)


def test_level_line(vm):
    """A line that stays up interrupts again after each EOI, and shows remote IRR meanwhile."""
    cpu = boot(vm, GUEST, [LEVEL])
    entry = RedirectionEntry(vector=LEVEL, trigger="level")
    assert vm.ioapic.state.redirtbl[9] == entry
    vm.ioapic.set_line(9, True)
    assert vm.ioapic.state.redirtbl[9].remote_irr
    for _ in range(3):
        interrupted(cpu, LEVEL)
    vm.ioapic.set_line(9, False)
    cpu.run(timeout=0.05)  # perhaps one that was on its way
    quiet(cpu)
    assert vm.ioapic.state.redirtbl[9] == entry


def test_devices(vm):
    """Serial port, clock and power button raise their pins."""
    serial, rtc, pm = kvmpy.Uart(), kvmpy.Rtc(), kvmpy.PowerManagement()
    serial.connect_ioapic(vm.ioapic, layout.COM1_IRQ)
    rtc.connect_ioapic(vm.ioapic, layout.RTC_IRQ)
    pm.connect_ioapic(vm.ioapic, layout.SCI_IRQ)
    vm.attach(serial, layout.COM1_PORT)
    vm.attach(rtc, layout.RTC_PORT)
    vm.attach(pm, layout.ACPI_PM_PORT)
    enable = (
        "mov dx, 0x3f9; mov al, 1; out dx, al; mov dx, 0x602; mov ax, 0x100; out dx, ax; "
        "mov ax, 0x420b; out 0x70, ax"  # the clock's periodic interrupt
    )
    cpu = boot(vm, f"{GUEST}; {redirect(8, MSI)}; {enable}", [EDGE, LEVEL, MSI])
    interrupted(cpu, MSI)  # once: nobody reads register C
    quiet(cpu)
    serial.receive(b"x")
    interrupted(cpu, EDGE)
    quiet(cpu)
    assert pm.press_power_button()
    interrupted(cpu, LEVEL)
    interrupted(cpu, LEVEL)  # nobody clears the status
    pm.disconnect()
    cpu.run(timeout=0.05)
    quiet(cpu)


# ---------------------------------------------------------------- the VM's routes


def test_other_routes(vm):
    """MSIs of other GSIs live beside the pins', whoever writes next."""
    assert vm.add_msi_route(MsiMessage(vector=MSI)) == 24
    cpu = boot(vm, GUEST, [EDGE, MSI])
    assert [route.gsi for route in vm.gsi_routes] == [4, 9, 24]
    vm.irq_line(24, 1)
    interrupted(cpu, MSI)
    vm.add_msi_route(MsiMessage(vector=MSI), 30)
    vm.ioapic.set_line(4, True)
    interrupted(cpu, EDGE)
    vm.set_gsi_routing([])
    assert [route.gsi for route in vm.gsi_routes] == [4, 9]
    assert vm.irq_line_status(24, 1).masked
    for gsi in (0, 23):
        with pytest.raises(ValueError, match="is a pin"):
            vm.add_msi_route(MsiMessage(vector=MSI), gsi)
    most = vm.check_extension("KVM_CAP_IRQ_ROUTING")
    vm.set_gsi_routing(MsiRoute.of(gsi, MsiMessage(vector=MSI)) for gsi in range(24, most))
    assert len(vm.gsi_routes) == most - 22
    with pytest.raises(kvmpy.KvmIoctlError, match="KVM_SET_GSI_ROUTING"):
        vm.set_gsi_routing([MsiRoute.of(24, MsiMessage(vector=MSI))] * 2)
    assert len(vm.gsi_routes) == most - 22
    vm.set_gsi_routing([])
    assert [route.gsi for route in vm.gsi_routes] == [4, 9]


def test_disconnect(vm, event):
    """Its GSIs lead nowhere then, and EOIs are exits again; another can take its place."""
    ioapic = vm.ioapic
    cpu = boot(vm, GUEST, [LEVEL])
    ioapic.set_line(9, True)
    interrupted(cpu, LEVEL)
    vm.add_msi_route(MsiMessage(vector=MSI))
    ioapic.disconnect()
    assert vm.ioapic is None
    assert [route.gsi for route in vm.gsi_routes] == [24]
    vm.irqfd(event, 9)
    os.eventfd_write(event, 1)
    ioapic.set_line(9, False)
    ioapic.set_line(9, True)
    ioapic.disconnect()
    ioapic.connect(vm, 0xD000_0000)
    assert (ioapic.state.base_address, vm.ioapic) == (0xD000_0000, ioapic)
    assert "2 of 24 pins" in repr(ioapic)
    assert [route.gsi for route in vm.gsi_routes] == [4, 9, 24]
    interrupted(cpu, LEVEL)  # the line is up


def test_who_can_have_one():
    """A VM with a split irqchip, all pins and no routes to them; one I/O APIC each."""
    ioapic = kvmpy.Ioapic()
    for irqchip in (False, "kernel"):
        with (
            kvmpy.VM("1M", irqchip=irqchip) as vm,
            pytest.raises(kvmpy.KvmpyError, match="irqchip='split'"),
        ):
            ioapic.connect(vm)
    with kvmpy.VM("1M") as vm:
        vm.create_irqchip(split=True, pins=8)
        with pytest.raises(kvmpy.KvmpyError, match="24 pins"):
            ioapic.connect(vm)
    with kvmpy.VM("1M", irqchip="split") as vm:
        vm.add_msi_route(MsiMessage(vector=MSI), 4)
        with pytest.raises(ValueError, match="gsi 4"):
            ioapic.connect(vm)
        vm.set_gsi_routing([])
        vm.attach(kvmpy.DebugConsole(), layout.IOAPIC_BASE, mmio=True)
        with pytest.raises(kvmpy.ClaimError):
            ioapic.connect(vm)
        vm.release(layout.IOAPIC_BASE, mmio=True)
        ioapic.connect(vm)
        for one in (ioapic, kvmpy.Ioapic()):
            with pytest.raises(kvmpy.KvmpyError):
                one.connect(vm)
        with pytest.raises(ValueError, match="irqchip="):
            kvmpy.VM(irqchip="split", pit=True)
    assert repr(ioapic) == "<Ioapic, not in a VM>"
    ioapic.set_line(9, True)


# ---------------------------------------------------------------- anything

EVENTS = st.one_of(
    st.tuples(st.just("entry"), st.integers(0, 3), st.booleans(), st.booleans()),
    st.tuples(st.just("line"), st.integers(0, 3), st.booleans(), st.just(False)),
    st.tuples(st.just("eoi"), st.integers(0, 3), st.booleans(), st.just(False)),
)


class Pins:
    """What four pins, of vectors 0x40 to 0x43, should be."""

    def __init__(self):
        self.level, self.masked, self.irr, self.up = ([False] * 4 for _ in range(4))
        self.masked = [True] * 4
        self.sent: set[int] = set()

    def service(self, pin):
        if self.up[pin] and self.level[pin] and not self.masked[pin] and not self.irr[pin]:
            self.irr[pin] = True
            self.sent.add(0x40 + pin)

    def apply(self, kind, pin, first, second):
        if kind == "entry":
            self.level[pin], self.masked[pin] = first, second
            self.irr[pin] &= first
        elif kind == "line":
            if first and not self.up[pin] and not self.level[pin] and not self.masked[pin]:
                self.sent.add(0x40 + pin)
            self.up[pin] = first
        elif self.level[pin]:
            self.irr[pin] = False
        self.service(pin)


@settings(max_examples=30, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_any_order_of_events(steps):
    """Entries, lines and EOIs in any order, with a LAPIC that takes all: remote IRR, KVM's routes
    and the LAPIC's requests are what they should be."""
    lib, ffi = _native.lib, _native.ffi
    pins, report = Pins(), ffi.new("struct shim_vcpu *")
    with kvmpy.VM("1M", irqchip="split") as vm:
        ioapic = kvmpy.Ioapic()
        ioapic.connect(vm)
        cpu = vm.vcpu()
        cpu.lapic = cpu.lapic.replace(svr=0x1FF)

        def write(offset, value):
            data = ffi.new("uint8_t[]", value.to_bytes(4, "little"))
            assert ioapic._device.access(ioapic._device, report, offset, data, 4, True) == -1

        for kind, pin, first, second in steps:
            pins.apply(kind, pin, first, second)
            if kind == "entry":
                write(0x00, 0x10 + 2 * pin)
                write(0x10, 0x40 + pin | first << 15 | second << 16)
            elif kind == "line":
                ioapic.set_line(pin, first)
            elif first:
                write(0x40, 0x40 + pin)
            else:
                assert lib.shim_ioapic_eoi(ioapic._ioapic, report, 0x40 + pin) == -1
            assert [entry.remote_irr for entry in ioapic.state.redirtbl[:4]] == pins.irr
        routed = [pin for pin in range(4) if not pins.masked[pin] or pins.irr[pin]]
        assert [route.gsi for route in vm.gsi_routes] == routed
        assert cpu.lapic.irr == pins.sent


def test_two_vcpus_and_an_irqfd(vm, event):
    """Both write entries as fast as they can, without a lock, while an irqfd fires: KVM ends with
    the routes that the registers say."""
    code = f"""
        mov ebx, {IOAPIC}; mov edx, 300
    1:  mov eax, edx; and eax, 7; lea eax, [rax * 2 + 0x10 + {{offset}}]
        mov [rbx], eax; mov eax, edx; shl eax, 13; or eax, 0x50; mov [rbx + 0x10], eax
        dec edx; jnz 1b
        mov al, 1; out {layout.DEBUG_EXIT_PORT}, al
    """
    vm.attach(kvmpy.devices.DebugExitPort(), layout.DEBUG_EXIT_PORT)
    vm.irqfd(event, 4)
    cpus = [vm.vcpu(), vm.vcpu()]
    for number, cpu in enumerate(cpus):
        vm.load(kvmpy.asm(code.format(offset=8 * number), org=0x1000), at=0x1000 + 0x1000 * number)
        cpu.mp_state = 0
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000 + 0x1000 * number)
    exits = [None, None]
    runners = [
        threading.Thread(target=lambda n=n: exits.__setitem__(n, cpus[n].run(timeout=60)))
        for n in range(2)
    ]
    for runner in runners:
        runner.start()
    while any(runner.is_alive() for runner in runners):
        os.eventfd_write(event, 1)
        vm.ioapic.set_line(5, True)
        vm.ioapic.set_line(5, False)
    for runner in runners:
        runner.join()
    assert exits == [kvmpy.DebugExit(1)] * 2
    entries = vm.ioapic.state.redirtbl
    expected = [
        pin for pin, e in enumerate(entries)
        if not (e.masked and not e.remote_irr)
        and e.delivery_mode in ("fixed", "lowest-priority", "smi", "nmi", "init")
    ]  # fmt: skip
    assert [route.gsi for route in vm.gsi_routes] == expected


# ---------------------------------------------------------------- machines


def test_machine(tmp_path):
    """A guest without a table finds the registers; virtio's pin is an irqfd's; all is closed."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(4096))
    version = f"mov ebx, {IOAPIC}; mov dword ptr [ebx], 1; mov eax, [ebx + 0x10]; out 0xf4, al"
    code = kvmpy.asm(version, 32, org=0x10_0000)
    with kvmpy.Machine(
        code, format="flat", mode=kvmpy.PROTECTED_MODE, load_address=0x10_0000, memory="4M",
        irqchip="split", devices=[kvmpy.devices.virtio.Block(image)],
    ) as m:  # fmt: skip
        assert (m.vm.irqchip, m.pc.virtio[0].gsi) == ("split", layout.VIRTIO_MMIO_GSIS[0])
        ioapic = m.vm.ioapic
        assert m.run(timeout=60).status == 0x20
        m.serial.receive(b"x")
    assert m.vm.ioapic is None
    ioapic.set_line(4, True)
