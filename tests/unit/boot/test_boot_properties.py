"""Hostile images: whatever an image says, a loader raises ImageError or loads it where it may.

Every example runs against guest memory filled with a pattern. After a refusal the pattern is
intact; after a load it is intact outside the segments reported, and these lie in writable RAM,
outside the supervisor area, without overlapping. One second is allowed for each example.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from boot_images import (
    HEADER_FIELDS,
    MIB,
    Segment,
    boot_sector,
    bzimage,
    elf,
    multiboot_elf,
    multiboot_header,
    multiboot_kludge,
    note,
    pvh,
    vmlinux,
)
from hypothesis import HealthCheck, given, settings, strategies as st

from kvmpy.boot import FORMATS, LoadedImage, detect, load
from kvmpy.errors import ImageError
from kvmpy.memory.guest import GuestMemory
from kvmpy.x86 import layout
from kvmpy.x86.modes import Mode

# Multiplies the number of examples, for a long search by hand.
EFFORT = int(os.environ.get("KVMPY_TEST_EFFORT", "1"))


def examples(number: int) -> settings:
    return settings(
        deadline=timedelta(seconds=1),
        max_examples=number * EFFORT,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


ROM = 8 * MIB
MEMORY = GuestMemory("1152K")
MEMORY.add(MEMORY.regions[0].end, "128K")
MEMORY.add(ROM, "64K", read_only=True)
MEMORY.add(4 << 30, "64K")
PATTERN = {region.gpa: b"\xa5" * region.size for region in MEMORY.regions}
SUPERVISOR = layout.supervisor_area(MEMORY)
WRITABLE = (
    (0, SUPERVISOR.base),
    (SUPERVISOR.end, SUPERVISOR.end + 0x2_0000),
    (4 << 30, (4 << 30) + 0x1_0000),
)

IMAGES = (
    boot_sector(),
    elf(32, [Segment(MIB, memsz=0x1000), Segment(MIB + 0x4000)]),
    elf(64, [Segment(MIB, memsz=0x1000), Segment(MIB + 0x4000)]),
    multiboot_elf(),
    multiboot_kludge(),
    pvh(32),
    pvh(64),
    bzimage(),
    vmlinux(),
)

formats = st.sampled_from((None, *FORMATS))
modes = st.sampled_from((None, *Mode))
ADDRESSES = (
    *(0, 0x400, 0x7C00, 0xA0000, MIB, MIB + 0x4000, SUPERVISOR.base, SUPERVISOR.end, ROM),
    *(1 << 31, 3 << 30, 4 << 30, (4 << 30) + 0x1_0000, 1 << 40, 1 << 52, 1 << 63, 1 << 64),
)
numbers = st.one_of(
    st.integers(0, 0x100),
    st.builds(int.__add__, st.sampled_from(ADDRESSES), st.integers(-70, 70)),
    st.integers(0, (1 << 64) - 1),
)


def of_width(size: int) -> st.SearchStrategy[int]:
    """Numbers for a field of `size` bytes."""
    return numbers.map(lambda value: value & ((1 << 8 * size) - 1))


def fill() -> None:
    for region in MEMORY.regions:
        region.view[:] = PATTERN[region.gpa]


def check_pattern(context: object) -> None:
    for region in MEMORY.regions:
        if bytes(region.view) != PATTERN[region.gpa]:
            fill()  # for the next example
            raise AssertionError(f"written outside the segments of {region}: {context}")


def check_load(loaded: LoadedImage) -> None:
    last = 0
    for gpa, size, name in loaded.segments:
        assert size > 0, loaded
        assert gpa >= last, loaded
        assert any(a <= gpa and gpa + size <= b for a, b in WRITABLE), (name, loaded)
        assert MEMORY.contains(gpa, size)
        last = gpa + size
    assert any(gpa <= loaded.entry.rip < gpa + size for gpa, size, _ in loaded.segments)
    if loaded.entry.mode is Mode.REAL_16:
        assert loaded.segments[0][0] >= layout.REAL_RESERVED_END
        assert loaded.entry.rip < MIB
    # Paint the segments over: then all of memory is the pattern again.
    for gpa, size, _ in loaded.segments:
        MEMORY.write(gpa, b"\xa5" * size)
    check_pattern(loaded)


def attempt(image: bytes, format: str | None = None, **arguments: Any) -> None:
    try:
        loaded = load(image, MEMORY, format=format, **arguments)
    except ImageError as error:
        check_pattern(error)
    else:
        assert format in (None, loaded.format)
        check_load(loaded)


fill()


def test_the_unchanged_images_load() -> None:
    for image in IMAGES:
        loaded = load(image, MEMORY)
        assert loaded.format == detect(image)
        check_load(loaded)


# --- mutations of the file ------------------------------------------------------------------------


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An image with bytes flipped, whole fields overwritten, or its end cut off or extended."""
    image = bytearray(draw(st.sampled_from(IMAGES)))
    header = min(len(image), 0x280)
    start = 0x1F0 if image[0x202:0x206] == b"HdrS" else 0
    offsets = st.one_of(st.integers(start, header - 1), st.integers(0, len(image) - 1))
    for _ in range(draw(st.integers(0, 4))):
        image[draw(offsets)] ^= 1 << draw(st.integers(0, 7))
    for _ in range(draw(st.integers(0, 3))):
        width = draw(st.sampled_from((1, 2, 4, 8)))
        at = draw(offsets) // width * width
        value = draw(numbers) % (1 << 8 * width)
        image[at : at + width] = value.to_bytes(width, "little")[: len(image) - at]
    if draw(st.booleans()):
        size = draw(st.one_of(st.integers(0, len(image)), st.integers(0, 0x200)))
        del image[size:]
    return bytes(image) + bytes(draw(st.sampled_from((0, 0, 0, 1, 100))))


