"""Each example runs as its reader would run it, and prints what was recorded."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvmpy.host.module import module_name

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def recorded(name: str) -> str:
    """Output on this module where it differs by what the module cannot do, else everywhere's."""
    own = RECORDED / f"{name}.{module_name()}.txt"
    return (own if own.exists() else RECORDED / f"{name}.txt").read_text()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_was_recorded(example: Path) -> None:
    result = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == recorded(example.stem)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
