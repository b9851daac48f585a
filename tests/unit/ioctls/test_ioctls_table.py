"""The table of ioctls, and what errors say."""

import errno
import os
import re
import runpy
from pathlib import Path

import pytest

import kvmpy
from kvmpy import _native, errors, ioctls
from kvmpy.fd import Descriptor
from kvmpy.ioctls import ioctl as ioctl_module

ROOT = Path(__file__).resolve().parents[3]
VARIABLE = {"struct kvm_msrs", "struct kvm_cpuid2", "struct kvm_msr_list"}


@pytest.mark.parametrize("ioctl", ioctls.ALL.values(), ids=ioctls.ALL)
def test_row(ioctl):
    """KVM's magic number; a structure has the size that the request encodes."""
    assert ioctl.request >> 8 & 0xFF == 0xAE
    assert getattr(ioctls, ioctl.name) is ioctl
    assert set(ioctl.fds) <= {"system", "vm", "vcpu", "device"}
    assert ioctl.direction in ("", "in", "out", "inout")
    assert bool(ioctl.argument) == bool(ioctl.direction)
    assert re.fullmatch(r"([4-8]\.\d+)?", ioctl.section)
    assert ioctl.name in repr(ioctl)
    if ioctl.argument:
        declared = _native.ffi.sizeof(ioctl.argument)
        if ioctl.name == "KVM_REINJECT_CONTROL":  # the kernel's number forgets its structure
            assert ioctl.size == 0
        else:
            # Larger where the structure ends in an array of no fixed length.
            assert ioctl.size == declared or (ioctl.argument in VARIABLE and ioctl.size < declared)
    else:
        assert ioctl.size == 0
    assert ioctl.capability is None or ioctl.capability.startswith("KVM_CAP_")


def test_every_request_of_the_shim_has_a_row():
    """What the C side declares and what the table has are the same."""
    declared = {
        name
        for name in dir(_native.lib)
        if name.startswith("KVM_") and isinstance(getattr(_native.lib, name), int)
        and getattr(_native.lib, name) >> 8 & 0xFF == 0xAE and getattr(_native.lib, name) >= 0xAE00
        and not name.startswith(("KVM_CAP_", "KVM_EXIT_"))
    }  # fmt: skip
    assert declared == set(ioctls.ALL)


def test_stub_is_fresh():
    """kvmpy/ioctls/__init__.pyi is what the table gives: native/ioctls_stub.py writes it."""
    stub = runpy.run_path(str(ROOT / "native" / "ioctls_stub.py"))["stub"]
    assert (ROOT / "kvmpy" / "ioctls" / "__init__.pyi").read_text() == stub()


def test_a_missing_capability_is_named(monkeypatch):
    """The errno alone does not say whether the argument is wrong or the feature absent: KVM is
    asked."""
    answers = {"absent": 0, "there": 1}
    for state, kind in (("absent", kvmpy.UnsupportedError), ("there", kvmpy.KvmIoctlError)):
        monkeypatch.setattr(ioctl_module, "_call", lambda *_, a=answers[state]: a)
        error = ioctls.KVM_GET_XSAVE2.error(5, errno.EINVAL)
        assert type(error) is kind
        assert "KVM_GET_XSAVE2" in str(error)
    monkeypatch.setattr(ioctl_module, "_call", lambda *_: 0)
    missing = ioctls.KVM_GET_XSAVE2.error(5, errno.ENOTTY)
    assert isinstance(missing, kvmpy.UnsupportedError)
    assert missing.capability == "KVM_CAP_XSAVE2"
    assert type(ioctls.KVM_GET_XSAVE2.error(5, errno.EFAULT)) is kvmpy.KvmIoctlError
    assert type(ioctls.KVM_GET_REGS.error(5, errno.EINVAL)) is kvmpy.KvmIoctlError


