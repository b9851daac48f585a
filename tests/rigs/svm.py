"""kvm_amd: SVM and nested paging, emulated by QEMU's TCG.

The command runs as root in the host's own root directory, which the guest sees read-only through
virtio-9p with a tmpfs laid over it: what it writes is gone at the end.  So the checkout is where it
is on the host, and the virtual environment in it works.  Time is emulated: figures taken in there
are not performance.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from . import guest, host, kernel, qemufix
from .cpio import CpioWriter
from .session import Ports, Session

PACKAGES = {"qemu-system-x86_64": "qemu-system-x86"}
KERNEL = "linux-image-amd64"  # the cloud kernel has no 9p
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "tun", "bridge", "kvm_amd")
MEMORY = 2048  # MiB
TIMEOUT = 3600.0  # seconds

_MOUNT = f"""
mkdir -p /lower /upper /new
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /lower
mount -t tmpfs upper /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs devtmpfs /new/dev
root=/new
{guest.MOUNTS}
cat /command.sh >/new/run/kvmpy-rig/command.sh
"""
_ENTER = "chroot /new /bin/sh /run/kvmpy-rig/command.sh"


def run(job: guest.Job, session: Session, work: Path) -> int:
    """Run the job; returns the exit status for the rig."""
    host.need(PACKAGES)
    image = kernel.fetch(job.kernel, MODULES)
    initrd = work / "initrd.cpio"
    with open(initrd, "wb") as stream, CpioWriter(stream) as archive:
        guest.add_base(archive, image, guest.busybox())
        archive.file("init", guest.init(mount=_MOUNT, enter=_ENTER), 0o755)
        archive.file("command.sh", _script(job).encode())

    _compile()
    qemu = qemufix.corrected("qemu-system-x86_64")

    def command(ports: Ports) -> list[str]:
        return [str(qemu), *_options(job, ports, image.elf, initrd)]

    # Like -L below: a copy of QEMU in the cache looks for its modules beside itself.
    environment = {**os.environ, "QEMU_MODULE_DIR": "/usr/lib/x86_64-linux-gnu/qemu"}
    return session.run(command, work / "qemu.log", environment)


def _compile() -> None:
    """The checkout, which the guest has read-only: what many processes import is not to be compiled
    by each of them, on an emulated CPU."""
    python = host.CHECKOUT / ".venv" / "bin" / "python"
    folders = [str(host.CHECKOUT / name) for name in ("kvmpy", "tests")]
    subprocess.run([str(python), "-m", "compileall", "-q", *folders], check=False)


def _script(job: guest.Job) -> str:
    """The host's own PATH, with the checkout's virtual environment before it."""
    path = f"{host.CHECKOUT / '.venv' / 'bin'}:{os.environ.get('PATH', os.defpath)}"
    return job.script("svm", os.getcwd(), {"PATH": path, "HOME": os.path.expanduser("~")})


def _options(job: guest.Job, ports: Ports, image: Path, initrd: Path) -> list[str]:
    append = f"console=ttyS0 mitigations=off {job.kernel_arguments}"
    append += "" if job.verbose else " quiet"
    serial = [
        option
        for name, path in vars(ports).items()
        for option in ("-chardev", f"file,id={name},path={path}", "-serial", f"chardev:{name}")
    ]
    machine = shlex.split(
        f"-accel tcg -cpu max,+svm,-pku -m {job.memory} -smp {job.cpus}"
        " -L /usr/share/qemu -L /usr/share/seabios"
        " -nodefaults -no-user-config -display none -no-reboot"
        # multidevs=remap: inode numbers stay unique though / spans several file systems
        " -fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"
        " -device virtio-9p-pci,fsdev=host,mount_tag=host"
    )
    machine += ["-icount", "shift=0"] if job.count_instructions else []
    boot = ["-kernel", str(image), "-initrd", str(initrd), "-append", append]
    return [*machine, *boot, *serial]
