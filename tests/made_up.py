"""Benchmark reports that no machine gave: seeded, with rows of every outcome.

The clock is a fake: a floor, a narrow hump of noise above it, now and then an interrupt that
costs thousands of ticks.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from kvmpy.bench.document import Report
from kvmpy.bench.record import Canary, Disclosure, Reference, Row

VMS, BATCHES, CALLS = 10, 20, 64
TSC_KHZ = 2_500_000

DISCLOSURE = Disclosure(
    module="kvm_intel",
    parameters={"kvm_intel.ept": "Y", "kvm_intel.nested": "N"},
    verdict="kvm_intel, rings 0 and 3 are native",
    ring0="native",
    ring3="native",
    cpu_model="Made-up Processor <v2> & friends",
    vendor="GenuineIntel",
    microcode="0x2b000571",
    kernel="6.1.0",
    command_line="quiet mitigations=auto",
    tsc_khz=TSC_KHZ,
    invariant_tsc=True,
    tsc_scaling=True,
    paging="EPT",
    mitigations={"meltdown": "Not affected", "retbleed": "Mitigation: Enhanced IBRS"},
    governor="performance",
    smt=(3,),
    pinned_cpu=1,
    hypervisor=None,
    nested=False,
    emulator=None,
    virtual_time=False,
    load_average=(0.1, 0.2, 0.3),
    date="2026-01-02T03:04:05+00:00",
    versions={"kvmpy": "0.1.0", "python": "3.11.7", "kernel": "6.1.0"},
)
REFERENCE = Reference(
    "a made-up platform", "int 0x80", 610.0, "ticks", "bare handlers", "https://example.org/a?b&c"
)


class FakeClock:
    """Times of batches: ``floor`` ticks a call and noise; ``share`` of the batches interrupted."""

    def __init__(self, seed: int, share: float = 0.0, cost: float = 20_000.0):
        self.random = random.Random(seed)
        self.share, self.cost = share, cost

    def batch(self, floor: float, calls: int = CALLS, noise: float = 0.01) -> int:
        time = floor * calls * (1 + noise * abs(self.random.gauss(0, 1)))
        if self.random.random() < self.share:
            time += self.cost * (1 + self.random.random())
        return round(time)


def row(
    kind: Any, mode: str, path: str, level: str = "", floor: float = 100.0, **fields: Any
) -> Row:
    """A row of 10 VMs with 20 batches each; ``seed``, ``share`` and ``drift`` are the clock's."""
    seed, share = fields.pop("seed", 0), fields.pop("share", 0.02)
    drift = fields.pop("drift", 0.002)
    clock = FakeClock(hash_of(seed, kind, mode, path, level), share)
    samples, vms, alignments = [], [], []
    for vm in range(VMS):
        placed = floor * (1 + drift * clock.random.random())  # a VM's own luck with caches
        for batch in range(BATCHES):
            samples.append(clock.batch(placed))
            vms.append(vm)
            alignments.append(16 * (batch % 4))
    return Row(
        fields.pop("name", path), kind, mode, path, level,
        samples=tuple(samples), calls=CALLS, vms=tuple(vms), alignments=tuple(alignments), **fields,
    )  # fmt: skip


def hash_of(*parts: object) -> int:
    """A seed that is the same in every process, as hash() of text is not."""
    return int.from_bytes(repr(parts).encode(), "little") % (1 << 61)


def failed(mode: str, path: str, failure: str, **fields: Any) -> Row:
    """A cell that cannot run."""
    return Row(path, "path", mode, path, "H0", outcome="fails", failure=failure, **fields)


