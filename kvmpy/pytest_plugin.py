"""pytest drives guests: fixtures ``kvm``, ``vm`` and ``machine``, and what a failing test's report
needs (the consoles' tails, the vCPUs' registers).

pytest finds it by itself where kvmpy is installed (entry point ``pytest11``). Nothing of kvmpy is
imported before a fixture is used. Without a usable KVM the fixtures skip their test and say what to
do; with KVMPY_REQUIRE_KVM=1 in the environment they fail it.

    def test_boot(machine):
        m = machine("vmlinuz", initrd="initrd.img", append="console=ttyS0")
        m.start()
        m.console.expect("login: ", timeout=60)

    @pytest.mark.kvmpy(memory="4M", irqchip=True)
    def test_interrupts(vm): ...
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .kvm import KVM
    from .machine.machine import Machine
    from .vm import VM

#: Seconds that a report waits for a running vCPU to stop, so that its registers can be read.
_PATIENCE = 2.0
_guests = pytest.StashKey[list[Any]]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "kvmpy(**options): options of kvmpy.VM for the fixture vm (memory=, irqchip= ...)",
    )


# ---------------------------------------------------------------- fixtures


@pytest.fixture
def kvm() -> Iterator[KVM]:
    """/dev/kvm, open, and known to make VMs. Closed after the test."""
    from .errors import KvmUnavailableError
    from .kvm import KVM

    with contextlib.ExitStack() as opened:
        try:
            device = opened.enter_context(KVM())
            os.close(device.create_vm())
        except KvmUnavailableError as error:
            reason = f"no usable KVM: {error}"
            if os.environ.get("KVMPY_REQUIRE_KVM") == "1":
                pytest.fail(f"KVMPY_REQUIRE_KVM=1, and {reason}", pytrace=False)
            pytest.skip(reason)
        yield device


@pytest.fixture
def vm(request: pytest.FixtureRequest, kvm: KVM) -> Iterator[VM]:
    """A VM with 16 MiB of memory and no devices, or as the marker ``kvmpy`` says. Closed after the
    test, with its vCPUs."""
    from .vm import VM

    options: dict[str, Any] = {"memory": "16M"}
    for mark in reversed(list(request.node.iter_markers("kvmpy"))):  # the nearest last
        options.update(mark.kwargs)
    with VM(kvm=kvm, **options) as machine:
        _remember(request.node, machine)
        yield machine


@pytest.fixture
def machine(request: pytest.FixtureRequest, kvm: KVM) -> Iterator[Callable[..., Machine]]:
    """``machine(kernel, **options)`` makes a :class:`kvmpy.Machine`, not started. All are stopped
    and closed after the test, in bounded time."""
    from .machine.machine import Machine

    with contextlib.ExitStack() as made:

        def make(*arguments: Any, **options: Any) -> Machine:
            new = made.enter_context(Machine(*arguments, **options))
            _remember(request.node, new)
            return new

        yield make


def _remember(item: pytest.Item, guest: Any) -> None:
    item.stash.setdefault(_guests, []).append(guest)


# ---------------------------------------------------------------- reports


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A failure's report shows how the test's guests were at that moment: they are stopped."""
    report = yield
    guests = item.stash.get(_guests, [])
    if report.failed and report.when != "teardown":
        for number, guest in enumerate(guests):
            which = f" of guest {number}" if len(guests) > 1 else ""
            for title, text in _sections(guest):
                report.sections.append((title + which, text))
    if report.when == "teardown":
        guests.clear()  # else the session would keep them all
    return report


def _sections(guest: Any) -> Iterator[tuple[str, str]]:
    from .errors import KvmpyError
    from .vm import VM

    is_vm = isinstance(guest, VM)
    vm: VM = guest if is_vm else guest.vm
    if not is_vm:
        with contextlib.suppress(KvmpyError):  # a handler that holds its vCPU: said below
            guest.stop(_PATIENCE)
        yield from _output(guest)
    deadline = time.monotonic() + (_PATIENCE if is_vm else 0)
    for cpu in [] if vm.closed else vm.vcpus:
        yield f"registers of vCPU {cpu.id}", _registers(cpu, deadline)


def _output(machine: Machine) -> Iterator[tuple[str, str]]:
    from .console.output import TAIL_BYTES, printable

    if machine._console is not None:
        tail, title = machine._console.tail, machine._console.tail_title
    else:
        output = machine.serial.output
        tail, title = output[-TAIL_BYTES:], f"the end of {len(output)} bytes of output"
    yield f"console ({title})", printable(tail)


def _registers(cpu: Any, deadline: float) -> str:
    """What a stopped vCPU holds. One that runs, in a thread of the test's own, is kicked."""
    import errno

    from .errors import KvmIoctlError, KvmpyError

    kicked = False
    while True:
        try:
            return f"{cpu.regs!r}\n{cpu.sregs!r}"
        except KvmIoctlError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return f"not readable: {error}"
        except KvmpyError as error:
            return f"not readable: {error}"
        if not kicked:
            cpu.kick()
            kicked = True
        time.sleep(0.001)
