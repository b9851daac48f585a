"""Registers as values: the general, special and debug registers, XCR0, the FPU.

Unlike the live views of :mod:`kvmpy.state.live` these are frozen copies: to save, compare and set
again.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from ..record import Record
from ..text import flags_text
from ..values import dataclass, names, replace
from ..x86.bits import DR6, general_text, special_text
from .special import SpecialRegisters
from .xsave import Xsave


@dataclass(frozen=True, repr=False)
class Regs(Record):
    """General registers, RIP and RFLAGS (struct kvm_regs). ``cpu.regs.copy()`` makes one.

    >>> kvmpy.state.Regs(rax=0x1234, rflags=2).rax
    4660
    """

    c_name = "struct kvm_regs"
    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2

    def __repr__(self) -> str:
        return general_text(vars(self))


@dataclass(frozen=True, repr=False)
class Sregs(SpecialRegisters):
    """Segments, control registers and descriptor tables (struct kvm_sregs).

    ``cpu.sregs.copy()`` makes one. ``interrupt_bitmap``: the external interrupt being injected,
    one bit of 256 (KVM API, "4.13 KVM_GET_SREGS").

    >>> hex(cpu.sregs.copy().cs.base)
    '0xffff0000'
    """

    c_name = "struct kvm_sregs"
    interrupt_bitmap: tuple[int, ...] = (0, 0, 0, 0)


@dataclass(frozen=True, repr=False)
class Sregs2(SpecialRegisters):
    """As Sregs, with the PAE page-directory pointers as loaded (struct kvm_sregs2).

    ``pdptrs`` count if ``flags`` has bit 0 (KVM API, "4.132 KVM_GET_SREGS2"): then setting these
    registers does not read the pointers from guest memory.

    >>> cpu.sregs2.flags, cpu.sregs2.pdptrs
    (0, (0, 0, 0, 0))
    """

    c_name = "struct kvm_sregs2"
    flags: int = 0
    pdptrs: tuple[int, ...] = (0, 0, 0, 0)

    @classmethod
    def of(cls, sregs: Sregs) -> Sregs2:
        """The same registers, pointers unknown. The interrupt being injected is not in it: it is
        in VcpuEvents too.

        >>> kvmpy.state.Sregs2.of(cpu.sregs.copy()) == cpu.sregs2
        True
        """
        return cls(**{name: getattr(sregs, name) for name in _COMMON})

    def without_pdptrs(self) -> Sregs:
        """For a KVM that lacks KVM_CAP_SREGS2, which then reads the pointers from guest memory.

        >>> cpu.sregs2.without_pdptrs() == cpu.sregs.copy()
        True
        """
        return Sregs(**{name: getattr(self, name) for name in _COMMON})

    def __repr__(self) -> str:
        pointers = " ".join(f"{pointer:016x}" for pointer in self.pdptrs)
        return special_text(self) + (f"\npdptrs {pointers}" if self.flags & 1 else "")


_COMMON: Final = names(SpecialRegisters)


@dataclass(frozen=True, repr=False)
class Xcr(Record):
    """One extended control register (struct kvm_xcr)."""

    c_name = "struct kvm_xcr"
    flag_names: ClassVar = {"value": {
        0: "x87", 1: "sse", 2: "avx", 3: "bndregs", 4: "bndcsr", 5: "opmask", 6: "zmm_hi256",
        7: "hi16_zmm", 9: "pkru", 17: "tilecfg", 18: "tiledata", 19: "apx",
    }}  # fmt: skip
    xcr: int = 0
    value: int = 1

    def __repr__(self) -> str:
        return f"<XCR{self.xcr} {flags_text(self.value, self.flag_names['value'])}>"


@dataclass(frozen=True, repr=False)
class Xcrs(Record):
    """The extended control registers (struct kvm_xcrs): x86 has XCR0 alone.

    >>> kvmpy.state.Xcrs((kvmpy.state.Xcr(0, 7),))
    Xcrs(<XCR0 0x7[x87 sse avx]>)
    """

    c_name = "struct kvm_xcrs"
    xcrs: tuple[Xcr, ...] = (Xcr(),)
    flags: int = 0

    @classmethod
    def from_c(cls, structure: Any) -> Xcrs:
        """From a C structure: as many registers as it says it has. Raises ValueError above 16."""
        count = structure.nr_xcrs
        if count > len(structure.xcrs):
            raise ValueError(f"kvm_xcrs has {count} registers, more than {len(structure.xcrs)}")
        return cls(tuple(Xcr.from_c(structure.xcrs[i]) for i in range(count)), structure.flags)

    def fill(self, structure: Any) -> None:
        """Write the registers into a C structure."""
        if len(self.xcrs) > len(structure.xcrs):
            raise ValueError(f"{len(self.xcrs)} extended control registers, more than 16")
        structure.nr_xcrs, structure.flags = len(self.xcrs), self.flags
        for i, register in enumerate(self.xcrs):
            register.fill(structure.xcrs[i])

    @property
    def xcr0(self) -> int:
        """XCR0: which state components XSAVE manages (SDM vol. 1, "Enabling the XSAVE Feature
        Set").

        >>> cpu.xcrs.xcr0
        1
        """
        return next((register.value for register in self.xcrs if register.xcr == 0), 1)

    def with_xcr0(self, value: int) -> Xcrs:
        """A copy with another XCR0.

        >>> cpu.xcrs.with_xcr0(3).xcr0
        3
        """
        others = tuple(register for register in self.xcrs if register.xcr)
        return replace(self, xcrs=(Xcr(0, value), *others))

    def __repr__(self) -> str:
        return f"Xcrs({', '.join(map(repr, self.xcrs))})"


_CONDITIONS = ("execute", "write", "I/O", "read/write")
_LENGTHS = (1, 2, 8, 4)


@dataclass(frozen=True)
class DebugSlot:
    """What DR7 says of one debug-address register (SDM vol. 3, "Debug Control Register (DR7)").

    ``condition``: "execute", "write", "I/O" or "read/write"; ``length`` in bytes.
    """

    address: int
    condition: str
    length: int
    is_local: bool
    is_global: bool

    def __repr__(self) -> str:
        size = "" if self.condition == "execute" else f" {self.length} bytes"
        scope = "local" * self.is_local + "+" * (self.is_local and self.is_global)
        return f"<{self.condition}{size} at {self.address:#x}, {scope}{'global' * self.is_global}>"


@dataclass(frozen=True, repr=False)
class DebugRegs(Record):
    """The guest's own debug registers (struct kvm_debugregs), not those of KVM_SET_GUEST_DEBUG.

    >>> kvmpy.state.DebugRegs(db=(0x1000, 0, 0, 0), dr7=0x402).breakpoints
    {0: <execute at 0x1000, global>}
    """

    c_name = "struct kvm_debugregs"
    db: tuple[int, ...] = (0, 0, 0, 0)
    dr6: int = 0xFFFF_0FF0
    dr7: int = 0x400
    flags: int = 0

    @property
    def breakpoints(self) -> dict[int, DebugSlot]:
        """The enabled ones by number, 0..3.

        >>> cpu.debugregs.breakpoints
        {}
        """
        found = {}
        for number, address in enumerate(self.db):
            enabled, control = self.dr7 >> 2 * number & 3, self.dr7 >> 16 + 4 * number & 15
            if enabled:
                found[number] = DebugSlot(
                    address, _CONDITIONS[control & 3], _LENGTHS[control >> 2],
                    bool(enabled & 1), bool(enabled & 2),
                )  # fmt: skip
        return found

    def __repr__(self) -> str:
        addresses = " ".join(f"{address:016x}" for address in self.db)
        # Reserved bits that are always one, and RTM and BLD, which are active low, say nothing.
        status = flags_text(self.dr6 & sum(1 << bit for bit in DR6), DR6)
        return f"<DebugRegs db {addresses} dr6 {status} dr7 {self.dr7:#x} {self.breakpoints}>"


@dataclass(frozen=True, repr=False)
class Fpu(Record):
    """The x87 and SSE state in FXSAVE's terms (struct kvm_fpu; KVM API, "4.22 KVM_GET_FPU").

    ``fpr``: eight registers of 16 bytes; ``xmm``: sixteen of 16. AVX and the rest are in Xsave.
    KVM_GET_FPU and KVM_SET_FPU themselves leave ``mxcsr`` out.

    >>> hex(kvmpy.state.Fpu().mxcsr)
    '0x1f80'
    """

    c_name = "struct kvm_fpu"
    fpr: bytes = bytes(128)
    fcw: int = 0x37F
    fsw: int = 0
    ftwx: int = 0
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: bytes = bytes(256)
    mxcsr: int = 0x1F80

    @classmethod
    def of(cls, xsave: Xsave) -> Fpu:
        """The legacy part of an XSAVE area.

        >>> kvmpy.state.Fpu.of(cpu.xsave) == cpu.fpu
        True
        """
        return cls(
            fpr=xsave["x87"][32:160], xmm=xsave["sse"],
            **{name: xsave.value(theirs) for name, theirs in _XSAVE_NAMES.items()},
        )  # fmt: skip

    def into(self, xsave: Xsave) -> Xsave:
        """The area with its legacy part replaced by this.

        >>> kvmpy.state.Fpu(fcw=0x27F).into(cpu.xsave).value("fcw")
        639
        """
        named = {theirs: getattr(self, name) for name, theirs in _XSAVE_NAMES.items()}
        stack = {f"st{i}": self.fpr[16 * i : 16 * i + 10] for i in range(8)}
        return xsave.replace(sse=self.xmm, **named, **stack)

    def xmm_register(self, number: int) -> int:
        """XMM ``number``, 0..15, as an integer of 128 bits.

        >>> cpu.fpu.xmm_register(0)
        0
        """
        if not 0 <= number < 16:
            raise ValueError(f"XMM{number}: not in 0..15")
        return int.from_bytes(self.xmm[16 * number : 16 * number + 16], "little")

    def __repr__(self) -> str:
        used = {i: self.xmm_register(i) for i in range(16) if self.xmm_register(i)}
        registers = "".join(f" xmm{i} {value:032x}" for i, value in used.items())
        return (
            f"<Fpu fcw {self.fcw:#x} fsw {self.fsw:#x} ftwx {self.ftwx:#x} mxcsr {self.mxcsr:#x}"
            f"{registers}>"
        )


_XSAVE_NAMES: Final = {
    "fcw": "fcw", "fsw": "fsw", "ftwx": "ftw", "last_opcode": "fop", "last_ip": "fip",
    "last_dp": "fdp", "mxcsr": "mxcsr",
}  # fmt: skip
