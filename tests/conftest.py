"""Rules and fixtures for all tests.

Tests in tests/kvm need a usable /dev/kvm (marker ``kvm``). Without one they are skipped with the
reason, or fail when KVMPY_REQUIRE_KVM=1 is set. ``not_on(module, reason)`` leaves a test out on one
KVM module. What was left out is listed in one table at the end.

No test can hang the session: each has a hard limit, after which the process dumps all stacks and
exits.
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import functools
import gc
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"

#: Seconds a test may take before the session is ended; far above what any needs.
HARD_LIMIT, HARD_LIMIT_SLOW = 60, 900
#: Emulated machines are slow, and their clocks are not the host's.
RIG = os.environ.get("KVMPY_RIG", "")
RIG_FACTOR = 10 if RIG else 1

_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "not_on(module, reason): left out on this KVM module, for this reason"
    )
    config.stash[_stderr] = os.dup(2)
    _record_use()
    if not RIG:  # nothing there uses Hypothesis, and its import takes seconds
        _choose_hypothesis_profile()


def _choose_hypothesis_profile() -> None:
    """HYPOTHESIS_PROFILE=fast: a quarter of the examples, where a test does not say how many. No
    deadlines: the machine may be busy."""
    from hypothesis import settings

    settings.register_profile("full", deadline=None)
    settings.register_profile("fast", deadline=None, max_examples=25)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "full"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(TESTS / "kvm"):
            item.add_marker(pytest.mark.kvm)


# ---------------------------------------------------------------- what can run here


@functools.cache
def kvm_trouble() -> str:
    """Why no guest can be run here, or ""."""
    import kvmpy

    try:
        with kvmpy.KVM() as kvm:
            os.close(kvm.create_vm())
    except kvmpy.KvmUnavailableError as error:
        return str(error)
    return ""


@functools.cache
def module_name() -> str:
    """The vendor module behind /dev/kvm."""
    from kvmpy.host import module

    return module.module_name()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvm") is None:
        return
    trouble = kvm_trouble()
    if trouble and os.environ.get("KVMPY_REQUIRE_KVM") == "1":
        pytest.fail(f"KVMPY_REQUIRE_KVM=1, and there is no usable KVM: {trouble}", pytrace=False)
    if trouble:
        pytest.skip(trouble)
    for mark in item.iter_markers("not_on"):
        (module,) = mark.args
        if module == module_name():
            pytest.skip(f"{module}: {mark.kwargs['reason']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: object) -> Iterator[None]:
    limit = HARD_LIMIT_SLOW if item.get_closest_marker("slow") else HARD_LIMIT
    faulthandler.dump_traceback_later(
        limit * RIG_FACTOR, exit=True, file=item.config.stash[_stderr]
    )
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: collections.Counter[str] = collections.Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        counts[reason.removeprefix("Skipped: ")] += 1
    for report in terminalreporter.stats.get("xfailed", ()):
        counts[f"known failure: {report.wasxfail}"] += 1
    deselected = len(terminalreporter.stats.get("deselected", ()))
    if deselected:
        counts["deselected on the command line"] += deselected
    if not counts:
        return
    terminalreporter.section("left out, and why")
    for reason, count in counts.most_common():
        terminalreporter.write_line(f"{count:>6}  {reason}")


# ---------------------------------------------------------------- what of KVM's API a test used

#: "ioctls", "exits", "capabilities" -> names: made with success, seen, enabled.
_used: dict[str, set[str]] = {"ioctls": set(), "exits": set(), "capabilities": set()}


def _record_use() -> None:
    """Have what is made from Python with success noted, for tests/api/coverage.py."""
    from kvmpy import VCPU, _native, ioctls
    from kvmpy.ioctls import capabilities, ioctl

    ffi = _native.ffi
    names = {row.request: row.name for row in ioctls.ALL.values()}
    enable, decode = ioctls.KVM_ENABLE_CAP.request, VCPU._decode

    def recording(call: Any) -> Any:
        def recorded(fd: int, request: int, argument: Any) -> int:
            result: int = call(fd, request, argument)
            if result >= 0 and request in names:
                _used["ioctls"].add(names[request])
                if request == enable and not isinstance(argument, bytearray):
                    number = ffi.cast("struct kvm_enable_cap *", argument).cap
                    name = capabilities.name(number).removeprefix(capabilities.PREFIX)
                    _used["capabilities"].add(name)
            return result

        return recorded

    def decoded(self: Any) -> Any:
        exit = decode(self)
        _used["exits"].add(type(exit).__name__)
        return exit

    for attribute in ("_call", "_call_with", "_ioctl"):
        setattr(ioctl, attribute, recording(getattr(ioctl, attribute)))
    VCPU._decode = decoded  # type: ignore[method-assign]


@pytest.fixture
def scripted_ioctls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """``scripted_ioctls(answer)``: ``answer(name, fd, argument, real)`` stands in for the kernel;
    ``real()`` asks it after all."""
    from kvmpy import ioctls
    from kvmpy.ioctls import ioctl

    names = {row.request: row.name for row in ioctls.ALL.values()}

    def script(answer: Any) -> None:
        for attribute in ("_call", "_call_with"):
            real = getattr(ioctl, attribute)
            monkeypatch.setattr(
                ioctl,
                attribute,
                lambda fd, request, argument, real=real: answer(
                    names[request], fd, argument, lambda: real(fd, request, argument)
                ),
            )

    return script


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    for names in _used.values():
        names.clear()
    try:
        return (yield)
    finally:
        for kind, names in _used.items():
            if names:
                item.user_properties.append((kind, " ".join(sorted(names))))


# ---------------------------------------------------------------- nothing is left behind


def kvm_descriptors() -> list[str]:
    """What KVM descriptors this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        if "kvm" in target and target.startswith(("/dev/kvm", "anon_inode:", "/memfd:")):
            found.append(f"{name} -> {target}")
    return found


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each KVM test: no KVM descriptor and no thread more than before."""
    if request.node.get_closest_marker("kvm") is None:
        yield
        return
    descriptors, threads = len(kvm_descriptors()), threading.active_count()
    yield
    if len(kvm_descriptors()) > descriptors:
        gc.collect()
    assert len(kvm_descriptors()) <= descriptors, f"left open: {kvm_descriptors()}"
    assert threading.active_count() <= threads, f"still running: {threading.enumerate()}"


# ---------------------------------------------------------------- guests


@pytest.fixture
def module() -> str:
    """The KVM module: kvm_pvm, kvm_amd, kvm_intel."""
    return module_name()


@pytest.fixture
def vm() -> Iterator[Any]:
    """A VM with 16 MiB of memory and no devices."""
    import kvmpy

    with kvmpy.VM(memory="16M") as machine:
        yield machine


CODE = 0x1000


@pytest.fixture
def start(vm: Any) -> Callable[..., Any]:
    """``start(code, mode=, ring=, at=, vcpu=, **options)``: a vCPU of ``vm``, about to run it.

    ``code`` is Intel-syntax assembly or bytes; options are :meth:`kvmpy.VCPU.enter`'s.
    """
    import kvmpy

    def start(
        code: str | bytes,
        mode: Any = kvmpy.LONG_MODE,
        ring: int = 0,
        *,
        at: int = CODE,
        vcpu: Any = None,
        **options: Any,
    ) -> Any:
        if isinstance(code, str):
            code = kvmpy.asm(code, mode.bits, org=at)
        vm.load(code, at=at)
        cpu = vm.vcpu() if vcpu is None else vcpu
        cpu.enter(mode, rip=at, ring=ring, **options)
        return cpu

    return start


class Runner(threading.Thread):
    """Runs a vCPU in a thread of its own; ``result()`` gives the exit or raises the error."""

    def __init__(self, cpu: Any, **budget: Any):
        super().__init__(daemon=True)
        self._cpu, self._budget = cpu, budget
        self._exit: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._exit = self._cpu.run(**self._budget)
        except BaseException as error:
            self._error = error

    def result(self, seconds: float = 20.0) -> Any:
        self.join(seconds * RIG_FACTOR)
        assert not self.is_alive(), "the run has not come back"
        if self._error is not None:
            raise self._error
        return self._exit


@pytest.fixture
def run_in_thread() -> Callable[..., Runner]:
    """``run_in_thread(cpu, **budget)``: a Runner, started."""
    return Runner


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """``wait_until(condition)``: polls until it is true; fails after 20 s."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 20 * RIG_FACTOR
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.001)

    return wait


