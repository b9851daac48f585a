"""Debian's cloud kernel with virtio disks and an entropy device."""

import hashlib
import shutil
import subprocess

import pytest
from linux.guest import LIMIT, power_off, shell

import kvmpy
from kvmpy.devices.virtio import Block, Rng

pytestmark = [
    pytest.mark.slow,
    pytest.mark.not_on("kvm_pvm", reason="interprets ring 0: minutes for each boot"),
]
MIB = 1 << 20


@pytest.fixture
def image(tmp_path):
    """A path of an ext4 file system of 64 MiB, sparse."""
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs: apt install e2fsprogs")
    path = tmp_path / "root.img"
    with open(path, "wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(path)], check=True, timeout=300)
    return path


def test_a_file_system_outlives_its_guest(linux, image):
    """ext4 written in one boot, read back in a second and by the host's own tools: the same."""
    first = linux(devices=[Block(image)])
    shell(first, "mount -t ext4 /dev/vda /mnt")
    shell(first, "dd if=/dev/urandom of=/mnt/data bs=1M count=16 && sync")
    written = shell(first, "sha256sum < /mnt/data").split()[0]
    power_off(first)  # without umount: what sync promised is there, the journal is replayed
    second = linux(devices=[Block(image)])
    shell(second, "mount -t ext4 /dev/vda /mnt")
    assert shell(second, "sha256sum < /mnt/data").split()[0] == written
    shell(second, "umount /mnt")
    power_off(second)
    check = subprocess.run(
        ["e2fsck", "-f", "-n", str(image)], capture_output=True, text=True, timeout=300
    )
    assert check.returncode == 0, check.stdout
    copy = image.with_name("data")
    subprocess.run(["debugfs", "-R", f"dump /data {copy}", str(image)], check=True, timeout=300)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == written


def test_a_read_only_disk_stays_as_it_is(linux, image):
    """The guest knows, its writes fail, and not a byte of the image changes."""
    before = hashlib.sha256(image.read_bytes()).digest()
    machine = linux(devices=[Block(image, read_only=True)])
    assert shell(machine, "cat /sys/block/vda/ro") == "1\n"
    shell(machine, "mount -t ext4 -o ro,noload /dev/vda /mnt && umount /mnt")
    for command in (
        "mount -t ext4 -o rw /dev/vda /mnt && touch /mnt/new",
        "dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync",
    ):
        assert machine.console.run(command, timeout=LIMIT).status != 0
    power_off(machine)
    assert hashlib.sha256(image.read_bytes()).digest() == before


def test_several_disks(linux, tmp_path):
    """They come in order, with size and serial number; raw data crosses in both directions; a
    discard gives the host its blocks back. The image of a running guest is no second one's."""
    paths = [tmp_path / "a.img", tmp_path / "b.img"]
    content = hashlib.shake_256(b"kvmpy").digest(8 * MIB)
    for path in paths:
        path.write_bytes(content)
    disks = [Block(path, serial=path.stem) for path in paths]
    machine = linux(devices=disks)
    with pytest.raises(kvmpy.KvmpyError, match="used by another guest"):
        Block(paths[0])
    assert shell(machine, "cat /sys/block/vda/serial; echo; cat /sys/block/vdb/size") == (
        f"a\n{8 * MIB // 512}\n"
    )
    assert shell(machine, "cmp /dev/vda /dev/vdb && sha256sum < /dev/vdb").split()[0] == (
        hashlib.sha256(content).hexdigest()
    )
    shell(machine, "dd if=/dev/vda of=/dev/vdb bs=64k count=16 seek=64 conv=notrunc,fsync")
    shell(machine, "blkdiscard /dev/vda")
    statistics = [disk.statistics for disk in disks]
    power_off(machine)
    assert paths[1].read_bytes() == content[: 4 * MIB] + content[:MIB] + content[5 * MIB :]
    assert paths[0].read_bytes() == bytes(8 * MIB)
    assert [disk.errors for disk in statistics] == [0, 0]
    assert statistics[0].bytes_in >= 8 * MIB
    assert statistics[1].bytes_out >= MIB


def test_a_busy_disk_needs_no_python(linux, tmp_path):
    """A thousand requests are served with not one access that came back to Python."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    disk = Block(path)
    machine = linux(devices=[disk])
    shell(machine, "true")
    requests, unclaimed = disk.statistics.requests, machine.unclaimed
    shell(machine, "dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct")
    assert disk.statistics.requests >= requests + 1000
    assert machine.unclaimed == unclaimed
    assert disk.fault == ""


def test_rng(linux):
    """/dev/hwrng is the virtio device, and gives bytes that are not the same twice."""
    rng = Rng()
    machine = linux(devices=[rng])
    assert shell(machine, "cat /sys/class/misc/hw_random/rng_current") == "virtio_rng.0\n"
    command = "dd if=/dev/hwrng bs=512 count=2 2>/dev/null | sha256sum"
    assert shell(machine, command) != shell(machine, command)
    assert rng.statistics.bytes_in >= 2048
