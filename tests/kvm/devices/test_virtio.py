"""Virtio-mmio in a real guest: a bare driver in assembly, notifications by ioeventfd, interrupts
by irqfd."""

import mmap
import os
import socket

import pytest

import kvmpy
from kvmpy.devices.virtio import Block, Net, Rng, VirtioConsole

BASE, GSI, VECTOR = 0xD000_0000, 5, 0x25
CODE, HANDLER, COUNTER = 0x1000, 0x3000, 0x4000
DESC, AVAIL, USED, BUFFER = 0x8000, 0x9000, 0xA000, 0xB000
HEADER, STATUS = 0xC000, 0xC100
SIZE, REQUESTS = 8, 40

#: Both PICs at 0x20 and 0x28, all masked but IRQ 5.
PIC = "; ".join(
    f"mov al, {value}; out {port}, al"
    for port, value in ((0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xDF),
                        (0xA0, 0x11), (0xA1, 0x28), (0xA1, 2), (0xA1, 1), (0xA1, 0xFF))
)  # fmt: skip


def put(register, value):
    return f"mov dword ptr [rbx+{register}], {value}"


def bring_up(features_low=0, queue=0):
    """As VIRTIO 1.2, "3.1.1 Driver Requirements: Device Initialization", says. Ends with jumps to
    `bad` when the device does not agree. RBX: the registers."""
    steps = [f"mov ebx, {BASE}", "cmp dword ptr [rbx], 0x74726976; jne bad",
             "cmp dword ptr [rbx+4], 2; jne bad", put(0x70, 0), put(0x70, 1), put(0x70, 3),
             put(0x24, 0), put(0x20, features_low), put(0x24, 1), put(0x20, 1), put(0x70, 11),
             "test dword ptr [rbx+0x70], 8; je bad", put(0x30, queue),
             f"cmp dword ptr [rbx+0x34], {SIZE}; jb bad", put(0x38, SIZE)]  # fmt: skip
    for register, gpa in ((0x80, DESC), (0x90, AVAIL), (0xA0, USED)):
        steps += [put(register, gpa), put(register + 4, 0)]
    steps += [put(0x44, 1), "cmp dword ptr [rbx+0x44], 1; jne bad", put(0x70, 15)]
    return "; ".join(steps)


#: What bring_up() costs: one exit each.
BRING_UP = 23


def table(*rows):
    """Descriptors, written by the guest."""
    return "; ".join(
        f"mov qword ptr [{DESC + 16 * i}], {gpa}; mov dword ptr [{DESC + 16 * i + 8}], {length}; "
        f"mov dword ptr [{DESC + 16 * i + 12}], {flags | next << 16}"
        for i, (gpa, length, flags, next) in enumerate(rows)
    )


#: R12D requests so far. The entry of the available ring is always descriptor 0.
OFFER = f"""
    inc r12d; mov word ptr [{AVAIL + 2}], r12w; mov dword ptr [rbx+0x50], 0
"""
OFFER_TO_SECOND = OFFER.replace("[rbx+0x50], 0", "[rbx+0x50], 1")
BAD = "bad: mov al, 0xee; out 0x11, al; hlt"

#: Counts causes, acknowledges, tells the PIC. QEMU can lose the shadow of an STI over a VM exit:
#: an interrupt before the HLT behind it would leave the guest asleep, so that HLT is skipped.
ON_INTERRUPT = f"""
    push rax; mov eax, [rbx+0x60]; mov [rbx+0x64], eax; inc dword ptr [{COUNTER}]
    mov rax, [rsp+8]; cmp byte ptr [rax], 0xf4; jne 1f; inc qword ptr [rsp+8]
1:  mov al, 0x20; out 0x20, al; pop rax; iretq
"""

INTERRUPTED = f"""
    {PIC}
    {{table}}; {bring_up()}; xor r12d, r12d; mov al, 1; out 0x11, al
again: {OFFER}
wait: cli; cmp dword ptr [{COUNTER}], r12d; jae next; sti; hlt; jmp wait
next: cmp word ptr [{USED + 2}], r12w; jne bad
    cmp r12d, {REQUESTS}; jb again
    mov al, 2; out 0x11, al; hlt
    {BAD}
"""

POLLED = f"""
    mov word ptr [{AVAIL}], 1
    {{table}}; {bring_up()}; xor r12d, r12d; mov al, 1; out 0x11, al
again: {OFFER}
wait: pause; cmp word ptr [{USED + 2}], r12w; jne wait
    cmp r12d, {REQUESTS}; jb again
    mov al, 2; out 0x11, al; hlt
    {BAD}
"""

RNG_TABLE = table((BUFFER, 64, 2, 0))


@pytest.fixture
def machine():
    with kvmpy.VM("4M", irqchip=True) as vm:
        yield vm


