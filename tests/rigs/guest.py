"""The guest's side of a rig: its /init, and the archive it boots from."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import host
from .cpio import CpioWriter
from .kernel import Kernel

JUNIT = "/run/kvmpy-rig/junit.xml"
_PASSED_ON = ("HYPOTHESIS_PROFILE", "KVMPY_REQUIRE_KVM", "PYTEST_ADDOPTS", "PY_COLORS")
# No cache: it would be thrown away.  No Hypothesis plugin: it imports all of Hypothesis to report
# nothing, seconds of emulated time; @given works without it.
_PYTEST_OPTIONS = "-p no:cacheprovider -p no:hypothesispytest"
_APPLETS = [
    *("cat", "chroot", "dmesg", "env", "gzip", "head", "insmod", "ls", "mkdir", "mount"),
    *("poweroff", "sh", "sleep", "stty", "tail", "timeout", "uname", "wc"),
]

# PID 1 of every rig.  @MOUNT@ and @ENTER@ are the rig's own: prepare its root, run a script in it.
_INIT = """\
#!/bin/sh
# ttyS0: the kernel's console.  ttyS1: the command's output.  ttyS2: its outcome (session.py).
export PATH=/usr/bin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    name=${module##*/??-}
    parameters=
    for word in $(cat /proc/cmdline); do  # "kvm_intel.ept=0" on the kernel command line
        [ "${word%%.*}" = "${name%.ko}" ] && parameters="$parameters ${word#*.}"
    done
    insmod "$module" $parameters
done
@MOUNT@
# Raw: no line ending is rewritten, no byte of the JUnit file is taken for a control character.
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
echo start >/dev/ttyS2
@ENTER@ </dev/null >/dev/ttyS1 2>&1
status=$?
stty -F /dev/ttyS1 raw -echo  # waits until the output is sent
{
    echo "exit $status"
    if [ -s "$junit" ]; then
        gzip -c "$junit" >/junit.gz
        echo "junit $(wc -c </junit.gz)"
        cat /junit.gz
    fi
    echo end
} >/dev/ttyS2
sleep 60  # the host kills the emulator here
poweroff -f
"""

# A root directory fit for Python and pytest, at $root.
MOUNTS = f"""\
mkdir -p $root/dev/shm $root/dev/pts $root/run
mount -t tmpfs shm $root/dev/shm
mount -t devpts devpts $root/dev/pts
mount -t tmpfs run $root/run
mkdir -p $root/run/kvmpy-rig
junit=$root{JUNIT}
"""


@dataclass(frozen=True)
class Job:
    """What a rig is to run.  ``memory`` is in MiB; ``environment`` is added to the guest's.

    ``kernel`` is the Debian package of its kernel; ``kernel_arguments`` go on that one's command
    line, module parameters among them. ``count_instructions``: its clock shows what it has executed
    and not how long that took (svm).
    """

    command: Sequence[str]
    memory: int
    kernel: str
    cpus: int = 1
    junit: bool = False
    verbose: bool = False
    kernel_arguments: str = ""
    count_instructions: bool = False
    extra_files: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def script(self, rig: str, directory: str, environment: Mapping[str, str]) -> str:
        """The shell script that runs the command in ``directory`` of the guest."""
        variables = {
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",  # output comes as it is written
            "COLUMNS": str(shutil.get_terminal_size().columns),
            "KVMPY_RIG": rig,
            "KVMPY_REQUIRE_KVM": "1",  # a rig without /dev/kvm is a failure, not a skip
            **({"PY_COLORS": "1"} if sys.stdout.isatty() else {}),
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            **environment,
            **self.environment,
        }
        options = [_PYTEST_OPTIONS, variables.get("PYTEST_ADDOPTS", "")]
        if self.junit:
            options.append(f"--junitxml={JUNIT}")
        variables["PYTEST_ADDOPTS"] = " ".join(options)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        return "\n".join(
            [*lines, "ulimit -c 0", f"cd {shlex.quote(directory)}", shlex.join(self.command), ""]
        )


def init(*, mount: str, enter: str) -> bytes:
    """The text of /init, from the rig's own steps."""
    return _INIT.replace("@MOUNT@", mount.strip()).replace("@ENTER@", enter.strip()).encode()


def add_base(archive: CpioWriter, kernel: Kernel, busybox: Path) -> None:
    """Put busybox, its applets, the mount points and the kernel's modules into the archive."""
    for directory in ("dev", "proc", "sys", "tmp", "run", "root"):
        archive.directory(directory)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in _APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    for module in kernel.modules:
        archive.file(f"modules/{module.name}", module.read_bytes())


def busybox() -> Path:
    """A static busybox, unpacked from its Debian package into the cache."""

    def build(directory: Path) -> None:
        packages = host.download(["busybox-static"], directory / "deb")
        host.unpack(packages, directory / "tree")
        (found,) = (path for path in directory.glob("tree/**/bin/busybox"))
        found.rename(directory / "busybox")
        shutil.rmtree(directory / "deb")
        shutil.rmtree(directory / "tree")

    return host.cached("busybox", "1", build) / "busybox"