# ---------------------------------------------------------------- networks


@pytest.fixture
def namespace() -> Iterator[Any]:
    """A :class:`netns.Namespace`, in which taps can be made."""
    from netns import Namespace

    if shutil.which("ip") is None:
        pytest.skip("there is no ip command (apt install iproute2)")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun (modprobe tun)")
    try:
        namespace = Namespace()
    except PermissionError:
        pytest.skip("a network namespace takes CAP_SYS_ADMIN")
    try:
        yield namespace
    finally:
        namespace.close()


# ---------------------------------------------------------------- Linux guests


@pytest.fixture(scope="session")
def linux_images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """``linux_images(package)``: the kernel of a Debian package, and the initramfs for it."""
    from linux import initramfs, kernels
    from rigs import host

    directory = tmp_path_factory.mktemp("initramfs")

    @functools.cache
    def images(package: str) -> tuple[Any, Path]:
        try:
            kernel = kernels.fetch(package)
            return kernel, initramfs.write(directory / package, kernel)
        except host.Unavailable as error:
            if os.environ.get("KVMPY_REQUIRE_KVM") == "1":
                pytest.fail(f"KVMPY_REQUIRE_KVM=1, and no {package}: {error}", pytrace=False)
            pytest.skip(f"Debian's kernels is not available: {error}")

    return images


