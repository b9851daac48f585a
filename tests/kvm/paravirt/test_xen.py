"""KVM as Xen's stand-in, where it was built for that (CONFIG_KVM_XEN): attributes, event channels,
timers; elsewhere each call names the capability that is missing."""

import os
import struct

import pytest
from irq_guest import NO_PIC, XAPIC, boot, interrupted

import kvmpy
from kvmpy import _native
from kvmpy.paravirt import xen

lib = _native.lib

#: Where the guest of these tests has shared_info, vcpu_info, the clock's copy and the runstate.
SHARED, INFO, TIME, RUNSTATE = 0x3000, 0x5000, 0x5100, 0x5200
#: In shared_info: bits of events that are pending (Xen's public headers, 64-bit layout).
PENDING = SHARED + 0x800


@pytest.fixture
def xen_vm(vm):
    """A VM that plays Xen: shared_info is there, hypercalls are intercepted."""
    wanted = lib.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | lib.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
    if vm.check_extension("KVM_CAP_XEN_HVM") & wanted != wanted:
        pytest.skip("this KVM was built without CONFIG_KVM_XEN, or is older than Linux 5.19")
    play_xen(vm)
    return vm


def play_xen(vm):
    vm.xen.configure(0x4000_0000)
    vm.xen.set(xen.LongMode(1))
    vm.xen.set(xen.SharedInfo(SHARED >> 12))


def pending(vm):
    """The event channels that are pending."""
    bits = int.from_bytes(vm.memory.read(PENDING, 512), "little")
    return [port for port in range(4096) if bits >> port & 1]


def upcall(vm):
    """(an upcall is pending, which words of PENDING to look at), from vcpu_info."""
    flag, words = struct.unpack("<BxxxxxxxQ", vm.memory.read(INFO, 16))
    return bool(flag), words


def test_without_xen(vm):
    """Each call names the capability."""
    if vm.check_extension("KVM_CAP_XEN_HVM"):
        pytest.skip("this KVM has KVM_CAP_XEN_HVM")
    cpu = vm.vcpu()
    for call in (
        lambda: vm.xen.configure(0x4000_0000),
        lambda: vm.xen.set(xen.LongMode(1)),
        lambda: vm.xen.get(xen.LongMode),
        lambda: vm.xen.send_event(1, 0),
        lambda: cpu.xen.set(xen.VcpuInfo(INFO)),
        lambda: cpu.xen.get(xen.VcpuInfo),
    ):
        with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_XEN_HVM"):
            call()


def test_attributes_read_back(xen_vm):
    """All that can be read; INVALID takes a page back; a wrong value is refused by name."""
    for value in (
        xen.LongMode(1), xen.SharedInfo(7), xen.UpcallVector(0x93), xen.Version(4 << 16 | 17),
    ):  # fmt: skip
        xen_vm.xen.set(value)
        assert xen_vm.xen.get(type(value)) == value
    cpu = xen_vm.vcpu()
    for value in (
        xen.VcpuInfo(INFO), xen.VcpuTimeInfo(TIME), xen.VcpuId(5), xen.VcpuUpcallVector(0x94),
        xen.Timer(port=9), xen.VcpuInfo(xen.INVALID), xen.VcpuTimeInfo(xen.INVALID),
    ):  # fmt: skip
        cpu.xen.set(value)
        assert cpu.xen.get(type(value)) == value
    xen_vm.xen.set(xen.SharedInfo(xen.INVALID))
    with pytest.raises(kvmpy.KvmIoctlError, match=r"KVM_XEN_HVM_SET_ATTR\(UpcallVector\(vector=5"):
        xen_vm.xen.set(xen.UpcallVector(5))  # an exception's
    with pytest.raises(kvmpy.KvmIoctlError, match="KVM_XEN_VCPU_GET_ATTR"):
        cpu.xen.get(xen.RunstateAdjust)


