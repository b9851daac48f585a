"""Errors travel: from a process of a pool to its parent, with all that they know."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import importlib
import multiprocessing
import pickle
import pkgutil
import resource

import pytest

import kvmpy
from kvmpy import errors
from kvmpy.exits.reasons import IoOut
from kvmpy.fd import Owner
from kvmpy.host.scheduling import SchedulingError

MADE = [
    errors.KvmIoctlError("KVM_SET_SREGS", errno.EINVAL, "vCPU 0"),
    errors.MsrError("KVM_SET_MSRS", 0x10, "IA32_TSC", 3, 0x1234),
    errors.MsrError("KVM_GET_MSRS", 0x10, "IA32_TSC", 0),
    errors.VmDeadError("KVM_RUN", errno.EIO, "vCPU 1"),
    errors.KvmMissingError("There is no /dev/kvm.", "Load the module.", errno.ENOENT),
    errors.KvmVersionError("Version 11.", "Update."),
    errors.UnsupportedError("no sync regs", "KVM_CAP_SYNC_REGS"),
    errors.UnsupportedError("no name for it"),
    errors.StateMismatchError("the saved state", {"cpuid": (1, 2)}),
    errors.UnexpectedExitError("an OUT", IoOut(0x10, 1, b"\x07")),
    errors.ExpectTimeout("no login", b"panic"),
    errors.ExpectEof("ended", b"\xff"),
    errors.ClosedError("closed"),
    errors.StillRunningError("still"),
    SchedulingError(errno.EPERM, "not permitted"),
]


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(sub) for sub in kind.__subclasses__()))


def every_module() -> None:
    for module in pkgutil.walk_packages(kvmpy.__path__, "kvmpy."):
        if not module.name.endswith(("__main__", "pytest_plugin")):
            importlib.import_module(module.name)


def same(one: BaseException, other: BaseException) -> None:
    assert type(other) is type(one)
    assert str(other) == str(one)
    assert other.args == one.args
    assert vars(other) == vars(one)
    if isinstance(one, OSError):
        assert isinstance(other, OSError)
        assert (other.errno, other.strerror) == (one.errno, one.strerror)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_unpickles_as_it_was(error: BaseException, protocol: int) -> None:
    same(error, pickle.loads(pickle.dumps(error, protocol)))
    same(error, copy.copy(error))
    same(error, copy.deepcopy(error))


def test_every_error_of_the_package_unpickles() -> None:
    """Whatever its __init__ takes."""
    every_module()
    kinds = subclasses(errors.KvmpyError)
    assert len(kinds) > 30
    for kind in kinds:
        args = (errno.EIO, "text") if issubclass(kind, OSError) else ("text",)
        error = kind.__new__(kind, *args)
        (OSError if issubclass(kind, OSError) else Exception).__init__(error, *args)
        error.note = {"more": 1}
        if "__str__" in vars(kind) or kind.__str__ is not Exception.__str__:
            # Its text is made of attributes that its __init__ sets.
            error.problem = error.remedy = error.name = error.argument = error.hint = "text"
        same(error, pickle.loads(pickle.dumps(error)))


def fails(number: int) -> None:
    raise MADE[number]


def test_a_process_pool_gives_the_error_to_its_parent() -> None:
    """A pool whose result does not unpickle is broken, or hangs."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        for number in (0, 1, 10):
            with pytest.raises(type(MADE[number])) as caught:
                pool.submit(fails, number).result(timeout=60)
            assert str(caught.value) == str(MADE[number])


def test_no_owner_is_copied_or_pickled() -> None:
    """Not even one that is half made: its copy would close what is the original's."""
    every_module()
    owners = subclasses(Owner)
    names = {kind.__name__ for kind in owners}
    assert {
        "KVM", "VM", "VCPU", "Device", "GuestMemory", "GuestMemfd", "Stats", "Machine", "Bus",
        "VcpuThreads", "ScriptConsole", "Watch", "Publication",
    } <= names  # fmt: skip
    for kind in owners:
        owner = kind.__new__(kind)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=f"{kind.__name__} objects cannot be copied"):
                attempt(owner)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR])
def test_this_process_s_own_trouble_is_not_a_missing_kvm(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pytest plug-in skips where there is no KVM: a leak of descriptors is to fail."""

    def refuse(*_: object) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr("kvmpy.kvm.os.open", refuse)
    with pytest.raises(kvmpy.KvmIoctlError) as caught:
        kvmpy.KVM()
    assert not isinstance(caught.value, kvmpy.KvmUnavailableError)
    assert caught.value.errno == code


def test_too_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(kvmpy.KvmIoctlError, match="ulimit -n") as caught:
            kvmpy.KVM("/dev/null")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
