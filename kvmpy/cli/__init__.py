"""The command line: ``kvmpy`` and ``python -m kvmpy``.

One module per subcommand: parse, call, render. Exit status: 0 ok, 1 failure, 2 usage, 69 no usable
KVM, 124 timeout; ``boot`` passes the guest's own status through. stdout is data, stderr is for
people.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ..errors import KvmpyError, KvmUnavailableError

OK, FAILURE, USAGE, NO_KVM, TIMEOUT, INTERRUPTED = 0, 1, 2, 69, 124, 130

#: name -> one line of help. The modules are imported only when they are called.
COMMANDS = {
    "boot": "boot a guest image on /dev/kvm",
    "bench": "what system calls in a guest and VM exits cost; compare two runs",
    "lab": "CPU virtualization, live: experiments that explain what they see",
    "sched": "vCPUs that share pCPUs, guest threads that share vCPUs: who ran when",
    "top": "what each vCPU of this user's machines does now, live",
    "info": "what this host's KVM offers",
    "doctor": "can this host run guests, and if not, what to do",
}


def _version() -> str:
    from .. import __version__

    return f"kvmpy {__version__}"


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvmpy",
        description="Drive Linux KVM from the command line.",
        epilog="'kvmpy COMMAND --help' tells more.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


class _Help(argparse.HelpFormatter):
    """argparse makes one for each option, and each would ask shutil, a large import, for the
    terminal's width."""

    def __init__(self, prog: str):
        try:
            columns = int(os.environ["COLUMNS"])
        except (KeyError, ValueError):
            columns = os.get_terminal_size(1).columns if os.isatty(1) else 80
        super().__init__(prog, width=columns - 2)


def _fail(message: object, status: int) -> int:
    print(f"kvmpy: {message}", file=sys.stderr)
    return status


def _run(name: str, argv: Sequence[str]) -> int:
    command = importlib.import_module(f".{name}", __name__)
    parser = argparse.ArgumentParser(
        prog=f"kvmpy {name}", description=command.__doc__, formatter_class=_Help
    )
    command.add_arguments(parser)
    status: int = command.run(parser.parse_args(argv))
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. argparse's own SystemExit (2) passes through."""
    argv = sys.argv[1:] if argv is None else argv
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name not in COMMANDS:
        _overview().parse_args(argv)  # --help, --version, or an error
        return USAGE
    try:
        return _run(name, rest)
    except KvmUnavailableError as error:
        return _fail(error, NO_KVM)
    except KvmpyError as error:
        return _fail(error, FAILURE)
    except BrokenPipeError:
        # The reader went away (``| head``). Python would complain once more when it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILURE
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
