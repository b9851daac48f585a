"""The wheel: what is in it, and that it serves every CPython from 3.11 on."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources alone, so that nothing built in place can slip in."""
    source = tmp_path_factory.mktemp("source") / "kvmpy"
    built = shutil.ignore_patterns(
        "*.so", "*.elf", "*.bin", "__pycache__", "_native.c", "_measure.c"
    )
    source.mkdir()
    for folder in ("kvmpy", "native", "examples"):
        shutil.copytree(ROOT / folder, source / folder, ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    output = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps",
         "-w", output, source],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    (path,) = output.glob("*.whl")
    return path


def test_wheel_is_for_the_stable_abi_of_3_11(wheel: Path) -> None:
    assert wheel.name.endswith("-cp311-abi3-linux_x86_64.whl")


def test_wheel_holds_the_shim_the_guests_and_the_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "kvmpy/_measure.abi3.so",
        "kvmpy/_native.abi3.so",
        "kvmpy/guests/demo.elf",
        "kvmpy/guests/multiboot.elf",
        "kvmpy/guests/boot16.bin",
        "kvmpy/py.typed",
        "kvmpy/_native.pyi",
    } <= names
    # Every module of the package is listed in pyproject.toml's packages, or it would be missing.
    sources = {
        str(path.relative_to(ROOT)) for path in (ROOT / "kvmpy").rglob("*.py")
        if "__pycache__" not in path.parts
    }  # fmt: skip
    assert sources <= names
    assert not [name for name in names if name.startswith(("native/", "tests/"))]


def _newer_python() -> str | None:
    """A CPython above this one that can make a virtual environment."""
    for minor in range(14, sys.version_info.minor, -1):
        found = shutil.which(f"python3.{minor}")
        probe = [found, "-c", "import venv, ensurepip"]
        if found and subprocess.run(probe, capture_output=True, timeout=60).returncode == 0:
            return found
    return None


def test_wheel_imports_on_a_newer_cpython(wheel: Path, tmp_path: Path) -> None:
    python = _newer_python()
    if python is None:
        pytest.skip("no CPython newer than this one is on PATH")
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", venv], check=True, timeout=300)
    python = venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True, timeout=300)
    code = "import kvmpy; print(kvmpy.GuestMemory('1M').size, len(kvmpy.guests.names()))"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "1048576 5\n"
