"""Put vCPUs on pCPUs and threads on vCPUs, and see who runs when, and who waits for whom.

Each vCPU runs a small kernel that schedules its threads; the threads look at the clock all the
time, so that every moment the host takes the vCPU away is seen. Ctrl-C ends it with what was seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import KvmpyError
from .files import check_writable, write

if TYPE_CHECKING:
    from ..sched.metrics import SwitchCost
    from ..sched.result import Result


def _number(
    low: float, high: float, kind: Callable[[str], float] = float
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g}..{high:g}")
        return value

    return parse


def _pcpus(text: str) -> tuple[int, ...]:
    from ..host.topology import check_pin, parse_cpu_list

    try:
        pcpus = tuple(map(check_pin, sorted(parse_cpu_list(text))))
    except (KvmpyError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not pcpus:
        raise argparse.ArgumentTypeError("no pCPU in the list")
    return pcpus


def _nice(text: str) -> tuple[int, ...]:
    number = _number(-20, 19, int)
    return tuple(int(number(part)) for part in text.split(","))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``sched``."""
    add = parser.add_argument
    add("--vcpus", type=_number(1, 64, int), default=2, metavar="N", help="vCPUs, 1..64 (2)")
    add("--pcpus", type=_pcpus, metavar="LIST",
        help="pCPUs they run on, in turn: 0-3, 0,2 (the first this process may use)")  # fmt: skip
    add("--threads", type=_number(1, 16, int), default=3, metavar="N",
        help="guest threads on each vCPU, 1..16 (3)")  # fmt: skip
    add("--seconds", type=_number(0, 600), default=5.0, metavar="S", help="how long (5)")
    add("--slice", type=_number(0.01, 1000), default=10.0, metavar="MS",
        help="the guest's time slice in ms (10)")  # fmt: skip
    add("--gap", type=_number(1, 10_000), default=20.0, metavar="US",
        help="shortest time without a sign of life that is noted, in us (20)")  # fmt: skip
    add("--program", choices=("spin", "yield", "write"), default="spin",
        help="what guest threads do: look at the clock for ever; look at it and yield; write a "
        "line and yield, three times (spin)")  # fmt: skip
    add("--nice", type=_nice, default=(), metavar="LIST",
        help="nice values for the vCPUs, in turn: --nice=0,10 (this process's own)")  # fmt: skip
    add("--html", metavar="FILE", help="one page with the picture and all tables")
    add("--svg", metavar="FILE", help="the picture alone")
    add("--trace", metavar="FILE", help="a Chrome trace, which ui.perfetto.dev opens")
    add("--json", action="store_true", help="all that was seen, as one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Run the experiment, write the files, print."""
    from .. import sched
    from ..host.topology import allowed_cpus

    for path in (args.html, args.svg, args.trace):
        check_writable(path)  # now, not after the run
    pcpus = args.pcpus or (min(allowed_cpus()),)
    try:
        result = sched.run(
            args.vcpus, pcpus, args.threads, args.seconds, slice_ms=args.slice, gap_us=args.gap,
            program=args.program, nice=args.nice,
        )  # fmt: skip
    except ValueError as error:
        print(f"kvmpy sched: {error}", file=sys.stderr)
        return 2
    costs = () if result.interrupted else sched.switch_costs(pcpus[0])
    _write_files(result, costs, args)
    if args.json:
        found = dataclasses.asdict(result)
        found["switch_costs"] = [dataclasses.asdict(cost) for cost in costs]
        print(json.dumps(found))
    else:
        from ..sched import screen

        screen.show(result, costs, sys.stdout)
    return 0


def _write_files(result: Result, costs: tuple[SwitchCost, ...], args: argparse.Namespace) -> None:
    if args.html:
        from ..sched.html import to_html

        write(args.html, to_html(result, costs))
    if args.svg:
        from ..sched.gantt import picture

        write(args.svg, picture(result).svg + "\n")
    if args.trace:
        from ..sched.trace import to_json

        write(args.trace, to_json(result) + "\n")
