"""i8042, ACPI PM1a, reset control, pvpanic and RTC, by their registers and without a guest."""

from __future__ import annotations

import datetime
import os
import select
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

import kvmpy
from kvmpy import _native
from kvmpy.exits import reasons as exits
from kvmpy.run.loop import _SYSTEM_EXITS

lib, ffi = _native.lib, _native.ffi
CONTINUE = -1
UTC = datetime.UTC


class Port:
    """A device's registers as a vCPU reaches them."""

    def __init__(self, face):
        self.face = face
        self.device = face._device
        self.vcpu = ffi.new("struct shim_vcpu *")

    def access(self, offset, data, is_write):
        """The bytes read, or the exit that ended the run, or None."""
        buffer = ffi.new("uint8_t[8]", data + bytes(8 - len(data)))
        stop = self.device.access(self.device, self.vcpu, offset, buffer, len(data), is_write)
        assert bytes(buffer)[len(data) :] == bytes(8 - len(data)), "more than its size"
        if stop == lib.SHIM_SYSTEM:
            return _SYSTEM_EXITS[self.vcpu.report.value]
        assert stop == CONTINUE
        return None if is_write else bytes(buffer)[: len(data)]

    def out(self, value, offset=0, size=1):
        return self.access(offset, value.to_bytes(size, "little"), True)

    def in_(self, offset=0, size=1):
        return int.from_bytes(self.access(offset, b"\xff" * size, False), "little")


def test_each_system_event_has_its_exit():
    """No event of the shim is without a class, and the classes are exported."""
    assert {
        lib.SHIM_RESET_I8042: kvmpy.Reset("i8042"),
        lib.SHIM_RESET_CONTROL: kvmpy.Reset("reset-control"),
        lib.SHIM_POWER_OFF_ACPI: kvmpy.PowerOff("acpi"),
        lib.SHIM_PANICKED: kvmpy.GuestPanic("pvpanic"),
        lib.SHIM_CRASH_LOADED: kvmpy.GuestCrashLoaded("pvpanic"),
    } == _SYSTEM_EXITS
    resumable = {type(exit): exit.resumable for exit in _SYSTEM_EXITS.values()}
    assert [kind for kind, value in resumable.items() if value] == [exits.GuestCrashLoaded]


# ---- i8042


@pytest.fixture
def i8042():
    return kvmpy.I8042()


def test_i8042_probe(i8042):
    """What a kernel's driver asks, and no question without an answer."""
    data, command = Port(i8042.data), Port(i8042.command)
    assert command.in_() & 0x03 == 0  # nothing to read, ready for a command
    for question, expected in ((0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x01), (0xC0, 0x80), (0xE0, 0)):
        assert command.out(question) is None
        assert command.in_() & 0x03 == 0x01
        assert data.in_() == expected
        assert command.in_() & 0x01 == 0
    command.out(0x60)
    data.out(0x41)  # the command byte
    command.out(0x20)
    assert data.in_() == 0x41
    command.out(0xAD)
    command.out(0xA7)
    command.out(0x20)
    assert data.in_() == 0x71
    command.out(0xAE)
    command.out(0xA8)
    command.out(0x20)
    assert data.in_() == 0x41


def test_i8042_has_no_mouse(i8042):
    """Linux's check: the loop-back byte does not come marked as the mouse's; the test fails."""
    data, command = Port(i8042.data), Port(i8042.command)
    command.out(0xD3)
    data.out(0x5A)
    assert command.in_() & 0x21 == 0x01
    assert data.in_() == 0x5A
    command.out(0xD4)
    data.out(0xF2)
    assert command.in_() & 0x01 == 0


def test_i8042_has_no_keyboard(i8042):
    """A byte for it times out at once: nobody waits."""
    data, command = Port(i8042.data), Port(i8042.command)
    data.out(0xED)
    assert command.in_() & 0x41 == 0x41
    assert data.in_() == 0xFE
    assert command.in_() & 0x41 == 0


@pytest.mark.parametrize("command", range(0xF0, 0x100, 2))
def test_i8042_pulses_the_reset_line(i8042, command):
    """Bit 0 clear pulses line 0 of the output port, which is the processor's reset."""
    assert Port(i8042.command).out(command) == exits.Reset("i8042")
    assert Port(i8042.command).out(command | 1) is None


def test_i8042_output_port(i8042):
    data, command = Port(i8042.data), Port(i8042.command)
    command.out(0xD1)
    assert data.out(0xDF) is None  # A20 on: every kernel does it once
    command.out(0xD0)
    assert data.in_() == 0xDF
    command.out(0xD1)
    assert data.out(0xDE) == exits.Reset("i8042")


# ---- ACPI


@pytest.fixture
def pm():
    return kvmpy.PowerManagement()


