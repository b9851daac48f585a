"""Boot a guest image on /dev/kvm. Its serial port is this terminal; the byte it writes to port
0xF4 is the exit status."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..boot import FORMATS
from ..boot.files import content
from ..errors import ImageError, KvmpyError
from ..machine.machine import Machine
from ..machine.outcome import Outcome
from ..memory.guest import parse_size
from ..x86.modes import Mode
from . import USAGE

if TYPE_CHECKING:
    from ..devices.virtio.device import VirtioDevice

#: What Linux prints when it hands over to user space, unless told to be quiet.
INIT = rb"Run \S+ as init process"
_AUTO = "auto"
_EVER = 1e8  # seconds
DEMO = "demo"


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _count(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = 0
    if not 1 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of 1 or more")
    return value


def _address(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 52:
        raise argparse.ArgumentTypeError(f"{text!r} is not a guest physical address")
    return value


def _pins(text: str) -> frozenset[int] | list[frozenset[int]]:
    from ..host.topology import check_pins

    try:
        pins = [check_pins(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return pins[0] if len(pins) == 1 else pins


def _pattern(text: str) -> re.Pattern[bytes]:
    try:
        return re.compile(text.encode(), re.MULTILINE)
    except re.error as error:
        message = f"{text!r} is not a valid regular expression: {error}"
        raise argparse.ArgumentTypeError(message) from None


def _net(text: str) -> Any:
    from ..devices.virtio.net import parse_net

    try:
        return parse_net(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _disk(text: str) -> tuple[str, bool]:
    path, comma, option = text.rpartition(",")
    if comma and option == "ro":
        return path, True
    return text, False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``boot``."""
    add = parser.add_argument
    add("image", metavar="IMAGE", help="file to boot, or 'demo' for the bundled kernel")
    add("--memory", type=_size, default=256 << 20, metavar="SIZE", help="RAM, default 256M")
    add("--append", default="", metavar="TEXT", help="kernel command line")
    add("--initrd", metavar="FILE", help="initial RAM disk; the first module for Multiboot and PVH")
    add(
        "--module", action="append", default=[], metavar="FILE[=TEXT]",
        help="boot module for Multiboot and PVH, with its string; repeatable",
    )  # fmt: skip
    add("--cpus", type=_count, default=1, metavar="N", help="vCPUs, default 1")
    add(
        "--disk", action="append", type=_disk, default=[], metavar="FILE[,ro]",
        help="raw image as virtio disk, /dev/vda and on; repeatable",
    )  # fmt: skip
    add(
        "--net", action="append", type=_net, default=[], metavar="tap=NAME[,mac=M]",
        help="virtio network device on a tap of the host; repeatable",
    )  # fmt: skip
    add("--rng", action="store_true", help="virtio entropy device")
    add(
        "--console", choices=("serial", "virtio"), default="serial",
        help="which of the guest's consoles gets this terminal's input: ttyS0, or hvc0 (added)",
    )  # fmt: skip
    add(
        "--cpuid", default="", metavar="CHANGES",
        help="features to hide or show: -avx512f,+x2apic (--cpuid=-x for a leading minus)",
    )  # fmt: skip
    add("--no-acpi", action="store_true", help="no ACPI tables: Linux then reads the MP table")
    add(
        "--format",
        choices=(_AUTO, *FORMATS),
        default=_AUTO,
        help="default: detected from the content",
    )
    add("--load-address", type=_address, metavar="GPA", help="where a flat image goes")
    add(
        "--mode", choices=[mode.value for mode in Mode],
        help="CPU mode a flat or ELF image starts in",
    )  # fmt: skip
    add(
        "--irqchip", choices=(_AUTO, "kernel", "split", "none"), default=_AUTO,
        help="interrupt controllers: KVM's with PIT; split: KVM's LAPICs, the I/O APIC in user "
        "space, no PIT; auto: kernel for Linux, PVH and where needed",
    )  # fmt: skip
    add("--hugepages", action="store_true", help="back RAM with 2 MiB hugetlb pages if possible")
    add("--timeout", type=_seconds, metavar="S", help="end after S seconds with status 124")
    add("--max-exits", type=_count, metavar="N", help="end after N exits with status 124")
    add(
        "--expect", type=_pattern, metavar="REGEX",
        help="succeed as soon as the serial port has printed this; fail if the guest ends first",
    )  # fmt: skip
    add(
        "--pin", type=_pins, metavar="CPUS[,CPUS...]",
        help="host CPU (2) or CPUs (0-3) for all vCPUs' threads; with commas for each in turn",
    )  # fmt: skip
    add("--stats", action="store_true", help="exits by reason, count and time, on stderr")
    add("--json", action="store_true", help="one JSON object on stdout, serial output inside")


def _image(name: str) -> bytes | str:
    """The bundled kernel's bytes, or a path."""
    if name == DEMO and not os.path.exists(name):
        from .. import guests

        return guests.load("demo.elf")
    return name


