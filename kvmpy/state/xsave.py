"""The XSAVE area by component and by register (SDM vol. 1, "Managing State Using the XSAVE Feature
Set"; KVM API, "4.42 KVM_GET_XSAVE").
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from ..errors import UnsupportedError
from ..text import flags_text
from ..values import dataclass
from ..x86.bits import FCW_RESET, MXCSR_RESET

LEGACY_SIZE: Final = 512
HEADER_SIZE: Final = 64
#: More than any processor has; a larger area is damaged.
MOST_SIZE: Final = 1 << 16

#: State components by bit of XCR0 and IA32_XSS, names as the manuals have them in lower case.
COMPONENTS: Final = {
    0: "x87", 1: "sse", 2: "avx", 3: "bndregs", 4: "bndcsr", 5: "opmask", 6: "zmm_hi256",
    7: "hi16_zmm", 8: "pt", 9: "pkru", 10: "pasid", 11: "cet_u", 12: "cet_s", 13: "hdc",
    14: "uintr", 15: "lbr", 16: "hwp", 17: "tilecfg", 18: "tiledata", 19: "apx",
}  # fmt: skip
_BITS: Final = {name: bit for bit, name in COMPONENTS.items()}
_AVX, _OPMASK, _ZMM_HI256, _HI16_ZMM, _PKRU, _TILECFG, _TILEDATA, _APX = 2, 5, 6, 7, 9, 17, 18, 19
_MXCSR_INIT: Final = MXCSR_RESET.to_bytes(4, "little")
_FCW_INIT: Final = FCW_RESET.to_bytes(2, "little")


@dataclass(frozen=True, order=True)
class Component:
    """Where a component lies in the standard (not compacted) format, in bytes.

    ``bit``: its number in XCR0; ``offset`` from the start of the area; ``size``.
    """

    bit: int
    offset: int
    size: int

    @property
    def name(self) -> str:
        """Its name: "avx", "pkru", or "component 25".

        >>> kvmpy.state.Component(2, 576, 256).name
        'avx'
        """
        return COMPONENTS.get(self.bit, f"component {self.bit}")

    def __repr__(self) -> str:
        return f"<{self.name}: {self.size} bytes at {self.offset}>"


#: x87 and SSE lie in the legacy area, at the same place in every processor.
_LEGACY: Final = (Component(0, 0, 160), Component(1, 160, 256))


def layout_of(leaves: Mapping[int, tuple[int, int]]) -> tuple[Component, ...]:
    """A layout from CPUID leaf 0DH: ``leaves`` maps a component's bit, 2..62, to EAX (size) and
    EBX (offset) of its subleaf. Supervisor components, whose offset is 0, are left out.

    >>> kvmpy.state.layout_of({2: (256, 576)})[-1]
    <avx: 256 bytes at 576>
    """
    extended = [
        Component(bit, offset, size)
        for bit, (size, offset) in sorted(leaves.items())
        if 2 <= bit < 63 and size and offset
    ]
    return (*_LEGACY, *extended)


@functools.cache
def host_layout() -> tuple[Component, ...]:
    """The layout of this host, which KVM's XSAVE area has whatever the guest's CPUID says.

    >>> kvmpy.state.host_layout()[:2]
    (<x87: 160 bytes at 0>, <sse: 256 bytes at 160>)
    """
    from ..host.cpuid import cpuid

    if cpuid(0)[0] < 0xD:
        return layout_of({})
    return layout_of({bit: cpuid(0xD, bit)[:2] for bit in range(2, 63)})


def _legacy_registers() -> dict[str, tuple[int, int, int]]:
    fields = {"fcw": (0, 2), "fsw": (2, 2), "ftw": (4, 1), "fop": (6, 2), "fip": (8, 8),
              "fdp": (16, 8), "mxcsr_mask": (28, 4)}  # fmt: skip
    found = {name: (0, offset, size) for name, (offset, size) in fields.items()}
    found["mxcsr"] = 1, 24 - 160, 4  # lies among x87's fields, and belongs to SSE and AVX
    found.update({f"st{i}": (0, 32 + 16 * i, 10) for i in range(8)})
    found.update({f"xmm{i}": (1, 16 * i, 16) for i in range(16)})
    return found


#: Registers that are one piece of one component: name -> (bit, offset in it, size).
_PIECES: Final = _legacy_registers()
_PIECES.update({f"k{i}": (_OPMASK, 8 * i, 8) for i in range(8)})
_PIECES["pkru"] = _PKRU, 0, 4
_PIECES["tilecfg"] = _TILECFG, 0, 64
_PIECES.update({f"tmm{i}": (_TILEDATA, 1024 * i, 1024) for i in range(8)})
_PIECES.update({f"r{16 + i}": (_APX, 8 * i, 8) for i in range(16)})


def _pieces(name: str) -> tuple[tuple[int, int, int], ...]:
    """The parts of a register, low bytes first; () for an unknown name."""
    if name in _PIECES:
        return (_PIECES[name],)
    kind, digits = name[:3], name[3:]
    number = int(digits) if digits.isdecimal() and len(digits) <= 2 else 32
    if kind not in ("xmm", "ymm", "zmm") or number >= 32 or digits != str(number):
        return ()
    width = {"xmm": 16, "ymm": 32, "zmm": 64}[kind]
    if number >= 16:
        return ((_HI16_ZMM, 64 * (number - 16), width),)
    low, middle = (1, 16 * number, 16), (_AVX, 16 * number, 16)
    return (low, middle, (_ZMM_HI256, 32 * number, 32))[: {16: 1, 32: 2, 64: 3}[width]]


@dataclass(frozen=True, repr=False, eq=False)
class Xsave:
    """A vCPU's XSAVE area in the standard format. ``cpu.xsave`` reads one, and sets it.

    ``data``: the bytes, as KVM has them; ``layout``: where the components lie.

    Components by name give bytes: ``x["avx"]``. Registers too: "xmm0", "ymm0" ... "zmm31", "st0",
    "k1", "pkru", "mxcsr", "fcw", "tilecfg", "tmm0"; :meth:`value` gives them as integers, and
    :meth:`replace` a copy with others. A component whose XSTATE_BV bit is clear is in its initial
    state, and reads so.

    Raises ValueError for bytes that cannot be such an area, compacted ones (XCOMP_BV bit 63)
    among them: KVM neither gives nor takes that format.

    >>> cpu.xsave = cpu.xsave.replace(xmm1=0x1234)
    >>> hex(cpu.xsave.value("xmm1")), cpu.xsave["xmm1"][:2].hex()
    ('0x1234', '3412')
    """

    data: bytes
    layout: tuple[Component, ...]

    def __post_init__(self) -> None:
        if not LEGACY_SIZE + HEADER_SIZE <= len(self.data) <= MOST_SIZE:
            raise ValueError(f"an XSAVE area of {len(self.data)} bytes")
        if self.xcomp_bv >> 63:
            raise ValueError(
                f"XCOMP_BV {self.xcomp_bv:#x}: the compacted format, which is not KVM's"
            )
        if self.layout[:2] != _LEGACY:
            raise ValueError(f"the layout starts with {self.layout[:2]}, not with x87 and SSE")
        bits = [component.bit for component in self.layout]
        if bits != sorted(set(bits)) or bits[-1] > 62:
            raise ValueError(f"the layout's components are {bits}: not ascending in 0..62")
        for component in self.layout[2:]:
            # KVM gives an area of 4096 bytes to who has no permission for what lies above.
            if component.offset < LEGACY_SIZE + HEADER_SIZE or not 0 < component.size <= MOST_SIZE:
                raise ValueError(f"the layout has {component!r}")

    # -- what is in it

    @property
    def xstate_bv(self) -> int:
        """XSTATE_BV: which components are not in their initial state.

        >>> cpu.xsave.replace(xmm0=1).xstate_bv & 2
        2
        """
        return int.from_bytes(self.data[512:520], "little")

    @property
    def xcomp_bv(self) -> int:
        """XCOMP_BV: 0 in the standard format.

        >>> cpu.xsave.xcomp_bv
        0
        """
        return int.from_bytes(self.data[520:528], "little")

    def components(self) -> tuple[str, ...]:
        """The names of those that this area has room for.

        >>> cpu.xsave.components()[:2]
        ('x87', 'sse')
        """
        return tuple(part.name for part in self.layout if part.offset + part.size <= len(self.data))

    def __contains__(self, name: str) -> bool:
        """Whether there is such a component or register here."""
        try:
            self._spans(name)
        except KeyError:
            return False
        return True

    def __getitem__(self, name: str) -> bytes:
        """A component's or a register's bytes. Raises KeyError if this area has none such."""
        return b"".join(self._part(*span) for span in self._spans(name))

    def value(self, register: str) -> int:
        """A register (or component) as an integer.

        >>> hex(cpu.xsave.value("mxcsr"))
        '0x1f80'
        """
        return int.from_bytes(self[register], "little")

    def replace(self, **values: int | bytes) -> Xsave:
        """A copy with other values of registers or components, integers or bytes.

        Raises KeyError for a name this area has not, ValueError for a value that does not fit.

        >>> cpu.xsave.replace(xmm0=1 << 64, sse=bytes(256))["sse"] == bytes(256)
        True
        """
        area = bytearray(self.data)
        for name, value in values.items():
            spans = self._spans(name)
            size = sum(size for _, _, size in spans)
            raw = self._checked(name, value, size)
            for bit, offset, length in spans:
                self._wake(area, bit)
                area[offset : offset + length], raw = raw[:length], raw[length:]
        return Xsave(bytes(area), self.layout)

    @staticmethod
    def _checked(name: str, value: int | bytes, size: int) -> bytes:
        if isinstance(value, int):
            if value < 0 or value >> 8 * size:
                raise ValueError(f"{name} = {value:#x}: not in 0..2**{8 * size}-1")
            return value.to_bytes(size, "little")
        if len(value) != size:
            raise ValueError(f"{name}: {len(value)} bytes, not {size}")
        return bytes(value)

    def _component(self, bit: int) -> Component | None:
        for component in self.layout:
            if component.bit == bit and component.offset + component.size <= len(self.data):
                return component
        return None

    def _spans(self, name: str) -> list[tuple[int, int, int]]:
        """(component's bit, offset in the area, size) for each piece."""
        pieces = _pieces(name)
        spans = []
        for bit, offset, size in pieces or ((_BITS.get(name, -1), 0, 0),):
            component = self._component(bit)
            if component is None:
                raise KeyError(f"this XSAVE area has no {name!r}: it has {self.components()}")
            spans.append((bit, component.offset + offset, size or component.size))
        return spans

    def _part(self, bit: int, offset: int, size: int) -> bytes:
        if self._is_live(bit, offset):
            return self.data[offset : offset + size]
        return self._initial()[offset : offset + size] if bit < 2 else bytes(size)

    def _is_live(self, bit: int, offset: int) -> bool:
        wanted = 1 << bit
        if bit == 1 and offset == 24:  # MXCSR is loaded if SSE or AVX is
            wanted |= 1 << _AVX
        return bool(self.xstate_bv & wanted)

    @staticmethod
    def _initial() -> bytes:
        legacy = bytearray(LEGACY_SIZE)
        legacy[0:2], legacy[24:28] = _FCW_INIT, _MXCSR_INIT
        return bytes(legacy)

    def _wake(self, area: bytearray, bit: int) -> None:
        """Mark a component as in use; until now its bytes in the area did not count."""
        present = int.from_bytes(area[512:520], "little")
        component = self._component(bit)
        if component is None or present >> bit & 1:
            return
        if bit < 2:
            start, end = component.offset, component.offset + component.size
            mxcsr = bytes(area[24:32])
            area[start:end] = self._initial()[start:end]
            area[24:32] = mxcsr
        else:
            area[component.offset : component.offset + component.size] = bytes(component.size)
        if bit == 1 and not present & 1 << _AVX:
            area[24:28] = _MXCSR_INIT
        area[512:520] = (present | 1 << bit).to_bytes(8, "little")

    def __repr__(self) -> str:
        names = {component.bit: component.name for component in self.layout}
        used = [f"xmm{i}" for i in range(16) if "xmm0" in self and self.value(f"xmm{i}")]
        shown = f" xmm{','.join(name[3:] for name in used)} in use" if used else ""
        return (
            f"<Xsave {len(self.data)} bytes, XSTATE_BV {flags_text(self.xstate_bv, names)} "
            f"mxcsr {self.value('mxcsr'):#x}{shown}>"
        )

    # -- comparing and storing

    def __eq__(self, other: object) -> bool:
        """Whether all components are the same; not whether the bytes in between are."""
        return isinstance(other, Xsave) and not any(self.differing(other))

    def __hash__(self) -> int:
        return hash(self["sse"])

    def differing(self, other: Xsave) -> Iterator[tuple[str, bytes, bytes]]:
        """(name, here, there) for components in which two areas differ; bytes nobody defines do
        not count.

        >>> [name for name, *_ in cpu.xsave.differing(cpu.xsave.replace(xmm3=1))]
        ['sse']
        """
        for name in dict.fromkeys((*self.components(), *other.components())):
            mine, theirs = self._or_nothing(name), other._or_nothing(name)
            if name == "x87":  # without MXCSR, which SSE and AVX have, and its mask
                mine, theirs = mine[:24] + mine[32:], theirs[:24] + theirs[32:]
            if mine != theirs:
                yield name, mine, theirs
        if self["mxcsr"] != other["mxcsr"]:
            yield "mxcsr", self["mxcsr"], other["mxcsr"]

    def _or_nothing(self, name: str) -> bytes:
        try:
            return self[name]
        except KeyError:
            return b""

    def resized(self, size: int) -> Xsave:
        """A copy of ``size`` bytes, as another VM's area has. Raises ValueError if components that
        are in use do not fit.

        >>> len(cpu.xsave.resized(8192).data)
        8192
        """
        if any(self.data[size:]):
            raise ValueError(
                f"an XSAVE area of {len(self.data)} bytes, {size} here: it does not fit"
            )
        return Xsave(self.data[:size].ljust(size, b"\0"), self.layout)

    def to_json(self) -> dict[str, Any]:
        """The area as what JSON knows; zeros at the end are left out.

        >>> sorted(cpu.xsave.to_json())
        ['data', 'layout', 'size']
        """
        return {
            "size": len(self.data),
            "layout": [[part.bit, part.offset, part.size] for part in self.layout],
            "data": self.data.rstrip(b"\0").hex(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Xsave:
        """The inverse of :meth:`to_json`. Raises ValueError for what cannot be one.

        >>> kvmpy.state.Xsave.from_json(cpu.xsave.to_json()) == cpu.xsave
        True
        """
        return cls.of(data["size"], bytes.fromhex(data["data"]), data["layout"])

    @classmethod
    def of(cls, size: int, data: bytes, layout: Iterable[Iterable[int]]) -> Xsave:
        """From the bytes without the zeros at the end, and (bit, offset, size) of the components.

        >>> kvmpy.state.Xsave.of(4096, b"", [(0, 0, 160), (1, 160, 256)]).xstate_bv
        0
        """
        if not isinstance(size, int) or not len(data) <= size <= MOST_SIZE:
            raise ValueError(f"an XSAVE area of {size!r} bytes, {len(data)} of them given")
        return cls(data.ljust(size, b"\0"), tuple(Component(*part) for part in layout))


_ARCH_REQ_XCOMP_GUEST_PERM: Final = 0x1025
_SYS_ARCH_PRCTL: Final = 158


def request_guest_permission(component: str = "tiledata") -> None:
    """Ask the kernel to let this process's guests have a component that is too large to give to
    everyone: AMX's tile data. arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM); x86, "Using XSTATE features".

    Before the first vCPU of the process, and before KVM is asked what CPUID it supports: that
    shows AMX only then. There is no way back. Raises UnsupportedError if the processor or the
    kernel has no such component, KvmpyError's OSError if a vCPU exists already.

    >>> kvmpy.state.request_guest_permission("nothing")
    Traceback (most recent call last):
    ...
    ValueError: 'nothing' is not an XSAVE component: x87, sse, avx, ...
    """
    import ctypes

    bit = _BITS.get(component)
    if bit is None:
        raise ValueError(f"{component!r} is not an XSAVE component: {', '.join(_BITS)}")
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.restype = ctypes.c_long
    arguments = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_GUEST_PERM, bit)
    if system_call(*map(ctypes.c_long, arguments)) == 0:
        return
    code = ctypes.get_errno()
    if code in (22, 95):  # EINVAL: a kernel before 5.17; EOPNOTSUPP: the processor lacks it
        raise UnsupportedError(f"this host has no {component} for guests: {os.strerror(code)}")
    raise PermissionError(
        code, f"no guest permission for {component} any longer: a vCPU of this process exists"
    )
