"""Reads ACPI tables back out of guest memory, by the specification and not by our builders."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Read = Callable[[int, int], bytes]


@dataclass
class Sdt:
    """A system description table, its checksum verified."""

    signature: str
    revision: int
    body: bytes
    gpa: int


def read_sdt(read: Read, gpa: int) -> Sdt:
    signature, length, revision = struct.unpack("<4sIB", read(gpa, 9))
    table = read(gpa, length)
    assert sum(table) % 256 == 0, signature
    assert table[10:16].isascii()
    assert table[28:32].isascii()
    return Sdt(signature.decode(), revision, table[36:], gpa)


def find_rsdp(read: Read) -> int:
    """As firmware-less kernels do: on 16-byte boundaries of 0xE0000..0xFFFFF."""
    for gpa in range(0xE0000, 0x100000, 16):
        if read(gpa, 8) == b"RSD PTR " and sum(read(gpa, 20)) % 256 == 0:
            return gpa
    raise AssertionError("no RSDP")


def read_tables(read: Read, rsdp: int) -> dict[str, Sdt]:
    """All tables, found through the XSDT; the RSDT must list the same."""
    content = read(rsdp, 36)
    assert content[:8] == b"RSD PTR "
    assert content[15] == 2
    assert sum(content[:20]) % 256 == 0
    assert sum(content) % 256 == 0
    rsdt_gpa, length, xsdt_gpa = struct.unpack_from("<IIQ", content, 16)
    assert length == 36
    rsdt, xsdt = read_sdt(read, rsdt_gpa), read_sdt(read, xsdt_gpa)
    assert (rsdt.signature, xsdt.signature) == ("RSDT", "XSDT")
    listed = [gpa for (gpa,) in struct.iter_unpack("<Q", xsdt.body)]
    assert [gpa for (gpa,) in struct.iter_unpack("<I", rsdt.body)] == listed
    tables = {table.signature: table for table in (read_sdt(read, gpa) for gpa in listed)}
    facs, dsdt = struct.unpack_from("<II", tables["FACP"].body, 0)
    assert facs % 64 == 0
    assert read(facs, 4) == b"FACS"
    assert struct.unpack("<I", read(facs + 4, 4)) == (64,)
    (x_dsdt,) = struct.unpack_from("<Q", tables["FACP"].body, 140 - 36)
    assert x_dsdt == dsdt
    tables["DSDT"] = read_sdt(read, dsdt)
    return tables


def madt_entries(madt: Sdt) -> Iterator[tuple[int, bytes]]:
    """(type, the bytes after type and length) of each interrupt controller structure."""
    rest = madt.body[8:]
    while rest:
        kind, length = rest[0], rest[1]
        assert 2 <= length <= len(rest)
        yield kind, rest[2:length]
        rest = rest[length:]


# --- AML ------------------------------------------------------------------------------------------


@dataclass
class Scope:
    """A scope or device: what is named in it."""

    names: dict[str, Any] = field(default_factory=dict)


class Aml:
    """A decoder of the constructs that declare data. ``root`` has what was declared."""

    def __init__(self, code: bytes):
        self.code, self.at = code, 0
        self.root = Scope()
        self._terms(self.root, len(code))
        assert self.at == len(code)

    def _byte(self) -> int:
        self.at += 1
        return self.code[self.at - 1]

    def _take(self, size: int) -> bytes:
        assert self.at + size <= len(self.code)
        self.at += size
        return self.code[self.at - size : self.at]

    def _end(self) -> int:
        """PkgLength: where the object ends."""
        start = self.at
        lead = self._byte()
        extra = lead >> 6
        if not extra:
            return start + lead
        length = lead & 0xF
        assert not lead & 0x30
        for index in range(extra):
            length |= self._byte() << (4 + 8 * index)
        # no longer than it needs to be
        assert length >= 1 << (4 + 8 * (extra - 1)) or extra == 1
        return start + length

    def _path(self) -> str:
        text = ""
        if self.code[self.at] == ord("\\"):
            self.at += 1
            text = "\\"
        count = 1
        if self.code[self.at] == 0x2E:
            self.at += 1
            count = 2
        elif self.code[self.at] == 0x2F:
            self.at += 1
            count = self._byte()
        return text + ".".join(self._take(4).decode() for _ in range(count))

    def _terms(self, scope: Scope, end: int) -> None:
        while self.at < end:
            match self._byte():
                case 0x08:
                    name = self._path()
                    assert name not in scope.names, name
                    scope.names[name] = self._object()
                case 0x10:
                    self._open(scope)
                case 0x5B if self._byte() == 0x82:
                    self._open(scope)
                case opcode:
                    raise AssertionError(f"opcode {opcode:#x} at {self.at - 1:#x}")
        assert self.at == end

    def _open(self, scope: Scope) -> None:
        end = self._end()
        name = self._path()
        inner = Scope()
        assert name not in scope.names, name
        scope.names[name] = inner
        self._terms(inner, end)

    def _object(self) -> Any:
        opcode = self._byte()
        match opcode:
            case 0x00 | 0x01:
                return opcode
            case 0x0A | 0x0B | 0x0C | 0x0E:
                return int.from_bytes(
                    self._take({0xA: 1, 0xB: 2, 0xC: 4, 0xE: 8}[opcode]), "little"
                )
            case 0x0D:
                end = self.code.index(0, self.at)
                text = self._take(end - self.at).decode("ascii")
                self.at += 1
                return text
            case 0x11:
                end = self._end()
                size = self._object()
                assert size == end - self.at
                return self._take(size)
            case 0x12:
                end = self._end()
                elements = [self._object() for _ in range(self._byte())]
                assert self.at == end
                return elements
        raise AssertionError(f"object {opcode:#x} at {self.at - 1:#x}")


def eisa_text(number: int) -> str:
    """ "PNP0501" of 0x0105D041."""
    swapped = int.from_bytes(number.to_bytes(4, "little"), "big")
    letters = "".join(chr(0x40 + (swapped >> shift & 0x1F)) for shift in (26, 21, 16))
    return f"{letters}{swapped & 0xFFFF:04X}"


def resources(template: bytes) -> list[tuple[str, tuple[int, ...]]]:
    """(kind, values) of each descriptor of a resource template."""
    found: list[tuple[str, tuple[int, ...]]] = []
    rest = template
    while True:
        tag = rest[0]
        if tag & 0x80:
            (length,) = struct.unpack_from("<H", rest, 1)
            body, rest = rest[3 : 3 + length], rest[3 + length :]
        else:
            length = tag & 7
            body, rest = rest[1 : 1 + length], rest[1 + length :]
            tag &= 0x78
        assert len(body) == length
        match tag:
            case 0x20:
                (mask,) = struct.unpack("<H", body)
                found.append(("irq", tuple(bit for bit in range(16) if mask >> bit & 1)))
            case 0x40:
                decode, low, high, align, size = struct.unpack("<BHHBB", body)
                assert decode == 1
                assert low == high
                assert align
                found.append(("io", (low, size)))
            case 0x86:
                writable, base, size = struct.unpack("<BII", body)
                assert writable == 1
                found.append(("memory", (base, size)))
            case 0x89:
                flags, count, number = struct.unpack("<BBI", body)
                assert count == 1
                assert flags == 0b00011  # consumer, edge, active high, exclusive
                found.append(("interrupt", (number,)))
            case 0x78:
                assert not rest
                return found
            case _:
                raise AssertionError(f"resource descriptor {tag:#x}")