def _devices(args: argparse.Namespace) -> list[VirtioDevice]:
    virtio_console = args.console == "virtio"
    if not (args.disk or args.net or args.rng or virtio_console):
        return []
    from ..devices import virtio

    made: list[VirtioDevice] = []
    try:
        if virtio_console:  # the first, so that _boot() finds it
            made.append(
                virtio.VirtioConsole(None if args.json or args.expect else sys.stdout.fileno())
            )
        for path, read_only in args.disk:
            made.append(_opened(virtio.Block, path, read_only=read_only))
        for net in args.net:
            made.append(_opened(virtio.Net, net.tap, mac=net.mac))
        if args.rng:
            made.append(virtio.Rng())
    except BaseException:
        for device in made:
            device.close()
        raise
    return made


def _opened(kind: Any, path: str, **options: Any) -> VirtioDevice:
    try:
        device: VirtioDevice = kind(path, **options)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # which names the path
        raise ImageError(str(error)) from None
    return device


@contextmanager
def _machine(args: argparse.Namespace) -> Iterator[Machine]:
    from contextlib import ExitStack

    watched = args.json or args.expect
    with ExitStack() as files:
        modules = []
        for text in args.module:
            path, _, string = text.partition("=")
            modules.append((files.enter_context(content(path)), string))
        machine = Machine(
            _image(args.image),
            memory=args.memory,
            backing="hugetlb" if args.hugepages else "anonymous",
            cpus=args.cpus,
            format=None if args.format == _AUTO else args.format,
            append=args.append,
            initrd=args.initrd or None,
            modules=modules,
            load_address=args.load_address,
            mode=Mode(args.mode) if args.mode else None,
            irqchip=args.irqchip,
            acpi=not args.no_acpi,
            devices=_devices(args),
            cpuid=args.cpuid,
            output=None if watched else sys.stdout.fileno(),
            console_log=sys.stdout.fileno() if args.expect and not args.json else None,
            pin=args.pin,
        )
    with machine:
        yield machine


def run(args: argparse.Namespace) -> int:
    """Boot, and give the guest's status."""
    try:
        return _boot(args)
    except ValueError as error:
        if isinstance(error, KvmpyError):
            raise
        print(f"kvmpy boot: error: {error}", file=sys.stderr)
        return USAGE


def _boot(args: argparse.Namespace) -> int:
    from ..console.terminal import standard_input

    # So that a terminal in raw mode is restored. The shim gets a spinning guest out.
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup, for one, has it ignored
            signal.signal(number, _terminate)
    with _machine(args) as machine:
        if machine.trouble:
            print(f"kvmpy: {machine.trouble}", file=sys.stderr)
        for feature in machine.masked:
            print(f"kvmpy: CPUID without {feature.feature}: {feature.reason}", file=sys.stderr)
        if args.stats or args.json:
            for cpu in machine.cpus:
                cpu.measure()
        if args.json or args.expect:
            return _run_watched(machine, args)
        stdin = standard_input()
        if stdin >= 0 and os.isatty(stdin):
            print("kvmpy: Ctrl-] ends the guest", file=sys.stderr)
        terminal: Any = machine.pc.virtio[0] if args.console == "virtio" else None
        outcome = machine.run(
            timeout=args.timeout, max_exits=args.max_exits, stdin=stdin, terminal=terminal
        )
        _tell(machine, outcome, args.stats)
    return outcome.status


def _run_watched(machine: Machine, args: argparse.Namespace) -> int:
    """Run with the serial port read for --expect, or for the moment init starts."""
    from ..errors import ExpectEof
    from . import boot_report

    begun = time.monotonic()
    machine.start(timeout=args.timeout, max_exits=args.max_exits)
    seen: float | None = None
    try:
        machine.console.expect(args.expect or INIT, timeout=_EVER)
        seen = time.monotonic() - begun
    except ExpectEof:
        pass  # the guest has ended
    if args.expect and seen is not None:
        machine.stop()
    outcome = machine.wait()
    status, text = outcome.status, outcome.text
    if args.expect:
        shown = args.expect.pattern.decode()
        if seen is not None:
            status, text = 0, f"{shown!r} came after {seen:.2f} s"
        else:
            status, text = status or 1, f"{shown!r} did not appear: {text}"
    if args.json:
        import json

        phases = {**machine.phases, "expected" if args.expect else "init": seen}
        phases["total"] = outcome.seconds
        record = boot_report.record(machine, outcome) | {"phases": phases, "status": status}
        print(json.dumps(record | {"text": text}, indent=2))
    else:
        print(f"kvmpy: {text}", file=sys.stderr)
        if args.stats:
            print(boot_report.stats_text(machine, outcome), file=sys.stderr)
    return status


#: What ends a process that says nothing to it.
_ENDING = (
    signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGVTALRM, signal.SIGPROF, signal.SIGPOLL, signal.SIGPWR, signal.SIGXCPU,
)  # fmt: skip


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _tell(machine: Machine, outcome: Outcome, stats: bool) -> None:
    if outcome.ending != "debug-exit" or outcome.status:
        print(f"kvmpy: {outcome.text}", file=sys.stderr)
    if stats:
        from . import boot_report

        print(boot_report.stats_text(machine, outcome), file=sys.stderr)
