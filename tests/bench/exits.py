"""The cost of an exit, by who handles it, and of a VM's life, next to bare.c."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import kvmpy
from kvmpy import guests

from . import bare
from .rows import Row, alternate

PORT = 0x10  # what native/guests/exits.S writes to
ENTRY = 0x1000
MEMORY = 2 << 20
EXITS = 500  # per sample: long against the cost of run(), short against a scheduler's slice


def _enter(cpu: kvmpy.VCPU) -> None:
    """32-bit ring 0 without paging, as bare.c sets it up."""
    sregs = cpu.sregs
    cs = sregs.cs
    cs.base, cs.limit, cs.selector, cs.g, cs.db = 0, 0xFFFFFFFF, 0x10, 1, 1
    sregs.cr0 |= 1
    cpu.regs.rip = ENTRY


# -- exits


def _count(vm: kvmpy.VM) -> None:
    vm.count_io(PORT)


def _device(vm: kvmpy.VM) -> None:
    vm.attach(kvmpy.PostPort(), PORT)


def _batch(vm: kvmpy.VM) -> None:
    @vm.on_io_batch(PORT)
    def take(batch: kvmpy.WriteBatch) -> None:
        pass


def _batch_values(vm: kvmpy.VM) -> None:
    @vm.on_io_batch(PORT)
    def take(batch: kvmpy.WriteBatch) -> None:
        for _port, _size, _value, _tsc in batch:
            pass


def _handler(vm: kvmpy.VM) -> None:
    @vm.on_io(PORT)
    def port(port: int, size: int, value: int | None) -> None:
        pass


_HANDLED = {
    "counter": _count,
    "device": _device,
    "batch": _batch,
    "batch, each": _batch_values,
    "handler": _handler,
}


def _subject(
    claim: Callable[[kvmpy.VM], None], image: bytes
) -> tuple[kvmpy.VM, Callable[[], float]]:
    vm = kvmpy.VM(memory=MEMORY)
    vm.load(image, at=ENTRY)
    claim(vm)
    cpu = vm.vcpu(cpuid=None)
    _enter(cpu)

    def sample() -> float:
        before = time.perf_counter_ns()
        exit = cpu.run(max_exits=EXITS)
        elapsed = time.perf_counter_ns() - before
        if not isinstance(exit, kvmpy.ExitLimit):
            raise RuntimeError(f"the guest left its loop: {exit}")
        return elapsed / EXITS / 1e3

    return vm, sample


def exit_rows(sets: int, rounds: int) -> list[Row]:
    """``sets`` times new VMs (where their pages lie makes a difference), ``rounds`` rounds each."""
    image = guests.load("exits.bin")
    library = bare.Library(image, MEMORY)
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(sets):
        loop = library.open()
        made = {name: _subject(claim, image) for name, claim in _HANDLED.items()}
        subjects: dict[str, Callable[[], float]] = {
            "bare": lambda loop=loop: loop.exits(EXITS) / EXITS / 1e3,  # type: ignore[misc]
            **{name: sample for name, (_, sample) in made.items()},
        }
        for name, values in alternate(subjects, rounds).items():
            samples[name] += values
        for vm, _ in made.values():
            vm.close()
        loop.close()
    base = samples["bare"]
    return [
        Row("exit, counted in C", "ratio", "us", 1.02, samples["counter"], base),
        Row("exit, C device", "ratio", "us", 1.02, samples["device"], base),
        Row("exit, batch to Python", "difference", "us", 0.1, samples["batch"], base),
        Row("  and Python looks at each", "difference", "us", None, samples["batch, each"], base),
        Row("exit, Python handler", "difference", "us", 0.4, samples["handler"], base),
    ]


# -- a VM's life


def _life(image: bytes, cpuid: str | None, enter: Callable[[kvmpy.VCPU], None]) -> float:
    before = time.perf_counter_ns()
    with kvmpy.VM(memory=MEMORY) as vm:
        vm.load(image, at=ENTRY)
        cpu = vm.vcpu(cpuid=cpuid)
        enter(cpu)
        exit = cpu.run()
    elapsed = time.perf_counter_ns() - before
    if not isinstance(exit, kvmpy.IoOut):
        raise RuntimeError(f"the guest's first exit is not its port write: {exit}")
    return elapsed / 1e3


def _enter_with_tables(cpu: kvmpy.VCPU) -> None:
    cpu.enter(kvmpy.PROTECTED_MODE, rip=ENTRY)


def life_rows(rounds: int) -> list[Row]:
    """VM, vCPU, 2 MiB of memory, first exit, close."""
    image = guests.load("exits.bin")
    library = bare.Library(image, MEMORY)
    samples = alternate(
        {
            "bare": lambda: library.life(cpuid=False) / 1e3,
            "ours": lambda: _life(image, None, _enter),
            "bare, cpuid": lambda: library.life(cpuid=True) / 1e3,
            "ours, cpuid": lambda: _life(image, "host", _enter),
            "ours, all": lambda: _life(image, "host", _enter_with_tables),
        },
        rounds,
    )
    plain, with_cpuid = samples["bare"], samples["bare, cpuid"]
    return [
        Row("VM to first exit to close", "ratio", "us", 1.15, samples["ours"], plain),
        Row("  both with CPUID set", "ratio", "us", 1.15, samples["ours, cpuid"], with_cpuid),
        Row("  kvmpy with cpu.enter() too", "ratio", "us", None, samples["ours, all"], with_cpuid),
    ]
