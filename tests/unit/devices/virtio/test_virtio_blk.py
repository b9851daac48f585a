"""The block device, driven as a guest would."""

import contextlib
import os
import random
import resource
import struct
import subprocess

import pytest
import virtio_driver as v
from hypothesis import HealthCheck, given, settings, strategies as st
from virtio_driver import WRITE, Driver

import kvmpy
from kvmpy.devices.virtio import Block

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = 0, 1, 2
F_RO, F_BLK_SIZE, F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 5, 1 << 6, 1 << 9, 1 << 13, 1 << 14
HEADERS, DATA = 0x20_0000, 0x30_0000
SECTORS = 4096


@pytest.fixture
def memory():
    with kvmpy.GuestMemory("16M") as memory:
        yield memory


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    return path


@pytest.fixture
def content(image):
    return image.read_bytes()


class Disk(Driver):
    """Requests one at a time, or prepared and then sent together."""

    def __init__(self, block, memory, **options):
        super().__init__(block, memory, **options)
        self.prepared = 0
        self.statuses = {}

    def prepare(self, type, sector=0, *buffers, header=None):
        """Put a request into the ring. ``buffers``: (gpa, length, flags). Returns its head."""
        place = HEADERS + 64 * (self.prepared % 1024)
        self.prepared += 1
        self.memory.write(place, header or struct.pack("<IIQ", type, 0, sector))
        self.memory.write(place + 32, b"\xaa")
        head = self.ring.add((place, 16, 0), *buffers, (place + 32, 1, WRITE))
        self.statuses[head] = place + 32
        return head

    def status_of(self, head):
        return self.memory.read(self.statuses[head], 1)[0]

    def request(self, type, sector=0, *buffers):
        """Status, and the length the device reported."""
        head = self.prepare(type, sector, *buffers)
        if self.ring.event_idx:
            self.ring.set_used_event(self.ring.used_idx)
        ((done, length),) = self.complete()
        assert done == head
        return self.status_of(head), length

    def read_sectors(self, sector, count):
        status, length = self.request(IN, sector, (DATA, count * 512, WRITE))
        assert (status, length) == (OK, count * 512 + 1)
        return self.memory.read(DATA, count * 512)

    def write_sectors(self, sector, data):
        self.memory.write(DATA, data)
        assert self.request(OUT, sector, (DATA, len(data), 0)) == (OK, 1)


@pytest.fixture
def disk(image, memory):
    with Block(image, serial="kvmpy-0001") as block:
        yield Disk(block, memory)


def test_configuration(disk):
    offered = disk.features()
    for feature in (F_BLK_SIZE, F_FLUSH, F_WRITE_ZEROES):
        assert offered & feature
    assert not offered & F_RO
    assert disk.read(v.DEVICE_ID) == 2
    assert disk.config(0, 8) == SECTORS
    assert disk.config(0, 4) == SECTORS
    assert disk.config(12, 4) == 254
    assert disk.config(20, 4) == 512
    assert disk.config(60, 4) == 0
    disk.write(v.CONFIG, 1)
    assert disk.config(0, 8) == SECTORS


def test_read(disk, content):
    assert disk.read_sectors(0, 1) == content[:512]
    assert disk.read_sectors(SECTORS - 8, 8) == content[-4096:]
    assert disk.device.statistics.bytes_in == 9 * 512


def test_write_and_flush(disk, image, content):
    disk.write_sectors(3, b"kvmpy".ljust(1024, b"."))
    assert disk.request(FLUSH) == (OK, 1)
    assert image.read_bytes() == content[:1536] + b"kvmpy".ljust(1024, b".") + content[2560:]
    assert disk.device.statistics.bytes_out == 1024


def test_scattered(disk, content):
    """Pieces of odd sizes, header and status split too, in an indirect table."""
    disk.memory.write(HEADERS, struct.pack("<IIQ", IN, 0, 5))
    buffers = [(HEADERS, 3, 0), (HEADERS + 3, 13, 0), (DATA, 100, WRITE), (DATA + 100, 0, WRITE)]
    buffers += [(DATA + 1000, 411, WRITE), (DATA + 2000, 1, WRITE), (HEADERS + 32, 1, WRITE)]
    head = disk.ring.add_indirect(0x28_0000, *buffers)
    assert disk.complete() == [(head, 513)]
    data = disk.memory.read(DATA, 100) + disk.memory.read(DATA + 1000, 411)
    assert data + disk.memory.read(DATA + 2000, 1) == content[5 * 512 : 6 * 512]
    assert disk.memory.read(HEADERS + 32, 1) == b"\0"


