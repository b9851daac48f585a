#!/usr/bin/env python3
"""`kvmpy boot` against `qemu-system-x86_64 -accel kvm -M microvm`, side by side, in turns.

    python tests/bench/peers.py [--rounds N] [--json FILE] [--python PROGRAM]

Both boot the same Debian cloud kernel, initramfs, command line and disk image. Measured from
outside: the wall time of the whole process, from its start to its end, and what it keeps in RAM
beside the guest's own; by dd in the guest: sequential reads and writes of a virtio disk. Exit
status 0 whether or not the limits are kept, 69 without KVM or QEMU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linux import initramfs, kernels

from bench.rows import Row, table

NO_PEER = 69
RAM = 256 << 20
DISK = 256 << 20
LIMIT = 300.0  # seconds for one boot
_PROMPT = b"# "

# Seconds from /proc/uptime, in steps of 10 ms. No test finds anything of the image in memory.
_DD = """\
#!/bin/sh
for round in 1 2 3; do
    for test in \\
        'direct-read if=/dev/vda of=/dev/null iflag=direct' \\
        'buffered-read if=/dev/vda of=/dev/null' \\
        'direct-write if=/dev/zero of=/dev/vda oflag=direct conv=fsync' \\
        'buffered-write if=/dev/zero of=/dev/vda conv=fsync'
    do
        sync; echo 3 >/proc/sys/vm/drop_caches
        read begin idle </proc/uptime
        dd bs=1M count=COUNT ${test#* } 2>/dev/null || exit
        read end idle </proc/uptime
        echo "dd: ${test%% *} $begin $end"
    done
done
""".replace("COUNT", str(DISK >> 20))
_RESULT = re.compile(rb"dd: (\S+) ([0-9.]+) ([0-9.]+)")


@dataclass(frozen=True)
class Guest:
    """What both boot; ``python`` has kvmpy."""

    python: str
    kernel: Path
    initrd: Path
    disk: Path


def _kvmpy(guest: Guest, words: str) -> list[str]:
    return [
        guest.python, "-m", "kvmpy", "boot", str(guest.kernel), "--initrd", str(guest.initrd),
        "--memory", str(RAM), "--append", words, "--disk", str(guest.disk),
    ]  # fmt: skip


def _qemu(guest: Guest, words: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "kvm", "-M", "microvm", "-cpu", "host",
        "-m", str(RAM >> 20), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-kernel", str(guest.kernel), "-initrd", str(guest.initrd),
        "-append", words, "-drive", f"id=vda,file={guest.disk},format=raw,if=none",
        "-device", "virtio-blk-device,drive=vda",
    ]  # fmt: skip


VMMS = {"kvmpy": _kvmpy, "qemu": _qemu}

# What both load: in the rig each file is fetched from the host, message by message. A change of
# its time stamps, to what they are, has overlayfs take it into the guest's memory, as a machine of
# one's own has it in its page cache.
_LOADED = """\
import sys, kvmpy.cli.boot, kvmpy.cpuid.edit, kvmpy.devices.virtio.block, kvmpy.state.xsave
for module in list(sys.modules.values()):
    for name in "__file__", "__cached__":
        print(getattr(module, name, None) or "")
"""


def _settle(python: str) -> None:
    qemu = shutil.which("qemu-system-x86_64") or ""
    firmware = (f"/usr/share/qemu/{name}.bin" for name in ("bios-microvm", "linuxboot_dma", "pvh"))
    files = {python, os.path.realpath(python), qemu, *firmware}
    files |= set(_output([python, "-c", _LOADED]).splitlines())
    for program in [name for name in files if name.endswith(".so")] + [python, qemu]:
        files |= set(re.findall(r"(/\S+) \(0x", _output(["ldd", program])))
    for name in files:
        if os.path.isfile(name):
            status = os.stat(name)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns))


class Run:
    """One boot: a process whose standard output is the guest's serial port."""

    def __init__(self, name: str, guest: Guest, words: str):
        self._name, self.output = name, bytearray()
        self._deadline = time.monotonic() + LIMIT
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            VMMS[name](guest, f"console=ttyS0 quiet panic=-1 modules=virti*[!t] {words}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
        )

    def until(self, text: bytes) -> float:
        """Read on until the output holds ``text``; seconds since the start. b"": to the end."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while not text or text not in self.output:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise SystemExit(f"{self._name}: nothing for {LIMIT:g} s: {self.tail()}")
            data = os.read(fd, 65536)
            self.output += data
            if not data:
                if text or self.process.wait(10) != 0:
                    raise SystemExit(f"{self._name}: ended too early: {self.tail()}")
                break
        return time.monotonic() - self.begun

    def tail(self) -> str:
        """The end of the output."""
        return self.output[-2000:].decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def _boot(name: str, guest: Guest, words: str) -> Iterator[Run]:
    run = Run(name, guest, words)
    try:
        yield run
    finally:
        run.close()


def above_ram(pid: int) -> int:
    """Bytes of ``pid`` in RAM, but for the guest's: of every mapping as large as that."""
    above = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        field, _, value = line.partition(":")
        if field == "Size":
            size = int(value.split()[0]) << 10
        elif field == "Rss" and size < RAM:
            above += int(value.split()[0]) << 10
    return above


Samples = dict[str, dict[str, list[float]]]


def measure(guest: Guest, rounds: int) -> Samples:
    """Quantity -> VMM -> samples. Who begins changes from round to round."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    ready = initramfs.READY.encode()
    for number in range(-1, rounds):  # the first only warms the caches
        for name in sorted(VMMS, reverse=bool(number % 2)):
            _progress(f"{name}: round {number + 1} of {rounds}")
            with _boot(name, guest, "then=poweroff") as run:
                to_init, whole = run.until(ready), run.until(b"")
            if number < 0:
                continue
            samples["init"][name].append(to_init)
            samples["whole"][name].append(whole)
            with _boot(name, guest, "then=shell") as run:
                run.until(ready + b"\r\n")
                run.until(_PROMPT)
                samples["memory"][name].append(above_ram(run.process.pid) / (1 << 20))
            with _boot(name, guest, "run=/bench.sh then=poweroff") as run:
                run.until(b"")
            results = _RESULT.findall(run.output)
            if not results:
                raise SystemExit(f"{name}: no disk: {run.tail()}")
            for test, begin, end in results:
                samples[test.decode()][name].append(float(end) - float(begin))
    return samples


def rows(samples: Samples) -> list[Row]:
    """The table. Throughput is shown as the time for the whole disk: 0.8 of the peer's throughput
    is 1.25 times its time."""
    mib = DISK >> 20
    named = (
        ("whole", "whole process, boot to power-off", "s", 1.0),
        ("init", "  of it, to init", "s", None),
        ("memory", "in RAM above the guest's", "MiB", 0.5),
        ("direct-read", f"read {mib} MiB, direct", "s", 1.25),
        ("buffered-read", f"read {mib} MiB, buffered", "s", 1.25),
        ("direct-write", f"write {mib} MiB, direct", "s", 1.25),
        ("buffered-write", f"write {mib} MiB, buffered", "s", 1.25),
    )
    return [
        Row(name, "ratio", unit, limit, samples[key]["kvmpy"], samples[key]["qemu"])
        for key, name, unit, limit in named
    ]


def _progress(text: str) -> None:
    print(f"bench: {text} ...", file=sys.stderr, flush=True)


def _output(argv: Sequence[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, cwd="/").stdout


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="boots of each, default 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples to FILE")
    parser.add_argument(
        "--python", type=os.path.abspath, metavar="PROGRAM", default=sys.executable,
        help="the Python that kvmpy is installed for; default: this one",
    )  # fmt: skip
    args = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("bench: needs /dev/kvm and qemu-system-x86_64", file=sys.stderr)
        return NO_PEER
    kernel = kernels.fetch(kernels.CLOUD)
    with tempfile.TemporaryDirectory() as directory:
        initrd, disk = Path(directory, "initrd"), Path(directory, "disk.img")
        initramfs.write(initrd, kernel, {"bench.sh": _DD})
        disk.write_bytes(os.urandom(1 << 20) * (DISK >> 20))
        image = Path(shutil.copy(kernel.bzimage, directory))
        if os.environ.get("KVMPY_RIG"):
            _settle(args.python)
        samples = measure(Guest(args.python, image, initrd, disk), args.rounds)
    qemu = _output(["qemu-system-x86_64", "--version"]).partition("\n")[0]
    print(f"{qemu}; Linux {platform.release()}, {os.cpu_count()} CPUs")
    print(f"{args.rounds} rounds in turns, medians; disk image in {tempfile.gettempdir()}\n")
    print(table(rows(samples), peer="QEMU"))
    if os.environ.get("KVMPY_RIG"):
        print("\nThis CPU is emulated: time is virtual. Ratios count, figures do not.")
    if args.json:
        args.json.write_text(json.dumps({"qemu": qemu, "samples": samples}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
