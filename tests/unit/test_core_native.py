"""The C shim over a scripted KVM (tests/native): no /dev/kvm needed.

`KVMPY_NATIVE_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all"` runs it under
sanitizers, `KVMPY_NATIVE_RUNNER="valgrind -q --error-exitcode=9 --leak-check=full"` under valgrind.
"""

import pytest

SCRIPTED = "-Wl,--wrap=ioctl"


@pytest.mark.parametrize("name", ["dispatch", "uart"])
def test_native(native_program, name):
    """Run loop, dispatch, kicks, registers, sinks; the 16550."""
    result = native_program(f"{name}_test.c", SCRIPTED)()
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{name}: ok\n"
    assert result.stderr == ""
