"""A guest that tells which interrupts reach it: the one small program of the interrupt tests."""

import kvmpy

READY, ISR = 0x11, 0x10
APIC, IOAPIC = 0xFEE0_0000, 0xFEC0_0000

#: Both PICs masked: KVM routes GSI 0..15 to them as well.
NO_PIC = "mov al, 0xff; out 0x21, al; out 0xa1, al"
#: The LAPIC by MMIO, and as x2APIC by MSRs: software enable, spurious vector 0xff.
XAPIC = f"mov ecx, {APIC}; mov dword ptr [rcx + 0xf0], 0x1ff"
X2APIC = (
    "mov ecx, 0x1b; rdmsr; or eax, 0xc00; wrmsr; "
    "mov ecx, 0x80f; mov eax, 0x1ff; xor edx, edx; wrmsr"
)
EOI = {
    "xapic": f"mov ecx, {APIC}; mov dword ptr [rcx + 0xb0], 0",
    "x2apic": "mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr",
    "none": "",
}


def redirect(pin, vector, *, level=False):
    """Assembly: IOAPIC ``pin`` to ``vector`` of APIC 0."""
    low = vector | level << 15
    return (
        f"mov ecx, {IOAPIC}; "
        f"mov dword ptr [rcx], {0x11 + 2 * pin}; mov dword ptr [rcx + 0x10], 0; "
        f"mov dword ptr [rcx], {0x10 + 2 * pin}; mov dword ptr [rcx + 0x10], {low}"
    )


def boot(vm, setup, vectors, *, cpu=None, eoi="xapic", idle="hlt"):
    """A vCPU that has run ``setup``, has interrupts on and waits. Its handler of each vector writes
    the vector to port ISR, and then ends the interrupt."""
    handlers = {}
    for i, vector in enumerate(vectors):
        handlers[vector] = 0x4000 + 0x100 * i
        code = f"""
            push rax; push rcx; push rdx
            mov al, {vector}; out {ISR}, al
            {EOI[eoi]}
            pop rdx; pop rcx; pop rax
            iretq
        """
        vm.load(kvmpy.asm(code, org=handlers[vector]), at=handlers[vector])
    vm.load(kvmpy.asm(f"{setup}; sti; out {READY}, al; 1: {idle}; jmp 1b", org=0x1000), at=0x1000)
    cpu = cpu or vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000, handlers=handlers)
    assert cpu.expect(kvmpy.IoOut, timeout=10).port == READY
    return cpu


def interrupted(cpu, vector):
    """The guest's handler of ``vector`` runs next."""
    exit = cpu.expect(kvmpy.IoOut, timeout=10)
    assert (exit.port, exit.value) == (ISR, vector)


def quiet(cpu):
    """No handler runs."""
    assert cpu.run(timeout=0.05) == kvmpy.Timeout()
