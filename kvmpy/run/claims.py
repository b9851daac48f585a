"""Who answers the guest's ports and addresses: handlers, counters and devices of a VM."""

from __future__ import annotations

from collections.abc import Callable

from ..arguments import integer
from ..memory.regions import VmMemory
from .bus import _B, _H, BusDevice, ClaimError, Counter, _bounds


class VmClaims(VmMemory):
    """Claims on ports and guest physical addresses."""

    def on_io(self, ports: int | range) -> Callable[[_H], _H]:
        """Decorator: ``handler(port, size, value)`` answers these ports.

        ``value`` is None when the guest reads; the handler then returns 0 .. 256**size - 1.
        String instructions call it once per element. An exception comes out of ``run()``.

            @vm.on_io(0x10)
            def port(port, size, value):
                if value is None: return 42

        >>> @vm.on_io(0x10)
        ... def answer(port, size, value):
        ...     return 42
        >>> vm.load(kvmpy.asm("in al, 0x10; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5), cpu.regs.rax & 0xff
        (Hlt(), 42)
        """
        first, length = _bounds(ports)

        def register(handler: _H) -> _H:
            self.bus.handle(first, length, handler)
            return handler

        return register

    def on_mmio(self, gpa: int, size: int) -> Callable[[_H], _H]:
        """Decorator: ``handler(gpa, size, value)`` answers the ``size`` bytes at ``gpa``, which
        no memory may back; of read-only memory it gets the writes. Accesses are 1 to 8 bytes. For
        addresses whose memory comes and goes there is :meth:`Bus.handle`.

        >>> @vm.on_mmio(0xd000_0000, 4)
        ... def register(gpa, size, value):
        ...     return 0x74726976
        >>> vm.load(kvmpy.asm("mov ebx, 0xd0000000; mov eax, [rbx]; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5), hex(cpu.regs.rax)
        (Hlt(), '0x74726976')
        """
        gpa, size = integer(gpa, "gpa"), integer(size, "size")
        for slot in self.slots.values():
            if not slot.read_only and slot.gpa < gpa + size and gpa < slot.gpa + slot.size:
                raise ClaimError(
                    f"guest memory backs {gpa:#x}..{gpa + size - 1:#x}, by {slot!r}: what the "
                    "guest reads and writes there does not come to a handler"
                )

        def register(handler: _H) -> _H:
            self.bus.handle(gpa, size, handler, mmio=True)
            return handler

        return register

    def on_io_batch(self, ports: int | range) -> Callable[[_B], _B]:
        """Decorator: ``handler(batch)`` gets the guest's writes to these ports many at a time:
        when the vCPU's ring is full, and before ``run()`` returns. Reads give all ones.

        >>> @vm.on_io_batch(0x10)
        ... def written(batch):
        ...     print([value for port, size, value, tsc in batch])
        >>> vm.load(kvmpy.asm("mov al, 1; out 0x10, al; mov al, 2; out 0x10, al; hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.run(timeout=5)
        [1, 2]
        Hlt()
        """
        first, length = _bounds(ports)

        def register(handler: _B) -> _B:
            self.bus.defer(first, length, handler)
            return handler

        return register

    def count_io(self, ports: int | range) -> Counter:
        """Count the accesses to these ports in C.

        >>> vm.count_io(range(0x80, 0x90))
        <Counter 0 reads, 0 writes>
        """
        return self.bus.count(*_bounds(ports))

    def attach(self, device: BusDevice, at: int, *, mmio: bool = False) -> None:
        """Attach a C device at a port, or at a guest physical address with ``mmio``.

        >>> console = kvmpy.DebugConsole()
        >>> vm.attach(console, 0xe9)
        """
        self.bus.attach(device, at, mmio=mmio)

    def release(self, at: int, *, mmio: bool = False) -> None:
        """Take back the claim that starts at this port or address.

        >>> vm.attach(kvmpy.DebugConsole(), 0xe9)
        >>> vm.release(0xe9)
        """
        self.bus.release(at, mmio=mmio)
