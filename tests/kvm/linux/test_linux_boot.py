"""Debian's kernels, unmodified, from the package to a shell, and the ways they end."""

import pytest
from conftest import RIG
from linux.guest import LIMIT, power_off, shell
from linux.initramfs import READY
from linux.kernels import CLOUD, FULL

from kvmpy.devices.virtio import Block

pytestmark = [
    pytest.mark.slow,
    pytest.mark.not_on("kvm_pvm", reason="interprets ring 0: minutes for each boot"),
]


def test_shell_and_power_off(linux):
    """The cloud kernel comes up to a shell that runs commands, and switches the machine off."""
    machine = linux(CLOUD)
    assert shell(machine, "uname -sm; cat /proc/1/comm") == "Linux x86_64\ninit\n"
    assert "cloud-amd64" in shell(machine, "uname -a")
    assert machine.console.run("exit 3 | false", timeout=LIMIT).status == 1
    machine.console.sendline("poweroff -f")
    outcome = machine.wait(LIMIT)
    assert (outcome.ending, outcome.status) == ("power-off", 0)


@pytest.mark.parametrize(
    ("then", "append", "ending", "status"),
    [
        ("reboot", "", "reset", 3),
        ("reboot", "reboot=k", "reset", 3),  # by the keyboard controller
        ("panic", "", "panic", 4),
        ("panic", "modules=none", "reset", 3),  # panic=-1, and no pvpanic driver
    ],
)
def test_endings(linux, then, append, ending, status):
    """What the guest does last is what wait() gives, with a status of its own for a shell."""
    machine = linux(CLOUD, then=then, append=append)
    outcome = machine.wait(LIMIT)
    assert (outcome.ending, outcome.status) == (ending, status)
    assert READY.encode() in machine.console.output


#: What is wrong with a machine whose kernel log has one of these.
TROUBLE = ("BUG:", "Call Trace", "lockup", "Oops", "WARNING:", "Firmware Bug")


def test_what_it_finds(linux):
    """Clock and RTC are what a kernel on KVM is to find, and nothing in the log is amiss."""
    # QEMU's TCG lets a nested guest's XSETBV by without an exit, so KVM does not know of it, and
    # CPUID leaf 0xd is not what the guest expects.
    machine = linux(CLOUD, append="noxsave" if RIG == "svm" else "")
    source = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert shell(machine, f"cat {source}; ls /sys/class/rtc") == "kvm-clock\nrtc0\n"
    log = shell(machine, "dmesg").splitlines()
    assert [line for line in log if any(word in line for word in TROUBLE)] == []


def test_two_cpus(linux):
    """Both come up, take timer interrupts, and do work."""
    machine = linux(CLOUD, cpus=2)
    check_two_cpus(machine)
    power_off(machine)


def check_two_cpus(machine):
    assert shell(machine, "nproc; cat /sys/devices/system/cpu/online") == "2\n0-1\n"
    work = "for cpu in 0 1; do taskset -c $cpu sh -c 'seq 2000 | wc -l'; done"
    assert shell(machine, work) == "2000\n2000\n"
    timer = shell(machine, "grep LOC: /proc/interrupts").split()
    assert all(int(count) > 0 for count in timer[1:3]), timer


def test_split_irqchip(linux, tmp_path):
    """The I/O APIC in user space, no PIC and no PIT: serial port and disk by their pins, and the
    SCI, which is a level."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"\x5a" * (1 << 20))
    machine = linux(CLOUD, cpus=2, irqchip="split", devices=[Block(disk)])
    check_split_irqchip(machine)
    assert shell(machine, "tr -d Z </dev/vda | wc -c; ls /dev/vda") == "0\n/dev/vda\n"
    assert "16-edge" in shell(machine, "grep virtio0 /proc/interrupts")
    before = shell(machine, "grep acpi /proc/interrupts").split()[1:3]
    assert machine.pc.power.press_power_button()
    assert shell(machine, "grep acpi /proc/interrupts").split()[1:3] != before
    power_off(machine)


def check_split_irqchip(machine):
    assert "Using NULL legacy PIC" in shell(machine, "dmesg | grep 'legacy PIC'")
    lines = {line.split()[0]: line for line in shell(machine, "cat /proc/interrupts").splitlines()}
    assert "4-edge" in lines["4:"]


def test_without_interrupt_controllers(linux):
    """It comes to its first wait, which is the end, and says why."""
    machine = linux(CLOUD, then="poweroff", irqchip="none")
    outcome = machine.wait(LIMIT)
    assert outcome.ending == "halt"
    assert "no interrupt controller" in outcome.text


@pytest.mark.parametrize(("memory", "kib"), [("128M", 128 << 10), ("5G", 5 << 20)])
def test_memory(linux, memory, kib):
    """From little to more than fits below the hole under 4 GiB: Linux has nearly all of it."""
    total = shell(linux(CLOUD, memory=memory), "grep MemTotal /proc/meminfo").split()[1]
    assert kib * 0.7 < int(total) < kib


@pytest.mark.parametrize(
    ("image", "format", "tables", "irqchip"),
    [
        ("bzimage", "linux", "acpi", "kernel"),
        ("elf", "linux", "mp-table", "split"),
        ("elf", "pvh", "mp-table", "kernel"),
    ],
)
def test_full_kernel(linux, linux_images, image, format, tables, irqchip):
    """linux-image-amd64 with 2 CPUs: the bzImage, whose payload it decompresses itself, and the
    vmlinux in it by both boot protocols; found by ACPI's tables or, which the cloud kernel cannot,
    by the MP table."""
    kernel, acpi = getattr(linux_images(FULL)[0], image), tables == "acpi"
    machine = linux(
        FULL, kernel=kernel, format=format, cpus=2, acpi=acpi, irqchip=irqchip,
        append="" if acpi else "acpi=off", memory="512M",
    )  # fmt: skip
    assert "cloud" not in shell(machine, "uname -r")
    check_two_cpus(machine)
    if irqchip == "split":
        check_split_irqchip(machine)
    machine.console.sendline("poweroff -f" if acpi else "reboot -f")
    assert machine.wait(LIMIT).ending == ("power-off" if acpi else "reset")