@pytest.mark.parametrize("size", [1, 2])
def test_power_off(pm, size):
    """SLP_TYP 5 with SLP_EN, as one byte or with the rest of the register."""
    port = Port(pm)
    value = 5 << 10 | 1 << 13
    assert port.out(value & ~(1 << 13), 4, 2) is None  # ACPICA sets the type first
    assert port.in_(4, 2) == 5 << 10 | 1
    stop = port.out(value, 4, 2) if size == 2 else port.out(value >> 8, 5)
    assert stop == exits.PowerOff("acpi")


def test_other_sleep_states_are_not_offered(pm):
    port = Port(pm)
    for sleep_type in (0, 1, 2, 3, 4, 6, 7):
        assert port.out(sleep_type << 10 | 1 << 13, 4, 2) is None
        assert port.in_(4, 2) == sleep_type << 10 | 1  # SLP_EN reads zero, SCI_EN one


def test_power_button(pm):
    """Status, enable, and write-one-to-clear."""
    port = Port(pm)
    assert port.in_(0, 4) == 0
    assert pm.press_power_button() is False
    port.out(0xFFFF, 2, 2)
    assert port.in_(2, 2) == 0x0521  # the events there are; ACPICA reads back what it enables
    assert pm.press_power_button() is True
    assert port.in_(0, 2) == 0x0100
    port.out(0, 0, 2)
    assert port.in_(0, 2) == 0x0100
    port.out(0x0100, 0, 2)
    assert port.in_(0, 2) == 0


def test_reset_control():
    port = Port(kvmpy.ResetControl())
    assert port.out(0x02) is None
    assert port.in_() == 0x02
    assert port.out(0x06) == exits.Reset("reset-control")


def test_pvpanic():
    port = Port(kvmpy.PvPanic())
    assert port.in_() == 0x03
    assert port.out(0x01) == exits.GuestPanic("pvpanic")
    assert port.out(0x02) == exits.GuestCrashLoaded("pvpanic")
    assert port.out(0x03) == exits.GuestPanic("pvpanic")
    assert port.out(0xFC) is None


# ---- RTC


class Clock(Port):
    def __init__(self, **options):
        super().__init__(kvmpy.Rtc(**options))

    def get(self, index):
        self.out(index)
        return self.in_(1)

    def set(self, index, value):
        self.out(index)
        assert self.out(value, 1) is None

    def time(self):
        """As Linux reads it: not within an update."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self.get(0x0A) & 0x80:
                continue
            fields = [self.get(index) for index in (0x32, 9, 8, 7, 4, 2, 0)]
            if self.get(0x0A) & 0x80:
                continue
            if not self.get(0x0B) & 4:
                fields = [(field >> 4) * 10 + (field & 15) for field in fields]
            century, year, *rest = fields
            return datetime.datetime(century * 100 + year, *rest, tzinfo=UTC)
        raise AssertionError("an update has no end")


def test_rtc_shows_the_hosts_time():
    clock = Clock()
    before = datetime.datetime.now(UTC).replace(microsecond=0)
    shown = clock.time()
    assert before <= shown <= datetime.datetime.now(UTC)
    assert clock.get(6) == shown.isoweekday() % 7 + 1 or clock.time().date() != shown.date()
    assert clock.get(0x0D) == 0x80
    assert clock.get(0x0B) == 0x02


def test_rtc_index():
    """Bit 7 masks the NMI, the rest is the index; one 16-bit OUT sets index and data."""
    clock = Clock()
    clock.out(0x80 | 0x70)
    assert clock.in_() == 0x70
    clock.out(0x5A71, 0, 2)
    assert clock.get(0x71) == 0x5A


def test_rtc_memory():
    clock = Clock(low_memory=3 << 30, high_memory=5 << 30)
    word = lambda index: clock.get(index) | clock.get(index + 1) << 8  # noqa: E731
    assert word(0x15) == 640
    assert word(0x17) == word(0x30) == 0xFFFF
    assert word(0x34) << 16 == (3 << 30) - (16 << 20)
    assert word(0x5B) | clock.get(0x5D) << 16 == (5 << 30) >> 16
    small = Clock(low_memory=1 << 20)
    assert [small.get(index) for index in (0x17, 0x18, 0x34, 0x35, 0x5B)] == [0] * 5


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("hours24", [False, True])
@pytest.mark.parametrize("hour", [0, 1, 11, 12, 13, 23])
def test_rtc_formats(binary, hours24, hour):
    """BCD and binary, 12 and 24 hours: what is set reads back, in every format."""
    clock = Clock()

    def encode(value):
        return value if binary else value // 10 << 4 | value % 10

    mode = binary << 2 | hours24 << 1
    clock.set(0x0B, 0x80 | mode)
    written = encode(hour) if hours24 else encode(hour % 12 or 12) | (hour >= 12) << 7
    values = {0: encode(10), 2: encode(59), 4: written, 7: encode(29), 8: encode(2)}
    values |= {9: encode(24), 0x32: encode(20)}
    for index, value in values.items():
        clock.set(index, value)
    assert {index: clock.get(index) for index in values} == values  # held still
    clock.set(0x0B, mode)
    assert clock.get(4) == written
    clock.set(0x0B, 0x02)
    shown = clock.time()
    assert 0 <= (shown - datetime.datetime(2024, 2, 29, hour, 59, 10, tzinfo=UTC)).seconds <= 30
    expected = shown.timestamp() - datetime.datetime.now(UTC).timestamp()
    assert abs(clock.face.offset - expected) <= 2


def test_rtc_set_without_holding():
    """A register written while the clock runs takes effect at once."""
    clock = Clock()
    clock.set(9, 0x38)
    assert clock.time().year == 2038
    assert clock.face.offset > 0


def interrupt(clock, setup: Callable[[], None]) -> int:
    """The flags in register C at the interrupt that `setup` brings about."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        clock.face.connect_eventfd(eventfd)
        setup()
        assert select.select([eventfd], [], [], 30)[0], "no interrupt"
        return clock.get(0x0C)
    finally:
        clock.face.disconnect()
        os.close(eventfd)


