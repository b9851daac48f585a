"""Interrupt controllers, routes, messages and Xen attributes as values: there and back."""

import pytest
from hypothesis import given, strategies as st

import kvmpy
from kvmpy import _native
from kvmpy.fd import number_of
from kvmpy.interrupts import irqchips, routing
from kvmpy.memory import encryption
from kvmpy.paravirt import xen, xen_calls
from kvmpy.record import differences

ffi, lib = _native.ffi, _native.lib
U8, U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))


def there_and_back(record):
    assert type(record).from_c(record.to_c()) == record
    assert type(record).from_json(record.to_json()) == record
    assert list(differences(record, record)) == []
    assert repr(record)


# ---------------------------------------------------------------- chips


@given(U64)
def test_redirection_entry_loses_nothing(bits):
    """Any 64 bits, through the fields and through JSON."""
    entry = kvmpy.RedirectionEntry.from_bits(bits)
    assert entry.bits == bits
    assert kvmpy.RedirectionEntry.from_json(entry.to_json()) == entry
    assert repr(entry)


def test_redirection_entry_fields():
    """Where the 82093AA has them."""
    for field, value, bits in (
        ("vector", 0xAB, 0xAB), ("delivery_mode", "lowest-priority", 1 << 8),
        ("delivery_mode", "nmi", 4 << 8), ("delivery_mode", "extint", 7 << 8),
        ("dest_mode", "logical", 1 << 11), ("delivery_pending", True, 1 << 12),
        ("polarity", "low", 1 << 13), ("remote_irr", True, 1 << 14), ("trigger", "level", 1 << 15),
        ("masked", True, 1 << 16), ("dest_id", 0x12, 0x12 << 56),
    ):  # fmt: skip
        assert kvmpy.RedirectionEntry(**{field: value}).bits == bits
    for field, value in (
        ("vector", 256), ("vector", -1), ("dest_id", 256), ("reserved", 1 << 39),
        ("delivery_mode", "fast"), ("dest_mode", ""), ("polarity", "up"), ("trigger", "both"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            _ = kvmpy.RedirectionEntry(**{field: value}).bits


@given(st.lists(U64, min_size=24, max_size=24), U64, U32, U32, U32)
def test_ioapic(entries, base, select, id, irr):
    """Through C and JSON."""
    table = tuple(map(kvmpy.RedirectionEntry.from_bits, entries))
    state = kvmpy.IoapicState(base, select, id, irr, table)
    there_and_back(state)
    structure = state.to_c()  # owns what redirtbl points to
    assert [entry.bits for entry in structure.redirtbl] == entries


def test_ioapic_repr_shows_what_is_used():
    """Pins that lead somewhere; the rest as a number."""
    state = kvmpy.IoapicState(irr=2).with_entry(4, kvmpy.RedirectionEntry(vector=0x31))
    assert "irr=0x2[pin1]" in repr(state)
    assert "{4: <vector 0x31 to APIC 0x0: fixed, physical, active high, edge>}" in repr(state)
    assert "23 masked" in repr(state)
    with pytest.raises(ValueError, match="pin 24"):
        state.with_entry(24, state.redirtbl[0])
    with pytest.raises(ValueError, match="redirtbl has 1 elements, not 24"):
        kvmpy.IoapicState(redirtbl=state.redirtbl[:1]).to_c()


@given(st.lists(U8, min_size=16, max_size=16))
def test_pic(values):
    """Through C and JSON."""
    there_and_back(kvmpy.PicState(*values))


CHANNEL = st.builds(
    irqchips.PitChannel, U32, U16, *[U8] * 10, st.integers(-(1 << 63), (1 << 63) - 1)
)


@given(st.tuples(CHANNEL, CHANNEL, CHANNEL), U32)
def test_pit(channels, flags):
    """Through C and JSON."""
    there_and_back(kvmpy.PitState(channels, flags))


def test_str_fields_from_json():
    """A number where a name belongs is refused."""
    data = kvmpy.RedirectionEntry().to_json()
    with pytest.raises(ValueError, match="not a string"):
        kvmpy.RedirectionEntry.from_json({**data, "trigger": 1})


# ---------------------------------------------------------------- messages and routes

MODES = st.sampled_from(irqchips.DELIVERY_MODES)


@given(
    st.builds(
        kvmpy.MsiMessage, vector=U8, dest_id=U32, delivery_mode=MODES,
        dest_mode=st.sampled_from(irqchips.DEST_MODES), redirection_hint=st.booleans(),
        trigger=st.just("edge"),
    )
    | st.builds(
        kvmpy.MsiMessage, vector=U8, trigger=st.just("level"), assert_level=st.booleans()
    )
)  # fmt: skip
def test_message(message):
    """Address and data, decoded, are the message; the address is an MSI's."""
    assert kvmpy.MsiMessage.decode(message.address, message.data) == message
    assert message.address & 0xFFF0_0000 == 0xFEE0_0000
    assert kvmpy.MsiRoute.of(24, message).message == message


def test_message_bits():
    """SDM vol. 3, "Message Address Register Format" and "Message Data Register Format"."""
    message = kvmpy.MsiMessage(
        vector=0x41, dest_id=0x0102_0304, delivery_mode="nmi", dest_mode="logical",
        trigger="level", redirection_hint=True,
    )  # fmt: skip
    assert message.address == 0x0102_0300_FEE0_400C
    assert message.data == 0xC441


@pytest.mark.parametrize(
    "fields",
    [
        {"vector": 256}, {"vector": -1}, {"vector": 1, "dest_id": 1 << 32},
        {"vector": 1, "delivery_mode": "x"}, {"vector": 1, "dest_mode": "x"},
        {"vector": 1, "trigger": "x"},
    ],
)  # fmt: skip
def test_messages_that_cannot_be(fields):
    """Refused when they are made."""
    with pytest.raises(ValueError, match=r"vector|delivery_mode|dest_mode|trigger"):
        kvmpy.MsiMessage(**fields)


@pytest.mark.parametrize("address", [0, 0xFED0_0000, 0x1_FEE0_0000, 1 << 64 | 0xFEE0_0000])
def test_addresses_that_are_no_msis(address):
    """RAM, other devices, bits 39:32."""
    with pytest.raises(ValueError, match="not the address"):
        kvmpy.MsiMessage.decode(address, 0)


def test_table():
    """Every kind of route, as KVM reads it."""
    routes = (
        kvmpy.IrqchipRoute(3, "pic-slave", 5),
        kvmpy.MsiRoute(24, 0x1234_5600_FEE0_1000, 0x41),
        kvmpy.MsiRoute(25, 0xFEE0_0000, 0x42, devid=7),
        kvmpy.HvSintRoute(26, vcpu=1, sint=2),
        kvmpy.XenEventRoute(27, port=3, vcpu=4),
    )
    structure, entries = routing._table(iter(routes), 4096)
    assert entries == routes
    pic, msi, with_id, sint, event = structure.entries
    assert structure.nr == 5
    assert [e.gsi for e in structure.entries] == [3, 24, 25, 26, 27]
    assert [e.type for e in structure.entries] == [1, 2, 2, 4, 5]
    assert (pic.u.irqchip.irqchip, pic.u.irqchip.pin) == (lib.KVM_IRQCHIP_PIC_SLAVE, 5)
    assert (msi.u.msi.address_lo, msi.u.msi.address_hi) == (0xFEE0_1000, 0x1234_5600)
    assert (msi.u.msi.data, msi.flags) == (0x41, 0)
    assert (with_id.flags, with_id.u.msi.devid) == (lib.KVM_MSI_VALID_DEVID, 7)
    assert (sint.u.hv_sint.vcpu, sint.u.hv_sint.sint) == (1, 2)
    assert (event.u.xen_evtchn.port, event.u.xen_evtchn.vcpu) == (3, 4)
    assert event.u.xen_evtchn.priority == 0xFFFF_FFFF


def test_default_routes():
    """What KVM makes of a new irqchip: both PICs and the IOAPIC, pin by pin."""
    routes = routing.default_routes()
    assert {r.gsi for r in routes if r.irqchip == "ioapic"} == set(range(24))
    assert all(r.pin == r.gsi for r in routes if r.irqchip == "ioapic")
    assert [(r.gsi, r.irqchip, r.pin) for r in routes if r.gsi in (7, 8)][:2] == [
        (7, "pic-master", 7), (8, "pic-slave", 0),
    ]  # fmt: skip


@given(st.integers(-10, 10))
def test_status(value):
    """Exactly one of the three."""
    status = kvmpy.IrqStatus(value)
    assert status == value
    assert [status.delivered, status.coalesced, status.masked].count(True) == 1
    assert str(value) in repr(status)


def test_descriptors(tmp_path):
    """A number, or what has one."""
    with open(tmp_path / "f", "w") as file:
        assert number_of(file) == file.fileno()
    assert number_of(5) == 5


# ---------------------------------------------------------------- Xen

VM_ATTRIBUTES = (
    xen.LongMode(1), xen.SharedInfo(0x1234_5678_9ABC), xen.UpcallVector(0x93),
    xen.Version(4 << 16 | 17), xen.RunstateUpdateFlag(1),
)  # fmt: skip
VCPU_ATTRIBUTES = (
    xen.VcpuInfo(0x3000), xen.VcpuTimeInfo(xen.INVALID), xen.RunstateAddress(0x4000),
    xen.RunstateCurrent(2), xen.RunstateData(1, 2, 3, 4, 5, 6), xen.RunstateAdjust(0, 2, 3, 4, 5),
    xen.VcpuId(7), xen.Timer(3, 0xFFFF_FFFF, 1 << 40), xen.VcpuUpcallVector(0x94),
)  # fmt: skip


class Recorder:
    """An ioctl that keeps what it was given."""

    def __init__(self):
        self.got = None

    def __call__(self, fd, structure, detail=""):
        if self.got is not None and bytes(ffi.buffer(structure)[:2]) == self.got[:2]:
            ffi.memmove(structure, self.got, len(self.got))  # a get of what was set
        self.got = bytes(ffi.buffer(structure))
        return 0


class FakeVm:
    def fileno(self):
        return 0

    def check_extension(self, capability):
        return 0xFF


class FakeVcpu:
    vm = FakeVm()

    def _settle(self, fields):
        return 0


@pytest.mark.parametrize("value", VM_ATTRIBUTES + VCPU_ATTRIBUTES, ids=lambda v: type(v).__name__)
def test_xen_attributes(monkeypatch, value):
    """What is set is what is got."""
    vcpu = isinstance(value, xen.VcpuAttribute)
    kind = "VCPU" if vcpu else "HVM"
    host = xen_calls.VcpuXen(FakeVcpu()) if vcpu else xen_calls.VmXen(FakeVm())
    recorder = Recorder()
    for name in (f"KVM_XEN_{kind}_SET_ATTR", f"KVM_XEN_{kind}_GET_ATTR"):
        monkeypatch.setattr(xen_calls.ioctls, name, recorder)
    host.set(value)
    assert int.from_bytes(recorder.got[:2], "little") == type(value).number
    assert host.get(type(value)) == value


def test_xen_event_channels():
    """Delivered to a port or to an eventfd; the kernel does not tell them back."""
    structure = ffi.new("struct kvm_xen_hvm_attr *")
    xen.EventChannel(5, port=6, vcpu=1)._fill(structure)
    channel = structure.u.evtchn
    assert (structure.type, channel.send_port, channel.type) == (3, 5, 2)
    assert (channel.deliver.port.port, channel.deliver.port.vcpu) == (6, 1)
    xen.EventChannel(5, type=xen.IPI, eventfd=9, flags=2)._fill(structure)
    assert (channel.type, channel.flags) == (5, 2)
    assert (channel.deliver.eventfd.port, channel.deliver.eventfd.fd) == (0, 9)
    with pytest.raises(TypeError, match="only be set"):
        xen.EventChannel._of(structure)


def test_xen_adjustment_adds_up():
    """KVM refuses one whose entry time is not the sum of the others, which may wrap."""
    structure = ffi.new("struct kvm_xen_vcpu_attr *")
    xen.RunstateAdjust(time_running=9, time_blocked=(1 << 64) - 4)._fill(structure)
    assert structure.u.runstate.state_entry_time == 5
    assert structure.u.runstate.state == xen.INVALID


def test_xen_configuration(monkeypatch):
    """The page by KVM itself, or blobs of whole pages; an event."""
    recorder = Recorder()
    for name in ("KVM_XEN_HVM_CONFIG", "KVM_XEN_HVM_EVTCHN_SEND"):
        monkeypatch.setattr(xen_calls.ioctls, name, recorder)
    xen_calls.VmXen(FakeVm()).configure(0x4000_0000)
    config = ffi.from_buffer("struct kvm_xen_hvm_config *", recorder.got)
    assert (config.msr, config.flags) == (0x4000_0000, lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL)
    assert (config.blob_size_32, config.blob_addr_32) == (0, 0)
    recorder.got = None
    xen_calls.VmXen(FakeVm()).configure(0x4000_0000, flags=0, blob_64=bytes(8192))
    config = ffi.from_buffer("struct kvm_xen_hvm_config *", recorder.got)
    assert (config.blob_size_32, config.blob_size_64) == (0, 2)
    assert config.blob_addr_64
    for blob in (bytes(100), bytes(256 * 4096)):
        with pytest.raises(ValueError, match="32-bit blob"):
            xen_calls.VmXen(FakeVm()).configure(0x4000_0000, flags=0, blob_32=blob)
    recorder.got = None
    xen_calls.VmXen(FakeVm()).send_event(3, 1)
    assert recorder.got == bytes.fromhex("03000000 01000000 ffffffff")


# ---------------------------------------------------------------- SEV


def test_sev_commands(monkeypatch):
    """The command's structure by address; the firmware's error in the exception."""
    seen = []

    class Firmware:
        name = "KVM_MEMORY_ENCRYPT_OP"

        def raw(self, fd, request):
            seen.append((request.id, request.sev_fd, request.data))
            request.error = 0x16
            return -5 if request.id == encryption.SevCommand.LAUNCH_START else 0

    monkeypatch.setattr(encryption.ioctls, "KVM_MEMORY_ENCRYPT_OP", Firmware())
    data = bytearray(16)
    encryption.VmSev(FakeVm()).op(encryption.SevCommand.GUEST_STATUS, data)
    assert seen[0][:2] == (encryption.SevCommand.GUEST_STATUS, 0xFFFF_FFFF)
    assert seen[0][2] == int(ffi.cast("uintptr_t", ffi.from_buffer(data)))
    with pytest.raises(kvmpy.KvmIoctlError, match="firmware error 0x16"):
        encryption.VmSev(FakeVm()).op(encryption.SevCommand.LAUNCH_START, sev_fd=7)
    assert seen[1][1] == 7
    with pytest.raises((TypeError, BufferError, ValueError)):
        encryption.VmSev(FakeVm()).op(0, b"read only")
