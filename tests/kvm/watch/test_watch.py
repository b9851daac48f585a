"""Machines seen while they run: from this process, and by `kvmpy top` from another."""

import gc
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import kvm_descriptors

import kvmpy
from kvmpy.host.topology import allowed_cpus, format_cpu_list
from kvmpy.watch import Watch, machines, publish

LIMIT = 240  # seconds; generous for emulated CPUs
INTERVAL = 0.5
WRITER = "1: out 0x80, al; jmp 1b"
SPINNER = "1: jmp 1b"
#: Halts until an interrupt comes, which none does; KVM's interrupt controllers keep it.
SLEEPER = "1: hlt; jmp 1b"
#: Halts until the PIT's next tick, 250 times a second.
TICKER = """
        cli; xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
        mov word ptr [0x80], offset tick; mov word ptr [0x82], 0
        mov al, 0x11; out 0x20, al
        mov al, 0x20; out 0x21, al; mov al, 4; out 0x21, al; mov al, 1; out 0x21, al
        mov al, 0xfe; out 0x21, al
        mov al, 0x34; out 0x43, al; mov al, 0xa5; out 0x40, al; mov al, 0x12; out 0x40, al
1:      sti; hlt; jmp 1b
tick:   mov al, 0x20; out 0x20, al; iret
"""
PCPU = max(allowed_cpus())


def machine(code, **options):
    return kvmpy.Machine(kvmpy.asm(code, 16, org=0x7C00), format="flat", memory="2M", **options)


def until(watch, wanted):
    """The first sample's machine in which a vCPU is as wanted."""
    deadline = time.monotonic() + LIMIT / 4
    while time.monotonic() < deadline:
        time.sleep(INTERVAL)
        (seen,) = watch.sample().machines
        if all(wanted(vcpu) for vcpu in seen.vcpus):
            return seen
    pytest.fail(f"not seen within {LIMIT / 4} s: {seen}")


def test_where_it_is_and_why_it_leaves_the_guest():
    with machine(WRITER, pin=PCPU) as m:
        m.start()
        with m.watch() as watch:
            seen = until(watch, lambda vcpu: vcpu.reasons and vcpu.host is not None)
        (vcpu,) = seen.vcpus
        assert (vcpu.state, vcpu.pcpu, vcpu.allowed) == ("running", PCPU, str(PCPU))
        assert vcpu.thread != os.getpid()
        assert list(vcpu.reasons) == ["IO"]
        assert vcpu.host > 0
        assert vcpu.exits is not None
        parts = (vcpu.guest, vcpu.host, vcpu.steal, vcpu.wait)
        assert sum(parts) == pytest.approx(1)
        assert seen.notes == ()
        m.stop()
        assert m.stats["IO"] > 0


def test_counts_are_those_of_the_vcpu():
    """Counted in shared memory now: what was before is not lost, and neither are times."""
    with machine("mov cx, 8; 1: out 0x80, al; loop 1b; out 0x10, al; hlt") as m:
        m.cpu.measure()
        assert isinstance(m.cpu.run(max_exits=3), kvmpy.ExitLimit)
        assert (m.cpu.run_stats["IO"], m.stats.total) == (3, 3)
        assert m.run(timeout=LIMIT).ending == "halt"
        stats = m.cpu.run_stats
        assert (stats["IO"], stats["HLT"], stats.total) == (9, 1, 10)
        assert stats.guest_ns > 0
    assert (m.cpu.run_stats.total, m.stats.total) == (10, 10)


def test_a_halted_vcpu_waits_and_a_spinning_one_does_not():
    with machine(SLEEPER, irqchip="kernel") as m:
        m.start()
        with m.watch() as watch:
            halted = until(watch, lambda vcpu: vcpu.wait is not None).vcpus[0]
            assert halted.wait > 0.5
    with machine(SPINNER) as m:
        m.start()
        with m.watch() as watch:
            spinning = until(watch, lambda vcpu: vcpu.wait is not None).vcpus[0]
        assert spinning.guest + spinning.host + spinning.steal > 0.5
        assert dict(spinning.reasons) == {}


def test_halts_that_a_timer_ends():
    """KVM settles them all: none comes to user space."""
    with machine(TICKER, irqchip="kernel") as m:
        m.start()
        with m.watch() as watch:
            (vcpu,) = until(watch, lambda vcpu: vcpu.kvm.get("halt_exits")).vcpus
        assert vcpu.kvm["irq_injections"] > 0
        assert vcpu.halt_wait > 0
        assert vcpu.halt_poll is not None
        assert dict(vcpu.reasons) == {}


def test_several_vcpus_of_which_some_were_never_started():
    with machine(WRITER, cpus=3) as m:
        m.start()
        with m.watch() as watch:
            seen = until(watch, lambda vcpu: vcpu.id or vcpu.reasons)
        assert [vcpu.id for vcpu in seen.vcpus] == [0, 1, 2]
        assert list(seen.totals("reasons")) == ["IO"]
        assert all(not vcpu.reasons for vcpu in seen.vcpus[1:])  # they wait for their SIPI
        threads = {vcpu.thread for vcpu in seen.vcpus if vcpu.thread}
        assert len(threads) == len([vcpu for vcpu in seen.vcpus if vcpu.thread])


