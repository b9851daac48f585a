"""The I/O APIC by its registers, without a VM: against a model of the data sheet."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import given, settings, strategies as st

import kvmpy
from kvmpy import _native
from kvmpy.interrupts.routing import MsiMessage, MsiRoute

lib, ffi = _native.lib, _native.ffi
PINS = 24
MASKED, LEVEL = 1 << 16, 1 << 15
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40


class Registers:
    """An I/O APIC's registers as a vCPU reaches them."""

    def __init__(self):
        self.ioapic = kvmpy.Ioapic()
        self.vcpu = ffi.new("struct shim_vcpu *")

    def access(self, offset, data, is_write):
        device = self.ioapic._device
        buffer = ffi.new("uint8_t[9]", data + b"\xa5" * (9 - len(data)))
        assert device.access(device, self.vcpu, offset, buffer, len(data), is_write) == -1
        assert bytes(buffer)[len(data) :] == b"\xa5" * (9 - len(data)), "more than its size"
        return bytes(buffer)[: len(data)]

    def write(self, offset, value, size=4):
        self.access(offset, value.to_bytes(size, "little"), True)

    def read(self, offset, size=4):
        return int.from_bytes(self.access(offset, b"\xff" * size, False), "little")

    def set(self, index, value):
        self.write(IOREGSEL, index)
        self.write(IOWIN, value)

    def get(self, index):
        self.write(IOREGSEL, index)
        return self.read(IOWIN)


@pytest.fixture
def registers():
    return Registers()


def test_what_it_is(registers):
    """24 entries, all masked; version 0x20, which has the EOI register; the id's four bits."""
    assert registers.get(1) == 0x0017_0020
    assert [registers.get(0x10 + i) for i in range(2 * PINS)] == [MASKED, 0] * PINS
    registers.set(0, 0xFFFF_FFFF)
    assert registers.get(0) == registers.get(2) == 0x0F00_0000
    registers.set(1, 0)
    registers.set(2, 0)
    assert registers.get(1) == 0x0017_0020
    assert registers.get(2) == 0x0F00_0000
    assert registers.read(IOREGSEL) == 2


def test_what_is_not_there(registers):
    """Registers beyond the table, and offsets between registers: zero, and no effect."""
    before = registers.ioapic.state
    for index in (3, 0x0F, 0x40, 0xFF):
        registers.set(index, 0xFFFF_FFFF)
        assert registers.get(index) == 0
    registers.write(IOREGSEL, 0x10)
    for offset in (0x01, 0x04, 0x11, 0x20, 0x41, 0xFF):
        registers.write(offset, 0)
        assert registers.read(offset) == 0
    assert registers.read(EOI) == 0
    assert registers.ioapic.state.redirtbl == before.redirtbl


def test_entry_as_a_record(registers):
    registers.set(0x10 + 2 * 9, 0x41 | LEVEL | 1 << 11 | 1 << 8)
    registers.set(0x11 + 2 * 9, 0x0300_0000)
    entry = registers.ioapic.state.redirtbl[9]
    assert entry == kvmpy.RedirectionEntry(
        vector=0x41, delivery_mode="lowest-priority", dest_mode="logical", trigger="level",
        dest_id=3,
    )  # fmt: skip
    message = MsiMessage(
        vector=0x41, delivery_mode="lowest-priority", dest_mode="logical", trigger="level",
        dest_id=3,
    )  # fmt: skip
    assert registers.ioapic.routes == (MsiRoute.of(9, message),)


class Model:
    """What the data sheet says, for an I/O APIC whose interrupts no LAPIC takes."""

    def __init__(self):
        self.select = self.id = 0
        self.entries = [MASKED] * PINS

    def write(self, offset, value):
        if offset == IOREGSEL:
            self.select = value & 0xFF
        elif offset == IOWIN and self.select == 0:
            self.id = value >> 24 & 0xF
        elif offset == IOWIN and 0x10 <= self.select < 0x10 + 2 * PINS:
            pin, high = divmod(self.select - 0x10, 2)
            low_half, high_half = self.entries[pin] & 0xFFFF_FFFF, self.entries[pin] >> 32
            if high:
                high_half = value & 0xFF00_0000
            else:
                low_half = value & 0x1_AFFF
            self.entries[pin] = high_half << 32 | low_half

    def read(self, offset):
        if offset == IOREGSEL:
            return self.select
        if offset != IOWIN:
            return 0
        if self.select in (0, 2):
            return self.id << 24
        if self.select == 1:
            return 0x0017_0020
        if not 0x10 <= self.select < 0x10 + 2 * PINS:
            return 0
        pin, high = divmod(self.select - 0x10, 2)
        return self.entries[pin] >> 32 * high & 0xFFFF_FFFF

    @property
    def routes(self):
        for pin, bits in enumerate(self.entries):
            entry = kvmpy.RedirectionEntry.from_bits(bits)
            mode = bits >> 8 & 7
            if not entry.masked and mode in (0, 1, 2, 4, 5):
                level = entry.trigger if mode < 2 else "edge"
                yield MsiRoute.of(pin, MsiMessage(
                    vector=entry.vector, dest_id=entry.dest_id, delivery_mode=entry.delivery_mode,
                    dest_mode=entry.dest_mode, trigger=level,
                ))  # fmt: skip


