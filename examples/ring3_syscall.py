"""A system call inside a guest: ring 3 asks, ring 0 answers, and no VM exit lies between them.

User code at 0x2000 runs in ring 3 and calls the kernel at 0x1000, which adds two numbers and
returns; then a breakpoint ends the run. The host only looks at the result.

64-bit SYSCALL is the way in where the hardware runs it. kvm_pvm jumps to the kernel without
leaving ring 3 (a gap of that module), so there the call is INT3, through a gate of DPL 3.
"""

import sys

import kvmpy
from kvmpy.host.module import module_name

KERNEL = """
        mov     rax, rdi        # the system call: rax = rdi + rsi
        add     rax, rsi
        mov     edx, cs         # and the ring it ran in
        {leave}
"""
USER = """
        mov     edi, 40
        mov     esi, 2
        {enter}
        mov     ebx, cs
        ud2
"""


def main() -> None:
    use_syscall = module_name() != "kvm_pvm"
    enter, leave = ("syscall", "sysretq") if use_syscall else ("int3", "iretq")
    print(f"way in: {enter}, way out: {leave}", file=sys.stderr)
    with kvmpy.VM(memory="16M") as vm:
        vm.load(kvmpy.asm(KERNEL.format(leave=leave)), at=0x1000)
        vm.load(kvmpy.asm(USER.format(enter=enter)), at=0x2000)
        cpu = vm.vcpu()
        cpu.enter(
            kvmpy.LONG_MODE,
            rip=0x2000,
            ring=3,
            syscall=0x1000,
            handlers={3: kvmpy.Gate(0x1000, dpl=3)},
        )
        end = cpu.expect(kvmpy.GuestException, timeout=10)
        print(f"ring {cpu.regs.rbx & 3} called ring {cpu.regs.rdx & 3}: 40 + 2 = {cpu.regs.rax}")
        print(f"back in ring 3, then: {end.name}")
        print(f"exits to the host: {cpu.run_stats.total}")


if __name__ == "__main__":
    main()