@given(image=mutated(), format=formats)
@examples(200)
def test_mutated_images(image: bytes, format: str | None) -> None:
    attempt(image, format)


magics = st.sampled_from(
    (b"", b"\x7fELF\1\1\1", b"\x7fELF\2\1\1", multiboot_header(), multiboot_header(0x10000))
)


@given(magic=magics, rest=st.binary(max_size=600), format=formats)
@examples(100)
def test_random_bytes(magic: bytes, rest: bytes, format: str | None) -> None:
    attempt(magic + rest, format)


# --- fields that lie ------------------------------------------------------------------------------


@st.composite
def elf_segments(draw: st.DrawFn, bits: int) -> Segment:
    mask = (1 << bits) - 1
    maybe = st.one_of(st.none(), numbers.map(lambda value: value & mask))
    return Segment(
        paddr=draw(numbers) & mask,
        content=draw(st.binary(max_size=40)),
        memsz=draw(maybe),
        filesz=draw(st.one_of(st.none(), maybe)),
        vaddr=draw(maybe),
        offset=draw(st.one_of(st.none(), st.none(), maybe)),
        type=draw(st.sampled_from((1, 1, 1, 1, 3, 4, 6))),
    )


@given(data=st.data(), bits=st.sampled_from((32, 64)), format=formats, mode=modes)
@examples(80)
def test_elf_fields(data: st.DataObject, bits: int, format: str | None, mode: Mode | None) -> None:
    segments = data.draw(st.lists(elf_segments(bits), min_size=1, max_size=4))
    addresses = [segment.paddr for segment in segments]
    entry = data.draw(st.one_of(st.sampled_from(addresses), numbers)) & ((1 << bits) - 1)
    attempt(elf(bits, segments, entry=entry), format, mode=mode)


@given(
    words=st.lists(of_width(4), min_size=0, max_size=40),
    xen=st.booleans(),
)
@examples(50)
def test_notes(words: Sequence[int], xen: bool) -> None:
    notes = note(b"Xen", 18, struct.pack("<I", MIB)) if xen else b""
    notes = struct.pack(f"<{len(words)}I", *words) + notes
    segments = [Segment(MIB), Segment(0, notes, memsz=0, type=4)]
    for format in (None, "pvh"):
        attempt(elf(32, segments), format)