OFFSETS = st.one_of(st.sampled_from([IOREGSEL, IOWIN, EOI]), st.integers(0, 0xFF))
WRITES = st.tuples(
    st.just("write"), OFFSETS, st.integers(1, 8), st.one_of(st.integers(0, 0x42), st.integers(0))
)
READS = st.tuples(st.just("read"), OFFSETS, st.integers(1, 8), st.just(0))
LINES = st.tuples(st.just("line"), st.integers(0, PINS - 1), st.just(0), st.integers(0, 1))
#: An entry, as a driver would set it.
ENTRIES = st.tuples(
    st.just("set"), st.integers(0x10, 0x10 + 2 * PINS - 1), st.just(4), st.integers(0, 2**32 - 1)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(WRITES, READS, LINES, ENTRIES), max_size=60))
def test_any_accesses(steps):
    """Registers and routes are the model's, whatever the index, offset, width and value."""
    registers, model = Registers(), Model()
    for kind, at, size, value in steps:
        if kind == "line":
            registers.ioapic.set_line(at, bool(value))
        elif kind == "set":
            for offset, word in ((IOREGSEL, at), (IOWIN, value)):
                registers.write(offset, word)
                model.write(offset, word)
        elif kind == "write":
            value %= 1 << 8 * size
            registers.write(at, value, size)
            model.write(at, value & 0xFFFF_FFFF)
        else:
            assert registers.read(at, size) == model.read(at) % (1 << 8 * size)
    state = registers.ioapic.state
    assert (state.ioregsel, state.id) == (model.select, model.id)
    assert [entry.bits for entry in state.redirtbl] == model.entries
    assert registers.ioapic.routes == tuple(model.routes)


def test_wrong_pins(registers):
    ioapic = registers.ioapic
    for pin in (-1, PINS, 1 << 40):
        with pytest.raises(ValueError, match=r"not in 0\.\.23"):
            ioapic.set_line(pin, True)
        with pytest.raises(ValueError, match=r"not in 0\.\.23"):
            ioapic.resample(pin, None)
        for device in (kvmpy.Uart(), kvmpy.Rtc(), kvmpy.PowerManagement()):
            with pytest.raises(ValueError, match=r"not in 0\.\.23"):
                device.connect_ioapic(ioapic, pin)


def test_one_eventfd_for_an_eoi(registers):
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        registers.ioapic.resample(9, event)
        with pytest.raises(kvmpy.KvmpyError, match="has an eventfd"):
            registers.ioapic.resample(9, event)
        registers.set(0x22, 0x41 | LEVEL)
        assert os.eventfd_read(event) == 1
        registers.write(EOI, 0x41)
        assert os.eventfd_read(event) == 1
        registers.ioapic.resample(9, None)
        registers.write(EOI, 0x41)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
    finally:
        os.close(event)


def test_a_uart_drives_its_pin(registers):
    """Up while it has what the guest wants to know, down when it is disconnected; it keeps what it
    drives alive."""
    uart, vcpu = kvmpy.Uart(), registers.vcpu
    uart.connect_ioapic(registers.ioapic, 4)

    def port(offset, value, is_write):
        byte = ffi.new("uint8_t *", value)
        device = ffi.cast("struct shim_device *", uart._device)
        device.access(device, vcpu, offset, byte, 1, is_write)
        return byte[0]

    port(1, 1, True)
    assert registers.ioapic.state.irr == 0
    uart.receive(b"x")
    assert registers.ioapic.state.irr == 1 << 4
    assert port(0, 0, False) == ord("x")
    assert registers.ioapic.state.irr == 0
    uart.receive(b"y")
    uart.disconnect()
    assert registers.ioapic.state.irr == 0
    uart.connect_ioapic(registers.ioapic, 5)
    assert registers.ioapic.state.irr == 1 << 5
    registers.ioapic = None
    gc.collect()
    assert port(0, 0, False) == ord("y")
