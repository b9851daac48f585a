"""kvm_intel: VT-x, EPT and unrestricted guest, emulated by Bochs.

Bochs has no virtio and interprets every instruction (about 100 million a second), so the guest is
small: Debian's cloud kernel, and an initramfs with Debian's Python, binutils, the Python packages
that the tests need, and a copy of the checkout, all compiled to bytecode beforehand.
``vmxroot.py`` makes that; this module boots it.

Nothing is read from a disk: Bochs puts kernel and initramfs into the guest's memory
(``optramimage``), and an option ROM of ours jumps to the kernel's setup code while the BIOS
initialises option ROMs.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from . import guest, host, kernel, vmxroot
from .session import Ports, Session

PACKAGES = {
    "bochs-bin": "bochs",
    # A display that is a pseudo-terminal nobody reads: the other ones listen on a port or need X.
    "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so": "bochs-term",
    "/usr/share/bochs/BIOS-bochs-latest": "bochsbios",
    "/usr/share/bochs/VGABIOS-lgpl-latest": "vgabios",
    "gcc": "gcc",
    "/usr/include/x86_64-linux-gnu/sys/mman.h": "libc6-dev",
    "setpriv": "util-linux",
}
KERNEL = "linux-image-cloud-amd64"
MODULES = ("kvm_intel",)
MEMORY = 1024  # MiB
TIMEOUT = 3600.0  # seconds

# Guest-physical addresses.  Images start on a Bochs memory block of 128 KiB or fit into one.
_SETUP = 0x90000  # the kernel's real-mode setup code, where boot loaders have always put it
_SETUP_HEAP_END = 0xE000  # from _SETUP; the setup code's stack grows down from here
_COMMAND_LINE = _SETUP + _SETUP_HEAP_END
_PAYLOAD = 0x100000
_INITRD = 0x18000000  # above the decompressed kernel, below the end of 512 MiB
_OPTION_ROM = 0xD0000

_BOCHSRC = """\
plugin_ctrl: unmapped=0, biosdev=0, speaker=0, extfpuirq=0
plugin_ctrl: parallel=0, gameport=0, busmouse=0, iodebug=0
config_interface: textconfig
display_library: term
romimage: file=/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
optromimage1: file="{work}/option.rom", address={option_rom:#x}
optramimage1: file="{work}/setup.bin", address={setup:#x}
optramimage2: file="{work}/payload.bin", address={payload:#x}
optramimage3: file="{base}", address={initrd:#x}
optramimage4: file="{work}/overlay.cpio", address={overlay:#x}
cpu: model=corei7_haswell_4770, count=1, ips=200000000, reset_on_triple_fault=0, ignore_bad_msrs=1
megs: {memory}
clock: sync=none, time0=utc
pci: enabled=1, chipset=i440fx
com1: enabled=1, mode=file, dev={ports.console}
com2: enabled=1, mode=file, dev={ports.output}
com3: enabled=1, mode=file, dev={ports.outcome}
log: {work}/bochs-devices.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
"""


def run(job: guest.Job, session: Session, work: Path) -> int:
    """Run the job; returns the exit status for the rig."""
    host.need(PACKAGES)
    image = kernel.fetch(job.kernel, MODULES)
    root = vmxroot.base(image)
    vmxroot.write_overlay(work / "overlay.cpio", root, job)
    overlay = _INITRD + root.archive.stat().st_size
    end = overlay + (work / "overlay.cpio").stat().st_size
    if end > job.memory << 20:
        raise host.RigError(f"the guest's files end at {end >> 20} MiB: use --memory")
    _write_kernel(image.bzimage, work, job, initrd_size=end - _INITRD)
    (work / "debugger.rc").write_text("continue\n")
    shim = _shim()

    def command(ports: Ports) -> list[str]:
        settings = _BOCHSRC.format(
            work=work,
            base=root.archive,
            ports=ports,
            memory=job.memory,
            option_rom=_OPTION_ROM,
            setup=_SETUP,
            payload=_PAYLOAD,
            initrd=_INITRD,
            overlay=overlay,
        )
        (work / "bochsrc").write_text(settings)
        # env, not the environment: the shim refuses to be loaded into anything but Bochs.
        preload = ["env", f"LD_PRELOAD={shim}", "TERM=vt100"]
        return [*preload, "bochs-bin", "-q", "-f", f"{work}/bochsrc", "-rc", f"{work}/debugger.rc"]

    return session.run(command, work / "bochs.log", os.environ)


def _shim() -> Path:
    """bxfix.so, compiled once; bxfix.c says what it is for."""
    source = Path(__file__).with_name("bxfix.c")
    flags = ["-std=c11", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]

    def build(directory: Path) -> None:
        host.run(["gcc", *flags, "-o", str(directory / "bxfix.so"), str(source)])

    return host.cached("bxfix", host.fingerprint(*flags, source.read_bytes()), build) / "bxfix.so"


def _write_kernel(image: Path, work: Path, job: guest.Job, *, initrd_size: int) -> None:
    """Lay out the kernel as a boot loader would leave it in memory; the option ROM starts it."""
    bzimage = kernel.BzImage.parse(image.read_bytes())
    command_line = "console=ttyS0 nokaslr mitigations=off cryptomgr.notests"
    command_line += f" {job.kernel_arguments}" + ("" if job.verbose else " quiet")
    setup = bytearray(bzimage.setup.ljust(_SETUP_HEAP_END, b"\0"))
    # The fields that the boot protocol obliges a boot loader to write.
    setup[0x210] = 0xFF  # type_of_loader: none of the registered ones
    setup[0x211] |= 0x80  # loadflags: CAN_USE_HEAP
    struct.pack_into("<II", setup, 0x218, _INITRD, initrd_size)  # ramdisk_image, ramdisk_size
    struct.pack_into("<H", setup, 0x224, _SETUP_HEAP_END - 0x200)  # heap_end_ptr
    struct.pack_into("<I", setup, 0x228, _COMMAND_LINE)  # cmd_line_ptr
    (work / "setup.bin").write_bytes(bytes(setup) + command_line.encode() + b"\0")
    (work / "payload.bin").write_bytes(bzimage.payload)
    (work / "option.rom").write_bytes(option_rom())


def option_rom() -> bytes:
    """A ROM whose initialisation entry starts the kernel's setup code by the boot protocol."""
    segment = _SETUP >> 4
    code = (
        b"\xfa\xfc"  # cli; cld
        + struct.pack("<BH", 0xB8, segment)  # mov ax, segment
        + b"\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x8e\xd0"  # mov ds/es/fs/gs/ss, ax
        + struct.pack("<BH", 0xBC, _SETUP_HEAP_END)  # mov sp, heap end
        + struct.pack("<BHH", 0xEA, 0, segment + 0x20)  # jmp segment+0x20:0
    )
    rom = bytearray((b"\x55\xaa\x01" + code).ljust(512, b"\0"))  # signature, size in 512 bytes
    rom[-1] = -sum(rom) % 256  # the BIOS runs a ROM whose bytes add up to 0
    return bytes(rom)
