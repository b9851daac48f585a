"""The head of kvm_run as properties; KVM_RUN's signal mask; SMIs."""

import os
import signal
import threading
import time

import pytest

import kvmpy
from kvmpy import Hlt, IoOut, IrqWindowOpen, Kicked, Rdmsr, SetTpr, Timeout, UnsupportedError

CODE = "cli; nop; out 0x10, al; sti; l: nop; jmp l; h: out 0x11, al; iretq"


def test_interrupt_window(start):
    """Asked for, it opens once the guest can be interrupted; then the interrupt goes in."""
    cpu = start(CODE, handlers={0x40: 0x1008})
    assert not cpu.request_interrupt_window
    cpu.expect(IoOut, timeout=5)
    assert not cpu.if_flag
    assert not cpu.ready_for_interrupt_injection
    cpu.request_interrupt_window = True
    cpu.expect(IrqWindowOpen, timeout=5)
    assert cpu.if_flag
    assert cpu.ready_for_interrupt_injection
    assert cpu.request_interrupt_window
    cpu.request_interrupt_window = False
    cpu.interrupt(0x40)
    assert cpu.expect(IoOut, timeout=5).port == 0x11


def test_cr8(start):
    """Assigned before a run and read after it; in step with sregs; the guest's own shows."""
    cpu = start("mov rax, cr8; out 0x10, al; mov eax, 5; mov cr8, rax; out 0x10, al; hlt")
    cpu.cr8 = 3
    assert cpu.sregs.cr8 == 3
    cpu.expect(IoOut, timeout=5)
    assert cpu.regs.rax == 3 == cpu.cr8
    exit = cpu.run(timeout=5)
    if isinstance(exit, SetTpr):
        exit = cpu.run(timeout=5)
    assert isinstance(exit, IoOut)
    assert cpu.cr8 == 5 == cpu.sregs.cr8
    cpu.sregs.cr8 = 9
    cpu.regs.rip = 0x1000
    cpu.expect(IoOut, timeout=5)
    assert cpu.regs.rax == 9 == cpu.cr8
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000)  # all of it, the priority too
    cpu.expect(IoOut, timeout=5)
    assert cpu.regs.rax == 0
    for bad in (-1, 16):
        with pytest.raises(ValueError, match="CR8"):
            cpu.cr8 = bad


@pytest.mark.not_on("kvm_pvm", reason="no SET_TPR exits: its emulator sets CR8 by itself")
def test_lowering_the_priority_exits(start):
    """Without an in-kernel LAPIC the guest's lower CR8 is told."""
    cpu = start("mov eax, 9; mov cr8, rax; mov eax, 2; mov cr8, rax; hlt")
    cpu.expect(SetTpr, timeout=5)
    assert cpu.cr8 == 2


def test_flags(vm, start):
    """Not in SMM, not nested, no bus lock; an error once closed."""
    cpu = start("hlt")
    cpu.expect(Hlt, timeout=5)
    assert (cpu.in_smm, cpu.in_guest_mode, cpu.bus_locked) == (False, False, False)
    cpu.close()
    for name in ("in_smm", "cr8", "if_flag", "request_interrupt_window", "bus_locked"):
        with pytest.raises(kvmpy.ClosedError):
            getattr(cpu, name)


def seen_in_smm(vm):
    """Let address space 1 have the memory too."""
    ffi = kvmpy._native.ffi
    (region,) = vm.memory.regions
    slot = ffi.new("struct kvm_userspace_memory_region *")
    slot.slot, slot.memory_size = 1 << 16, region.size
    slot.userspace_addr = int(ffi.cast("uintptr_t", ffi.from_buffer(region.view)))
    kvmpy.ioctls.KVM_SET_USER_MEMORY_REGION(vm.fileno(), slot)


def test_smi(vm, start):
    """SMM at SMBASE 0x30000 + 0x8000, seen from there; RSM comes back."""
    cpu = start("nop; out 0x10, al; nop; out 0x11, al; hlt")
    cpu.expect(IoOut, timeout=5)
    if not vm.check_extension("X86_SMM"):
        with pytest.raises(UnsupportedError, match="KVM_CAP_X86_SMM"):
            cpu.smi()
        return
    vm.load(kvmpy.asm("out 0x12, al; rsm", 16), at=0x38000)
    seen_in_smm(vm)
    cpu.smi()
    assert cpu.expect(IoOut, timeout=5).port == 0x12
    assert cpu.in_smm
    assert cpu.expect(IoOut, timeout=5).port == 0x11
    assert not cpu.in_smm


# ---------------------------------------------------------------- signals


def test_signal_mask_blocks(start):
    """A blocked signal waits until the run is over; kicks and timeouts get through."""
    cpu = start("l: jmp l")
    ran = []
    before = signal.signal(signal.SIGUSR2, lambda *_: ran.append(time.monotonic()))
    try:
        cpu.set_signal_mask([signal.SIGUSR2, signal.SIGUSR1])
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2))
        main = threading.main_thread().ident
        timer = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR2))
        timer.start()
        assert isinstance(cpu.run(timeout=0.5), Timeout)
        end = time.monotonic()
        timer.join()
        assert ran
        assert ran[0] >= end - 0.2
        timer = threading.Timer(0.1, cpu.kick)
        timer.start()
        assert isinstance(cpu.run(timeout=20), Kicked)
        timer.join()
        cpu.set_signal_mask(None)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_signal_mask_lets_no_kick_fail(start):
    """The kick's own signal, SIGINT and SIGTERM cannot be blocked; nor what is no signal."""
    cpu = start("hlt")
    kick = kvmpy._native.lib.shim_kick_signal()
    for number in (kick, signal.SIGINT, signal.SIGTERM):
        with pytest.raises(ValueError, match="kicks need it"):
            cpu.set_signal_mask([signal.SIGUSR1, number])
    for number in (0, 65, -1):
        with pytest.raises(ValueError, match="not in 1"):
            cpu.set_signal_mask([number])
    cpu.expect(Hlt, timeout=5)


def test_alarm_at_any_moment(start):
    """SIGALRM with a Python handler, at random moments: each is run promptly, none waits for
    the guest, which never stops by itself."""
    cpu = start("l: jmp l")
    ran = []

    def handler(*_):
        ran.append(1)
        cpu.kick()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        time.sleep(0.002)
        for i in range(300):
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i % 60))
            assert isinstance(cpu.run(timeout=20), Kicked)
        assert len(ran) == 300
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_mask_and_msr_exits(vm, start):
    """An unfinished instruction stays unfinished while the mask is set."""
    vm.user_space_msrs("unknown")
    cpu = start("mov ecx, 0x4e4f4e45; rdmsr; hlt")
    cpu.expect(Rdmsr, timeout=5)
    cpu.set_signal_mask([signal.SIGUSR1])
    cpu.answer(6)
    cpu.expect(Hlt, timeout=5)
    assert cpu.regs.rax == 6
