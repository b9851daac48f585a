"""Hello from each CPU mode: real, 32-bit protected, 32-bit paged, long; ring 0 and, in long mode,
ring 3.

The guest prints through the debug console (port 0xE9) and halts. Ring 3 may do neither: there it
reads its own CS, whose low two bits are the ring, and stops with an undefined instruction.
"""

import kvmpy

PRINT = """
        mov     {index}, offset text
next:   mov     al, [{index}]
        test    al, al
        jz      done
        out     0xe9, al
        inc     {index}
        jmp     next
done:   hlt
text:   .asciz  "{text}"
"""


def hello(mode: kvmpy.Mode, index: str, text: str) -> str:
    """Run PRINT in ring 0 of ``mode`` and return what it printed."""
    with kvmpy.VM(memory="16M") as vm:
        console = kvmpy.DebugConsole()
        vm.attach(console, 0xE9)
        code = kvmpy.asm(PRINT.format(index=index, text=text), bits=mode.bits, org=0x1000)
        vm.load(code, at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(mode, rip=0x1000)
        cpu.expect(kvmpy.Hlt, timeout=10)
        return console.output.decode()


def ring_of(ring: int) -> int:
    """Enter long mode in ``ring`` and return the ring the guest sees itself in."""
    with kvmpy.VM(memory="16M") as vm:
        vm.load(kvmpy.asm("mov eax, cs; ud2"), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=ring)
        exception = cpu.expect(kvmpy.GuestException, timeout=10)
        assert exception.vector == 6  # #UD
        return cpu.regs.rax & 3


def main() -> None:
    print(hello(kvmpy.REAL_MODE, "si", "Hello from real mode."))
    print(hello(kvmpy.PROTECTED_MODE, "esi", "Hello from 32-bit protected mode."))
    try:
        print(hello(kvmpy.PAGED_MODE, "esi", "Hello from 32-bit protected mode with paging."))
    except kvmpy.UnexpectedExitError as error:
        print("32-bit paging does not run on this KVM module:")
        print("   ", str(error).splitlines()[0])
    print(hello(kvmpy.LONG_MODE, "rsi", "Hello from long mode."))
    for ring in (0, 3):
        print(f"Entered ring {ring} of long mode; the guest says it is in ring {ring_of(ring)}.")


if __name__ == "__main__":
    main()
