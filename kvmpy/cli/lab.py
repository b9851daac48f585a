"""Experiments that show CPU virtualization on this host: rings, traps, nesting, scheduling."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

from .. import lab
from ..errors import UnsupportedError
from ..report import page, terminal
from ..report.blocks import Section
from .files import check_writable, write

_STYLE = """\
nav ol { columns: 2; column-width: 18rem }
p, figcaption { max-width: 46rem } figure svg { max-width: 40rem; display: block }
p.dim { font-size: .85em; margin: .3rem 0 }
@media (max-width: 32rem) { table { font-size: 11px } th, td { padding-right: .3rem } }
@media print { figure svg { max-width: 110mm } }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """NAME and the options of the command."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", choices=[*lab.EXPERIMENTS, "all"],
        help="an experiment, or all of them; without a name, list them",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="the results, on stdout")
    parser.add_argument("--html", metavar="FILE", help="one page with figures, self-contained")
    parser.add_argument("--cpu", type=int, metavar="N", help="pin the vCPUs' threads to pCPU N")


def run(args: argparse.Namespace) -> int:
    """List the experiments, or run and show what was asked for."""
    if args.name is None:
        width = max(map(len, lab.EXPERIMENTS))
        for name, title in lab.EXPERIMENTS.items():
            print(f"{name:{width}}  {title}")
        return 0
    check_writable(args.html)
    names = list(lab.EXPERIMENTS) if args.name == "all" else [args.name]
    found = _run_all(names, args.cpu)
    sections = [_section(name, result) for name, (result, _) in found.items()]
    if args.html:
        _write_page(args.html, args.name, sections)
    if args.json:
        json.dump(_record(found), sys.stdout, indent=2)
        print()
    elif not args.html:
        terminal.note(_host(), sys.stdout)
        print()
        for part in sections:
            terminal.section(part, sys.stdout)
    return 0


def _run_all(names: list[str], cpu: int | None) -> dict[str, tuple[Any, float]]:
    """Each experiment's result, or the UnsupportedError that says why there is none; seconds."""
    if cpu is not None:
        from ..host.topology import check_pin

        check_pin(cpu)
    found: dict[str, tuple[Any, float]] = {}
    for name in names:
        if sys.stderr.isatty():
            print(f"\r\x1b[Kkvmpy: lab {name} ...", end="", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            result: Any = lab.experiment(name).run(pin=cpu)
        except UnsupportedError as error:
            if len(names) == 1:
                raise
            result = error
        finally:
            if sys.stderr.isatty():
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        found[name] = result, time.monotonic() - begun
    return found


def _section(name: str, result: Any) -> Section:
    if isinstance(result, UnsupportedError):
        return Section(lab.EXPERIMENTS[name], (f"Cannot be shown here: {result}",), name)
    return lab.section(name, result)


def _host() -> str:
    from ..probe.verdict import verdict

    return verdict().summary


def _record(found: dict[str, tuple[Any, float]]) -> dict[str, Any]:
    return {
        "host": _host(),
        "experiments": {
            name: {
                "seconds": round(seconds, 3),
                **(
                    {"unsupported": str(result)}
                    if isinstance(result, UnsupportedError)
                    else {"result": dataclasses.asdict(result)}
                ),
            }
            for name, (result, seconds) in found.items()
        },
    }


def _write_page(path: str, name: str, sections: list[Section]) -> None:
    body = [f"<p>{page.escaped(_host())}</p>"]
    if len(sections) > 1:
        links = "".join(
            f'<li><a href="#{part.anchor}">{page.escaped(part.title)}</a></li>' for part in sections
        )
        body.append(f"<nav><ol>{links}</ol></nav>")
    for part in sections:
        body += page.section(part)
    title = "CPU virtualization, live" if name == "all" else lab.EXPERIMENTS[name]
    write(path, page.document(f"kvmpy lab: {title}", body, _STYLE))
    print(f"kvmpy: wrote {path}", file=sys.stderr)
