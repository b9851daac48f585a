"""The README's Python blocks run, each in an interpreter of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_first_script_prints_what_the_guest_says() -> None:
    result = subprocess.run(
        [sys.executable, "-c", BLOCKS[0]], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.stdout == "the guest says b'A'\nrax = 0x41\n"


def test_every_option_of_boot_is_in_the_readme() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kvmpy", "boot", "--help"],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    options = set(re.findall(r"--[a-z-]+", result.stdout)) - {"--help"}
    missing = {option for option in options if option not in README.read_text()}
    assert not missing
