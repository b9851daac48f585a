"""KVM puts up with some mistakes of its user and only says so in the kernel's log."""

import os

import pytest
from conftest import RIG

import kvmpy


def kernel_log() -> str:
    """Everything in /dev/kmsg so far."""
    lines = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            lines.append(os.read(fd, 8192).decode("utf-8", "replace"))
    except BlockingIOError:
        return "".join(lines)
    finally:
        os.close(fd)


@pytest.mark.skipif(not RIG, reason="the log of this host tells of other programs' VMs too")
def test_real_mode_without_unrestricted_guest_has_its_tss_pages(start) -> None:
    """kvm_intel runs real mode as virtual-8086 tasks then, and wants KVM_SET_TSS_ADDR before
    (correctness 8). `make test-vmx-restricted` turns unrestricted guest off."""
    cpu = start("mov al, 7; hlt", kvmpy.REAL_MODE)
    cpu.expect(kvmpy.Hlt, timeout=60)
    assert cpu.regs.rax & 0xFF == 7
    assert "KVM_SET_TSS_ADDR need" not in kernel_log()
