"""Devices of KVM's own, attributes of descriptors, TPR reporting; what encrypted guests
answer where they are not."""

import os

import pytest
from irq_guest import NO_PIC, XAPIC, boot

import kvmpy
from kvmpy import _native, device
from kvmpy.memory import encryption

lib = _native.lib


# ---------------------------------------------------------------- attributes


@pytest.mark.not_on("kvm_pvm", reason="takes a TSC offset and ignores it")
def test_tsc_offset(start):
    """Reads back what was set; the guest's TSC moves with it."""
    cpu = start(
        "rdtsc; shl rdx, 32; or rax, rdx; out 0x99, al; rdtsc; shl rdx, 32; or rax, rdx; hlt"
    )
    before = cpu.tsc_offset
    assert cpu.attributes.has(lib.KVM_VCPU_TSC_CTRL, lib.KVM_VCPU_TSC_OFFSET)
    cpu.expect(kvmpy.IoOut, timeout=5)
    first = cpu.regs.rax
    cpu.tsc_offset = before + (1 << 50)
    assert cpu.tsc_offset == before + (1 << 50)
    cpu.expect(kvmpy.Hlt, timeout=5)
    assert 1 << 49 < cpu.regs.rax - first < 1 << 51
    cpu.tsc_offset = -5
    assert cpu.tsc_offset == -5
    for value in (1 << 64, -(1 << 63) - 1):
        with pytest.raises(ValueError, match="64 bits"):
            cpu.tsc_offset = value


def test_tsc_offset_that_is_ignored(start, module):
    """Never in silence."""
    cpu = start("hlt")
    if module == "kvm_pvm":
        with pytest.raises(kvmpy.UnsupportedError, match="ignores it"):
            cpu.tsc_offset = 1 << 50
    cpu.tsc_offset = cpu.tsc_offset


def test_xcr0():
    """KVM_X86_XCOMP_GUEST_SUPP says what CPUID leaf 0xd says, or more (AMX)."""
    with kvmpy.KVM() as kvm:
        leaf = kvm.supported_cpuid()[0xD, 0]
        assert kvm.attributes.has(0, lib.KVM_X86_XCOMP_GUEST_SUPP)
        assert kvm.supported_xcr0 & (leaf.eax | leaf.edx << 32) == leaf.eax | leaf.edx << 32
        assert kvm.attributes.get_bytes(0, 0, 8) == kvm.supported_xcr0.to_bytes(8, "little")


def test_attributes_that_are_not_there(vm):
    """has() is False; get() and set() raise with the numbers, or name the capability."""
    cpu = vm.vcpu()
    with kvmpy.KVM() as kvm:
        for attributes in (kvm.attributes, cpu.attributes):
            assert not attributes.has(77, 0)
            with pytest.raises(kvmpy.KvmIoctlError, match="group 77, attribute 1"):
                attributes.get(77, 1)
        with pytest.raises(ValueError, match="-1 bytes"):
            kvm.attributes.get(0, 0, -1)
    with pytest.raises(kvmpy.KvmIoctlError, match="group 77, attribute 1"):
        cpu.attributes.set(77, 1, 5)


@pytest.mark.parametrize("call", ["get", "set"])
def test_a_vm_has_none(vm, call):
    """KVM_CAP_VM_ATTRIBUTES is other architectures'."""
    assert not vm.check_extension("KVM_CAP_VM_ATTRIBUTES")
    assert not vm.attributes.has(0, 0)
    with pytest.raises(kvmpy.UnsupportedError, match="KVM_CAP_VM_ATTRIBUTES"):
        vm.attributes.get(0, 0) if call == "get" else vm.attributes.set(0, 0, b"")


# ---------------------------------------------------------------- devices


def test_vfio_device(vm):
    """x86's one device: where the module has it, it is made, has its attributes and is closed;
    where not, that is what it says."""
    if not vm.has_device("vfio"):
        with pytest.raises(kvmpy.UnsupportedError, match="no device of type vfio"):
            vm.create_device("vfio")
        return
    with vm.create_device("vfio") as made:
        assert os.fstat(made.fileno())
        assert "vfio" in repr(made)
        assert made.attributes.has(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD)
        assert not made.attributes.has(lib.KVM_DEV_VFIO_GROUP, 99)
        bad_group = (-1).to_bytes(4, "little", signed=True)
        with pytest.raises(kvmpy.KvmIoctlError, match="EBADF"):
            made.attributes.set(lib.KVM_DEV_VFIO_GROUP, lib.KVM_DEV_VFIO_GROUP_ADD, bad_group)
        with pytest.raises(kvmpy.KvmIoctlError):
            vm.create_device(device.DEVICE_TYPES["vfio"])  # one for each VM
    assert made.closed
    made.close()
    with pytest.raises(kvmpy.ClosedError):
        made.fileno()


