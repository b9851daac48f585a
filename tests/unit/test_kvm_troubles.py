"""The troubles one can have with /dev/kvm, told apart, each with its remedy. No KVM needed."""

import errno
import os
import subprocess
import sys

import pytest

import kvmpy
from kvmpy import ioctls


def fake_ioctls(scripted_ioctls, results):
    """Ioctls give what ``results`` says by name; others must not be made."""
    scripted_ioctls(lambda name, fd, argument, real: results[name])


@pytest.fixture
def device(tmp_path):
    """A file in /dev/kvm's stead."""
    path = tmp_path / "kvm"
    path.write_bytes(b"")
    return str(path)


def test_no_device(tmp_path):
    """No module loaded, or no VT-x / AMD-V: modprobe, firmware, nesting, containers."""
    with pytest.raises(kvmpy.KvmMissingError, match="does not exist") as info:
        kvmpy.KVM(str(tmp_path / "kvm"))
    assert info.value.errno == errno.ENOENT
    for word in ("modprobe kvm_intel", "kvm_amd", "firmware", "nested", "container"):
        assert word in str(info.value)


def test_no_permission(tmp_path):
    """Group kvm. Root may open anything, so another user tries."""
    path = tmp_path / "kvm"
    path.write_bytes(b"")
    path.chmod(0)
    for directory in (tmp_path, *tmp_path.parents):
        if os.stat(directory).st_uid == os.getuid() and directory != directory.parent:
            directory.chmod(directory.stat().st_mode | 0o111)
    script = (
        "import os, sys, kvmpy\n"
        "import kvmpy.kvm, kvmpy.errors\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: kvmpy.KVM(sys.argv[1])\n"
        "except kvmpy.errors.KvmPermissionError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert "may not be opened by this user" in result.stdout
    assert "usermod -aG kvm" in result.stdout


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, kvmpy.KvmMissingError),
        (errno.ENODEV, kvmpy.KvmMissingError),
        (errno.ENXIO, kvmpy.KvmMissingError),
        (errno.EACCES, kvmpy.KvmPermissionError),
        (errno.EPERM, kvmpy.KvmPermissionError),
        (errno.EBUSY, kvmpy.KvmBusyError),
        (errno.EIO, kvmpy.KvmBrokenError),
    ],
)
def test_open_fails(monkeypatch, code, kind):
    """Each errno of open() in its class, with a remedy of its own."""

    def refuse(path, flags):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind) as info:
        kvmpy.KVM()
    error = info.value
    assert error.errno == code
    assert isinstance(error, kvmpy.KvmUnavailableError)
    assert isinstance(error, OSError)
    assert error.remedy
    assert error.remedy in str(error)


def test_busy_at_the_first_vm(scripted_ioctls, device):
    """Another hypervisor has the extensions: seen only when a VM is made."""
    fake_ioctls(scripted_ioctls, {"KVM_GET_API_VERSION": 12, "KVM_CREATE_VM": -errno.EBUSY})
    with kvmpy.KVM(device) as kvm, pytest.raises(kvmpy.KvmBusyError, match="VirtualBox"):
        kvm.create_vm()


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EOPNOTSUPP, errno.EIO])
def test_no_vm_can_be_made(scripted_ioctls, device, code):
    """A nested host that offers KVM and cannot do it."""
    fake_ioctls(scripted_ioctls, {"KVM_GET_API_VERSION": 12, "KVM_CREATE_VM": -code})
    with kvmpy.KVM(device) as kvm, pytest.raises(kvmpy.KvmBrokenError, match="nested") as info:
        kvm.create_vm()
    assert info.value.errno == code


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM, errno.EINVAL])
def test_a_vm_fails_for_other_reasons(scripted_ioctls, device, code):
    """Not KVM's fault: an ordinary ioctl error."""
    fake_ioctls(scripted_ioctls, {"KVM_GET_API_VERSION": 12, "KVM_CREATE_VM": -code})
    with kvmpy.KVM(device) as kvm, pytest.raises(kvmpy.KvmIoctlError, match="KVM_CREATE_VM"):
        kvm.create_vm()


@pytest.mark.parametrize("version", [0, 11, 13])
def test_wrong_version(scripted_ioctls, device, version):
    """Another API: the number is quoted, and the descriptor closed."""
    fake_ioctls(scripted_ioctls, {"KVM_GET_API_VERSION": version})
    before = os.listdir("/proc/self/fd")
    with pytest.raises(kvmpy.KvmVersionError, match=f"version {version}, not 12"):
        kvmpy.KVM(device)
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("what", ["file", "directory", "null", "socket", "tty"])
def test_not_kvm_at_all(tmp_path, device, what):
    """A regular file, a directory, another device: said so, never "version -25"."""
    paths = {"file": device, "directory": str(tmp_path), "null": "/dev/null"}
    if what == "tty":
        leader, follower = os.openpty()
        path = os.ttyname(follower)
    elif what == "socket":
        path = "/dev/net/tun"
        if not os.path.exists(path):
            pytest.skip("/dev/net/tun is not here: a device whose ioctls give other errors")
    else:
        path = paths[what]
    with pytest.raises(kvmpy.KvmUnavailableError) as info:
        kvmpy.KVM(path)
    assert "version -" not in str(info.value)
    if what in ("file", "null"):
        assert isinstance(info.value, kvmpy.KvmBrokenError)
        assert "is not KVM" in str(info.value)
    if what == "tty":
        os.close(leader)
        os.close(follower)


def test_five_messages_are_five():
    """No two troubles read the same."""
    from kvmpy.kvm import _cannot_open

    texts = {
        str(_cannot_open("/dev/kvm", OSError(code, "")))
        for code in (errno.ENOENT, errno.EACCES, errno.EBUSY, errno.EIO)
    }
    assert len(texts) == 4
    assert all("/dev/kvm" in text for text in texts)


def test_errors_leave_no_descriptor(device):
    """Nor a warning about one."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(kvmpy.KvmBrokenError):
            kvmpy.KVM(device)
    assert len(os.listdir("/proc/self/fd")) == before
    assert ioctls.KVM_GET_API_VERSION.raw(before + 100) == -errno.EBADF
