"""Whole processes: import, boot, and the memory boot needs beside its guest's."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .rows import Row, alternate

_FIRST_SCRIPT = "import kvmpy; kvmpy.VM, kvmpy.LONG_MODE, kvmpy.asm"
_BOOT = (sys.executable, "-m", "kvmpy", "boot", "demo")

# Peak resident memory of a boot less what was resident of the guest's RAM when it was closed, in
# KiB, printed on stderr. Told by the process itself: a child's ru_maxrss starts at its parent's.
_RESIDENT = """
import atexit, re, sys
from kvmpy import _native, memory

def resident(region):
    start = int(_native.ffi.cast("uintptr_t", _native.ffi.from_buffer(region.view)))
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(bound, 16) for bound in bounds.groups())
            inside = start <= low and high <= start + region.size
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total

def close(guest):
    global touched
    touched += sum(map(resident, guest.regions))
    real_close(guest)

def report():
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
    print("resident", int(peak[1]) - touched, file=sys.stderr)

touched, real_close = 0, memory.GuestMemory.close
memory.GuestMemory.close = close
atexit.register(report)
from kvmpy.cli import main
sys.exit(main(["boot", "demo"]))
"""


# As where it is installed: bytecode is cached. The warm-up writes it.
_ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def _run(*command: str) -> str:
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_ENVIRONMENT
    )
    if result.returncode:
        raise RuntimeError(f"{command} gave status {result.returncode}:\n{result.stderr}")
    return result.stderr


def _milliseconds(*command: str) -> float:
    before = time.perf_counter()
    _run(*command)
    return (time.perf_counter() - before) * 1e3


def import_rows(rounds: int) -> list[Row]:
    """A Python that imports kvmpy, against one that imports nothing."""
    samples = alternate(
        {
            "bare": lambda: _milliseconds(sys.executable, "-c", "pass"),
            "import": lambda: _milliseconds(sys.executable, "-c", "import kvmpy"),
            "script": lambda: _milliseconds(sys.executable, "-c", _FIRST_SCRIPT),
        },
        rounds,
        warm_up=1,
    )
    bare = samples["bare"]
    return [
        Row("import kvmpy (bare: Python)", "difference", "ms", 50, samples["import"], bare),
        Row("  and what a script needs", "difference", "ms", 50, samples["script"], bare),
    ]


def boot_rows(rounds: int) -> list[Row]:
    """``python -m kvmpy boot demo``."""
    wall = [_milliseconds(*_BOOT) for _ in range(rounds + 1)][1:]
    peaks = []
    for _ in range(3):
        lines = _run(sys.executable, "-c", _RESIDENT).splitlines()
        peaks.append(int(lines[-1].removeprefix("resident ")) / 1024)
    return [
        Row("python -m kvmpy boot demo", "value", "ms", 250, wall),
        Row("  resident above guest memory", "value", "MiB", 30, peaks),
    ]
