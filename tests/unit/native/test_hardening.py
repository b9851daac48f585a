"""Code that parses what a hostile guest writes is built so that a slip ends the process."""

import subprocess

import pytest

from kvmpy import _measure, _native


@pytest.mark.parametrize("module", [_native, _measure])
def test_the_shim_is_hardened(module):
    def readelf(*options):
        return subprocess.run(
            ["readelf", "-W", *options, module.__file__], capture_output=True, text=True, check=True
        ).stdout

    assert "BIND_NOW" in readelf("--dynamic")
    segments = readelf("--segments")
    assert "GNU_RELRO" in segments
    (stack,) = (line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack, "no executable stack"
    assert "__stack_chk_fail" in readelf("--dyn-syms")
