"""What a look at registers and guest memory costs."""

from __future__ import annotations

import timeit

import kvmpy
from kvmpy import guests
from kvmpy.x86.bits import GENERAL

from .exits import ENTRY, MEMORY
from .rows import Row, alternate

LOOPS = 5000

#: name, statement, limit in ns
_STATEMENTS = (
    ("cpu.regs.rax, read", "cpu.regs.rax", 60),
    ("cpu.regs.rax, written", "cpu.regs.rax = 5", 60),
    ("all 18 registers", "cpu.regs.values()", 200),
    ("4 KiB slice of memory", "memory[0x2000:0x3000]", 200),
)


def _timers(names: dict[str, object]) -> dict[str, timeit.Timer]:
    timers = {"empty": timeit.Timer("pass", globals=names)}
    for name, statement, _ in _STATEMENTS:
        timers[name] = timeit.Timer(statement, globals=names)
    return timers


def view_rows(rounds: int) -> list[Row]:
    """With the loop that times them subtracted. RAX is read as 64 bits wide; of the other
    registers half are addresses, which cost Python a new number each, and half small."""
    with kvmpy.VM(memory=MEMORY) as vm:
        vm.load(guests.load("exits.bin"), at=ENTRY)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=ENTRY)
        cpu.run()
        for i, name in enumerate(GENERAL[:16]):
            setattr(cpu.regs, name, 0xFFFF_8000_0000_0000 + 4096 * i if i % 2 == 0 else i)
        timers = _timers({"cpu": cpu, "memory": vm.memory})
        samples = alternate(
            {
                name: lambda timer=timer: timer.timeit(LOOPS) / LOOPS * 1e9  # type: ignore[misc]
                for name, timer in timers.items()
            },
            rounds,
        )
    empty = samples["empty"]
    return [
        Row(name, "value", "ns", limit, [a - b for a, b in zip(samples[name], empty, strict=True)])
        for name, _, limit in _STATEMENTS
    ]
