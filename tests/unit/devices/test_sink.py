"""Where output goes: a sink between a vCPU's thread and those that look at it."""

import sys
import threading

import pytest

from kvmpy import DebugConsole
from kvmpy._native import ffi, lib


@pytest.fixture
def restless():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_two_threads_look_at_output(restless):
    """What they take, and what is left, is all of it, in order (the guest's thread drains, too)."""
    console, count = DebugConsole(), 120_000
    device = ffi.cast("struct shim_device *", console._device)

    def print_all():
        data = ffi.new("uint8_t[1]")
        vcpu = ffi.NULL  # not looked at without a descriptor
        for i in range(count):
            data[0] = i & 0xFF
            if device.access(device, vcpu, 0, data, 1, True) == lib.SHIM_DRAIN:
                console.sink.drain()

    def look():
        while guest.is_alive():
            console.sink.output  # noqa: B018 - it drains

    taken = bytearray()
    guest = threading.Thread(target=print_all)
    threads = [guest, threading.Thread(target=look)]
    for thread in threads:
        thread.start()
    while guest.is_alive():
        taken += console.sink.take()
    for thread in threads:
        thread.join()
    taken += console.sink.take()
    assert taken == bytes(i & 0xFF for i in range(count))
    assert console.sink.dropped == 0
