"""Boot a guest image on /dev/kvm. Its serial port is this terminal; the byte it writes to port
0xF4 is the exit status."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..boot import FORMATS
from ..boot.files import content
from ..machine import Machine, Outcome
from ..memory import parse_size
from ..x86.modes import Mode

_AUTO = "auto"
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


def _pin(text: str) -> int:
    from ..host.topology import check_pin

    try:
        cpu = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a CPU") from None
    try:
        check_pin(cpu)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return cpu


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
    add("--format", choices=(_AUTO, *FORMATS), default=_AUTO, help="default: told from the content")
    add("--load-address", type=_address, metavar="GPA", help="where a flat image goes")
    add(
        "--mode", choices=[mode.value for mode in Mode],
        help="CPU mode a flat or ELF image starts in",
    )  # fmt: skip
    add(
        "--irqchip", choices=(_AUTO, "kernel", "none"), default=_AUTO,
        help="KVM's interrupt controllers and PIT; auto: for Linux only",
    )  # fmt: skip
    add("--hugepages", action="store_true", help="back RAM with 2 MiB hugetlb pages if possible")
    add("--timeout", type=_seconds, metavar="S", help="end after S seconds with status 124")
    add("--max-exits", type=_count, metavar="N", help="end after N exits with status 124")
    add("--pin", type=_pin, metavar="CPU", help="host CPU for the vCPU's thread")
    add("--stats", action="store_true", help="exits by reason, count and time, on stderr")
    add("--json", action="store_true", help="one JSON object on stdout, serial output inside")


def _image(name: str) -> bytes | str:
    """The bundled kernel's bytes, or a path."""
    if name == DEMO and not Path(name).exists():
        from .. import guests

        return guests.load("demo.elf")
    return name


@contextmanager
def _machine(args: argparse.Namespace) -> Iterator[Machine]:
    from contextlib import ExitStack

    with ExitStack() as files:
        modules = []
        for text in args.module:
            path, _, string = text.partition("=")
            modules.append((files.enter_context(content(path)), string))
        machine = Machine(
            _image(args.image),
            memory=args.memory,
            backing="hugetlb" if args.hugepages else "anonymous",
            format=None if args.format == _AUTO else args.format,
            append=args.append,
            initrd=args.initrd or None,
            modules=modules,
            load_address=args.load_address,
            mode=Mode(args.mode) if args.mode else None,
            irqchip=None if args.irqchip == _AUTO else args.irqchip == "kernel",
            output=None if args.json else sys.stdout.fileno(),
            pin=args.pin,
        )
    with machine:
        yield machine


def run(args: argparse.Namespace) -> int:
    """Boot, and give the guest's status."""
    from ..machine.console import standard_input

    # So that a terminal in raw mode is restored. The shim gets a spinning guest out.
    signal.signal(signal.SIGTERM, _terminate)
    with _machine(args) as machine:
        if args.stats or args.json:
            machine.cpu.measure()
        stdin = standard_input()
        if stdin >= 0 and os.isatty(stdin) and not args.json:
            print("kvmpy: Ctrl-] ends the guest", file=sys.stderr)
        outcome = machine.run(
            timeout=args.timeout, max_exits=args.max_exits, stdin=None if args.json else stdin
        )
        if args.json:
            print(json.dumps(_record(machine, outcome), indent=2))
        else:
            _tell(machine, outcome, args.stats)
    return outcome.status


def _terminate(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _tell(machine: Machine, outcome: Outcome, stats: bool) -> None:
    if outcome.ending != "debug-exit" or outcome.status:
        print(f"kvmpy: {outcome.text}", file=sys.stderr)
    if stats:
        print(_stats_text(machine, outcome), file=sys.stderr)


def _stats_text(machine: Machine, outcome: Outcome) -> str:
    stats = machine.stats
    lines = [
        "",
        f"{stats.total} exits in {outcome.seconds * 1e3:.1f} ms, "
        f"{(stats.guest_ns or 0) / 1e6:.1f} ms of it in KVM_RUN; {machine.loaded.description}",
        f"{'exit reason':<18} {'count':>10} {'handling, ms':>13} {'us each':>9}",
    ]
    for row in stats:
        ns = row.handling_ns or 0
        each = ns / row.count / 1e3
        lines.append(f"{row.reason:<18} {row.count:>10} {ns / 1e6:>13.2f} {each:>9.2f}")
    absent = machine.unclaimed.most_common(5)
    if absent:
        shown = ", ".join(f"{kind} {address:#x} ({n})" for (kind, address), n in absent)
        lines.append(f"accesses to what is not there, most frequent first: {shown}")
    return "\n".join(lines)


def _record(machine: Machine, outcome: Outcome) -> dict[str, Any]:
    stats = machine.stats
    loaded = machine.loaded
    return {
        "ending": outcome.ending,
        "status": outcome.status,
        "text": outcome.text,
        "exit": repr(outcome.exit),
        "seconds": outcome.seconds,
        "format": loaded.format,
        "description": loaded.description,
        "segments": [{"gpa": g, "size": s, "name": n} for g, s, n in loaded.segments],
        "exits": {
            row.reason: {"count": row.count, "handling_ns": row.handling_ns} for row in stats
        },
        "guest_ns": stats.guest_ns,
        "unclaimed": [
            {"kind": kind, "address": address, "count": count}
            for (kind, address), count in machine.unclaimed.most_common()
        ],
        "post_code": machine.post.last if machine.post.writes else None,
        "serial": machine.serial.output.decode("utf-8", "replace"),
        "debug_console": machine.debug_console.output.decode("utf-8", "replace"),
    }
