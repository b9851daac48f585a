"""Interrupts by every path, into a guest's handler."""

import errno
import os

import pytest
from irq_guest import NO_PIC, X2APIC, XAPIC, boot, interrupted, quiet, redirect

import kvmpy
from kvmpy import MsiMessage, MsiRoute, RedirectionEntry
from kvmpy.interrupts import irqchips, routing

EDGE, LEVEL = 0x44, 0x55
AUTO_EOI = pytest.mark.not_on(
    "kvm_pvm",
    reason="ends an interrupt when it delivers it (no bit of the LAPIC's ISR is ever set)",
)
IOAPIC_GUEST = f"{NO_PIC}; {XAPIC}; {redirect(4, EDGE)}; {redirect(5, LEVEL, level=True)}"


@pytest.fixture
def irq_vm():
    with kvmpy.VM("1M", irqchip="kernel") as vm:
        yield vm


@pytest.fixture
def event():
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


# ---------------------------------------------------------------- lines


def test_edge(irq_vm):
    """A raised line interrupts once, however long it stays up."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE])
    for _ in range(2):
        irq_vm.irq_line(4, 1)
        interrupted(cpu, EDGE)
        quiet(cpu)
        irq_vm.irq_line(4, 0)
        quiet(cpu)


@AUTO_EOI
def test_level(irq_vm):
    """A line that stays up interrupts again after each EOI; the redirection entry shows that one
    is in service."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [LEVEL])
    entry = RedirectionEntry(vector=LEVEL, trigger="level")
    assert irq_vm.get_irqchip("ioapic").redirtbl[5] == entry
    irq_vm.irq_line(5, 1)
    interrupted(cpu, LEVEL)
    assert irq_vm.get_irqchip("ioapic").redirtbl[5].remote_irr
    interrupted(cpu, LEVEL)
    irq_vm.irq_line(5, 0)
    quiet(cpu)
    assert irq_vm.get_irqchip("ioapic").redirtbl[5] == entry


def test_level_goes_on_until_lowered(irq_vm):
    """The same without counting EOIs."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [LEVEL])
    irq_vm.irq_line(5, 1)
    for _ in range(3):
        interrupted(cpu, LEVEL)
    irq_vm.irq_line(5, 0)
    while isinstance(exit := cpu.run(timeout=0.05), kvmpy.IoOut):
        pass  # at most what was under way
    assert exit == kvmpy.Timeout()


def test_status(irq_vm):
    """Delivered, coalesced, masked."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE])
    status = irq_vm.irq_line_status(4, 1)
    assert (status, status.delivered) == (1, True)
    status = irq_vm.irq_line_status(4, 1)
    assert (status, status.coalesced) == (0, True)
    status = irq_vm.irq_line_status(20, 1)
    assert (status, status.masked) == (-1, True)
    interrupted(cpu, EDGE)
    quiet(cpu)


def test_no_irqchip(vm):
    """Each says what is missing."""
    for call in (
        lambda: vm.irq_line(4, 1),
        lambda: vm.irq_line_status(4, 1),
        lambda: vm.get_irqchip("ioapic"),
        lambda: vm.set_irqchip("pic-master", kvmpy.PicState()),
        lambda: vm.signal_msi(0xFEE0_0000, 0x41),
    ):
        with pytest.raises(kvmpy.KvmIoctlError, match=r"no in-kernel"):
            call()
    for call in (lambda: vm.pit, lambda: vm.reinject_pit(True)):
        with pytest.raises(kvmpy.KvmIoctlError, match="no in-kernel PIT"):
            call()
    assert vm.irqchip is None
    assert not vm.has_irqchip


# ---------------------------------------------------------------- the chips' state


