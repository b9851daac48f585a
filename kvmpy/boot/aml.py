"""ACPI Machine Language, as much as a static DSDT needs (ACPI Specification, "ACPI Machine
Language (AML) Specification"; resource descriptors: "Resource Data Types for ACPI").

Each function gives the bytes of one construct of the ACPI Source Language, and is named after it:

>>> aml = kvmpy.boot.aml
>>> aml.name("_UID", aml.integer(2)).hex()
'085f5549440a02'
"""

from __future__ import annotations

import re
import struct
from typing import Final

_NAME_OP: Final = b"\x08"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_STRING_PREFIX: Final = b"\x0d"
_DEVICE_OP: Final = b"\x5b\x82"
_DUAL_NAME_PREFIX: Final = b"\x2e"
_MULTI_NAME_PREFIX: Final = b"\x2f"

# Integers by width: prefix, struct format.
_INTEGERS: Final = ((0xFF, b"\x0a", "<B"), (0xFFFF, b"\x0b", "<H"), (0xFFFF_FFFF, b"\x0c", "<I"))
_MAX_INTEGER: Final = (1 << 64) - 1
_MAX_PACKAGE_LENGTH: Final = (1 << 28) - 1

# Resource descriptors: tags of small ones include their length.
_IRQ_NO_FLAGS: Final = 0x22
_IO: Final = 0x47
_END_TAG: Final = b"\x79\x00"  # checksum 0: "as if it were right"
_MEMORY32_FIXED: Final = 0x86
_EXTENDED_INTERRUPT: Final = 0x89
_DECODE_16: Final = 1
_READ_WRITE: Final = 1
_CONSUMER: Final = 1 << 0
_EDGE: Final = 1 << 1


def path(text: str) -> bytes:
    r"""NameString: a path of NameSegs such as ``\_SB.COM1``; short segments are padded with "_".

    Raises ValueError: a segment is not one to four of A-Z, 0-9 and _, or starts with a digit.

    >>> kvmpy.boot.aml.path("\\_SB.COM1")
    b'\\._SB_COM1'
    """
    root = "\\" if text.startswith("\\") else ""
    segments = text.removeprefix("\\").split(".")
    for segment in segments:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,3}", segment):
            raise ValueError(f"AML name {text!r}: {segment!r} is not a NameSeg")
    if len(segments) > 255:
        raise ValueError(f"AML name of {len(segments)} segments: the limit is 255")
    prefix = {1: b"", 2: _DUAL_NAME_PREFIX}.get(
        len(segments), _MULTI_NAME_PREFIX + bytes((len(segments),))
    )
    return root.encode() + prefix + "".join(f"{part:_<4}" for part in segments).encode()


def integer(value: int) -> bytes:
    """An integer of 0 to 2**64 - 1 in its shortest encoding.

    >>> kvmpy.boot.aml.integer(0x1234).hex()
    '0b3412'
    """
    if not 0 <= value <= _MAX_INTEGER:
        raise ValueError(f"AML integer {value:#x}: it must be in 0..{_MAX_INTEGER:#x}")
    if value <= 1:
        return bytes((value,))  # ZeroOp, OneOp
    for limit, prefix, layout in _INTEGERS:
        if value <= limit:
            return prefix + struct.pack(layout, value)
    return b"\x0e" + struct.pack("<Q", value)


def string(text: str) -> bytes:
    r"""A string of ASCII characters other than NUL.

    >>> kvmpy.boot.aml.string("LNRO0005")
    b'\rLNRO0005\x00'
    """
    if not text.isascii() or "\0" in text:
        raise ValueError(f"AML string {text!r}: only ASCII without NUL")
    return _STRING_PREFIX + text.encode() + b"\0"


def eisa_id(text: str) -> bytes:
    """A PNP id such as ``PNP0501``, compressed to 32 bits (the EisaId macro).

    >>> kvmpy.boot.aml.eisa_id("PNP0501").hex()
    '0c41d00501'
    """
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text):
        raise ValueError(f"EISA id {text!r}: it must be three letters and four hex digits")
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - 0x40)
    return integer(int.from_bytes(struct.pack(">HH", letters, int(text[3:], 16)), "little"))