def test_status_shares_a_descriptor_with_the_data(disk, content):
    disk.memory.write(HEADERS, struct.pack("<IIQ", IN, 0, 7))
    disk.memory.write(DATA, b"\xaa" * 513)
    head = disk.ring.add((HEADERS, 16, 0), (DATA, 513, WRITE))
    assert disk.complete() == [(head, 513)]
    assert disk.memory.read(DATA, 513) == content[7 * 512 : 8 * 512] + b"\0"


@pytest.mark.parametrize(("sector", "sectors"), [
    (SECTORS, 1), (SECTORS - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 1), ((1 << 55), 1),
])  # fmt: skip
@pytest.mark.parametrize("type", [IN, OUT])
def test_beyond_the_end(disk, image, content, type, sector, sectors):
    flags = WRITE if type == IN else 0
    assert disk.request(type, sector, (DATA, sectors * 512, flags))[0] == IOERR
    assert image.read_bytes() == content
    assert disk.device.statistics.errors == 1
    assert disk.read_sectors(0, 1) == content[:512]


@pytest.mark.parametrize("length", [1, 511, 513])
def test_no_whole_sectors(disk, image, content, length):
    assert disk.request(OUT, 0, (DATA, length, 0))[0] == IOERR
    assert image.read_bytes() == content


def test_get_id(disk):
    assert disk.request(GET_ID, 0, (DATA, 20, WRITE)) == (OK, 21)
    assert disk.memory.read(DATA, 20) == b"kvmpy-0001".ljust(20, b"\0")
    disk.memory.write(DATA, b"\xee" * 20)
    assert disk.request(GET_ID, 0, (DATA, 5, WRITE)) == (OK, 6)
    assert disk.memory.read(DATA, 6) == b"kvmpy\xee"


@pytest.mark.parametrize("type", [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, 0xFFFF_FFFF])
def test_unknown_request(disk, type):
    assert disk.request(type, 0, (DATA, 512, 0))[0] == UNSUPP


def erase(disk, type, *segments):
    disk.memory.write(DATA, b"".join(struct.pack("<QII", *segment) for segment in segments))
    return disk.request(type, 0, (DATA, 16 * len(segments), 0))[0]


@pytest.mark.parametrize("flags", [0, 1])
def test_write_zeroes(disk, image, content, flags):
    assert erase(disk, WRITE_ZEROES, (8, 1000, flags)) == OK
    assert image.read_bytes() == content[:4096] + bytes(512000) + content[4096 + 512000 :]
    assert image.stat().st_size == SECTORS * 512
    assert erase(disk, WRITE_ZEROES, (SECTORS - 1, 1, flags)) == OK
    assert image.read_bytes()[-512:] == bytes(512)


def test_discard(disk, image, content):
    if not disk.features() & F_DISCARD:
        assert erase(disk, DISCARD, (8, 8, 0)) == UNSUPP
        pytest.skip("this file system makes no holes: the device offers no discard")
    before = image.stat().st_blocks
    assert erase(disk, DISCARD, (0, 1024, 0), (2048, 1024, 0)) == OK
    assert image.stat().st_blocks < before
    assert image.stat().st_size == SECTORS * 512
    assert image.read_bytes()[512 * 1024 : 1024 * 1024] == content[512 * 1024 : 1024 * 1024]


