"""How each part of a VcpuState becomes bytes and JSON, and comes back.

Nothing here trusts its input: a decoder raises an ordinary exception for anything odd, and
:mod:`kvmpy.state.vcpu` makes a StateFormatError of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import astuple
from typing import Any, Final, NamedTuple

from ..cpuid.cpuid import Cpuid, Leaf
from ..record import Record
from ..shim import ffi
from ..x86.state import StubTable
from .host import HostIdentity
from .interrupts import Lapic, VcpuEvents
from .nested import NestedState
from .registers import DebugRegs, Regs, Sregs2, Xcrs
from .xsave import Xsave


class Codec(NamedTuple):
    """One part's two forms."""

    to_bytes: Callable[[Any], bytes]
    from_bytes: Callable[[bytes], Any]
    to_json: Callable[[Any], Any]
    from_json: Callable[[Any], Any]


def _record(kind: type[Record]) -> Codec:
    """A record's bytes are those of its C structure, which is part of the kernel's ABI."""

    def to_bytes(record: Record) -> bytes:
        return bytes(ffi.buffer(record.to_c()))

    def from_bytes(data: bytes) -> Record:
        structure = ffi.new(kind.c_name + " *")
        if len(data) != ffi.sizeof(structure[0]):
            raise ValueError(f"{kind.c_name} of {len(data)} bytes")
        ffi.memmove(structure, data, len(data))
        return kind.from_c(structure)

    def from_json(data: Any) -> Record:
        record = kind.from_json(data)
        record.to_c()  # do all numbers fit?
        return record

    return Codec(to_bytes, from_bytes, kind.to_json, from_json)


def _number(layout: str) -> Codec:
    packing = struct.Struct(layout)

    def from_json(data: Any) -> int:
        packing.pack(data)
        return checked_int(data)

    return Codec(packing.pack, lambda data: packing.unpack(data)[0], int, from_json)


def checked_int(value: Any) -> int:
    """``value`` if it is an int and no bool; else raises TypeError."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


_LEAF: Final = struct.Struct("<7I")


def _leaf(values: tuple[Any, ...]) -> Leaf:
    _LEAF.pack(*values)
    return Leaf(*map(checked_int, values))


_CPUID: Final = Codec(
    lambda cpuid: b"".join(_LEAF.pack(*astuple(leaf)) for leaf in cpuid),
    lambda data: Cpuid(_leaf(values) for values in _LEAF.iter_unpack(data)),
    lambda cpuid: [list(astuple(leaf)) for leaf in cpuid],
    lambda data: Cpuid(_leaf(tuple(values)) for values in data),
)

_MSR: Final = struct.Struct("<IQ")


def _msrs_from_json(data: Mapping[str, Any]) -> dict[int, int]:
    values = {int(key, 16): checked_int(value) for key, value in data.items()}
    for index, value in values.items():
        _MSR.pack(index, value)
    return values


_MSRS: Final = Codec(
    lambda msrs: b"".join(_MSR.pack(*item) for item in msrs.items()),
    lambda data: dict(_MSR.iter_unpack(data)),
    lambda msrs: {f"{index:#x}": value for index, value in msrs.items()},
    _msrs_from_json,
)


def _numbers(layout: str) -> Codec:
    packing = struct.Struct(layout)

    def from_json(data: Any) -> tuple[int, ...]:
        values = tuple(map(checked_int, data))
        for value in values:
            packing.pack(value)
        return values

    return Codec(
        lambda values: b"".join(map(packing.pack, values)),
        lambda data: tuple(value for (value,) in packing.iter_unpack(data)),
        list,
        from_json,
    )


#: An identifier, the size of the value in bytes (at most KVM_REG_SIZE_U2048's), the value.
_ONE_REG: Final = struct.Struct("<QH256s")


def _one_regs_from_json(data: Mapping[str, Any]) -> dict[int, bytes]:
    values = {int(key, 16): bytes.fromhex(value) for key, value in data.items()}
    return _one_regs_from_bytes(_one_regs_to_bytes(values))


def _one_regs_to_bytes(values: Mapping[int, bytes]) -> bytes:
    return b"".join(_ONE_REG.pack(key, len(value), value) for key, value in values.items())


def _one_regs_from_bytes(data: bytes) -> dict[int, bytes]:
    values = {}
    for key, size, value in _ONE_REG.iter_unpack(data):
        if size > 256:
            raise ValueError(f"register {key:#x} of {size} bytes")
        values[key] = value[:size]
    return values


_ONE_REGS: Final = Codec(
    _one_regs_to_bytes,
    _one_regs_from_bytes,
    lambda values: {f"{key:#x}": value.hex() for key, value in values.items()},
    _one_regs_from_json,
)

_XSAVE_HEAD: Final = struct.Struct("<II")
_COMPONENT: Final = struct.Struct("<III")


def _xsave_to_bytes(xsave: Xsave) -> bytes:
    parts = [_COMPONENT.pack(part.bit, part.offset, part.size) for part in xsave.layout]
    return b"".join(
        (_XSAVE_HEAD.pack(len(xsave.data), len(parts)), *parts, xsave.data.rstrip(b"\0"))
    )


def _xsave_from_bytes(data: bytes) -> Xsave:
    size, count = _XSAVE_HEAD.unpack_from(data)
    end = _XSAVE_HEAD.size + count * _COMPONENT.size
    if end > len(data):
        raise ValueError(f"{count} XSAVE components in {len(data)} bytes")
    return Xsave.of(size, data[end:], _COMPONENT.iter_unpack(data[_XSAVE_HEAD.size : end]))


def _xsave_from_json(data: Any) -> Xsave:
    xsave = Xsave.from_json(data)
    _xsave_to_bytes(xsave)
    return xsave


_STUBS: Final = struct.Struct("<QQ")


def _stubs_from_json(data: Any) -> StubTable:
    _STUBS.pack(*data)
    return StubTable(*map(checked_int, data))


#: By field of VcpuState, in the order of their numbers in the binary form: append only.
CODECS: Final[dict[str, Codec]] = {
    "host": Codec(
        HostIdentity.to_bytes, HostIdentity.from_bytes, HostIdentity.to_json,
        HostIdentity.from_json,
    ),
    "vcpu_id": _number("<I"),
    "cpuid": _CPUID,
    "tsc_khz": _number("<I"),
    "mcg_cap": _number("<Q"),
    "mp_state": _number("<I"),
    "regs": _record(Regs),
    "sregs": _record(Sregs2),
    "xsave": Codec(_xsave_to_bytes, _xsave_from_bytes, Xsave.to_json, _xsave_from_json),
    "xcrs": _record(Xcrs),
    "debugregs": _record(DebugRegs),
    "lapic": _record(Lapic),
    "msrs": _MSRS,
    "refused_msrs": _numbers("<I"),
    "one_regs": _ONE_REGS,
    "nested": Codec(
        lambda nested: nested.data, NestedState, NestedState.to_json, NestedState.from_json
    ),
    "events": _record(VcpuEvents),
    "stubs": Codec(
        lambda stubs: _STUBS.pack(stubs.stubs, stubs.lstar),
        lambda data: StubTable(*_STUBS.unpack(data)),
        lambda stubs: [stubs.stubs, stubs.lstar],
        _stubs_from_json,
    ),
}  # fmt: skip
