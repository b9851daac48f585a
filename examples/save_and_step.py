"""A guest is stopped in the middle, saved, stepped, and continued in another VM.

python examples/save_and_step.py
"""

from __future__ import annotations

import kvmpy

CODE = kvmpy.asm(
    """
        mov  rbx, 1
        mov  ecx, 5
next:   add  rbx, rbx
        out  0x10, al
        loop next
        hlt
    """,
    org=0x1000,
)


def machine() -> tuple[kvmpy.VM, kvmpy.VCPU]:
    """A VM with the code in its memory, and its vCPU."""
    vm = kvmpy.VM(memory="16M")
    vm.load(CODE, at=0x1000)
    return vm, vm.vcpu()


def main() -> None:
    """Save after the second OUT, look at what two instructions change, go on elsewhere."""
    vm, cpu = machine()
    with vm:
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        for _ in range(2):
            cpu.expect(kvmpy.IoOut, timeout=10)
        saved: kvmpy.VcpuState = cpu.save()
        memory = vm.memory.read(0, vm.memory.size)
        print(f"saved with rbx = {cpu.regs.rbx}")
        before = cpu.regs.copy()
        for step in cpu.steps(limit=2):
            print(f"stepped to {step.rip:#x}")
        for change in kvmpy.diff(before, cpu.regs.copy()):
            print(f"  {change.path}: {change.a:#x} -> {change.b:#x}")
    other, cpu = machine()
    with other:
        other.memory.write(0, memory)
        cpu.restore(saved)
        outs = 0
        while not isinstance(cpu.run(timeout=10), kvmpy.Hlt):
            outs += 1
        print(f"elsewhere: {outs} more OUTs, rbx = {cpu.regs.rbx}")


if __name__ == "__main__":
    main()