def test_between_runs_a_vcpu_is_stopped():
    with machine("1: out 0x10, al; jmp 1b") as m:
        m.vm.on_io(0x10)(lambda port, size, value: None)
        assert m.run(max_exits=10, timeout=LIMIT).ending == "exit-limit"
        with m.watch() as watch:
            time.sleep(0.01)
            (seen,) = watch.sample().machines
            assert (seen.vcpus[0].state, seen.vcpus[0].host) == ("stopped", None)
            m.run(max_exits=10, timeout=LIMIT)
            time.sleep(0.01)
            (seen,) = watch.sample().machines
            assert seen.vcpus[0].state == "running"
            assert seen.vcpus[0].reasons["IO"] > 0


def test_paused_and_resumed():
    with machine(WRITER) as m:
        m.start()
        with m.watch() as watch:
            until(watch, lambda vcpu: vcpu.state == "running")
            m.pause()
            assert watch.sample().machines[0].vcpus[0].state == "paused"
            m.resume()
            until(watch, lambda vcpu: vcpu.state == "running" and vcpu.reasons)


def test_closed_while_it_is_watched():
    """The watch keeps the VM's statistics open, and lets go of them at the next look."""
    before = len(kvm_descriptors())
    m = machine(SPINNER)
    m.start()
    with m.watch() as watch:
        m.close()
        assert machines(os.getpid()) == ()
        assert len(kvm_descriptors()) > before
        sample = watch.sample()
        gc.collect()
        assert len(kvm_descriptors()) == before
        assert (sample.machines, [info.pid for info in sample.ended]) == ((), [os.getpid()])


def test_a_guest_that_cannot_be_seen_runs_all_the_same(monkeypatch):
    def refuse(*arguments):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(publish, "_hand_out", refuse)
    with machine("mov al, 5; out 0xf4, al") as m:
        assert m.run(timeout=LIMIT).status == 5
        with pytest.raises(kvmpy.UnsupportedError, match=r"cannot be watched: .*Too many open"):
            m.watch()
        assert machines(os.getpid()) == ()


def test_without_statistics_of_kvm_the_rest_is_seen(monkeypatch):
    def lacking(fd):
        raise kvmpy.UnsupportedError("no statistics", "KVM_CAP_BINARY_STATS_FD")

    monkeypatch.setattr(publish.ioctls, "KVM_GET_STATS_FD", lacking)
    with machine(WRITER) as m:
        m.start()
        with m.watch() as watch:
            seen = until(watch, lambda vcpu: vcpu.reasons)
        assert (seen.vcpus[0].exits, seen.vcpus[0].halt_poll) == (None, None)
        assert "KVM gives no statistics" in seen.notes[0]


def test_a_running_vcpu_is_not_published():
    """KVM would have us wait for its statistics, and the shim counts elsewhere already."""
    counters = publish.ffi.new("struct shim_counters *")
    with machine(WRITER) as m:
        m.start()
        with m.watch() as watch:
            until(watch, lambda vcpu: vcpu.state == "running")
        with pytest.raises(kvmpy.KvmIoctlError, match="EBUSY"):
            m.cpu._count_in(counters, counters)


def test_top_of_a_running_boot(tmp_path):
    """As a user does it: `kvmpy boot` in one process, `kvmpy top PID` in another."""
    image = tmp_path / "writer.bin"
    image.write_bytes(kvmpy.asm("mov al, 'x'; out 0xe9, al;" + WRITER, 16, org=0x7C00))
    command = [sys.executable, "-m", "kvmpy", "boot", image, "--pin", str(PCPU)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as boot:
        try:
            assert os.read(boot.stdout.fileno(), 1) == b"x"
            top = [sys.executable, "-m", "kvmpy", "top", str(boot.pid), "--json", "--count", "2"]
            top += ["--interval", str(INTERVAL)]
            done = subprocess.run(top, capture_output=True, timeout=LIMIT, check=True)
            records = [json.loads(line) for line in done.stdout.splitlines()]
            with Watch(boot.pid) as watch:
                boot.send_signal(signal.SIGKILL)
                boot.wait(LIMIT)
                assert [info.name for info in watch.sample().ended] == ["writer.bin"]
            assert machines(boot.pid) == ()
        finally:
            boot.kill()
    assert len(records) == 2
    for record in records:
        (seen,) = record["machines"]
        assert (seen["pid"], seen["name"], seen["memory"]) == (boot.pid, "writer.bin", 256 << 20)
        (vcpu,) = seen["vcpus"]
        assert (vcpu["pcpu"], vcpu["allowed"]) == (PCPU, format_cpu_list([PCPU]))
        assert vcpu["reasons"]["IO"] > 0
        assert vcpu["exits"] is not None