def package_length(content: int) -> bytes:
    """PkgLength of an object with ``content`` bytes after it: it counts itself too.

    >>> [kvmpy.boot.aml.package_length(size).hex() for size in (62, 63, 4093)]
    ['3f', '4104', '4fff']
    """
    if content + 1 < 1 << 6:
        return bytes((content + 1,))
    for extra in (1, 2, 3):
        total = content + 1 + extra
        if total < 1 << (4 + 8 * extra):
            high = (total >> 4).to_bytes(extra, "little")
            return bytes((extra << 6 | total & 0xF,)) + high
    raise ValueError(f"AML object of {content:#x} bytes: the limit is {_MAX_PACKAGE_LENGTH - 4:#x}")


def _sized(opcode: bytes, content: bytes) -> bytes:
    return opcode + package_length(len(content)) + content


def name(text: str, value: bytes) -> bytes:
    r"""Name (text, value): a named object.

    >>> kvmpy.boot.aml.name("A", kvmpy.boot.aml.integer(1))
    b'\x08A___\x01'
    """
    return _NAME_OP + path(text) + value


def package(*elements: bytes) -> bytes:
    """Package () {elements}: at most 255 of them.

    >>> kvmpy.boot.aml.package(kvmpy.boot.aml.integer(5), kvmpy.boot.aml.integer(0)).hex()
    '1205020a0500'
    """
    if len(elements) > 255:
        raise ValueError(f"AML package of {len(elements)} elements: the limit is 255")
    return _sized(_PACKAGE_OP, bytes((len(elements),)) + b"".join(elements))


def buffer(content: bytes) -> bytes:
    """Buffer () {content}.

    >>> kvmpy.boot.aml.buffer(b"ab").hex()
    '11050a026162'
    """
    return _sized(_BUFFER_OP, integer(len(content)) + content)


def scope(text: str, *terms: bytes) -> bytes:
    r"""Scope (text) {terms}.

    >>> kvmpy.boot.aml.scope("_SB")
    b'\x10\x05_SB_'
    """
    return _sized(_SCOPE_OP, path(text) + b"".join(terms))


def device(text: str, *terms: bytes) -> bytes:
    r"""Device (text) {terms}.

    >>> kvmpy.boot.aml.device("RTC")
    b'[\x82\x05RTC_'
    """
    return _sized(_DEVICE_OP, path(text) + b"".join(terms))


# --- resources ------------------------------------------------------------------------------------


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}.

    >>> kvmpy.boot.aml.resource_template(kvmpy.boot.aml.irq_no_flags(4)).hex()
    '11080a052210007900'
    """
    return buffer(b"".join(descriptors) + _END_TAG)


def io(first: int, length: int) -> bytes:
    """IO (Decode16, first, first, 1, length): ``length`` ports (1 to 255) at a fixed place.

    >>> kvmpy.boot.aml.io(0x3F8, 8).hex()
    '4701f803f8030108'
    """
    if not 1 <= length <= 255 or not 0 <= first <= 0x1_0000 - length:
        raise ValueError(f"ports {first:#x}+{length:#x}: 1 to 255 of them, up to 0xffff")
    return struct.pack("<BBHHBB", _IO, _DECODE_16, first, first, 1, length)


def irq_no_flags(irq: int) -> bytes:
    """IRQNoFlags () {irq}: an ISA interrupt, edge-triggered and active high.

    >>> kvmpy.boot.aml.irq_no_flags(4).hex()
    '221000'
    """
    if not 0 <= irq <= 15:
        raise ValueError(f"ISA interrupt {irq}: it must be in 0..15")
    return struct.pack("<BH", _IRQ_NO_FLAGS, 1 << irq)


def memory32_fixed(base: int, length: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, length): guest-physical, below 4 GiB.

    >>> kvmpy.boot.aml.memory32_fixed(0xD0000000, 0x1000).hex()
    '86090001000000d000100000'
    """
    if not 1 <= length < 1 << 32 or base < 0 or base + length > 1 << 32:
        raise ValueError(
            f"memory {base:#x}+{length:#x}: it must lie below 4 GiB, and be smaller than that"
        )
    return struct.pack("<BHBII", _MEMORY32_FIXED, 9, _READ_WRITE, base, length)


def interrupt(gsi: int) -> bytes:
    """Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}.

    >>> kvmpy.boot.aml.interrupt(16).hex()
    '890600030110000000'
    """
    if not 0 <= gsi <= 0xFFFF_FFFF:
        raise ValueError(f"global system interrupt {gsi:#x}: it must have 32 bits")
    return struct.pack("<BHBBI", _EXTENDED_INTERRUPT, 6, _CONSUMER | _EDGE, 1, gsi)
