"""The initramfs of a guest: busybox, kernel modules, and an init that the command line directs.

The kernel puts every ``name=value`` of its command line that it does not know into init's
environment (``Documentation/admin-guide/kernel-parameters.rst``), quoted values whole:

``modules=GLOB``   load only these modules, by name ("virtio*")
``run='COMMAND'``  run by the shell once init is ready; its status is printed
``then=WORD``      ``shell`` (default), ``poweroff``, ``reboot`` or ``panic``
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rigs import guest
from rigs.cpio import CpioWriter
from rigs.kernel import Kernel

#: What init prints once all is mounted and loaded: the end of booting.
READY = "init: ready"

_INIT = f"""\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root PS1='# '
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs run /run
for module in /modules/??-${{modules:-*}}.ko; do
    [ -e $module ] && insmod $module
done
echo '{READY}'
if [ -n "$run" ]; then
    sh -c "$run"
    echo "init: status $?"
fi
case $then in
poweroff | reboot) $then -f ;;
panic) echo c >/proc/sysrq-trigger ;;
*) setsid cttyhack sh; poweroff -f ;;
esac
sleep 60
"""


def write(path: Path, kernel: Kernel, scripts: Mapping[str, str] | None = None) -> Path:
    """Write the initramfs for ``kernel``, with further ``scripts``: path in the guest -> text.

    The same input gives the same bytes.
    """
    with open(path, "wb") as stream, CpioWriter(stream) as archive:
        for directory in ("dev", "mnt", "proc", "root", "run", "sys", "tmp"):
            archive.directory(directory)
        archive.file("init", _INIT.encode(), 0o755)
        archive.file("bin/busybox", guest.busybox().read_bytes(), 0o755)
        for module in kernel.modules:
            archive.file(f"modules/{module.name}", module.read_bytes())
        for name, text in (scripts or {}).items():
            archive.file(name, text.encode(), 0o755)
    return path