def launch(vm, code, rows=RNG_TABLE):
    code = code.replace("{table}", rows)
    vm.load(kvmpy.asm(code, org=CODE), at=CODE)
    vm.load(kvmpy.asm(ON_INTERRUPT, org=HANDLER), at=HANDLER)
    cpu = vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=CODE, handlers={VECTOR: HANDLER})
    return cpu


def signal(cpu):
    """What the guest says at port 0x11; 0xEE is its complaint."""
    exit = cpu.expect(kvmpy.IoOut, timeout=20)
    assert exit.port == 0x11
    return exit.value


def test_notification_and_interrupt_by_eventfd(machine):
    """Forty requests, each with a notification and an interrupt. What exits is the handler's look
    at InterruptStatus and its acknowledgement, answered in C; never the notification."""
    with Rng() as rng:
        rng.connect(machine, BASE, GSI)
        cpu = launch(machine, INTERRUPTED)
        assert signal(cpu) == 1
        assert rng.statistics.accesses == BRING_UP == cpu.run_stats["MMIO"]
        assert signal(cpu) == 2
        assert rng.statistics.requests == REQUESTS
        assert rng.statistics.interrupts == REQUESTS
        assert cpu.run_stats["MMIO"] == rng.statistics.accesses == BRING_UP + 2 * REQUESTS
        assert machine.memory.read(BUFFER, 64) != bytes(64)


def test_a_busy_device_costs_no_exit(machine):
    """The same with interrupts off and polling: between two port writes there is no exit at all."""
    with Rng() as rng:
        rng.connect(machine, BASE, GSI)
        cpu = launch(machine, POLLED)
        assert signal(cpu) == 1
        before = cpu.run_stats.total
        assert signal(cpu) == 2
        assert cpu.run_stats.total == before + 1
        assert rng.statistics.requests == REQUESTS
        assert rng.statistics.interrupts == 0


def test_without_ioeventfd(machine):
    """A notification that exits does the same, in C."""
    with Rng() as rng:
        rng.connect(machine, BASE, GSI)
        machine.ioeventfd(rng.queue_fds[0], BASE + 0x50, length=4, datamatch=0, deassign=True)
        cpu = launch(machine, POLLED)
        assert signal(cpu) == 1
        assert signal(cpu) == 2
        assert rng.statistics.requests == REQUESTS
        assert rng.statistics.accesses == BRING_UP + REQUESTS == cpu.run_stats["MMIO"]


def test_block(machine, tmp_path):
    """The guest reads sector 3, and then writes it to sector 5."""
    path = tmp_path / "disk.img"
    content = os.urandom(8 * 512)
    path.write_bytes(content)
    rows = table((HEADER, 16, 1, 1), (BUFFER, 512, 3, 2), (STATUS, 1, 2, 0))
    code = f"""
        {{table}}; {bring_up()}; xor r12d, r12d
        mov dword ptr [{HEADER}], 0; mov qword ptr [{HEADER + 8}], 3
        mov byte ptr [{STATUS}], 0xff; {OFFER}
    1:  pause; cmp word ptr [{USED + 2}], r12w; jne 1b
        cmp byte ptr [{STATUS}], 0; jne bad
        mov dword ptr [{HEADER}], 1; mov qword ptr [{HEADER + 8}], 5
        mov dword ptr [{DESC + 16 + 12}], {1 | 2 << 16}
        mov byte ptr [{STATUS}], 0xff; {OFFER}
    1:  pause; cmp word ptr [{USED + 2}], r12w; jne 1b
        cmp byte ptr [{STATUS}], 0; jne bad
        mov al, 2; out 0x11, al; hlt
        {BAD}
    """
    with Block(path) as block:
        block.connect(machine, BASE, GSI)
        cpu = launch(machine, code, rows)
        assert signal(cpu) == 2
        assert machine.memory.read(BUFFER, 512) == content[3 * 512 : 4 * 512]
        assert block.statistics.bytes_in == block.statistics.bytes_out == 512
    assert path.read_bytes()[5 * 512 : 6 * 512] == content[3 * 512 : 4 * 512]


#: Offers one buffer to a queue and waits until it is back.
ONE_REQUEST = f"""
    {{table}}; {{bring_up}}; xor r12d, r12d; mov al, 1; out 0x11, al; {{offer}}
1:  pause; cmp word ptr [{USED + 2}], r12w; jne 1b
    mov al, 2; out 0x11, al; hlt
    {BAD}
"""


def one_request(queue):
    offer = OFFER_TO_SECOND if queue else OFFER
    return ONE_REQUEST.replace("{bring_up}", bring_up(queue=queue)).replace("{offer}", offer)