@pytest.mark.parametrize("type", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(("segment", "status"), [
    ((SECTORS, 1, 0), IOERR), ((0, SECTORS + 1, 0), IOERR), ((1 << 63, 8, 0), IOERR),
    ((0, 0xFFFF_FFFF, 0), IOERR), ((0, 8, 2), UNSUPP), ((0, 8, 0x8000_0000), UNSUPP),
    ((SECTORS, 0, 0), OK),
])  # fmt: skip
def test_erase_refused(disk, image, content, type, segment, status):
    if type == DISCARD and not disk.features() & F_DISCARD:
        pytest.skip("this file system makes no holes: the device offers no discard")
    assert erase(disk, type, segment) == status
    assert image.read_bytes() == content


def test_discard_may_not_keep_zeroes_flag(disk):
    if not disk.features() & F_DISCARD:
        pytest.skip("this file system makes no holes: the device offers no discard")
    assert erase(disk, DISCARD, (0, 8, 1)) == UNSUPP


@pytest.mark.parametrize("length", [0, 8, 17, 33 * 16])
def test_erase_table_of_wrong_length(disk, image, content, length):
    disk.memory.write(DATA, bytes(1024))
    for type in (DISCARD, WRITE_ZEROES):
        if type == WRITE_ZEROES or disk.features() & F_DISCARD:
            assert disk.request(type, 0, (DATA, length, 0))[0] == IOERR
    assert image.read_bytes() == content


def test_read_only(image, memory, content):
    image.chmod(0o444)
    with Block(image, read_only=True) as block:
        disk = Disk(block, memory)
        offered = disk.features()
        assert offered & F_RO
        assert not offered & (F_FLUSH | F_DISCARD | F_WRITE_ZEROES)
        assert disk.request(OUT, 0, (DATA, 512, 0))[0] == IOERR
        assert erase(disk, WRITE_ZEROES, (0, 8, 0)) == IOERR
        assert disk.read_sectors(1, 1) == content[512:1024]
    assert image.read_bytes() == content


def test_without_flush_writes_are_stored(image, memory):
    features = v.F_VERSION_1
    with Block(image) as block:
        disk = Disk(block, memory, features=features)
        disk.write_sectors(0, b"!" * 4096)
        assert erase(disk, WRITE_ZEROES, (0, 1, 1)) == OK
    assert image.read_bytes()[:4096] == bytes(512) + b"!" * 3584


def test_several_in_one_pass(disk, image, content):
    """Reads that continue each other, a hole between, an error in the middle, and a write: each
    gets its own result, and one interrupt is enough."""
    plan = [(0, 8), (8, 8), (16, 1), (100, 4), (104, 4), (SECTORS - 1, 2), (108, 4), (112, 16)]
    heads, place = [], DATA
    for sector, sectors in plan:
        heads.append((disk.prepare(IN, sector, (place, sectors * 512, WRITE)), place))
        place += 0x4000
    disk.memory.write(place, b"w" * 512)
    written = disk.prepare(OUT, 120, (place, 512, 0))
    disk.ring.set_used_event(len(plan))  # the last one
    done = dict(disk.complete(len(plan) + 1))
    assert list(done) == [head for head, _ in heads] + [written]
    for (head, place), (sector, sectors) in zip(heads, plan, strict=True):
        if sector + sectors > SECTORS:
            assert disk.status_of(head) == IOERR
            continue
        assert disk.status_of(head) == OK
        expected = content[sector * 512 : (sector + sectors) * 512]
        assert disk.memory.read(place, sectors * 512) == expected
    assert disk.status_of(written) == OK
    assert image.read_bytes()[120 * 512 : 121 * 512] == b"w" * 512
    assert disk.device.statistics.interrupts == 1


def test_file_cut_short(disk, image, content):
    """Of requests that are served in one go, those that still have their sectors succeed."""
    os.truncate(image, 512 * 10 + 100)
    heads = [disk.prepare(IN, 8 + i, (DATA + 512 * i, 512, WRITE)) for i in range(4)]
    disk.ring.set_used_event(3)
    disk.complete(4)
    assert [disk.status_of(head) for head in heads] == [OK, OK, IOERR, IOERR]
    assert disk.memory.read(DATA, 1024) == content[8 * 512 : 10 * 512]
    assert disk.device.statistics.errors == 2


def test_host_out_of_space(tmp_path, memory):
    """A write that the host cannot store fails, and says so to the guest."""
    path = tmp_path / "sparse.img"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    with Block(path) as block:
        disk = Disk(block, memory)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))
        try:
            disk.memory.write(DATA, b"x" * 1024)
            status = disk.request(OUT, 1023, (DATA, 1024, 0))[0]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert status == IOERR
        assert disk.request(OUT, 1023, (DATA, 1024, 0))[0] == OK


@pytest.mark.parametrize("buffers", [
    [(HEADERS, 16, 0)], [(HEADERS, 15, 0), (DATA, 1, WRITE)], [(DATA, 513, WRITE)],
    [(HEADERS, 0, 0), (DATA, 1, WRITE)], [(HEADERS, 16, 0), (DATA, 0, WRITE)],
])  # fmt: skip
def test_no_header_or_no_status(disk, buffers):
    disk.memory.write(HEADERS, bytes(16))
    disk.ring.add(*buffers)
    disk.notify()
    assert disk.wait_interrupt() == 2
    assert disk.status & v.NEEDS_RESET
    assert disk.device.fault == "queue 0: a request without header or status"
    assert disk.ring.take() == []


def test_same_head_twice(disk, content):
    """Nonsense, but the guest's own."""
    head = disk.prepare(IN, 0, (DATA, 512, WRITE))
    disk.ring.offer(head)
    disk.ring.set_used_event(1)
    assert disk.complete(2) == [(head, 513), (head, 513)]
    assert disk.memory.read(DATA, 512) == content[:512]