def rows(seed: int = 0, faster: float = 1.0) -> tuple[Row, ...]:
    """The matrix of a made-up Intel host, with its 32-bit cells interpreted; ``faster`` is a
    factor on 64-bit SYSCALL alone."""
    slow = Canary(0, 1580.0, 40.0, True)
    interpreted: dict[str, Any] = {
        "outcome": "interpreted", "canaries": (slow,), "labels": ("ring 0 is interpreted",),
        "seed": seed, "share": 0.0,
    }  # fmt: skip
    return (
        row("path", "long64", "syscall", "H0", 99 * faster, seed=seed),
        row("path", "long64", "syscall", "H2", 160 * faster, seed=seed),
        row("path", "long64", "int80", "H0", 610, seed=seed, share=0.05),
        row("path", "long64", "int80", "H2", 671, seed=seed),
        row("path", "long64", "sysenter", "H0", 118, seed=seed),
        row("path", "long64", "callgate", "H0", 473, seed=seed),
        row("path", "long64", "syscall", "H0", 48, seed=seed, measure="entry"),
        row("baseline", "long64", "nearcall", "H0", 6, seed=seed),
        failed("compat32", "syscall", "#UD at syscall", vector=6),
        row("path", "compat32", "int80", "H0", 22_000, **interpreted),
        row("path", "legacy32", "int80", "H0", 21_000, **interpreted),
        failed("legacy32", "syscall", "#UD at syscall", vector=6),
        row("calibration", "long64", "adds", "", 1.02, seed=seed, share=0.0),
        row("host", "host", "getppid", "", 41, seed=seed, unit="ns"),
    )


def exits(seed: int = 0) -> tuple[Row, ...]:
    """The ladder of exits, with the parts of each."""
    ladder = (("cpuid", 1020), ("pio-kernel", 1900), ("pio-shim", 3300), ("pio-python", 9100))
    return tuple(
        row(
            "exit", "long64", path, "", floor, seed=seed, name=path,
            split={"kernel": floor / 2.5, "shim": 0.0, "python": floor / 9},
        )
        for path, floor in ladder
    )  # fmt: skip


def report(
    seed: int = 0, faster: float = 1.0, benchmark: str = "syscall", **disclosed: Any
) -> Report:
    """A whole report; ``disclosed`` changes its disclosure."""
    return Report(
        benchmark,
        rows(seed, faster) if benchmark == "syscall" else exits(seed),
        (REFERENCE,),
        dataclasses.replace(DISCLOSURE, **disclosed),
        quick=False,
        seconds=81.5,
        warnings=("SMT sibling: pCPU 3 shares the core and is 40 % busy.",),
    )


def sched_result(**changes: Any) -> Any:
    """Two vCPUs that take turns of 4 ms on pCPU 0, from 2 to 30 ms; two threads each, which change
    every 9 or 10 ms."""
    from kvmpy.sched.result import Result

    fields: dict[str, Any] = {
        "module": "kvm_amd",
        "verdict": "kvm_amd: rings 0 and 3 are native.",
        "ring0": "native",
        "tsc_khz": 2_600_000.0,
        "pcpus": (0,),
        "threads": 2,
        "seconds": 0.03,
        "wall": 31_000_000,
        "slice_us": 10_000.0,
        "gap_us": 20.0,
        "program": "spin",
        "system_call": "syscall",
        "vcpus": (_sched_vcpu(0, 2, 30), _sched_vcpu(1, 6, 26)),
    }
    return Result(**(fields | changes))


def _sched_vcpu(number: int, start: int, end: int) -> Any:
    from kvmpy.sched import result as r

    ms = 1_000_000
    begins = range(start, end, 8)
    cpu = 4 * ms * len(begins)
    first, second = (start + 10) * ms, (start + 19) * ms
    switches = (
        r.Switch(start * ms, start * ms, start * ms, None, 0, "start"),
        r.Switch(first, first, first + 20_000, 0, 1, "timer"),
        r.Switch(second, second, second + 20_000, 1, 0, "timer"),
    )
    return r.Vcpu(
        id=number,
        pcpus=(0,),
        start=start * ms,
        end=end * ms,
        slices=tuple(r.Slice(at * ms, (at + 4) * ms, 0) for at in begins),
        gaps=tuple(
            r.Gap((at + 4) * ms, (at + 8) * ms, "descheduled", 3_990_000) for at in begins[:-1]
        ),
        thread_slices=(
            r.ThreadSlice(0, start * ms, first, "timer"),
            r.ThreadSlice(1, first + 20_000, second, "timer"),
            r.ThreadSlice(0, second + 20_000, end * ms, "start"),
        ),
        switches=switches,
        threads=(r.Thread(0, cpu // 2, 5000, 2), r.Thread(1, cpu // 2 - 40_000, 4900, 1)),
        steal=3_990_000 * (len(begins) - 1),
        host=r.HostView(
            (start - 1) * ms, end * ms, cpu, 4 * ms * (len(begins) - 1), 8, {"exits": 40}
        ),
    )