@pytest.fixture
def linux(linux_images: Callable[[str], tuple[Any, Path]]) -> Iterator[Callable[..., Any]]:
    """``linux(package, run=, then=, append=, **options)``: a Machine with a Debian kernel, started
    and, if there is to be a shell, booted; closed after the test.

    ``package``: linux.kernels.CLOUD or FULL. ``run`` and ``then``: what linux.initramfs does.
    """
    from linux import guest, initramfs, kernels

    import kvmpy

    with contextlib.ExitStack() as machines:

        def start(
            package: str = kernels.CLOUD,
            *,
            run: str = "",
            then: str = "shell",
            append: str = "",
            memory: str = "256M",
            **options: Any,
        ) -> Any:
            kernel, initrd = linux_images(package)
            words = f'console=ttyS0 quiet panic=-1 {append} then={then} run="{run}"'
            machine = machines.enter_context(
                kvmpy.Machine(
                    options.pop("kernel", kernel.bzimage),
                    initrd=initrd,
                    append=words,
                    memory=memory,
                    **options,
                )
            )
            machine.start(timeout=guest.LIMIT)
            if then == "shell":
                machine.console.expect(initramfs.READY, timeout=guest.LIMIT)
            return machine

        yield start


# ---------------------------------------------------------------- C programs


@pytest.fixture(scope="session")
def native_program(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Callable[..., subprocess.CompletedProcess[str]]]:
    """``native_program("dispatch_test.c")``: builds tests/native/dispatch_test.c with the whole
    shim, and gives a function that runs it with the arguments.

    KVMPY_NATIVE_CFLAGS adds compiler options (sanitizers); KVMPY_NATIVE_RUNNER is put before the
    program (valgrind).
    """
    directory = tmp_path_factory.mktemp("native")
    flags = shlex.split(os.environ.get("KVMPY_NATIVE_CFLAGS", ""))
    runner = shlex.split(os.environ.get("KVMPY_NATIVE_RUNNER", ""))
    includes = sorted({f"-I{path.parent}" for path in NATIVE.glob("*/*.h")})
    compiler = [
        *shlex.split(os.environ.get("CC", "gcc")), "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra",
        "-Werror", "-Wno-missing-field-initializers", *flags, *includes,
    ]  # fmt: skip

    @functools.cache
    def shim() -> list[str]:
        """The shim's object files: compiled once, linked into each program."""
        objects = directory / "shim"
        objects.mkdir()
        sources = sorted(map(str, NATIVE.glob("*/*.c")))
        subprocess.run([*compiler, "-c", *sources], cwd=objects, check=True)
        return sorted(map(str, objects.glob("*.o")))

    @functools.cache
    def build(name: str, *options: str) -> Callable[..., subprocess.CompletedProcess[str]]:
        if shutil.which(compiler[0]) is None:
            pytest.skip("no C compiler: the C tests of the shim need one (apt install gcc)")
        if not NATIVE.is_dir():
            pytest.skip("the C sources of the shim are not here")
        program = directory / name.removesuffix(".c")
        source = str(TESTS / "native" / name)
        subprocess.run(
            [*compiler, "-o", str(program), source, *shim(), "-pthread", *options], check=True
        )

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*runner, str(program), *arguments], capture_output=True, text=True,
                timeout=HARD_LIMIT_SLOW * RIG_FACTOR, check=False,
            )  # fmt: skip

        return run

    return build
