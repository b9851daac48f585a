"""Watch what each vCPU of this user's machines does: pCPU, time in guest, host and waiting, exits.

Rates are per second, shares in per cent of a pCPU's time since the last sample: guest; host (KVM
and kvmpy, poll is the part of it in which KVM waited for an interrupt without leaving the pCPU);
steal (ready, but another thread had the pCPU); wait (halted or blocked). Exits that came to user
space have KVM's names in capitals, those that KVM settled itself are in small letters. "-" is what
this kernel or KVM does not tell. The watched processes do nothing for it. Status 1 if there is no
machine."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import KvmpyError
from . import FAILURE, OK
from .top_view import View

if TYPE_CHECKING:
    from ..watch.find import MachineInfo
    from ..watch.samples import Sample
    from ..watch.watch import Watch

_SHORTEST = 0.1  # seconds: the kernel counts time in guests in ticks of 10 ms


class NoMachineError(KvmpyError):
    """There is nothing to watch."""


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not _SHORTEST <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_SHORTEST}")
    return value


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) < 1 << 31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``top``."""
    add = parser.add_argument
    add("pid", type=_positive, nargs="?", metavar="PID", help="only machines of this process")
    add(
        "--interval", type=_interval, default=1.0, metavar="S",
        help="seconds between samples, default 1",
    )  # fmt: skip
    add("--count", type=_positive, metavar="N", help="end after N samples")
    add("--json", action="store_true", help="one JSON object a sample, each on a line of its own")


def run(args: argparse.Namespace) -> int:
    """Watch until the count is reached, nothing is left to watch, or the user has seen enough."""
    from ..watch.watch import Watch

    _allow_many_descriptors()
    try:
        watch = Watch(args.pid)
    except OSError as error:
        raise NoMachineError(f"cannot look for machines: {error}") from None
    with watch:
        if not watch.machines:
            raise NoMachineError(_nothing(args.pid, watch.sample()))
        if args.json or not sys.stdout.isatty():
            return _print_samples(watch, args)
        from .top_screen import show

        last = show(watch, args.interval, args.count, stay=args.pid is None)
        if args.pid is not None:
            _tell_ended(last)
    return OK


def _print_samples(watch: Watch, args: argparse.Namespace) -> int:
    view = View()
    for sample in samples(watch, args.interval, args.count):
        if args.json:
            print(json.dumps(sample.as_json()), flush=True)
        else:
            print("\n".join((*view.plain(sample), "")), flush=True)
        _tell_ended(sample.ended)
        if not sample.machines:
            return OK if sample.ended else FAILURE
    return OK


def samples(watch: Watch, interval: float, count: int | None) -> Iterator[Sample]:
    """A sample each ``interval`` seconds, the first after one; none is made up for lateness."""
    due = time.monotonic() + interval
    while count is None or count > 0:
        time.sleep(max(0.0, due - time.monotonic()))
        due = max(due + interval, time.monotonic())
        count = None if count is None else count - 1
        yield watch.sample()


def _tell_ended(ended: tuple[MachineInfo, ...]) -> None:
    for info in ended:
        print(f"kvmpy: {info.name} of process {info.pid} has ended", file=sys.stderr)


def _nothing(pid: int | None, sample: Sample) -> str:
    why = "".join(f"; process {other}: {reason}" for other, reason in sample.refused.items())
    if pid is None:
        return f"no machine of this user is running ('kvmpy boot IMAGE' starts one){why}"
    if not os.path.exists(f"/proc/{pid}"):
        return f"there is no process {pid}"
    return f"process {pid} runs no kvmpy machine that this user may watch{why}"


def _allow_many_descriptors() -> None:
    """A vCPU takes four."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
