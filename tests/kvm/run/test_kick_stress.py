"""One million kicks at random moments lose no wakeup, in C on the real KVM; nor do pauses, in which
the guest stands still."""

import os

import pytest
from conftest import RIG


@pytest.mark.slow
def test_a_million_kicks(native_program):
    """KVMPY_KICKS says how many others to make do with; an emulated machine gets a few."""
    count = os.environ.get("KVMPY_KICKS") or ("2000" if RIG else "1000000")
    result = native_program("kick_stress.c")(count)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{count} kicks, none lost")


def test_some_kicks(native_program):
    """The same, quick."""
    result = native_program("kick_stress.c")("300" if RIG else "5000", "7")
    assert result.returncode == 0, result.stderr


def test_pauses_between_kicks(native_program):
    """Five before each kick: acknowledged, and the guest's counter does not move in one."""
    result = native_program("kick_stress.c")("50" if RIG else "3000", "11", "5")
    assert result.returncode == 0, result.stderr