def test_the_host_moves_a_pin(irq_vm):
    """set_irqchip() takes effect: a pin leads to another vector."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE, 0x66])
    state = irq_vm.get_irqchip("ioapic")
    assert state.redirtbl[4] == RedirectionEntry(vector=EDGE)
    assert all(entry.masked for i, entry in enumerate(state.redirtbl) if i not in (4, 5))
    irq_vm.set_irqchip("ioapic", state.with_entry(4, RedirectionEntry(vector=0x66)))
    irq_vm.irq_line(4, 1)
    interrupted(cpu, 0x66)


def test_pic_state(irq_vm):
    """The guest's programming of both PICs shows, survives a round trip, and works."""
    setup = """
        mov al, 0x11; out 0x20, al; out 0xa0, al; mov al, 0x20; out 0x21, al; mov al, 0x28
        out 0xa1, al; mov al, 4; out 0x21, al; mov al, 2; out 0xa1, al; mov al, 1; out 0x21, al
        out 0xa1, al; mov al, 0xeb; out 0x21, al; mov al, 0xfe; out 0xa1, al
    """
    cpu = boot(irq_vm, setup, [0x24], eoi="none")
    master, slave = (irq_vm.get_irqchip(name) for name in ("pic-master", "pic-slave"))
    assert (master.irq_base, slave.irq_base) == (0x20, 0x28)
    assert (master.imr, slave.imr) == (0xEB, 0xFE)
    for name, state in (("pic-master", master), ("pic-slave", slave)):
        irq_vm.set_irqchip(name, state)
        assert irq_vm.get_irqchip(name) == state
    irq_vm.irq_line(4, 1)
    assert "irr=0x10[irq4]" in repr(irq_vm.get_irqchip("pic-master"))
    interrupted(cpu, 0x24)
    assert irq_vm.get_irqchip("pic-master").isr == 0x10


def test_wrong_chips(irq_vm):
    """A name that is none, another chip's state."""
    with pytest.raises(ValueError, match="pic-master, pic-slave, ioapic"):
        irq_vm.get_irqchip("hpet")
    with pytest.raises(TypeError, match="ioapic has a IoapicState"):
        irq_vm.set_irqchip("ioapic", kvmpy.PicState())


# ---------------------------------------------------------------- eventfds


def test_irqfd(irq_vm, event):
    """A write to an eventfd is an edge; deassigned, it is nothing."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE])
    irq_vm.irqfd(event, 4)
    for _ in range(2):
        os.eventfd_write(event, 1)
        interrupted(cpu, EDGE)
        quiet(cpu)
    irq_vm.irqfd(event, 4, deassign=True)
    os.eventfd_write(event, 1)
    quiet(cpu)


def test_irqfd_takes_objects(irq_vm, event):
    """Whatever has a fileno()."""
    with os.fdopen(os.dup(event), "wb", buffering=0) as file:
        cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE])
        irq_vm.irqfd(file, 4)
        file.write((1).to_bytes(8, "little"))
        interrupted(cpu, EDGE)
        irq_vm.irqfd(file, 4, deassign=True)


def test_resample(irq_vm, event, module):
    """A level-triggered line over eventfds: up until the EOI, which is told."""
    resample = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    cpu = boot(irq_vm, IOAPIC_GUEST, [LEVEL])
    irq_vm.irqfd(event, 5, resample=resample)
    for _ in range(2):
        os.eventfd_write(event, 1)
        interrupted(cpu, LEVEL)
        if module != "kvm_pvm":  # where delivery is the EOI
            with pytest.raises(BlockingIOError):
                os.eventfd_read(resample)
        quiet(cpu)
        assert os.eventfd_read(resample) == 1
    irq_vm.irqfd(event, 5, resample=resample, deassign=True)
    os.close(resample)


# ---------------------------------------------------------------- MSIs and routing


@pytest.mark.parametrize(("apic", "eoi"), [(XAPIC, "xapic"), (X2APIC, "x2apic")])
def test_signal_msi(irq_vm, apic, eoi):
    """Delivered to a LAPIC that the guest enabled by MMIO, or as x2APIC by MSRs."""
    cpu = boot(irq_vm, f"{NO_PIC}; {apic}", [0x71, 0x72], eoi=eoi)
    assert irq_vm.signal_msi(0xFEE0_0000, 0x71) is True
    interrupted(cpu, 0x71)
    assert irq_vm.signal_msi(MsiMessage(vector=0x72)) is True
    interrupted(cpu, 0x72)
    quiet(cpu)


def test_signal_msi_blocked(irq_vm):
    """Nobody takes it: the LAPIC is off, or there is no such LAPIC."""
    irq_vm.vcpu()
    assert irq_vm.signal_msi(MsiMessage(vector=0x71)) is False
    assert irq_vm.signal_msi(MsiMessage(vector=0x71, dest_id=9)) is False
    assert irq_vm.signal_msi(0xFEE0_0000, 0x71, devid=1) is False  # x86 takes it, and ignores it
    with pytest.raises(TypeError):
        irq_vm.signal_msi(0xFEE0_0000)
    with pytest.raises(TypeError):
        irq_vm.signal_msi(MsiMessage(vector=0x71), 0x71)


def test_routed_msi(irq_vm, event):
    """A GSI that leads to an MSI, by irqfd and by line; the default routes stay."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE, 0x71])
    gsi = irq_vm.add_msi_route(MsiMessage(vector=0x71))
    assert gsi == 24
    assert irq_vm.gsi_routes[-1] == MsiRoute(24, 0xFEE0_0000, 0x71)
    irq_vm.irqfd(event, gsi)
    os.eventfd_write(event, 1)
    interrupted(cpu, 0x71)
    assert irq_vm.irq_line_status(gsi, 1).delivered
    interrupted(cpu, 0x71)
    irq_vm.irq_line(4, 1)
    interrupted(cpu, EDGE)
    assert irq_vm.add_msi_route(MsiMessage(vector=0x72)) == 25
    assert irq_vm.add_msi_route(MsiMessage(vector=0x73), gsi=24) == 24
    assert [r.message.vector for r in irq_vm.gsi_routes if isinstance(r, MsiRoute)] == [0x72, 0x73]


