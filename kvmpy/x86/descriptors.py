"""Segment descriptors, gates and task state segments: typed, encoded and decoded.

Source: SDM vol. 3, "Protected-Mode Memory Management" (segment descriptors), "Interrupt and
Exception Handling" (gates) and "Task Management" (TSS); APM vol. 2 for the long-mode variants.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Final

from ..values import dataclass

# --- selectors of the shared GDT ----------------------------------------------------------------
# The order serves SYSCALL/SYSRET and SYSENTER/SYSEXIT, which derive selectors by adding constants
# to an MSR; the numbers are Linux's own, which kvm_pvm insists on.
KERNEL_CODE32: Final = 0x08
KERNEL_CODE: Final = 0x10  # 64-bit in the long variant, 32-bit in the legacy one
KERNEL_DATA: Final = 0x18
USER_CODE32: Final = 0x20 | 3
USER_DATA: Final = 0x28 | 3
USER_CODE64: Final = 0x30 | 3  # a second 32-bit code segment in the legacy variant
USER_DATA_SYSEXIT: Final = 0x38 | 3  # SYSEXIT with REX.W takes SS = SYSENTER_CS + 40
TASK: Final = 0x40  # 16 bytes in the long variant: 0x48 is its upper half
CODE16: Final = 0x50
DATA16: Final = 0x58
RING1_CODE: Final = 0x60 | 1
RING1_DATA: Final = 0x68 | 1
RING2_CODE: Final = 0x70 | 2
RING2_DATA: Final = 0x78 | 2
GDT_SIZE: Final = 0x80

# --- descriptor types ---------------------------------------------------------------------------
# Code and data types always carry the accessed bit (1): VM entry checks demand it for segments
# that are loaded, and setting it beforehand saves the CPU a locked write to the GDT.
DATA_RW: Final = 0x3
CODE_XR: Final = 0xB
TSS16_BUSY: Final = 0x3
LDT: Final = 0x2
TSS_AVAILABLE: Final = 0x9
TSS_BUSY: Final = 0xB
CALL_GATE: Final = 0xC
TASK_GATE: Final = 0x5
INTERRUPT_GATE: Final = 0xE
TRAP_GATE: Final = 0xF

_GATE_TYPES: Final = frozenset({0x4, TASK_GATE, 0x6, 0x7, CALL_GATE, INTERRUPT_GATE, TRAP_GATE})


def _check(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is {value:#x}, it must fit in {bits} bits")


@dataclass(frozen=True)
class Descriptor:
    """A segment descriptor; also a TSS or LDT descriptor when ``system`` is set.

    ``limit`` is the last valid offset in bytes. Above 1 MiB the limit is stored in 4 KiB units and
    must end in 0xfff. ``base`` has 32 bits, or 64 for a long-mode system descriptor.
    """

    base: int = 0
    limit: int = 0
    type: int = 0
    system: bool = False
    dpl: int = 0
    present: bool = True
    avl: bool = False
    long: bool = False
    big: bool = False  # D/B: 32-bit default operand size or stack

    def encode(self) -> bytes:
        """The 8 bytes of a code, data or legacy system descriptor.

        Raises ValueError: a field does not fit, or a limit of 1 MiB or more does not end in 0xfff.

        >>> from kvmpy.x86.descriptors import code_segment
        >>> code_segment(0, long=True).encode().hex()
        'ffff0000009baf00'
        """
        _check("base", self.base, 32)
        return self._encode_low()

    def encode_long_system(self) -> bytes:
        """The 16 bytes of a long-mode TSS or LDT descriptor; raises as ``encode`` does.

        >>> from kvmpy.x86.descriptors import TSS_BUSY, Descriptor
        >>> task = Descriptor(base=0x1000, limit=0x67, type=TSS_BUSY, system=True)
        >>> len(task.encode_long_system())
        16
        """
        _check("base", self.base, 64)
        if not self.system:
            raise ValueError("only system descriptors have 16 bytes in long mode")
        return self._encode_low() + struct.pack("<II", self.base >> 32, 0)

    def _encode_low(self) -> bytes:
        _check("limit", self.limit, 32)
        _check("type", self.type, 4)
        _check("dpl", self.dpl, 2)
        granular = self.limit >= 1 << 20
        if granular and self.limit & 0xFFF != 0xFFF:
            raise ValueError(f"limit {self.limit:#x} is not expressible in 4 KiB units")
        limit = self.limit >> 12 if granular else self.limit
        access = self.type | (not self.system) << 4 | self.dpl << 5 | self.present << 7
        flags = self.avl | self.long << 1 | self.big << 2 | granular << 3
        value = limit & 0xFFFF
        value |= (self.base & 0xFF_FFFF) << 16
        value |= access << 40
        value |= (limit >> 16) << 48
        value |= flags << 52
        value |= (self.base >> 24 & 0xFF) << 56
        return value.to_bytes(8, "little")

    @classmethod
    def decode(cls, data: bytes) -> Descriptor:
        """Decode 8 bytes, or the 16 bytes of a long-mode system descriptor.

        Raises ValueError: another length, or 16 bytes that are no system descriptor.

        >>> from kvmpy.x86.descriptors import Descriptor
        >>> Descriptor.decode(bytes.fromhex("ffff0000009baf00")).long
        True
        """
        if len(data) not in (8, 16):
            raise ValueError(f"a descriptor has 8 or 16 bytes, not {len(data)}")
        value = int.from_bytes(data[:8], "little")
        limit = value & 0xFFFF | (value >> 48 & 0xF) << 16
        if value >> 55 & 1:
            limit = limit << 12 | 0xFFF
        base = value >> 16 & 0xFF_FFFF | (value >> 56) << 24
        system = not value >> 44 & 1
        if len(data) == 16:
            if not system:
                raise ValueError("only system descriptors have 16 bytes")
            base |= int.from_bytes(data[8:12], "little") << 32
        return cls(
            base=base,
            limit=limit,
            type=value >> 40 & 0xF,
            system=system,
            dpl=value >> 45 & 3,
            present=bool(value >> 47 & 1),
            avl=bool(value >> 52 & 1),
            long=bool(value >> 53 & 1),
            big=bool(value >> 54 & 1),
        )


@dataclass(frozen=True)
class Gate:
    """An interrupt, trap, call or task gate.

    ``offset`` is the handler's address, ``dpl`` the outermost ring that may use the gate by an
    instruction (INT n, a far call). ``ist`` (0..7) selects a stack in long mode; ``parameters``
    (0..31) are what a legacy call gate copies. Only the encoding in use has the respective field.
    """

    offset: int
    selector: int = KERNEL_CODE
    type: int = INTERRUPT_GATE
    dpl: int = 0
    ist: int = 0
    parameters: int = 0
    present: bool = True

    def _attributes(self) -> int:
        _check("selector", self.selector, 16)
        _check("dpl", self.dpl, 2)
        if self.type not in _GATE_TYPES:
            raise ValueError(f"type {self.type:#x} is not a gate")
        return self.type | self.dpl << 5 | self.present << 7

    def encode_legacy(self) -> bytes:
        """The 8 bytes of a gate outside long mode.

        Raises ValueError: a field does not fit, or ``ist`` is set.

        >>> kvmpy.Gate(0x1234, dpl=3).encode_legacy().hex()
        '3412100000ee0000'
        """
        _check("offset", self.offset, 32)
        _check("parameters", self.parameters, 5)
        if self.ist:
            raise ValueError("gates have no IST outside long mode")
        return struct.pack(
            "<HHBBH",
            self.offset & 0xFFFF,
            self.selector,
            self.parameters,
            self._attributes(),
            self.offset >> 16,
        )

    def encode_long(self) -> bytes:
        """The 16 bytes of a long-mode gate.

        Raises ValueError: a field does not fit, ``parameters`` is set, or the type is not one of
        long mode's three (call, interrupt, trap).

        >>> kvmpy.Gate(0x1234, ist=1).encode_long().hex()
        '34121000018e00000000000000000000'
        """
        _check("offset", self.offset, 64)
        _check("ist", self.ist, 3)
        if self.parameters:
            raise ValueError("long-mode call gates copy no parameters")
        if self.type not in (CALL_GATE, INTERRUPT_GATE, TRAP_GATE):
            raise ValueError(f"type {self.type:#x} is not a long-mode gate")
        return struct.pack(
            "<HHBBHII",
            self.offset & 0xFFFF,
            self.selector,
            self.ist,
            self._attributes(),
            self.offset >> 16 & 0xFFFF,
            self.offset >> 32,
            0,
        )

    @classmethod
    def decode(cls, data: bytes) -> Gate:
        """Decode a legacy (8 bytes) or a long-mode gate (16 bytes).

        Raises ValueError: another length, or a type that is not a gate.

        >>> kvmpy.Gate.decode(kvmpy.Gate(0x1234, dpl=3).encode_long()).dpl
        3
        """
        if len(data) not in (8, 16):
            raise ValueError(f"a gate has 8 or 16 bytes, not {len(data)}")
        low, selector, count, attributes, high = struct.unpack("<HHBBH", data[:8])
        if attributes & 0x10 or attributes & 0xF not in _GATE_TYPES:
            raise ValueError(f"access byte {attributes:#x} is not that of a gate")
        long = len(data) == 16
        upper = int.from_bytes(data[8:12], "little") if long else 0
        return cls(
            offset=low | high << 16 | upper << 32,
            selector=selector,
            type=attributes & 0xF,
            dpl=attributes >> 5 & 3,
            ist=count & 7 if long else 0,
            parameters=0 if long else count & 0x1F,
            present=bool(attributes >> 7),
        )


_TSS32 = struct.Struct("<26I")
_TSS64 = struct.Struct("<I3QQ7QQHH")
TSS_SIZE: Final = 104  # both formats
IO_BITMAP_SIZE: Final = 0x1_0000 // 8 + 1  # the CPU reads two bytes at a time: one more, all ones


@dataclass(frozen=True)
class Tss32:
    """The fields of a 32-bit TSS that matter without hardware task switching."""

    esp: tuple[int, int, int] = (0, 0, 0)
    ss: tuple[int, int, int] = (0, 0, 0)
    cr3: int = 0
    io_map_base: int = TSS_SIZE

    def encode(self) -> bytes:
        """The 104 bytes of the TSS, without its I/O bitmap.

        >>> len(kvmpy.x86.descriptors.Tss32(esp=(0x9000, 0, 0), ss=(0x18, 0, 0)).encode())
        104
        """
        words = [0] * 26
        for ring in range(3):
            words[1 + 2 * ring] = self.esp[ring]
            words[2 + 2 * ring] = self.ss[ring]
        words[7] = self.cr3
        words[25] = self.io_map_base << 16
        return _TSS32.pack(*words)

    @classmethod
    def decode(cls, data: bytes) -> Tss32:
        """The fields in 104 bytes or more.

        >>> from kvmpy.x86.descriptors import Tss32
        >>> Tss32.decode(Tss32(esp=(0x9000, 0, 0), ss=(0x18, 0, 0)).encode()).esp
        (36864, 0, 0)
        """
        words = _TSS32.unpack(data[:TSS_SIZE])
        esp, ss = words[1:7:2], words[2:7:2]
        return cls((esp[0], esp[1], esp[2]), (ss[0], ss[1], ss[2]), words[7], words[25] >> 16)


@dataclass(frozen=True)
class Tss64:
    """A long-mode TSS: ``rsp[ring]`` for interrupts into ring 0..2, ``ist[n - 1]`` for IST n."""

    rsp: tuple[int, int, int] = (0, 0, 0)
    ist: tuple[int, int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0, 0)
    io_map_base: int = TSS_SIZE

    def encode(self) -> bytes:
        """The 104 bytes of the TSS, without its I/O bitmap.

        >>> len(kvmpy.x86.descriptors.Tss64(rsp=(0x9000, 0, 0)).encode())
        104
        """
        return _TSS64.pack(0, *self.rsp, 0, *self.ist, 0, 0, self.io_map_base)

    @classmethod
    def decode(cls, data: bytes) -> Tss64:
        """The fields in 104 bytes or more.

        >>> from kvmpy.x86.descriptors import Tss64
        >>> Tss64.decode(Tss64(rsp=(0x9000, 0, 0)).encode()).rsp
        (36864, 0, 0)
        """
        (_, r0, r1, r2, _, *ist, _, _, io_map_base) = _TSS64.unpack(data[:TSS_SIZE])
        s1, s2, s3, s4, s5, s6, s7 = ist
        return cls((r0, r1, r2), (s1, s2, s3, s4, s5, s6, s7), io_map_base)


def io_bitmap(allowed: Iterable[int]) -> bytes:
    """The I/O permission bitmap that lets any ring use the ``allowed`` ports and no others.

    Raises ValueError: a port is not in 0..0xffff.

    >>> bitmap = kvmpy.x86.descriptors.io_bitmap([0x60, 0x64])
    >>> f"{bitmap[0x60 // 8]:08b}"
    '11101110'
    """
    bitmap = bytearray(b"\xff" * IO_BITMAP_SIZE)
    for port in allowed:
        _check("port", port, 16)
        bitmap[port // 8] &= ~(1 << port % 8) & 0xFF
    return bytes(bitmap)


def code_segment(dpl: int, *, long: bool) -> Descriptor:
    """Flat code: 64-bit (L=1, D=0) or 32-bit (L=0, D=1).

    >>> kvmpy.x86.descriptors.code_segment(3, long=False).big
    True
    """
    return Descriptor(limit=0xFFFF_FFFF, type=CODE_XR, dpl=dpl, long=long, big=not long)


def data_segment(dpl: int) -> Descriptor:
    """Flat read-write data with a 32-bit stack pointer.

    >>> kvmpy.x86.descriptors.data_segment(3).dpl
    3
    """
    return Descriptor(limit=0xFFFF_FFFF, type=DATA_RW, dpl=dpl, big=True)


@cache
def gdt_entries(*, long: bool) -> Mapping[int, Descriptor]:
    """The shared GDT without its TSS: index (selector with RPL 0) -> descriptor.

    >>> from kvmpy.x86.descriptors import KERNEL_CODE, gdt_entries
    >>> gdt_entries(long=True)[KERNEL_CODE].long
    True
    """
    entries = {
        KERNEL_CODE32: code_segment(0, long=False),
        KERNEL_CODE: code_segment(0, long=long),
        KERNEL_DATA: data_segment(0),
        USER_CODE32 & ~3: code_segment(3, long=False),
        USER_DATA & ~3: data_segment(3),
        USER_CODE64 & ~3: code_segment(3, long=long),
        USER_DATA_SYSEXIT & ~3: data_segment(3),
        CODE16: Descriptor(limit=0xFFFF, type=CODE_XR),
        DATA16: Descriptor(limit=0xFFFF, type=DATA_RW),
        RING1_CODE & ~3: code_segment(1, long=long),
        RING1_DATA & ~3: data_segment(1),
        RING2_CODE & ~3: code_segment(2, long=long),
        RING2_DATA & ~3: data_segment(2),
    }
    return MappingProxyType(entries)


@lru_cache(maxsize=64)  # scripts make many small guests that are alike
def build_gdt(*, long: bool, tss_base: int, tss_limit: int) -> bytes:
    """The shared GDT (``GDT_SIZE`` bytes), with a busy TSS descriptor: it is entered as loaded.

    >>> len(kvmpy.x86.descriptors.build_gdt(long=True, tss_base=0x1000, tss_limit=0x67))
    128
    """
    table = bytearray(GDT_SIZE)
    for index, descriptor in gdt_entries(long=long).items():
        table[index : index + 8] = descriptor.encode()
    tss = Descriptor(base=tss_base, limit=tss_limit, type=TSS_BUSY, system=True)
    encoded = tss.encode_long_system() if long else tss.encode()
    table[TASK : TASK + len(encoded)] = encoded
    return bytes(table)


def ring_selectors(ring: int, *, long: bool) -> tuple[int, int]:
    """CS and SS selectors of ``ring`` (0..3) in the shared GDT.

    >>> [hex(selector) for selector in kvmpy.x86.descriptors.ring_selectors(3, long=True)]
    ['0x33', '0x2b']
    """
    user = (USER_CODE64 if long else USER_CODE32, USER_DATA)
    return (
        (KERNEL_CODE, KERNEL_DATA),
        (RING1_CODE, RING1_DATA),
        (RING2_CODE, RING2_DATA),
        user,
    )[ring]
