"""ACPI tables, read back from guest memory by a parser of the test's own; the AML encoder."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from acpi_reader import (
    Aml,
    Scope,
    Sdt,
    eisa_text,
    find_rsdp,
    madt_entries,
    read_tables,
    resources,
)
from boot_images import MIB, Segment, boot_sector, bzimage, elf, pvh
from hypothesis import given, settings, strategies as st

from kvmpy.boot import acpi, aml, load, memory_map
from kvmpy.boot.acpi import VirtioMmio, build_acpi
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory("4M") as memory:
        yield memory


def fadt_field(fadt: Sdt, format: str, offset: int) -> int:
    """A field by its offset in the specification."""
    (value,) = struct.unpack_from("<" + format, fadt.body, offset - 36)
    return int(value)


def devices(dsdt: Sdt) -> dict[str, dict[str, object]]:
    scope = Aml(dsdt.body).root.names["\\_SB_"]
    return {name: device.names for name, device in scope.names.items()}


def slots(count: int) -> list[VirtioMmio]:
    return [
        VirtioMmio(layout.VIRTIO_MMIO_BASE + layout.VIRTIO_MMIO_SIZE * index, 0x1000, gsi)
        for index, gsi in enumerate(layout.VIRTIO_MMIO_GSIS[:count])
    ]


def test_tables_are_found_and_whole(memory: GuestMemory) -> None:
    built = build_acpi(memory, range(2), slots(3))
    assert find_rsdp(memory.read) == built.rsdp
    tables = read_tables(memory.read, built.rsdp)
    assert {name: table.revision for name, table in tables.items()} == {
        "FACP": 6,
        "APIC": 5,
        "DSDT": 2,
    }
    # every table is where the answer says, aligned, and they do not overlap
    last = layout.FIRMWARE_TABLES
    for gpa, size, signature in built.tables:
        assert gpa >= last
        assert gpa % 16 == 0
        assert memory.read(gpa, len(signature)) == (
            b"RSD " if signature == "RSDP" else signature.encode()
        )
        last = gpa + size
    assert last <= layout.MP_TABLE


def test_tables_lie_in_reserved_memory(memory: GuestMemory) -> None:
    built = build_acpi(memory, range(1))
    reserved = [(e.base, e.end) for e in memory_map(memory) if e.type.name == "RESERVED"]
    for gpa, size, _ in built.tables:
        assert any(start <= gpa and gpa + size <= end for start, end in reserved)


def test_fixed_hardware(memory: GuestMemory) -> None:
    fadt = read_tables(memory.read, build_acpi(memory, range(1)).rsdp)["FACP"]
    assert len(fadt.body) + 36 == 276
    assert fadt_field(fadt, "H", 46) == layout.SCI_IRQ
    assert fadt_field(fadt, "I", 48) == 0  # SMI_CMD: no hand-over to ACPI mode
    event, control = fadt_field(fadt, "I", 56), fadt_field(fadt, "I", 64)
    assert (event, control) == (layout.ACPI_PM_PORT, layout.ACPI_PM_PORT + 4)
    assert (fadt.body[88 - 36], fadt.body[89 - 36]) == (4, 2)
    assert fadt_field(fadt, "I", 76) == 0  # no PM timer
    assert fadt_field(fadt, "B", 108) == 0x32
    boot = fadt_field(fadt, "H", 109)
    assert boot & 1  # 8259, 8254 ...
    assert not boot & 2  # no 8042 to probe
    assert boot & 4  # no VGA
    assert not boot & 0x20  # a CMOS RTC
    flags = fadt_field(fadt, "I", 112)
    assert not flags & 1 << 20  # not hardware-reduced
    assert not flags & 1 << 4  # a fixed power button
    assert flags & 1 << 10
    # the same registers in Generic Address Structures
    gas = struct.Struct("<BBBBQ")
    assert gas.unpack_from(fadt.body, 116 - 36) == (1, 8, 0, 1, layout.RESET_CONTROL_PORT)
    assert fadt.body[128 - 36] & 0x04
    assert gas.unpack_from(fadt.body, 148 - 36) == (1, 32, 0, 2, event)
    assert gas.unpack_from(fadt.body, 172 - 36) == (1, 16, 0, 2, control)


def test_without_rtc(memory: GuestMemory) -> None:
    fadt = read_tables(memory.read, build_acpi(memory, range(1), rtc=False).rsdp)["FACP"]
    assert fadt_field(fadt, "H", 109) & 0x20
    assert fadt_field(fadt, "B", 108) == 0


def test_madt(memory: GuestMemory) -> None:
    madt = read_tables(memory.read, build_acpi(memory, [0, 2, 5]).rsdp)["APIC"]
    assert struct.unpack_from("<II", madt.body) == (0xFEE0_0000, 1)
    entries = list(madt_entries(madt))
    processors = [struct.unpack("<BBI", data) for kind, data in entries if kind == 0]
    assert processors == [(0, 0, 1), (1, 2, 1), (2, 5, 1)]
    assert [struct.unpack("<BxII", data) for kind, data in entries if kind == 1] == [
        (0, 0xFEC0_0000, 0)
    ]
    # the SCI: level, active high; the timer stays at pin 0, as KVM's default routing has it
    assert [struct.unpack("<BBIH", data) for kind, data in entries if kind == 2] == [(0, 9, 9, 0xD)]
    assert [struct.unpack("<BHB", data) for kind, data in entries if kind == 4] == [(0xFF, 0, 1)]


def test_madt_without_8259s(memory: GuestMemory) -> None:
    madt = read_tables(memory.read, build_acpi(memory, [0], pic=False).rsdp)["APIC"]
    assert struct.unpack_from("<II", madt.body) == (0xFEE0_0000, 0)
    assert [kind for kind, _ in madt_entries(madt)] == [0, 1, 2, 4]


def test_dsdt(memory: GuestMemory) -> None:
    virtio = slots(len(layout.VIRTIO_MMIO_GSIS))
    dsdt = read_tables(memory.read, build_acpi(memory, range(1), virtio).rsdp)["DSDT"]
    assert Aml(dsdt.body).root.names["\\_S5_"] == [5, 5, 0, 0]
    found = devices(dsdt)
    described = [
        (device["_UID"], resources(device["_CRS"]))  # type: ignore[arg-type]
        for device in found.values()
        if device["_HID"] == "LNRO0005"
    ]
    assert described == [
        (uid, [("memory", (entry.gpa, entry.size)), ("interrupt", (entry.gsi,))])
        for uid, entry in enumerate(virtio)
    ]
    others = {
        hid if isinstance(hid := device["_HID"], str) else eisa_text(hid): resources(
            device["_CRS"]  # type: ignore[arg-type]
        )
        for device in found.values()
        if device["_HID"] != "LNRO0005"
    }
    assert others == {
        "PNP0501": [("io", (0x3F8, 8)), ("irq", (4,))],
        "PNP0B00": [("io", (0x70, 2)), ("irq", (8,))],
        "QEMU0001": [("io", (0x505, 1))],
    }


def test_devices_left_out(memory: GuestMemory) -> None:
    built = build_acpi(memory, range(1), serial=False, rtc=False, pvpanic=False)
    assert devices(read_tables(memory.read, built.rsdp)["DSDT"]) == {}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 0xFFFF_FFFE), min_size=1, max_size=600, unique=True),
    st.lists(st.sampled_from(layout.VIRTIO_MMIO_GSIS), unique=True),
    st.data(),
)
def test_any_machine(apic_ids: list[int], gsis: list[int], data: st.DataObject) -> None:
    """Whatever the builder accepts reads back as it was given."""
    virtio = []
    for gsi in gsis:
        gpa = data.draw(st.integers(0, 0xFFFF_FFFF))
        most = min((1 << 32) - gpa, 0xFFFF_FFFF)
        virtio.append(VirtioMmio(gpa, data.draw(st.integers(1, most)), gsi))
    with GuestMemory("2M") as memory:
        memory[0 : 2 * MIB] = b"\xa5" * (2 * MIB)
        built = build_acpi(memory, apic_ids, virtio)
        tables = read_tables(memory.read, built.rsdp)
        assert memory.read(0, 0xE0000) == b"\xa5" * 0xE0000
        assert memory.read(0xF0000, MIB) == b"\xa5" * MIB
    ids = []
    for kind, entry in madt_entries(tables["APIC"]):
        if kind == 0:
            ids.append(struct.unpack("<xBI", entry))
        elif kind == 9:
            ids.append(struct.unpack("<xxII4x", entry))
    assert ids == [(apic_id, 1) for apic_id in apic_ids]
    found = [device for device in devices(tables["DSDT"]).values() if device["_HID"] == "LNRO0005"]
    assert [resources(device["_CRS"]) for device in found] == [  # type: ignore[arg-type]
        [("memory", (entry.gpa, entry.size)), ("interrupt", (entry.gsi,))] for entry in virtio
    ]


@pytest.mark.parametrize(
    ("apic_ids", "virtio", "message"),
    [
        ([], [], "at least one"),
        ([1, 1], [], "each id once"),
        ([-1], [], "APIC id"),
        ([0xFFFF_FFFF], [], "APIC id"),
        ([0], [VirtioMmio(0xD000_0000, 0x1000, 24)], "has 0..23"),
        ([0], [VirtioMmio(0xD000_0000, 0x1000, -1)], "has 0..23"),
        ([0], [VirtioMmio(0xD000_0000, 0x1000, 4)], "gsi 4 is taken"),
        ([0], [VirtioMmio(0xD000_0000, 0x1000, 16)] * 2, "gsi 16 is taken"),
        ([0], [VirtioMmio(0xFFFF_F000, 0x1001, 16)], "below 4 GiB"),
        ([0], [VirtioMmio(-1, 1, 16)], "below 4 GiB"),
        ([0], [VirtioMmio(0, 1 << 32, 16)], "smaller than that"),
        ([0], [VirtioMmio(0xD000_0000, 0, 16)], "below 4 GiB"),
        (range(9000), [], "their area"),
    ],
)
def test_refused(
    memory: GuestMemory, apic_ids: list[int], virtio: list[VirtioMmio], message: str
) -> None:
    memory[0 : 4 * MIB] = b"\xa5" * (4 * MIB)
    with pytest.raises(ValueError, match=message):
        build_acpi(memory, apic_ids, virtio)
    assert memory.read(0, 4 * MIB) == b"\xa5" * (4 * MIB)


# --- handed over ----------------------------------------------------------------------------------


def test_linux_gets_the_rsdp_and_a_seed(memory: GuestMemory) -> None:
    rsdp = build_acpi(memory, range(1)).rsdp
    loaded = load(bzimage(), memory, acpi_rsdp=rsdp, rng_seed=bytes(range(32)))
    page = memory.read(loaded.entry.regs["rsi"], 4096)
    assert struct.unpack_from("<Q", page, 0x70) == (rsdp,)
    (setup_data,) = struct.unpack_from("<Q", page, 0x250)
    assert struct.unpack("<QII", memory.read(setup_data, 16)) == (0, 9, 32)
    assert memory.read(setup_data + 16, 32) == bytes(range(32))
    assert any(gpa == setup_data and size == 48 for gpa, size, _ in loaded.segments)


def test_pvh_gets_the_rsdp(memory: GuestMemory) -> None:
    rsdp = build_acpi(memory, range(1)).rsdp
    loaded = load(pvh(), memory, acpi_rsdp=rsdp)
    assert struct.unpack("<Q", memory.read(loaded.entry.regs["rbx"] + 32, 8)) == (rsdp,)


@pytest.mark.parametrize("image", [boot_sector(), pvh(), elf(64, [Segment(MIB)])])
def test_only_linux_takes_a_seed(memory: GuestMemory, image: bytes) -> None:
    with pytest.raises(ImageError, match="rng_seed was given"):
        load(image, memory, rng_seed=b"x")


def test_an_image_may_not_lie_on_the_tables(memory: GuestMemory) -> None:
    image = elf(64, [Segment(layout.MP_TABLE - 0x1000)])
    load(image, memory)
    rsdp = build_acpi(memory, range(1)).rsdp
    tables = memory.read(0xE0000, 0x20000)
    with pytest.raises(ImageError, match="overlaps the ACPI and MP tables"):
        load(image, memory, acpi_rsdp=rsdp)
    assert memory.read(0xE0000, 0x20000) == tables


# --- AML ------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 64) - 1))
def test_integers(value: int) -> None:
    assert Aml(aml.name("X", aml.integer(value))).root.names == {"X___": value}


@given(st.text(st.characters(min_codepoint=1, max_codepoint=127)))
def test_strings(text: str) -> None:
    assert Aml(aml.name("X", aml.string(text))).root.names == {"X___": text}


@given(st.integers(0, 5000))
def test_lengths(size: int) -> None:
    """PkgLength counts its own bytes, where one byte more of content makes it one longer too."""
    content = bytes(size)
    assert Aml(aml.name("X", aml.buffer(content))).root.names == {"X___": content}


@pytest.mark.parametrize("edge", [1 << 6, 1 << 12, 1 << 20])
def test_length_edges(edge: int) -> None:
    for size in range(edge - 12, edge + 2):
        content = bytes(size)
        assert Aml(aml.name("X", aml.buffer(content))).root.names == {"X___": content}


def test_longest_object() -> None:
    assert aml.package_length((1 << 28) - 5).hex() == "cfffffff"
    with pytest.raises(ValueError, match="the limit is 0xffffffb"):
        aml.package_length((1 << 28) - 4)


def test_nesting_and_paths() -> None:
    code = aml.scope("\\_SB", aml.device("A", aml.scope("B.C", aml.name("D", aml.integer(7)))))
    code += aml.name("\\A.B.C1_2", aml.package(aml.integer(300), aml.string("s"), aml.package()))
    names = Aml(code).root.names
    device = names["\\_SB_"].names["A___"]
    assert isinstance(device, Scope)
    assert device.names["B___.C___"].names == {"D___": 7}
    assert names["\\A___.B___.C1_2"] == [300, "s", []]


@pytest.mark.parametrize("text", ["", "1A", "abcd", "ABCDE", "A..B", "A.", "\\", "Ä", "A\n"])
def test_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="AML name"):
        aml.path(text)


@given(
    st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=3, max_size=3),
    st.integers(0, 0xFFFF),
)
def test_eisa_ids(letters: str, product: int) -> None:
    text = f"{letters}{product:04X}"
    number = Aml(aml.name("X", aml.eisa_id(text))).root.names["X___"]
    assert eisa_text(number) == text


@pytest.mark.parametrize("text", ["", "PNP501", "PNP05010", "pnp0501", "PNP050G", "PNP0501\n"])
def test_no_eisa_id(text: str) -> None:
    with pytest.raises(ValueError, match="EISA id"):
        aml.eisa_id(text)


@given(st.integers(1, 255), st.integers(0, 15), st.data())
def test_resources(length: int, irq: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 0x1_0000 - length))
    template = aml.resource_template(aml.io(first, length), aml.irq_no_flags(irq))
    decoded = Aml(aml.name("X", template)).root.names["X___"]
    assert resources(decoded) == [("io", (first, length)), ("irq", (irq,))]


@pytest.mark.parametrize(
    "make",
    [
        lambda: aml.io(0xFFFF, 2),
        lambda: aml.io(0, 0),
        lambda: aml.io(0, 256),
        lambda: aml.io(-1, 1),
        lambda: aml.irq_no_flags(16),
        lambda: aml.irq_no_flags(-1),
        lambda: aml.interrupt(1 << 32),
        lambda: aml.integer(1 << 64),
        lambda: aml.integer(-1),
        lambda: aml.string("ä"),
        lambda: aml.string("a\0"),
        lambda: aml.package(*[b"\0"] * 256),
        lambda: aml.path(".".join("A" * 256)),
    ],
)
def test_out_of_range(make: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        make()  # type: ignore[operator]


def test_layout() -> None:
    """The interrupts for virtio are free, the addresses clear of RAM and APICs."""
    assert len(set(layout.VIRTIO_MMIO_GSIS)) == len(layout.VIRTIO_MMIO_GSIS)
    used = {layout.PIT_IRQ, layout.COM1_IRQ, layout.RTC_IRQ, layout.SCI_IRQ}
    assert not used & set(layout.VIRTIO_MMIO_GSIS)
    assert max(layout.VIRTIO_MMIO_GSIS) < layout.IOAPIC_PINS
    assert layout.HOLE_START <= layout.VIRTIO_MMIO_BASE
    assert layout.VIRTIO_MMIO_BASE + 0x1000 * len(layout.VIRTIO_MMIO_GSIS) <= layout.IOAPIC_BASE
    assert acpi.RESET_VALUE & 4
