"""A memory-mapped device written in Python: a multiplier.

    offset 0  (write)  first factor     offset 4  (write)  second factor
    offset 8  (read)   their product

The guest's loads and stores to 0xD0000000, where there is no memory, end up in the handler below.
"""

import kvmpy

BASE = 0xD000_0000

GUEST = """
        mov     ebx, 0xd0000000
        mov     dword ptr [rbx], 6
        mov     dword ptr [rbx + 4], 7
        mov     eax, [rbx + 8]
        hlt
"""


class Multiplier:
    """Two registers and a result, all 32 bits wide."""

    def __init__(self) -> None:
        self.factors = {0: 0, 4: 0}

    def access(self, gpa: int, size: int, value: int | None) -> int | None:
        """``value`` is None when the guest reads."""
        offset = gpa - BASE
        if value is None:
            print(f"guest reads  {size} bytes at offset {offset}")
            return self.factors[0] * self.factors[4] & 0xFFFF_FFFF if offset == 8 else 0
        print(f"guest writes {value} to offset {offset}")
        if offset in self.factors:
            self.factors[offset] = value
        return None


def main() -> None:
    with kvmpy.VM(memory="2M") as vm:
        vm.on_mmio(BASE, 12)(Multiplier().access)
        vm.load(kvmpy.asm(GUEST), at=0x1000)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        cpu.expect(kvmpy.Hlt, timeout=10)
        print(f"guest got {cpu.regs.rax}")


if __name__ == "__main__":
    main()