def test_console_output(machine):
    with VirtioConsole() as console:
        console.connect(machine, BASE, GSI)
        machine.memory.write(BUFFER, b"Hello, hvc0\n")
        cpu = launch(machine, one_request(1), table((BUFFER, 12, 0, 0)))
        assert signal(cpu) == 1
        assert signal(cpu) == 2
        assert console.output == b"Hello, hvc0\n"


def test_console_input(machine):
    with VirtioConsole() as console:
        console.connect(machine, BASE, GSI)
        assert console.receive(b"root\n") == 5
        cpu = launch(machine, one_request(0), table((BUFFER, 64, 2, 0)))
        assert signal(cpu) == 1
        assert signal(cpu) == 2
        assert machine.memory.read(BUFFER, 6) == b"root\n\0"
        assert machine.memory.read(USED + 8, 4) == b"\x05\0\0\0"


def test_net_between_two_guests():
    """One sends, the other receives; a socket pair is the wire."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ends[0], ends[1], kvmpy.VM("4M") as left, kvmpy.VM("4M") as right:
        frame = b"\xff" * 6 + bytes.fromhex("020000000001 88b5") + b"from the left"
        with Net(ends[0].fileno()) as sender, Net(ends[1].fileno()) as receiver:
            sender.connect(left, BASE)
            receiver.connect(right, BASE)
            waiting = launch(right, one_request(0), table((BUFFER, 1526, 2, 0)))
            assert signal(waiting) == 1
            left.memory.write(BUFFER, bytes(12) + frame)
            sending = launch(left, one_request(1), table((BUFFER, 12 + len(frame), 0, 0)))
            assert signal(sending) == 1
            assert signal(sending) == 2
            assert signal(waiting) == 2
            received = right.memory.read(BUFFER, 12 + len(frame))
            assert received == bytes(10) + b"\1\0" + frame
            assert sender.statistics.bytes_out == receiver.statistics.bytes_in == len(frame)


def test_hostile_guest(machine):
    """A descriptor outside memory: NEEDS_RESET and a configuration interrupt; then the guest
    resets the device and uses it again."""
    code = f"""
        {PIC}
        {table((0x7000_0000, 64, 2, 0))}; {bring_up()}; xor r12d, r12d; {OFFER}
    1:  cli; cmp dword ptr [{COUNTER}], 1; jae 2f; sti; hlt; jmp 1b
    2:  test dword ptr [rbx+0x70], 0x40; je bad
        mov al, 1; out 0x11, al
        {RNG_TABLE}; {bring_up()}; xor r12d, r12d; {OFFER}
    1:  cli; cmp dword ptr [{COUNTER}], 2; jae 2f; sti; hlt; jmp 1b
    2:  test dword ptr [rbx+0x70], 0x40; jne bad
        mov al, 2; out 0x11, al; hlt
        {BAD}
    """
    with Rng() as rng:
        rng.connect(machine, BASE, GSI)
        cpu = launch(machine, code)
        assert signal(cpu) == 1
        assert rng.fault == "queue 0: a buffer lies outside guest memory"
        assert signal(cpu) == 2
        assert rng.statistics.requests == 1


# ---------------------------------------------------------------- life


def workers():
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
        except OSError:
            continue
    return [name for name in names if name in ("kvmpy-rng", "kvmpy-blk")]


def test_connect_and_disconnect(machine):
    rng = Rng()
    for gpa in (BASE, BASE + 0x200, BASE):
        rng.connect(machine, gpa, GSI)
        assert (rng.connected, rng.gpa, rng.gsi) == (True, gpa, GSI)
        assert repr(rng) == f"<Rng at {gpa:#x}, gsi 5>"
        with pytest.raises(kvmpy.KvmpyError, match="connected already"):
            rng.connect(machine, BASE + 0x400, GSI)
        rng.disconnect()
        assert (rng.connected, rng.gpa, rng.gsi) == (False, None, None)
    rng.close()
    assert repr(rng) == "<Rng, closed>"
    with pytest.raises(kvmpy.ClosedError):
        rng.connect(machine, BASE, GSI)


def test_connect_that_fails_leaves_nothing(machine, wait_until):
    machine.on_mmio(BASE, 4)(lambda gpa, size, value: 0)
    before = len(os.listdir("/proc/self/fd"))
    with Rng() as rng:
        with pytest.raises(kvmpy.ClaimError):
            rng.connect(machine, BASE, GSI)
        with pytest.raises(ValueError, match="multiple of 4"):
            rng.connect(machine, BASE + 0x1002, GSI)
        assert len(os.listdir("/proc/self/fd")) == before
        wait_until(lambda: not workers())
        rng.connect(machine, BASE + 0x1000, GSI)


def test_two_devices_of_one_vm(machine):
    with Rng() as first, Rng() as second:
        first.connect(machine, BASE, GSI)
        second.connect(machine, BASE + 0x200, GSI + 1)
        cpu = launch(machine, POLLED)
        assert signal(cpu) == 1
        assert signal(cpu) == 2
        assert first.statistics.requests == REQUESTS
        assert second.statistics == Rng().statistics


@pytest.mark.parametrize("order", ["vm", "memory", "device"])
def test_any_order_of_closing(order, tmp_path, run_in_thread, wait_until):
    """With requests under way, whatever goes first."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    memory = kvmpy.GuestMemory("4M")
    vm = kvmpy.VM(memory, irqchip=True)
    block = Block(path)
    block.connect(vm, BASE, GSI)
    endless = POLLED.replace(f"cmp r12d, {REQUESTS}; jb again", "jmp again")
    rows = table((HEADER, 16, 1, 1), (1 << 20, 1 << 20, 3, 2), (STATUS, 1, 2, 0))
    cpu = launch(vm, endless, rows)
    assert signal(cpu) == 1
    runner = run_in_thread(cpu)
    wait_until(lambda: block.statistics.requests)
    things = {"vm": vm, "memory": memory, "device": block}
    things.pop(order).close()
    for thing in things.values():
        thing.close()
    # The guest of a device that went finds nobody at its address; the others end with their VM.
    try:
        assert runner.result().gpa == BASE + 0x50
    except kvmpy.ClosedError:
        assert vm.closed
    wait_until(lambda: not workers())


