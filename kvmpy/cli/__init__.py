"""The command line: ``kvmpy`` and ``python -m kvmpy``.

One module per subcommand: parse, call, render. Exit status: 0 ok, 1 failure, 2 usage, 69 no usable
KVM, 124 timeout; ``boot`` passes the guest's own status through. stdout is data, stderr is for
people.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import KvmpyError, KvmUnavailableError

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

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
    parser = _Parser(
        prog="kvmpy",
        description="Drive Linux KVM from the command line.",
        epilog="'kvmpy COMMAND --help' tells more.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text, add_help=False)
    return parser


class _Parser(argparse.ArgumentParser):
    """One whose help does not vanish without a word on a full disk: argparse ignores that."""

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        if message:
            (file or sys.stderr).write(message)


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
    parser = _Parser(prog=f"kvmpy {name}", description=command.__doc__, formatter_class=_Help)
    command.add_arguments(parser)
    status: int = command.run(parser.parse_args(argv))
    return status


def _command(argv: Sequence[str]) -> int:
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
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


#: Errors of write(2) that are about where output goes: no space, a limit, a quota, the device, a
#: reader that has gone.
_OUTPUT_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EPIPE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. argparse's own SystemExit (2) passes through."""
    _mend_standard_streams()
    try:
        try:
            return _command(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        # Python would complain once more when it flushes what it still holds.
        _lead_nowhere(1)
        if error.errno != errno.EPIPE:  # "| head" has what it wanted
            with contextlib.suppress(OSError):
                _fail(f"cannot write the output: {error.strerror}", FAILURE)
        _lead_nowhere(2)
        return FAILURE


def _mend_standard_streams() -> None:
    """Closed ones lead nowhere: else the next file that is opened takes their place, /dev/kvm for
    one, and output goes there. What their encoding lacks is escaped."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            _lead_nowhere(fd)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def _lead_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != fd:
        os.dup2(nowhere, fd)
        os.close(nowhere)
