#!/usr/bin/env python3
"""Run a command on real kvm_amd or kvm_intel, inside an emulator.

    python3 tests/rigs/run.py svm -- python -m pytest tests/kvm
    python3 tests/rigs/run.py vmx --junit vmx.xml -- python -m pytest tests/kvm/test_vm.py
    python3 tests/rigs/run.py svm -c 'python -m kvmpy info; dmesg | tail'

The exit status is the command's; 124: killed at the limit; 125: the rig failed; 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.dont_write_bytecode = True

from rigs import host, svm, table, vmx  # noqa: E402
from rigs.guest import Job  # noqa: E402
from rigs.session import EXIT_NO_OUTCOME, Session  # noqa: E402

RIGS = {"svm": svm, "vmx": vmx}


def main() -> int:
    """Parse the command line, run the rig, store the JUnit file."""
    arguments = _parse()
    rig = RIGS[arguments.rig]
    if arguments.junit is not None:
        arguments.junit.unlink(missing_ok=True)  # an old one must not pass for this run's
    session = Session(
        arguments.rig, arguments.timeout or rig.TIMEOUT, show_console=arguments.verbose
    )
    try:
        if arguments.linux_guests:
            _add_linux_guests(arguments)
        with host.work_directory(arguments.rig) as work:
            status: int = rig.run(_job(arguments), session, work)
    except host.Unavailable as error:
        if not arguments.optional or os.environ.get("KVMPY_REQUIRE_KVM") == "1":
            raise
        host.say(f"{arguments.rig}: left out: {error}")
        if arguments.junit is not None:
            table.write_left_out(arguments.junit, str(error))
        return 0
    if arguments.junit is not None:
        if session.outcome.junit is not None:
            arguments.junit.parent.mkdir(parents=True, exist_ok=True)
            arguments.junit.write_bytes(session.outcome.junit)
        else:
            host.say(f"{arguments.rig}: the command left no JUnit file")
            status = status or EXIT_NO_OUTCOME
    return status


def _job(arguments: argparse.Namespace) -> Job:
    return Job(
        command=arguments.command,
        memory=arguments.memory or RIGS[arguments.rig].MEMORY,
        kernel=arguments.kernel or RIGS[arguments.rig].KERNEL,
        cpus=arguments.cpus,
        junit=arguments.junit is not None,
        verbose=arguments.verbose,
        kernel_arguments=arguments.kernel_arguments,
        count_instructions=arguments.count_instructions,
        extra_files=arguments.add,
        environment=dict(pair.split("=", 1) for pair in arguments.env),
    )


def _add_linux_guests(arguments: argparse.Namespace) -> None:
    """The kernels of tests/linux, where the rig's guest finds them as the host does."""
    from linux import kernels

    everything = kernels.prepare() if arguments.rig == "svm" else kernels.prepare((kernels.CLOUD,))
    arguments.env.append(f"KVMPY_RIG_CACHE={host.cache_root()}")
    arguments.add += everything if arguments.rig == "vmx" else []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rig", choices=RIGS, help="svm: kvm_amd in QEMU; vmx: kvm_intel in Bochs")
    parser.add_argument("-c", dest="shell", metavar="TEXT", help="run TEXT with sh")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="store pytest's JUnit XML here")
    parser.add_argument(
        "--optional",
        action="store_true",
        help="when what the rig needs is not available, say so in the JUnit file and exit 0"
        " (never with KVMPY_REQUIRE_KVM=1)",
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="kill it after S seconds")
    parser.add_argument("--memory", type=int, metavar="MIB", help="guest memory")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="svm: guest CPUs")
    parser.add_argument(
        "--kernel", metavar="PACKAGE", help="another Debian kernel: linux-image-6.12-amd64"
    )
    parser.add_argument(
        "--kernel-arguments",
        default="",
        metavar="TEXT",
        help="added to the kernel's command line; kvm_intel.unrestricted_guest=0 sets a parameter",
    )
    parser.add_argument(
        "--count-instructions",
        action="store_true",
        help="svm: a clock by which each instruction takes 1 ns and a pause as long as it takes, so"
        " that other work on this machine does not change the figures",
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--add",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="vmx: copy this file or directory to the same path in the guest (svm sees it anyway)",
    )
    parser.add_argument(
        "--linux-guests",
        action="store_true",
        help="have the kernels that guests in tests/linux boot, fetched before the rig starts",
    )
    parser.add_argument("--verbose", action="store_true", help="show the kernel's console")
    parser.usage = "%(prog)s {svm,vmx} [options] (-c TEXT | -- COMMAND...)"
    ours, command = _split(sys.argv[1:])
    arguments = parser.parse_args(ours)
    arguments.command = command
    if bool(arguments.shell) == bool(arguments.command):
        parser.error("give a command after --, or -c TEXT")
    if arguments.shell:
        arguments.command = ["sh", "-c", arguments.shell]
    if arguments.rig == "vmx" and arguments.cpus != 1:
        parser.error("the vmx rig has one CPU")
    if arguments.rig == "vmx" and arguments.count_instructions:
        parser.error("the vmx rig always counts instructions")
    if any("=" not in pair for pair in arguments.env):
        parser.error("--env takes NAME=VALUE")
    return arguments


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and the command after the first "--"."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def _terminated(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # as an exception, so that everything is cleaned up


if __name__ == "__main__":
    for termination in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(termination, _terminated)
    try:
        sys.exit(main())
    except host.RigError as failure:
        host.say(str(failure))
        sys.exit(EXIT_NO_OUTCOME)
    except KeyboardInterrupt:
        host.say("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read us has gone
        sys.exit(EXIT_NO_OUTCOME)