def test_rtc_periodic_interrupt():
    clock = Clock()
    assert interrupt(clock, lambda: clock.set(0x0B, 0x42)) & 0xC0 == 0xC0
    # Read is cleared; on a busy host the next one may be there already.
    assert any(clock.get(0x0C) & 0x80 == 0 for _ in range(1000))


def test_rtc_update_interrupt():
    clock = Clock()
    assert interrupt(clock, lambda: clock.set(0x0B, 0x12)) & 0x90 == 0x90


def test_rtc_alarm():
    """The first second that matches; bytes from 0xC0 on match everything."""
    clock = Clock()

    def setup():
        for index in (1, 3, 5):
            clock.set(index, 0xFF)
        clock.get(0x0C)
        clock.set(0x0B, 0x22)

    assert interrupt(clock, setup) & 0xA0 == 0xA0


def test_rtc_alarm_that_is_not_due():
    """Flags without their enable, and an alarm for an hour that does not exist, are silent."""
    clock = Clock()
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        clock.face.connect_eventfd(eventfd)
        clock.set(5, 0x99)
        clock.set(0x0B, 0x22)
        end = time.monotonic() + 20
        while not clock.get(0x0C) & 0x10:  # until a second has passed
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not select.select([eventfd], [], [], 0)[0]
    finally:
        clock.face.disconnect()
        os.close(eventfd)


def test_rtc_connect_again_and_again():
    """Each connection ends the thread of the one before."""
    clock = Clock()
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        clock.face.connect_eventfd(-1)
    clock.face.disconnect()
    clock.face.disconnect()
    end = time.monotonic() + 20
    while len(os.listdir("/proc/self/task")) > threads:  # one that has ended is listed for a while
        assert time.monotonic() < end
        time.sleep(0.001)


def test_rtc_in_a_forked_child():
    """Its thread stayed behind: letting go of the clock must not wait for it."""
    clock = Clock()
    clock.face.connect_eventfd(-1)
    child = os.fork()
    if child == 0:
        clock.face.disconnect()
        clock.face = clock.device = None
        os._exit(7)
    end = time.monotonic() + 20
    while (waited := os.waitpid(child, os.WNOHANG)) == (0, 0):
        assert time.monotonic() < end, "the child hangs"
        time.sleep(0.01)
    clock.face.disconnect()
    assert os.waitstatus_to_exitcode(waited[1]) == 7


# ---- hostile guests

ACCESS = st.tuples(st.integers(0, 7), st.binary(min_size=1, max_size=8), st.booleans())


@settings(deadline=None)
@given(st.integers(0, 5), st.lists(ACCESS, max_size=60))
def test_anything_goes(which, accesses):
    """Whatever a guest does: an answer, or one of the exits; never a byte beyond the access."""
    i8042 = kvmpy.I8042()
    faces = (
        i8042.data, i8042.command, kvmpy.PowerManagement(), kvmpy.ResetControl(), kvmpy.PvPanic(),
        kvmpy.Rtc(),
    )  # fmt: skip
    port = Port(faces[which])
    for offset, data, is_write in accesses:
        result = port.access(offset % faces[which].length, data, is_write)
        if isinstance(result, bytes):
            assert len(result) == len(data)
        else:
            assert result is None or isinstance(result, exits.Exit)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0x7F), st.integers(0, 0xFF)), max_size=60))
def test_any_date(writes):
    """No date that a guest sets is too odd, with the interrupt thread looking on."""
    clock = Clock()
    clock.face.connect_eventfd(-1)
    for index, value in writes:
        clock.set(index, value)
    assert all(0 <= clock.get(index) <= 0xFF for index in range(0x80))
    clock.face.disconnect()