def test_set_gsi_routing_replaces_all(irq_vm):
    """What is not in the new table leads nowhere; GSI 9 can lead to pin 4."""
    cpu = boot(irq_vm, IOAPIC_GUEST, [EDGE, LEVEL])
    irq_vm.set_gsi_routing([kvmpy.IrqchipRoute(9, "ioapic", 4)])
    assert irq_vm.irq_line_status(5, 1).masked
    irq_vm.irq_line(9, 1)
    interrupted(cpu, EDGE)
    irq_vm.set_gsi_routing(routing.default_routes())
    irq_vm.irq_line(5, 1)
    interrupted(cpu, LEVEL)


def test_routes_that_cannot_be(irq_vm):
    """Refused here where this KVM's limit is known, else by KVM; the table stays as it was."""
    most = irq_vm.check_extension("KVM_CAP_IRQ_ROUTING")
    before = irq_vm.gsi_routes
    for routes, text in (
        ([MsiRoute(most, 0xFEE0_0000, 0)], f"gsi {most} is not in"),
        ([MsiRoute(0, 0xFEE0_0000, 0)] * (most + 1), f"{most + 1} routes"),
        ([kvmpy.IrqchipRoute(0, "hpet", 0)], "hpet"),
        ([MsiRoute(24, 0x1_0000_0000 | 0xFEE0_0000, 0)], "enable_x2apic_ids"),
    ):
        with pytest.raises(ValueError, match=text):
            irq_vm.set_gsi_routing(routes)
    with pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        irq_vm.set_gsi_routing([kvmpy.IrqchipRoute(0, "ioapic", 99)])
    assert irq_vm.gsi_routes == before


def test_apic_ids_above_255(irq_vm):
    """vCPU 300, made the bootstrap processor: an MSI finds it by its 32-bit id, once the capability
    is enabled; before that it is an error and not a message to vCPU 44."""
    message = MsiMessage(vector=0x71, dest_id=300)
    irq_vm.set_boot_cpu(300)
    cpu = irq_vm.vcpu(300)
    with pytest.raises(ValueError, match="enable_x2apic_ids"):
        irq_vm.signal_msi(message)
    irq_vm.enable_x2apic_ids(broadcast_quirk=False)
    boot(irq_vm, f"{NO_PIC}; {X2APIC}", [0x71, 0x72], cpu=cpu, eoi="x2apic")
    assert irq_vm.signal_msi(message)
    interrupted(cpu, 0x71)
    gsi = irq_vm.add_msi_route(MsiMessage(vector=0x72, dest_id=300))
    irq_vm.irq_line(gsi, 1)
    interrupted(cpu, 0x72)


def test_boot_cpu(irq_vm):
    """The bootstrap processor starts runnable, the others wait for INIT; late, it is refused."""
    irq_vm.set_boot_cpu(1)
    others = [irq_vm.vcpu(0), irq_vm.vcpu(1)]
    assert [cpu.mp_state for cpu in others] == [1, 0]
    with pytest.raises(kvmpy.KvmIoctlError, match="vCPUs already"):
        irq_vm.set_boot_cpu(0)


# ---------------------------------------------------------------- split irqchip


