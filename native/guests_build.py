"""Assembles native/guests/*.S into kvmpy/guests: what setup.py calls beside the C shim.

Output is reproducible: no build id, no paths, no time stamps.
"""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "guests"

#: source -> (gcc width, ld emulation, linker script, output)
GUESTS = {
    "demo.S": ("-m64", "elf_x86_64", "demo.ld", "demo.elf"),
    "multiboot.S": ("-m32", "elf_i386", "multiboot.ld", "multiboot.elf"),
    "boot16.S": ("-m32", "elf_i386", "boot16.ld", "boot16.bin"),
    "exits.S": ("-m64", "elf_x86_64", "flat.ld", "exits.bin"),
    "user.S": ("-m64", "elf_x86_64", "flat.ld", "user.bin"),
    "exit-ladder.S": ("-m64", "elf_x86_64", "exports.ld", "exit-ladder.bin"),
    "sched.S": ("-m64", "elf_x86_64", "exports.ld", "sched.bin"),
    "lab-deprivilege.S": ("-m32", "elf_i386", "exports.ld", "lab-deprivilege.bin"),
    "lab-store.S": ("-m64", "elf_x86_64", "exports.ld", "lab-store.bin"),
    "lab-svm.S": ("-m64", "elf_x86_64", "exports.ld", "lab-svm.bin"),
    "lab-vmx.S": ("-m64", "elf_x86_64", "exports.ld", "lab-vmx.bin"),
    "lab-timeline.S": ("-m64", "elf_x86_64", "exports.ld", "lab-timeline.bin"),
    "syscall-long64.S": ("-m64", "elf_x86_64", "exports.ld", "syscall-long64.bin"),
    "syscall-compat32.S": ("-m64", "elf_x86_64", "exports.ld", "syscall-compat32.bin"),
    "syscall-legacy32.S": ("-m32", "elf_i386", "exports.ld", "syscall-legacy32.bin"),
    "lab-long64.S": ("-m64", "elf_x86_64", "exports.ld", "lab-long64.bin"),
    "lab-legacy32.S": ("-m32", "elf_i386", "exports.ld", "lab-legacy32.bin"),
}


def run(*command):
    result = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))} failed:\n{result.stderr}")


def build_all(output):
    """Build every guest into the folder ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    with tempfile.TemporaryDirectory() as scratch:
        for source, (width, emulation, script, name) in GUESTS.items():
            object_file = Path(scratch) / f"{name}.o"
            run(*compiler, "-c", width, source, "-o", object_file)
            run(
                "ld", "-n", "-s", "-static", "--build-id=none", "-z", "noexecstack",
                "-m", emulation, "-T", script, "-o", (output / name).resolve(), object_file,
            )  # fmt: skip