def test_runstate(xen_vm, start):
    """Times a vCPU spent in each state: restored, adjusted, kept in the guest's memory."""
    if not xen_vm.check_extension("KVM_CAP_XEN_HVM") & lib.KVM_XEN_HVM_CONFIG_RUNSTATE:
        pytest.skip("this KVM keeps no runstate: CONFIG_SCHED_INFO is off")
    cpu = xen_vm.vcpu()
    saved = xen.RunstateData(1, 100, time_running=10, time_runnable=20, time_blocked=30,
                             time_offline=40)  # fmt: skip
    cpu.xen.set(saved)
    cpu.xen.set(xen.RunstateAdjust(time_running=5, time_offline=(1 << 64) - 5))
    data = cpu.xen.get(xen.RunstateData)
    assert (data.state, data.time_blocked) == (1, 30)
    assert data.time_running >= 15
    cpu.xen.set(xen.RunstateCurrent(2))
    assert cpu.xen.get(xen.RunstateCurrent) == xen.RunstateCurrent(2)
    cpu.xen.set(xen.RunstateAddress(RUNSTATE))
    assert cpu.xen.get(xen.RunstateAddress) == xen.RunstateAddress(RUNSTATE)
    start("hlt", vcpu=cpu).expect(kvmpy.Hlt, timeout=5)
    state, _, running = struct.unpack("<IxxxxQQ", xen_vm.memory.read(RUNSTATE, 24))
    assert state in (0, 1)  # it ran, and has left
    assert running > 10


def test_events_from_the_host(xen_vm):
    """Pending in shared_info, and an upcall in vcpu_info; a port out of range is refused."""
    xen_vm.vcpu().xen.set(xen.VcpuInfo(INFO))
    assert pending(xen_vm) == []
    xen_vm.xen.send_event(70, 0)
    xen_vm.xen.send_event(71, 0)
    assert pending(xen_vm) == [70, 71]
    assert upcall(xen_vm) == (True, 1 << 1)
    for port, vcpu in ((0, 0), (4096, 0), (5, 77)):
        with pytest.raises(kvmpy.KvmIoctlError, match=f"KVM_XEN_HVM_EVTCHN_SEND.port {port}"):
            xen_vm.xen.send_event(port, vcpu)


def test_event_interrupts_the_guest(xen_vm):
    """By the vCPU's own vector, over the in-kernel LAPIC."""
    with kvmpy.VM("1M", irqchip=True) as vm:
        play_xen(vm)
        cpu = boot(vm, f"{NO_PIC}; {XAPIC}", [0x93])
        cpu.xen.set(xen.VcpuInfo(INFO))
        cpu.xen.set(xen.VcpuUpcallVector(0x93))
        vm.xen.send_event(6, 0)
        interrupted(cpu, 0x93)
        assert pending(vm) == [6]


def test_timer_raises_an_event(xen_vm, wait_until):
    """At its time, whether or not the vCPU runs; then it is not armed any longer."""
    cpu = xen_vm.vcpu()
    cpu.xen.set(xen.VcpuInfo(INFO))
    cpu.xen.set(xen.Timer(port=8, expires_ns=xen_vm.clock.clock + 20_000_000))
    wait_until(lambda: pending(xen_vm) == [8])
    wait_until(lambda: cpu.xen.get(xen.Timer) == xen.Timer(port=8))
    cpu.xen.set(xen.Timer(port=9, expires_ns=1 << 60))
    assert cpu.xen.get(xen.Timer).expires_ns == 1 << 60
    cpu.xen.set(xen.Timer(port=0))


def test_guest_sends_events(xen_vm, start, module):
    """KVM itself does EVTCHNOP_send: it signals an eventfd, or makes another port pending; a port
    that it does not know is the host's."""
    call = "vmcall" if module == "kvm_intel" else "vmmcall"
    send = f"mov eax, 32; mov edi, 4; mov esi, 0x6000; {call}"
    cpu = start(f"1: {send}; out 0x10, al; jmp 1b")
    cpu.xen.set(xen.VcpuInfo(INFO))
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        xen_vm.xen.set(xen.EventChannel(30, eventfd=event))
        xen_vm.xen.set(xen.EventChannel(31, type=xen.IPI, port=31))
        xen_vm.memory.write(0x6000, (30).to_bytes(4, "little"))
        assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0
        assert os.eventfd_read(event) == 1
        xen_vm.memory.write(0x6000, (31).to_bytes(4, "little"))
        assert cpu.expect(kvmpy.IoOut, timeout=5).value == 0
        assert pending(xen_vm) == [31]
        xen_vm.xen.set(xen.EventChannel(31, flags=1))  # KVM_XEN_EVTCHN_DEASSIGN
        exit = cpu.expect(kvmpy.Xen, timeout=5)
        assert (exit.number, exit.params[:2]) == (32, (4, 0x6000))
    finally:
        os.close(event)