def test_vm_that_is_dropped(wait_until):
    vm = kvmpy.VM("4M", irqchip=True)
    rng = Rng()
    rng.connect(vm, BASE, GSI)
    vm.close()
    assert not rng.connected
    wait_until(lambda: not workers())
    with kvmpy.VM("4M", irqchip=True) as other:
        rng.connect(other, BASE, GSI)
        cpu = launch(other, POLLED)
        assert signal(cpu) == 1
        assert signal(cpu) == 2
    rng.close()


def test_without_an_irqchip(vm):
    """No irqfd then: the interrupt is an eventfd for whoever injects it."""
    with Rng() as rng:
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_IRQFD"):
            rng.connect(vm, BASE, GSI)
        rng.connect(vm, BASE)
        cpu = launch(vm, POLLED.replace(f"mov word ptr [{AVAIL}], 1", ""))
        assert signal(cpu) == 1
        assert signal(cpu) == 2
        assert os.eventfd_read(rng.interrupt_fd) == rng.statistics.interrupts == REQUESTS


def test_ioeventfd(start, vm):
    """KVM_IOEVENTFD by address, length and value; the rest still exits."""
    event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        vm.ioeventfd(event, BASE, length=4, datamatch=7)
        cpu = start(f"mov ebx, {BASE}; mov dword ptr [rbx], 7; mov dword ptr [rbx], 8; hlt")
        assert cpu.expect(kvmpy.MmioWrite, timeout=5).data == b"\x08\0\0\0"
        assert os.eventfd_read(event) == 1
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_IOEVENTFD"):
            vm.ioeventfd(event, BASE, length=4, datamatch=7)
        vm.ioeventfd(event, BASE, length=4, datamatch=7, deassign=True)
        with pytest.raises(kvmpy.KvmIoctlError, match="KVM_IOEVENTFD"):
            vm.ioeventfd(event, BASE, length=4, datamatch=7, deassign=True)
        vm.ioeventfd(event, 0x50, length=1, pio=True)
        cpu = start("out 0x50, al; out 0x51, al", vcpu=cpu)
        assert cpu.expect(kvmpy.IoOut, timeout=5).port == 0x51
        assert os.eventfd_read(event) == 1
    finally:
        os.close(event)


def test_memory_that_kvm_refuses_never_reaches_a_device():
    """A device keeps what it has of a region, by host address: it comes last."""
    with kvmpy.VM(memory="16M", irqchip=True) as vm, Rng() as rng:
        rng.connect(vm, 0xD000_0000, gsi=5)
        seen = []
        adopt = rng._adopt_region
        rng._adopt_region = lambda region: (seen.append(region), adopt(region))
        held = mmap.mmap(-1, 0x10000)
        vm.set_memory_region(7, 0x4000_0000, 0x10000, held)  # by hand: memory does not know
        with pytest.raises(kvmpy.KvmIoctlError, match="overlaps another memory slot"):
            vm.memory.add(0x4000_0000, "64K")
        assert seen == []
        assert [region.gpa for region in vm.memory.regions] == [0]
        region = vm.memory.add(0x5000_0000, "64K")
        assert seen == [region]
        with pytest.raises(kvmpy.GuestMemoryError, match="uses this memory"):
            vm.memory.remove(region)
        assert vm.slots.of(region) is not None