@pytest.mark.parametrize("kind", ["xics", "arm_vgic_v3", 9999])
def test_devices_of_others(vm, kind):
    """Other architectures', and none at all."""
    assert not vm.has_device(kind)
    with pytest.raises(kvmpy.UnsupportedError, match=f"type {kind}"):
        vm.create_device(kind)
    with pytest.raises(ValueError, match="not one of"):
        vm.create_device("hpet")


# ---------------------------------------------------------------- the TPR


def test_tpr_reports():
    """Reads and writes of the TPR come as exits, after the access; off again, they do not."""
    pause = "mov edx, 50000; 2: dec edx; jnz 2b; "
    touch = f"mov dword ptr [rcx + 0x80], 0x20; {pause} mov eax, [rcx + 0x80]; {pause}"
    code = f"mov ecx, 0xfee00000; 1: {touch} out 0x12, eax; jmp 1b"
    with kvmpy.VM("1M", irqchip=True) as vm:
        vm.load(kvmpy.asm(code, org=0x2000), at=0x2000)
        cpu = boot(vm, f"{NO_PIC}; {XAPIC}", [])
        cpu.report_tpr_access()
        cpu.regs.rip = 0x2000
        got = []
        while isinstance(exit := cpu.run(timeout=10), kvmpy.TprAccess):
            got.append(exit.is_write)
            assert 0x2000 <= exit.rip < 0x2040
        assert exit == kvmpy.IoOut(0x12, 4, b"\x20\0\0\0")
        assert got in ([True, False], []), got  # none where the processor virtualizes the register
        cpu.report_tpr_access(False)
        assert isinstance(cpu.run(timeout=10), kvmpy.IoOut)


def test_vapic_page():
    """What the guest's patched code puts into the page is its TPR after the next exit; it takes a
    LAPIC."""
    code = """
        mov ecx, 0xfee00000; mov byte ptr [0x3000], 0x40; out 0x13, al
        mov eax, [rcx + 0x80]; out 0x12, eax; 1: hlt; jmp 1b
    """
    with kvmpy.VM("1M", irqchip=True) as vm:
        vm.load(kvmpy.asm(code, org=0x2000), at=0x2000)
        cpu = boot(vm, f"{NO_PIC}; {XAPIC}", [])
        cpu.set_vapic_address(0x3000)
        cpu.regs.rip = 0x2000
        assert cpu.expect(kvmpy.IoOut, timeout=10).port == 0x13
        assert cpu.run(timeout=10) == kvmpy.IoOut(0x12, 4, b"\x40\0\0\0")
        cpu.set_vapic_address(0)
    with kvmpy.VM() as vm, pytest.raises(kvmpy.KvmIoctlError, match="EINVAL"):
        vm.vcpu().set_vapic_address(0x3000)


# ---------------------------------------------------------------- what is not there


def test_no_encrypted_guests(vm):
    """No SEV hardware: said so, with what it would take."""
    view = vm.memory.regions[0].view
    for call in (
        lambda: vm.sev.op(encryption.SevCommand.INIT),
        lambda: vm.sev.op(encryption.SevCommand.GUEST_STATUS, bytearray(12)),
        lambda: vm.sev.register_region(view),
        lambda: vm.sev.unregister_region(view),
    ):
        with pytest.raises(kvmpy.UnsupportedError, match=r"AMD SEV .* or Intel TDX"):
            call()


@pytest.mark.parametrize("name", ["rip", "rax", "rflags", "cr3", "efer", "cs", "idt"])
def test_registers_are_no_attributes_of_the_vcpu(vm, name):
    """Setting one there would do nothing: the error says where it is."""
    cpu = vm.vcpu()
    with pytest.raises(AttributeError, match=rf"set cpu\.s?regs\.{name}"):
        setattr(cpu, name, 1)
    assert not hasattr(cpu, name)
