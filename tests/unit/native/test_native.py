"""The C shim over a scripted KVM (tests/native): no /dev/kvm needed.

`KVMPY_NATIVE_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"` runs it under
sanitizers, `KVMPY_NATIVE_RUNNER="valgrind -q --error-exitcode=9 --leak-check=full"` under valgrind.
"""

import os

import pytest

SCRIPTED = "-Wl,--wrap=ioctl"


@pytest.mark.parametrize(
    "name", ["coalesce", "dirty", "dispatch", "handout", "ioapic", "platform", "replies", "uart"]
)
def test_native(native_program, name):
    """Coalesced writes; dirty ring; run loop, dispatch, kicks, registers, sinks; what is handed to
    who watches; I/O APIC; platform devices; answers to MSRs and hypercalls; 16550."""
    result = native_program(f"{name}_test.c", SCRIPTED)()
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{name}: ok\n"
    assert result.stderr == ""


def test_rtc(native_program):
    """The clock's alarms and ticks, its time of day and its running time in the test's hands."""
    result = native_program("rtc_test.c", "-Wl,--wrap=clock_gettime")()
    assert (result.returncode, result.stdout, result.stderr) == (0, "rtc: ok\n", "")


def test_virtio(native_program):
    """Devices against a driver that does anything at all. KVMPY_VIRTIO_ROUNDS sets how long."""
    rounds = os.environ.get("KVMPY_VIRTIO_ROUNDS", "2000")
    result = native_program("virtio_test.c")(rounds)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "virtio: ok\n"
    assert result.stderr == ""