def test_write_from_read_only_memory_and_back(image, memory, content):
    memory.add(0x1000_0000, 4096, read_only=True)
    memory.write(0x1000_0000, b"R" * 4096)
    with Block(image) as block:
        disk = Disk(block, memory)
        assert disk.request(OUT, 0, (0x1000_0000, 4096, 0)) == (OK, 1)
        disk.prepare(IN, 8, (0x1000_0000, 512, WRITE))
        disk.notify()
        disk.wait_interrupt()
        assert disk.status & v.NEEDS_RESET
    assert memory.read(0x1000_0000, 4096) == b"R" * 4096
    assert image.read_bytes() == b"R" * 4096 + content[4096:]


def test_a_buffer_across_two_regions(image, memory, content):
    memory.add(16 << 20, 4096)
    with Block(image) as block:
        disk = Disk(block, memory)
        status, _ = disk.request(IN, 0, ((16 << 20) - 512, 1024, WRITE))
        assert status == OK
        assert memory.read((16 << 20) - 512, 1024) == content[:1024]


def test_memory_added_later(disk, content):
    gpa = 4 << 30
    disk.memory.add(gpa, 4096)
    assert disk.request(IN, 0, (gpa, 4096, WRITE)) == (OK, 4097)
    assert disk.memory.read(gpa, 4096) == content[:4096]


def test_memory_closed_first(image, content):
    """The mapping outlives GuestMemory.close() while the device holds it."""
    memory = kvmpy.GuestMemory("16M")
    with Block(image) as block:
        disk = Disk(block, memory)
        disk.prepare(OUT, 0, (DATA, 512, 0))
        disk.notify()
        memory.close()
    assert image.read_bytes()[512:] == content[512:]


@given(st.lists(st.tuples(
    st.sampled_from([IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 77]),
    st.one_of(st.integers(0, SECTORS + 8), st.integers(0, (1 << 64) - 1)),
    st.lists(st.tuples(st.integers(0, 0x4000), st.integers(0, 0x2000)), max_size=4),
), min_size=1, max_size=12))  # fmt: skip
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_requests(tmp_path_factory, plan):
    """Whatever is asked, each request gets a status, and the image is what a model says."""
    path = tmp_path_factory.mktemp("any") / "disk.img"
    model = bytearray(random.Random(2).randbytes(SECTORS * 512))
    path.write_bytes(model)
    with kvmpy.GuestMemory("16M") as memory, Block(path) as block:
        disk = Disk(block, memory)
        memory.write(DATA, random.Random(3).randbytes(0x8000))
        flags = [WRITE if type in (IN, GET_ID) else 0 for type, _, _ in plan]
        heads = [
            disk.prepare(type, sector, *[(DATA + at, size, flag) for at, size in pieces])
            for flag, (type, sector, pieces) in zip(flags, plan, strict=True)
        ]
        disk.notify()
        disk.settle()
        assert [head for head, _ in disk.ring.take()] == heads
        assert {disk.status_of(head) for head in heads} <= {OK, IOERR, UNSUPP}
        for head, (type, sector, pieces) in zip(heads, plan, strict=True):
            size = sum(size for _, size in pieces)
            if type in (IN, OUT):
                fits = size % 512 == 0 and sector * 512 + size <= len(model)
                assert disk.status_of(head) == (OK if fits else IOERR)
        assert path.stat().st_size == len(model)
        if not any(type in (OUT, DISCARD, WRITE_ZEROES) for type, _, _ in plan):
            assert path.read_bytes() == model


# ---------------------------------------------------------------- the file


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Block(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 1, 511, 513])
def test_size_of_no_disk(tmp_path, size):
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"has {size} bytes"):
        Block(path)


def test_no_file(tmp_path):
    with pytest.raises(ValueError, match="neither a regular file nor a block device"):
        Block("/dev/null")
    with pytest.raises(IsADirectoryError):
        Block(tmp_path)


@pytest.mark.parametrize("serial", ["x" * 21, "Ünïcode", "nul\0"])
def test_serial_that_is_none(image, serial):
    with pytest.raises(ValueError, match="serial"):
        Block(image, serial=serial)


def test_one_writer_or_many_readers(image):
    with Block(image), pytest.raises(kvmpy.KvmpyError, match="another guest"):
        Block(image)
    reader = Block(image, read_only=True)
    with Block(image, read_only=True), pytest.raises(kvmpy.KvmpyError, match="another guest"):
        Block(image)
    reader.close()
    Block(image).close()


def test_lock_is_seen_by_other_processes(image):
    with Block(image):
        result = subprocess.run(
            ["flock", "--nonblock", "--shared", str(image), "true"], check=False
        )
    assert result.returncode == 1


def test_nothing_is_left_open(image, tmp_path):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        Block(image).close()
        with contextlib.suppress(ValueError):
            Block("/dev/null")
        assert descriptors() == before
