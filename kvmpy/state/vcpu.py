"""The complete architectural state of a vCPU as a value, with a JSON and a binary form."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from ..errors import StateFormatError
from ..msrs.msrs import index_of, name_of
from .codec import CODECS

if TYPE_CHECKING:
    from ..cpuid.cpuid import Cpuid
    from ..x86.state import StubTable
    from .host import HostIdentity
    from .interrupts import Lapic, VcpuEvents
    from .nested import NestedState
    from .registers import DebugRegs, Regs, Sregs2, Xcrs
    from .xsave import Xsave

FORMAT: Final = "kvmpy vCPU state"
#: Of both forms. Raised when a reader of the old version would go wrong.
VERSION: Final = 1
_MAGIC: Final = b"kvmpyCPU"
#: Magic, version, number of sections, length and CRC-32 of what follows.
_HEADER: Final = struct.Struct("<8sHHII")
#: A section: its number in CODECS, its length.
_SECTION: Final = struct.Struct("<HI")


@dataclass(frozen=True, kw_only=True, repr=False)
class VcpuState:
    """All that makes a vCPU go on elsewhere as if nothing had happened. ``cpu.save()`` makes it,
    ``cpu.restore(state)`` sets it. Guest memory and devices are not in it.

    A plain value: comparable, ``kvmpy.diff(a, b)`` shows what differs, ``dataclasses.replace()``
    makes an edited copy.

    ``host``: where it was taken. ``vcpu_id``: KVM's number for it. ``cpuid``: what the guest was
    shown. ``tsc_khz``: the guest's TSC frequency. ``mcg_cap``: machine-check banks and abilities.
    ``mp_state``: a MpState.
    ``lapic``: None without an in-kernel LAPIC. ``msrs``: by number, the TSC as it stood.
    ``refused_msrs``: those of KVM's list it would not read. ``one_regs``: KVM_GET_REG_LIST's,
    as bytes. ``nested``: None where KVM has no nested virtualization. ``stubs``: where the
    reporting stubs of ``cpu.enter()`` are in guest memory, so that their exits are recognized.

    >>> state = cpu.save()
    >>> kvmpy.state.VcpuState.from_bytes(state.to_bytes()) == state
    True
    """

    host: HostIdentity
    vcpu_id: int
    cpuid: Cpuid
    tsc_khz: int
    mcg_cap: int
    mp_state: int
    regs: Regs
    sregs: Sregs2
    xsave: Xsave
    xcrs: Xcrs
    debugregs: DebugRegs
    lapic: Lapic | None
    msrs: Mapping[int, int]
    refused_msrs: tuple[int, ...]
    one_regs: Mapping[int, bytes]
    nested: NestedState | None
    events: VcpuEvents
    stubs: StubTable | None = None

    def msr(self, key: int | str) -> int:
        """An MSR by number or name. Raises KeyError if it is not in the saved state.

        >>> hex(cpu.save().msr("PAT"))
        '0x7040600070406'
        """
        index = index_of(key)
        if index not in self.msrs:
            raise KeyError(f"the state has no MSR {name_of(index)}")
        return self.msrs[index]

    # -- JSON

    def to_json(self, indent: int | None = None) -> str:
        """As JSON text, with a format name and version; bytes in hex, MSRs keyed by number.

        >>> '"version": 1' in cpu.save().to_json()
        True
        """
        parts = {
            name: None if (value := getattr(self, name)) is None else codec.to_json(value)
            for name, codec in CODECS.items()
        }
        return json.dumps({"format": FORMAT, "version": VERSION, **parts}, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> VcpuState:
        """The inverse of :meth:`to_json`. Raises StateFormatError for anything else.

        >>> state = cpu.save()
        >>> kvmpy.state.VcpuState.from_json(state.to_json()) == state
        True
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StateFormatError(f"not JSON: {error}") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise StateFormatError(f"not a {FORMAT!r}")
        _check_version(document.pop("version", None))
        if odd := set(document) ^ set(CODECS):
            raise StateFormatError(f"parts missing or unknown: {', '.join(sorted(odd))}")
        return cls._decoded(
            (name, None if document[name] is None else codec.from_json, document[name])
            for name, codec in CODECS.items()
        )

    # -- bytes

    def to_bytes(self) -> bytes:
        """In a compact binary form: C structures as the kernel has them, lengths, a checksum.

        >>> cpu.save().to_bytes()[:8]
        b'kvmpyCPU'
        """
        sections = []
        for number, (name, codec) in enumerate(CODECS.items()):
            value = getattr(self, name)
            if value is not None:
                data = codec.to_bytes(value)
                sections += [_SECTION.pack(number, len(data)), data]
        body = b"".join(sections)
        checksum = zlib.crc32(body)
        return _HEADER.pack(_MAGIC, VERSION, len(sections) // 2, len(body), checksum) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> VcpuState:
        """The inverse of :meth:`to_bytes`. Raises StateFormatError for anything else: another
        magic number or version, a wrong length or checksum, parts that cannot be.

        >>> kvmpy.state.VcpuState.from_bytes(b"nonsense")
        Traceback (most recent call last):
        ...
        kvmpy.errors.StateFormatError: 8 bytes: too short
        """
        names = list(CODECS)
        found: dict[str, bytes] = {}
        for number, part in _sections(data):
            if number >= len(names) or names[number] in found:
                raise StateFormatError(f"part {number} is unknown or there twice")
            found[names[number]] = part
        return cls._decoded(
            (name, codec.from_bytes if name in found else None, found.get(name))
            for name, codec in CODECS.items()
        )

    @classmethod
    def _decoded(cls, parts: Iterator[tuple[str, Any, Any]]) -> VcpuState:
        values: dict[str, Any] = {}
        for name, decode, encoded in parts:
            if decode is None:
                if name not in _OPTIONAL:
                    raise StateFormatError(f"{name} is missing")
                values[name] = None
                continue
            try:
                values[name] = decode(encoded)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError,
                    IndexError, struct.error) as error:  # fmt: skip
                raise StateFormatError(f"{name}: {error}") from None
        return cls(**values)

    def __repr__(self) -> str:
        lines = [f"<VcpuState of {self.host.module}, {self.host.vendor} {self.host.model}"]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("host", "stubs") or value is None:
                continue
            text = f"{len(value)}" if isinstance(value, (Mapping, tuple)) else repr(value)
            lines.append(f"{field.name}: " + text.replace("\n", "\n    "))
        return "\n  ".join(lines) + ">"


_OPTIONAL: Final = frozenset(("lapic", "nested", "stubs"))


def _check_version(version: object) -> None:
    if type(version) is not int or version != VERSION:
        raise StateFormatError(f"version {version!r}: this kvmpy reads version {VERSION}")


def _sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    if len(data) < _HEADER.size:
        raise StateFormatError(f"{len(data)} bytes: too short")
    magic, version, count, length, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise StateFormatError(f"starts with {magic!r}, not with {_MAGIC!r}")
    _check_version(version)
    body = bytes(data[_HEADER.size :])
    if len(body) != length:
        raise StateFormatError(f"{len(body)} bytes after the header, which says {length}")
    if zlib.crc32(body) != checksum:
        raise StateFormatError(f"the checksum is not {checksum:#x}: the bytes are damaged")
    at = 0
    for _ in range(count):
        if at + _SECTION.size > length:
            raise StateFormatError("it ends in the middle of a part")
        number, size = _SECTION.unpack_from(body, at)
        at += _SECTION.size
        if at + size > length:
            raise StateFormatError(f"part {number} of {size} bytes goes beyond the end")
        yield number, body[at : at + size]
        at += size
    if at != length:
        raise StateFormatError(f"{length - at} bytes too many")