def test_unknown_name():
    """An AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="KVM_NOTHING"):
        _ = ioctls.KVM_NOTHING


def test_numbers():
    """A few, against the kernel's header."""
    assert ioctls.KVM_GET_API_VERSION.request == 0xAE00
    assert ioctls.KVM_CREATE_VM.request == 0xAE01
    assert ioctls.KVM_RUN.request == 0xAE80
    assert ioctls.KVM_GET_REGS.request == 0x8090_AE81
    assert ioctls.KVM_SET_SREGS.request == 0x4138_AE84


def test_buffer_must_be_large_enough_and_writable():
    """Checked before the kernel is asked: no KVM descriptor is needed to find out."""
    with pytest.raises(ValueError, match="takes 144 bytes of struct kvm_regs"):
        ioctls.KVM_GET_REGS.raw(-1, bytearray(143))
    assert ioctls.KVM_GET_REGS.raw(-1, bytearray(144)) == -errno.EBADF
    with pytest.raises((BufferError, TypeError)):
        ioctls.KVM_GET_REGS.raw(-1, bytes(144))


def test_error_text():
    """NAME(argument) failed with ERRNO: hint."""
    error = kvmpy.KvmIoctlError("KVM_SET_SREGS", errno.EINVAL, "cr0 0x11")
    assert str(error).startswith("KVM_SET_SREGS(cr0 0x11) failed with EINVAL: KVM refuses this")
    assert error.errno == errno.EINVAL
    assert str(kvmpy.KvmIoctlError("KVM_FOO", errno.EXDEV)) == "KVM_FOO failed with EXDEV"
    assert "9999" in str(kvmpy.KvmIoctlError("KVM_FOO", 9999))


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EBADF, errno.EMFILE, errno.ENOMEM])
def test_general_hints(code):
    """An errno that always means the same has its hint for every ioctl."""
    assert ": " in str(kvmpy.KvmIoctlError("KVM_FOO", code))


def test_special_hints_name_real_ioctls():
    """Each hint belongs to a row of the table."""
    assert {name for name, _ in errors._HINTS} <= set(ioctls.ALL)


def test_eio_of_another_process():
    """A descriptor made by another process is a fork's, and no dead VM."""
    owner = Descriptor()
    owner._opened(os.open(os.devnull, os.O_RDONLY))
    with owner:
        owner._process += 1
        error = ioctls.KVM_GET_REGS.error(owner.fileno(), errno.EIO)
        assert isinstance(error, kvmpy.ForkedError)
        number = owner.fileno()
    with open(os.devnull) as other:  # the kernel gives the same number to the next
        assert other.fileno() == number
        assert not isinstance(ioctls.KVM_GET_REGS.error(number, errno.EIO), kvmpy.ForkedError)


@pytest.mark.parametrize(
    ("probe", "is_dead"), [(-errno.EIO, True), (-errno.ENOTTY, False), (1, False)]
)
def test_eio_is_a_dead_vm_only_if_nothing_answers(monkeypatch, probe: int, is_dead: bool):
    """KVM marks a VM as dead for good; one ioctl's own EIO must not be taken for that."""
    monkeypatch.setattr(ioctl_module, "_call", lambda fd, request, argument: probe)
    error = ioctls.KVM_GET_REGS.error(12345, errno.EIO)
    assert isinstance(error, kvmpy.KvmIoctlError)
    assert isinstance(error, kvmpy.VmDeadError) == is_dead


def test_hierarchy():
    """All are KvmpyError; those with a standard meaning are that too."""
    for name in dir(errors):
        thing = getattr(errors, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, kvmpy.KvmpyError), name
    assert issubclass(kvmpy.ClosedError, ValueError)
    assert issubclass(kvmpy.GuestMemoryError, ValueError)
    assert issubclass(kvmpy.KvmIoctlError, OSError)
    assert kvmpy.UnsupportedError("no", "KVM_CAP_X").capability == "KVM_CAP_X"


def test_public_names_all_load():
    """Lazy imports: each name of __all__ is there, and dir() shows it."""
    for name in kvmpy.__all__:
        assert getattr(kvmpy, name) is not None
        assert name in dir(kvmpy)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvmpy.nothing
