"""The four ways to start a vCPU, and the memory contents and CPU state that each needs.

``prepare`` writes tables into guest memory and returns register values; it needs no KVM. The
segment caches satisfy the checks of VM entry (SDM vol. 3, "Checks on the Guest State Area") and
VMRUN (APM vol. 2, "Canonicalization and Consistency Checks"). SVM takes the ring from SS.DPL.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, Literal

from ..state.special import DescriptorTable, SpecialRegisters
from . import descriptors as d, layout, paging, state as st
from .bits import GENERAL
from .layout import MemoryLike, SupervisorArea
from .state import CpuState, StubTable


class Mode(enum.Enum):
    """CPU mode in which a guest starts."""

    REAL_16 = "real"
    PROTECTED_32 = "protected"
    PAGED_32 = "paged"
    LONG_64 = "long"

    @property
    def bits(self) -> Literal[16, 32, 64]:
        """Operand size of code in this mode, and the width of its instruction pointer.

        >>> kvmpy.LONG_MODE.bits
        64
        """
        return 16 if self is Mode.REAL_16 else 64 if self is Mode.LONG_64 else 32


#: The modes as people say them.
REAL_MODE: Final = Mode.REAL_16
PROTECTED_MODE: Final = Mode.PROTECTED_32
PAGED_MODE: Final = Mode.PAGED_32
LONG_MODE: Final = Mode.LONG_64

Handlers = Mapping[int, int | d.Gate]

_CR0_PROTECTED: Final = st.CR0_PE | st.CR0_MP | st.CR0_ET | st.CR0_NE
_CR4_FPU: Final = st.CR4_OSFXSR | st.CR4_OSXMMEXCPT
_EFER_LONG: Final = st.EFER_SCE | st.EFER_LME | st.EFER_LMA | st.EFER_NXE
_DOUBLE_FAULT: Final = 8
# INT3 and INTO are meant for user code; a stub with DPL 0 would turn them into #GP.
_USER_VECTORS: Final = frozenset({3, 4})


def prepare(
    memory: MemoryLike,
    mode: Mode,
    *,
    rip: int,
    ring: int = 0,
    rsp: int | None = None,
    regs: Mapping[str, int] | None = None,
    handlers: Handlers | None = None,
    syscall: int | None = None,
    syscall32: int | None = None,
    sysenter: int | None = None,
    iopl: int = 0,
    io_ports: Iterable[int] = (),
    base: int | None = None,
) -> CpuState:
    """Write what ``mode`` needs into guest memory, and return the CPU state to start with.

    Every exception vector leads to a stub that reports to the host (``exceptions.identify``), and
    so does a SYSCALL or SYSENTER that nobody expected.

    ``memory``: guest RAM. All modes but real mode take its supervisor area (``layout``). ``mode``:
    the mode to start in. ``rip``: address of the first instruction. In real mode below 1 MiB; above
    64 KiB the bits from 16 up go to CS. ``ring``: 0..3; only 0 in real mode. ``rsp``: stack
    pointer. Default: ring 0 has 4 KiB in the supervisor area, other rings grow down from below it;
    real mode from 0x7c00 with SS = 0. ``regs``: general registers by name ("rax" or "eax"), and
    "rflags". Default 0. ``handlers``: interrupt handlers by vector (0..255): an address, or a
    ``Gate`` for its DPL, IST and type. Real mode uses the gate's offset only, as an address below 1
    MiB. ``syscall``: target of SYSCALL: LSTAR in long mode, STAR[31:0] in 32-bit modes.
    ``syscall32``: target of SYSCALL from compatibility mode (CSTAR), long mode only. ``sysenter``:
    target of SYSENTER. ``iopl``: I/O privilege level in RFLAGS, 0..3. ``io_ports``: ports that
    rings above ``iopl`` may use (the TSS's I/O permission bitmap). ``base``: another supervisor
    area at this gpa, of ``layout.supervisor_area(memory).size`` bytes: each further vCPU needs its
    own TSS and stacks.

    Raises ValueError: an argument is out of range or contradicts the mode; RAM is too small.

    >>> state = kvmpy.x86.modes.prepare(memory, kvmpy.LONG_MODE, rip=0x1000, ring=3)
    >>> state.regs["rip"], state.sregs.ss.dpl
    (4096, 3)
    """
    if not 0 <= ring <= 3 or not 0 <= iopl <= 3:
        raise ValueError(f"ring {ring} or iopl {iopl} is not in 0..3")
    registers = _general_registers(mode, regs or {})
    registers["rflags"] |= st.RFLAGS_FIXED | iopl << st.RFLAGS_IOPL_SHIFT
    handlers = handlers or {}
    for vector in handlers:
        if not 0 <= vector <= 255:
            raise ValueError(f"handlers has vector {vector}, it must be in 0..255")
    targets = (syscall, syscall32, sysenter)
    if mode is Mode.REAL_16:
        if ring or base is not None or any(target is not None for target in targets):
            raise ValueError("real mode has ring 0 only, no SYSCALL/SYSENTER, no supervisor area")
        return _prepare_real(memory, rip, rsp, registers, handlers)
    if syscall32 is not None and mode is not Mode.LONG_64:
        raise ValueError("syscall32 (CSTAR) exists in long mode only; 32-bit modes use syscall")

    area = _area(memory, base)
    for name, value in (("rip", rip), ("rsp", rsp), *zip(_TARGETS, targets, strict=True)):
        if value is not None:
            _check_address(mode, name, value)
    if area.contains(rip):
        raise ValueError(f"rip {rip:#x} is in the supervisor area {area.base:#x}..{area.end:#x}")
    if rsp is None:
        rsp = area.base if ring else area.entry_stack_top
    registers.update(rip=rip, rsp=rsp)
    tss_limit = _write_tables(memory, mode, area, handlers, tuple(io_ports))
    sregs = _special_registers(memory, mode, area, ring, tss_limit)
    msrs = _msrs(mode, area, *targets)
    return CpuState(sregs, registers, msrs, StubTable(area.stubs, msrs[st.MSR_LSTAR]))


_TARGETS: Final = ("syscall", "syscall32", "sysenter")


def _general_registers(mode: Mode, regs: Mapping[str, int]) -> dict[str, int]:
    """All registers of the mode, zero unless given; names with ``e`` are accepted as well."""
    width = 64 if mode is Mode.LONG_64 else 32
    result = dict.fromkeys(GENERAL, 0)
    for name, value in regs.items():
        full = "r" + name[1:] if name.startswith("e") else name
        if full in ("rip", "rsp"):
            raise ValueError(f"{name} has a parameter of its own")
        if full not in result or (width == 32 and full[1:].isdigit()):
            raise ValueError(f"{name!r} is not a general register of {mode.value} mode")
        limit = 32 if name.startswith("e") else width
        if not 0 <= value < 1 << limit:
            raise ValueError(f"{name} is {value:#x}, it must fit in {limit} bits")
        result[full] = value
    return result


def _check_address(mode: Mode, name: str, value: int) -> None:
    if mode is Mode.LONG_64:
        if not paging.is_canonical(value):
            raise ValueError(f"{name} is {value:#x}, not a canonical 48-bit address")
    elif not 0 <= value < 1 << 32:
        raise ValueError(f"{name} is {value:#x}, it must be below 4 GiB in {mode.value} mode")


def _area(memory: MemoryLike, base: int | None) -> SupervisorArea:
    area = layout.supervisor_area(memory)
    if base is None:
        return area
    if base % layout.PAGE_SIZE or base < 0:
        raise ValueError(f"base {base:#x} is not page-aligned")
    if base != area.base and base < area.end and base + area.size > area.base:
        raise ValueError(f"base {base:#x} overlaps the first supervisor area at {area.base:#x}")
    return SupervisorArea(base, area.size)


# --- real mode ----------------------------------------------------------------------------------


def _far(address: int, name: str) -> tuple[int, int]:
    """Segment and offset for an address below 1 MiB: the low 16 bits stay the offset."""
    if not 0 <= address < 1 << 20:
        raise ValueError(f"{name} is {address:#x}, real mode reaches below 1 MiB")
    return (address & 0xF_0000) >> 4, address & 0xFFFF


def write_real_mode_stubs(memory: MemoryLike, handlers: Handlers | None = None) -> None:
    """Fill the real-mode vector table at 0 with pointers to reporting stubs, or to ``handlers``.

    Real mode needs it. For other modes it is a safety net: a guest that drops back to real mode to
    call a BIOS is then reported, instead of wandering through empty memory.

    >>> kvmpy.x86.modes.write_real_mode_stubs(memory)
    >>> memory.read(0x500, 5).hex()
    'e6f5f4ebfd'
    """
    pointers = [layout.real_vector_pointer(vector) for vector in range(256)]
    for vector, handler in (handlers or {}).items():
        address = handler.offset if isinstance(handler, d.Gate) else handler
        pointers[vector] = _far(address, f"the handler of vector {vector}")
    ivt = b"".join(struct.pack("<HH", offset, segment) for segment, offset in pointers)
    memory.write(layout.REAL_IVT, ivt)
    shared = layout.STUB[: layout.REAL_SHARED_STUB_SIZE] * layout.REAL_SHARED_STUB_COUNT
    memory.write(layout.REAL_SHARED_STUBS, shared)
    memory.write(layout.REAL_STUBS, layout.STUB * layout.EXCEPTION_VECTORS)


def _prepare_real(
    memory: MemoryLike,
    rip: int,
    rsp: int | None,
    registers: dict[str, int],
    handlers: Handlers,
) -> CpuState:
    cs, ip = _far(rip, "rip")
    if rsp is None:
        rsp = min(layout.REAL_STACK_TOP, memory.regions[0].end if memory.regions else 0)
    if not 0 <= rsp <= 0xFFFF:
        raise ValueError(f"rsp is {rsp:#x}, it must fit in 16 bits in real mode")
    registers.update(rip=ip, rsp=rsp)
    write_real_mode_stubs(memory, handlers)
    data = st.real_segment(0)
    sregs = SpecialRegisters(
        cs=st.real_segment(cs, d.CODE_XR),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=st.task_segment(0, 0, 0xFFFF),  # as after reset, but busy: VM entry checks TR always
        ldt=st.NO_LDT,
        gdt=DescriptorTable(0, 0xFFFF),
        idt=DescriptorTable(layout.REAL_IVT, layout.REAL_IVT_SIZE - 1),
        cr0=st.CR0_ET | st.CR0_NE,
        cr3=0,
        cr4=0,
        efer=0,
    )
    msrs = dict.fromkeys((st.MSR_STAR, *_ADDRESS_MSRS, *_OTHER_MSRS), 0)
    return CpuState(sregs, registers, msrs, StubTable(layout.REAL_STUBS, 0))


# --- protected and long mode --------------------------------------------------------------------


def _write_tables(
    memory: MemoryLike,
    mode: Mode,
    area: SupervisorArea,
    handlers: Handlers,
    io_ports: tuple[int, ...],
) -> int:
    """Write GDT, IDT, stubs and TSS to the supervisor area; returns the TSS's limit."""
    long = mode is Mode.LONG_64
    tss: d.Tss32 | d.Tss64
    if long:
        stack, ist = area.ring0_stack_top, area.ist_stack_top
        tss = d.Tss64(rsp=(stack, 0, 0), ist=(ist, 0, 0, 0, 0, 0, 0))
    else:
        tss = d.Tss32(esp=(area.ring0_stack_top, 0, 0), ss=(d.KERNEL_DATA, 0, 0))
    # Without a bitmap inside the limit every port is refused, and two pages stay untouched.
    task = tss.encode() + (d.io_bitmap(io_ports) if io_ports else b"")
    idt = _idt(mode, area, handlers)
    gdt = d.build_gdt(long=long, tss_base=area.tss, tss_limit=len(task) - 1)
    # Nothing is written before everything has been encoded: a bad argument leaves memory alone.
    memory.write(area.gdt, gdt)
    memory.write(area.stubs, layout.STUB * layout.STUB_SLOTS)
    memory.write(area.idt, idt)
    memory.write(area.tss, task)
    return len(task) - 1


def _idt(mode: Mode, area: SupervisorArea, handlers: Handlers) -> bytes:
    """256 gates: the user's handlers, stubs for exceptions, nothing present for the rest.

    INT n without a gate gives #GP with error code 8n + 2, which its stub reports.
    """
    long = mode is Mode.LONG_64
    size = 16 if long else 8
    table = bytearray(_stub_gates(area.stubs, long).ljust(256 * size, b"\0"))
    for vector, handler in handlers.items():
        gate = handler if isinstance(handler, d.Gate) else d.Gate(handler)
        _check_address(mode, f"the handler of vector {vector}", gate.offset)
        table[vector * size : (vector + 1) * size] = _encode_gate(gate, long)
    return bytes(table)


@lru_cache(maxsize=64)  # scripts make many small guests that are alike
def _stub_gates(stubs: int, long: bool) -> bytes:
    """The gates of the CPU's own vectors, each to its stub in the table at ``stubs``."""
    gates = []
    for vector in range(layout.EXCEPTION_VECTORS):
        dpl = 3 if vector in _USER_VECTORS else 0
        # #DF often means that the stack is bad, so it has a stack of its own where the mode can.
        ist = 1 if long and vector == _DOUBLE_FAULT else 0
        gates.append(d.Gate(stubs + layout.STUB_SIZE * vector, dpl=dpl, ist=ist))
    return b"".join(_encode_gate(gate, long) for gate in gates)


def _encode_gate(gate: d.Gate, long: bool) -> bytes:
    return gate.encode_long() if long else gate.encode_legacy()


def _special_registers(
    memory: MemoryLike, mode: Mode, area: SupervisorArea, ring: int, tss_limit: int
) -> SpecialRegisters:
    long = mode is Mode.LONG_64
    code, data = d.ring_selectors(ring, long=long)
    gdt = d.gdt_entries(long=long)
    cs = st.loaded_segment(code, gdt[code & ~3])
    ss = st.loaded_segment(data, gdt[data & ~3])
    cr0, cr3, cr4, efer = _CR0_PROTECTED, 0, _CR4_FPU, st.EFER_SCE
    if mode is Mode.PAGED_32:
        cr0, cr4 = cr0 | st.CR0_PG | st.CR0_WP, cr4 | st.CR4_PSE
        cr3 = paging.build_legacy(memory, area)
    elif long:
        cr0, cr4, efer = cr0 | st.CR0_PG | st.CR0_WP, cr4 | st.CR4_PAE, _EFER_LONG
        cr3 = paging.build_long(memory, area, layout.page_directories(memory))
    return SpecialRegisters(
        cs=cs,
        ds=ss,
        es=ss,
        fs=ss,
        gs=ss,
        ss=ss,
        tr=st.task_segment(d.TASK, area.tss, tss_limit),
        ldt=st.NO_LDT,
        gdt=DescriptorTable(area.gdt, d.GDT_SIZE - 1),
        idt=DescriptorTable(area.idt, 256 * (16 if long else 8) - 1),
        cr0=cr0,
        cr3=cr3,
        cr4=cr4,
        efer=efer,
    )


_ADDRESS_MSRS: Final = (st.MSR_LSTAR, st.MSR_CSTAR, st.MSR_SYSENTER_EIP, st.MSR_SYSENTER_ESP)
_OTHER_MSRS: Final = (
    *(st.MSR_SYSENTER_CS, st.MSR_SFMASK),
    *(st.MSR_FS_BASE, st.MSR_GS_BASE, st.MSR_KERNEL_GS_BASE),
)


def _msrs(
    mode: Mode,
    area: SupervisorArea,
    syscall: int | None,
    syscall32: int | None,
    sysenter: int | None,
) -> dict[int, int]:
    """The system-call MSRs; targets that nobody gave lead to the landing stubs."""

    def target(given: int | None, slot: int) -> int:
        return area.stub(slot) if given is None else given

    star = st.STAR_SELECTORS
    lstar = target(syscall, layout.SYSCALL_SLOT)
    cstar = target(syscall32, layout.SYSCALL32_SLOT)
    if mode is not Mode.LONG_64:
        star |= lstar
        lstar = cstar = 0
    return {
        st.MSR_STAR: star,
        st.MSR_LSTAR: lstar,
        st.MSR_CSTAR: cstar,
        st.MSR_SFMASK: st.SFMASK_VALUE,
        st.MSR_SYSENTER_CS: d.KERNEL_CODE,
        st.MSR_SYSENTER_ESP: area.ring0_stack_top,
        st.MSR_SYSENTER_EIP: target(sysenter, layout.SYSENTER_SLOT),
        st.MSR_FS_BASE: 0,
        st.MSR_GS_BASE: 0,
        st.MSR_KERNEL_GS_BASE: 0,
    }