@pytest.mark.parametrize("how", ["line", "irqfd"])
def test_split_irqchip(how, event):
    """LAPICs in KVM, the IOAPIC in user space: the EOI of a level-triggered MSI of one of its pins
    is an exit, that of others is not."""
    with kvmpy.VM("1M", irqchip="split") as vm:
        assert (vm.irqchip, vm.has_irqchip) == ("split", True)
        cpu = boot(vm, XAPIC, [0x71, 0x72])
        vm.set_gsi_routing(
            [
                MsiRoute.of(10, MsiMessage(vector=0x71, trigger="level")),
                MsiRoute.of(30, MsiMessage(vector=0x72)),
            ]
        )
        if how == "irqfd":
            vm.irqfd(event, 10)
            os.eventfd_write(event, 1)
        else:
            assert vm.irq_line_status(10, 1).delivered
        interrupted(cpu, 0x71)
        assert cpu.run(timeout=10) == kvmpy.IoapicEoi(vector=0x71)
        vm.irq_line(30, 1)
        interrupted(cpu, 0x72)
        quiet(cpu)
        with pytest.raises(kvmpy.KvmIoctlError, match="no in-kernel PIC and IOAPIC"):
            vm.get_irqchip("ioapic")


def test_creating_irqchips():
    """Once, before the first vCPU; a split one has no PIT; nonsense is refused."""
    with kvmpy.VM() as vm:
        vm.create_irqchip(split=True, pins=0)
        with pytest.raises(kvmpy.KvmIoctlError):
            vm.create_irqchip()
        with pytest.raises(kvmpy.KvmIoctlError, match="needs the in-kernel irqchip"):
            vm.create_pit()
    with kvmpy.VM() as vm:
        vm.vcpu()
        with pytest.raises(kvmpy.KvmIoctlError, match="irqchip comes first"):
            vm.create_irqchip()
        assert vm.irqchip is None
    with kvmpy.VM() as vm, pytest.raises(kvmpy.KvmIoctlError, match="SPLIT_IRQCHIP"):
        vm.create_irqchip(split=True, pins=1 << 20)
    for options in ({"irqchip": "hpet"}, {"irqchip": "split", "pit": True}):
        with pytest.raises(ValueError, match="irqchip="):
            kvmpy.VM(**options)


# ---------------------------------------------------------------- the PIT

TICKS = "mov al, 0x34; out 0x43, al; mov al, 0x9c; out 0x40, al; mov al, 0x2e; out 0x40, al"


def old_pit(vm, monkeypatch, *missing):
    """KVM as it was before it had these capabilities: it still has what it had then."""
    ask = type(vm).check_extension
    numbers = [kvmpy.capabilities.number(name) for name in missing]
    monkeypatch.setattr(
        type(vm),
        "check_extension",
        lambda self, cap: 0 if kvmpy.capabilities.number(cap) in numbers else ask(self, cap),
    )


@pytest.mark.parametrize("old", [False, True])
def test_pit_ticks(old, monkeypatch):
    """Counter 0 drives GSI 0; its programming shows, through the new ioctls and the old."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        if old:
            old_pit(vm, monkeypatch, "KVM_CAP_PIT2", "KVM_CAP_PIT_STATE2")
        vm.create_pit()
        vm.reinject_pit(False)
        vm.reinject_pit(True)
        cpu = boot(vm, f"{NO_PIC}; {XAPIC}; {redirect(0, 0x40)}; {TICKS}", [0x40])
        for _ in range(5):
            interrupted(cpu, 0x40)
        channel = vm.pit.channels[0]
        assert (channel.count, channel.mode, channel.rw_mode) == (11932, 2, 3)
        assert round(channel.frequency) == 100
        assert "count=11932[100.0 Hz], mode=2[rate generator]" in repr(vm.pit)


@pytest.mark.parametrize("old", [False, True])
def test_pit_state(old, monkeypatch):
    """Written and read back; flags where KVM has them, and never dropped in silence."""
    with kvmpy.VM(pit=True) as vm:
        if old:
            old_pit(vm, monkeypatch, "KVM_CAP_PIT2", "KVM_CAP_PIT_STATE2")
        state = vm.pit
        channel = irqchips.PitChannel(count=1000, mode=3, rw_mode=3, gate=1)
        new = irqchips.PitState((state.channels[0], state.channels[1], channel))
        vm.pit = new
        assert vm.pit.channels[2].count == 1000
        assert vm.pit.channels[2].mode == 3
        with_flags = irqchips.PitState(new.channels, flags=1)
        if old:
            with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_PIT_STATE2"):
                vm.pit = with_flags
            with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_PIT2"):
                vm.create_pit(speaker=False)
        else:
            vm.pit = with_flags
            assert vm.pit.flags == 1
            assert "1[HPET_LEGACY]" in repr(vm.pit)
        with pytest.raises(kvmpy.KvmIoctlError) as info:
            vm.create_pit()
        assert info.value.errno == errno.EEXIST