@given(
    flags=st.sampled_from((0, 1, 2, 3, 4, 0x8000, 0x20003)),
    fields=st.fixed_dictionaries(
        {},
        optional={
            name: of_width(4)
            for name in ("header_addr", "load_addr", "load_end_addr", "bss_end_addr", "entry_addr")
        },
    ),
)
@examples(100)
def test_multiboot_fields(flags: int, fields: dict[str, int]) -> None:
    load_addr = fields.get("load_addr", MIB)
    natural = {  # keep the fields not drawn consistent, and in 32 bits
        "header_addr": load_addr + 16,
        "load_end_addr": load_addr + 112,
        "bss_end_addr": load_addr + 0x1000,
        "entry_addr": load_addr + 48,
    }
    fields = {name: value & 0xFFFF_FFFF for name, value in (natural | fields).items()}
    attempt(multiboot_kludge(flags=flags | 0x1_0000, **fields))


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            name: of_width(struct.calcsize(code))
            for name, (_, code) in HEADER_FIELDS.items()
            if name not in ("boot_flag", "header", "version", "loadflags", "xloadflags")
        },
    ),
    initrd=st.one_of(st.none(), st.integers(1, 0x1_0000)),
    cmdline=st.text(max_size=300),
)
@examples(80)
def test_setup_header_fields(changes: dict[str, int], initrd: int | None, cmdline: str) -> None:
    image = bzimage(**changes)
    attempt(image, initrd=initrd and bytes(initrd), cmdline=cmdline)


# --- addresses at the edges of what is free -------------------------------------------------------

EDGES = (*ADDRESSES, layout.REAL_RESERVED_END, *(end for _, end in WRITABLE))


@given(
    kind=st.sampled_from(("flat", "elf", "multiboot", "linux")),
    address=st.builds(int.__add__, st.sampled_from(EDGES), st.integers(-0x180, 0x180)),
    size=st.one_of(st.integers(1, 0x200), st.integers(1, 0x2_0000)),
    mode=modes,
)
@examples(200)
def test_addresses(kind: str, address: int, size: int, mode: Mode | None) -> None:
    """Images that are right in everything but, maybe, where they want to be."""
    address = max(address, 0)
    if kind == "flat":
        attempt(bytes(size), kind, load_address=address, mode=mode)
    elif kind == "elf":
        attempt(elf(64, [Segment(address % (1 << 64), memsz=size + 64)]), kind, mode=mode)
    elif kind == "multiboot":
        load_addr = min(address, 0xF000_0000)
        attempt(multiboot_kludge(load_addr=load_addr, bss_end_addr=load_addr + 112 + size))
    else:
        place = {"pref_address": address % (1 << 64), "relocatable_kernel": 0}
        attempt(bzimage(init_size=size, **place))


# --- arguments ------------------------------------------------------------------------------------


@given(
    image=st.sampled_from((*IMAGES, bytes(5000))),
    format=formats,
    load_address=st.one_of(st.none(), numbers, numbers.map(int.__neg__)),
    mode=modes,
    cmdline=st.one_of(st.just(""), st.text(st.characters(), max_size=50)),
    initrd=st.one_of(st.none(), st.binary(max_size=50)),
    modules=st.one_of(
        st.just([]), st.lists(st.tuples(st.binary(max_size=20), st.text(max_size=5)), max_size=3)
    ),
)
@examples(100)
def test_arguments(image: bytes, format: str | None, **arguments: Any) -> None:
    attempt(image, format, **arguments)


# --- time -----------------------------------------------------------------------------------------


def test_claims_of_gigabytes_take_no_time() -> None:
    """A guest of 3 GiB, and images that want all of it zeroed or loaded in a thousand pieces."""
    huge = (3 << 30) - 2 * MIB
    pieces = [Segment(MIB + index * 2 * MIB, b"x", memsz=2 * MIB) for index in range(1024)]
    images = (
        elf(64, [Segment(MIB, memsz=huge)]),
        elf(32, pieces),
        multiboot_kludge(bss_end_addr=MIB + huge),
        bzimage(init_size=huge),
    )
    with GuestMemory("3G") as memory:
        for image in images:
            start = time.monotonic()
            load(image, memory)
            assert time.monotonic() - start < 1
