"""cpu.max for vCPU threads: where this process may have it, the kernel holds them to it and nothing
is left behind; where not, the reason is said."""

import ctypes
import os
import time

import pytest
from conftest import RIG

import kvmpy
from kvmpy.host import cgroup
from kvmpy.machine.threads import VcpuThreads

LIMIT = 20.0 * (10 if RIG else 1)


@pytest.fixture
def mounted(tmp_path):
    """The rigs' machines have no systemd: their cgroup v2 is mounted for the test."""
    if not RIG:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.fsencode(tmp_path)
    assert libc.mount(b"cgroup2", where, b"cgroup2", 0, None) == 0, os.strerror(ctypes.get_errno())
    yield
    libc.umount2(where, 0)


@pytest.fixture
def threads(vm):
    """Two vCPUs that spin, in threads."""
    vm.load(kvmpy.asm("1: jmp 1b", 16), at=0x1000)
    made = [vm.vcpu(), vm.vcpu()]
    for cpu in made:
        cpu.enter(kvmpy.REAL_MODE, rip=0x1000)
    threads = VcpuThreads(made, kvmpy.VCPU.run)
    threads.start()
    yield threads
    assert threads.stop(LIMIT)


def limited(threads, *limit, **options):
    """Whether they are now. If not, the reason is said; the rigs' own machines have none."""
    reason = ""
    try:
        threads.limit(*limit, **options)
    except kvmpy.UnsupportedError as error:
        reason = str(error)
        assert not RIG, reason
    assert not reason or "cgroup" in reason
    return not reason


def ran(threads):
    """Seconds on a pCPU, of each thread: the first field of its schedstat."""
    seconds = []
    for thread in threads.thread_ids().values():
        with open(f"/proc/self/task/{thread}/schedstat") as file:
            seconds.append(int(file.read().split()[0]) / 1e9)
    return seconds


def test_limit(mounted, threads, wait_until):
    """A fifth of a pCPU for both together: they get less than half of one, are seen to wait for it,
    and get more again without the limit."""
    if not limited(threads, 0.2, period=0.01):
        return
    parent = cgroup.own_cgroup()
    (group,) = parent.glob("kvmpy-*")
    assert (group / "cpu.max").read_text() == "2000 10000\n"
    assert set((group / "cgroup.threads").read_text().split()) == {
        str(thread) for thread in threads.thread_ids().values()
    }
    before, begun = sum(ran(threads)), time.monotonic()
    time.sleep(0.5)
    used, elapsed = sum(ran(threads)) - before, time.monotonic() - begun
    assert used < 0.5 * elapsed
    assert "nr_throttled 0\n" not in (group / "cpu.stat").read_text()
    threads.limit(None)
    assert not list(parent.glob("kvmpy-*"))
    now = sum(ran(threads))
    wait_until(lambda: sum(ran(threads)) > now + 0.05)


def test_the_end_takes_it_away(mounted, threads):
    if not limited(threads, 0.5):
        return
    parent = cgroup.own_cgroup()
    enabled = (parent / "cgroup.subtree_control").read_text().split()
    threads.limit(0.25)
    assert len(list(parent.glob("kvmpy-*"))) == 1
    assert threads.stop(LIMIT)
    threads.wait(LIMIT)
    assert not list(parent.glob("kvmpy-*"))
    assert "cpu" in enabled
    assert "cpu" not in (parent / "cgroup.subtree_control").read_text().split()
    with pytest.raises(RuntimeError, match="not running"):
        threads.limit(0.5)
