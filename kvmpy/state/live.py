"""Live register views.

``cpu.regs`` and ``cpu.sregs`` are windows on the vCPU's register page (KVM API, "6.8
KVM_CAP_SYNC_REGS"): reading gives the state as of the last exit, with the exit's instruction
completed; writing takes effect at the next run. Views stay live: one taken once can be kept.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from .. import ioctls
from ..errors import KvmIoctlError
from ..fd import gone
from ..shim import ffi, lib
from ..x86.bits import (
    GENERAL,
    SEGMENTS,
    general_text,
    segment_kind,
    segment_text,
    special_text,
    table_text,
)

_ALL_GENERAL = struct.Struct("=18Q")
_unpack_general = _ALL_GENERAL.unpack


class _Page:
    """A part of the register page, fetched when it is looked at and not current."""

    __slots__ = ("_bytes", "_field", "_fresh", "_shim")

    def __init__(self, shim: Any, field: int, offset: int, size: int):
        self._shim = shim  # keeps the page mapped
        self._field = field
        #: False after each run; the page may be stale then.
        self._fresh = False
        self._bytes = memoryview(ffi.buffer(shim.regs, offset + size))[offset:].cast("B")

    def _refresh(self) -> None:
        # Before the call, which lets other threads in: one that starts a run takes it back.
        self._fresh = True
        error = lib.shim_sync(self._shim, self._field)
        if error:
            self._fresh = False
            raise _sync_error(self._shim, -error)


def _sync_error(shim: Any, code: int) -> Exception:
    if code == errno.EBADF:
        return gone("vCPU", shim.process)
    if code == errno.EBUSY:
        return KvmIoctlError("KVM_GET_REGS", code, "another thread is running this vCPU")
    return ioctls.KVM_GET_REGS.error(shim.fd, code)


def _does_not_fit(name: str, value: object, bits: int) -> Exception:
    if isinstance(value, int):
        return ValueError(f"{name} = {value:#x}: not in 0..2**{bits}-1")
    return TypeError(f"{name} = {value!r}: not an integer")


if TYPE_CHECKING:
    from .registers import Regs, Sregs

    class _Field:
        """How a type checker sees the properties below: integers to be read and written."""

        def __get__(self, instance: object, owner: type) -> int: ...
        def __set__(self, instance: object, value: int) -> None: ...


_WORD_DOC = """{NAME}, 64 bits.

>>> cpu.regs.{name} = 2
>>> cpu.regs.{name}
2
"""


def _word(index: int, name: str) -> _Field:
    """A 64-bit field: word ``index`` of the page."""

    def get(self: Registers) -> int:
        if not self._fresh:
            self._refresh()
        return self._words[index]

    def put(self: Registers, value: int) -> None:
        if not self._fresh:
            self._refresh()
        try:
            self._words[index] = value
        except (TypeError, ValueError):
            raise _does_not_fit(name, value, 64) from None

    return cast("_Field", property(get, put, doc=_WORD_DOC.format(NAME=name.upper(), name=name)))


class Registers(_Page):
    """The general registers, RIP and RFLAGS, live. Values are 0..2**64-1.

    ``cpu.regs.rax += 1``; ``cpu.regs.values()`` gives all eighteen at once.
    Reading raises ClosedError after ``close()``, KvmIoctlError while another thread runs the vCPU.
    """

    __slots__ = ("_words",)

    def __init__(self, shim: Any):
        super().__init__(shim, lib.KVM_SYNC_X86_REGS, 0, _ALL_GENERAL.size)
        self._words = self._bytes.cast("Q")

    rax = _word(0, "rax")
    rbx = _word(1, "rbx")
    rcx = _word(2, "rcx")
    rdx = _word(3, "rdx")
    rsi = _word(4, "rsi")
    rdi = _word(5, "rdi")
    rsp = _word(6, "rsp")
    rbp = _word(7, "rbp")
    r8 = _word(8, "r8")
    r9 = _word(9, "r9")
    r10 = _word(10, "r10")
    r11 = _word(11, "r11")
    r12 = _word(12, "r12")
    r13 = _word(13, "r13")
    r14 = _word(14, "r14")
    r15 = _word(15, "r15")
    rip = _word(16, "rip")
    rflags = _word(17, "rflags")

    def values(self) -> tuple[int, ...]:
        """All eighteen, in the order of ``kvmpy.x86.bits.GENERAL``.

        >>> len(cpu.regs.values())
        18
        """
        if not self._fresh:
            self._refresh()
        return _unpack_general(self._bytes)

    def as_dict(self) -> dict[str, int]:
        """A copy, by name.

        >>> cpu.regs.as_dict()["rflags"]
        2
        """
        return dict(zip(GENERAL, self.values(), strict=True))

    def update(self, values: Mapping[str, int] | None = None, **named: int) -> None:
        """Set several by name. Raises AttributeError for an unknown name.

        >>> cpu.regs.update(rax=1, rbx=2)
        >>> cpu.regs.rax, cpu.regs.rbx
        (1, 2)
        """
        for name, value in {**(values or {}), **named}.items():
            if name not in GENERAL:
                raise AttributeError(f"{name!r} is not a general register")
            setattr(self, name, value)

    def copy(self) -> Regs:
        """The registers as they are now, as a value.

        >>> before = cpu.regs.copy()
        >>> cpu.regs.rax = 7
        >>> kvmpy.diff(before, cpu.regs)
        rax  0x0 -> 0x7
        """
        from .registers import Regs

        return Regs(*self.values())

    def __repr__(self) -> str:
        return general_text(self.as_dict())


# The order of x86 in struct kvm_regs is asked of the compiler once, not trusted.
_OFFSETS = {name: ffi.offsetof("struct kvm_regs", name) for name in GENERAL}
if [_OFFSETS[name] for name in GENERAL] != [8 * i for i in range(18)]:  # pragma: no cover
    raise ImportError("struct kvm_regs is not laid out as this package expects")


_EXAMPLES = {
    "struct kvm_segment": "cs.{}",
    "struct kvm_dtable": "gdt.{}",
    "struct kvm_sregs": "{}",
}
_FIELD_DOC = """>>> cpu.sregs.{path} >= 0
True
"""


def _field(struct_name: str, name: str, size: int, doc: str = "") -> _Field:
    """A field of a structure at ``self._offset`` of the special-register page."""
    offset = ffi.offsetof(struct_name, name)
    bits = 8 * size

    def get(self: Any) -> int:
        page = self._page
        if not page._fresh:
            page._refresh()
        value: int = page._views[size][(self._offset + offset) // size]
        return value

    def put(self: Any, value: int) -> None:
        page = self._page
        if not page._fresh:
            page._refresh()
        try:
            page._views[size][(self._offset + offset) // size] = value
        except (TypeError, ValueError):
            raise _does_not_fit(name, value, bits) from None

    text = doc or f"{name}, {bits} bits."
    example = _FIELD_DOC.format(path=_EXAMPLES[struct_name].format(name))
    return cast("_Field", property(get, put, doc=f"{text}\n\n{example}"))


class SegmentView:
    """One segment register with its hidden descriptor cache (struct kvm_segment), live."""

    __slots__ = ("_name", "_offset", "_page")
    _page: SpecialRegisters

    def __init__(self, page: SpecialRegisters, name: str):
        self._page, self._name = page, name
        self._offset = ffi.offsetof("struct kvm_sregs", name)

    base = _field("struct kvm_segment", "base", 8)
    limit = _field("struct kvm_segment", "limit", 4, "Limit in bytes, granularity applied.")
    selector = _field("struct kvm_segment", "selector", 2)
    type = _field("struct kvm_segment", "type", 1)
    present = _field("struct kvm_segment", "present", 1)
    dpl = _field("struct kvm_segment", "dpl", 1, "Descriptor privilege level, 0..3.")
    db = _field("struct kvm_segment", "db", 1)
    s = _field("struct kvm_segment", "s", 1)
    l = _field("struct kvm_segment", "l", 1)  # noqa: E741
    g = _field("struct kvm_segment", "g", 1)
    avl = _field("struct kvm_segment", "avl", 1)
    unusable = _field("struct kvm_segment", "unusable", 1)

    @property
    def kind(self) -> str:
        """The type in words: "code64 execute/read", "data read/write", "TSS busy".

        >>> cpu.sregs.cs.kind
        'code16 execute/read'

        >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.sregs.cs.kind
        'code64 execute/read'
        """
        return segment_kind(self)

    def __repr__(self) -> str:
        return f"{self._name} {segment_text(self)}"


class TableView:
    """GDTR or IDTR, live."""

    __slots__ = ("_name", "_offset", "_page")

    def __init__(self, page: SpecialRegisters, name: str):
        self._page, self._name = page, name
        self._offset = ffi.offsetof("struct kvm_sregs", name)

    base = _field("struct kvm_dtable", "base", 8)
    limit = _field("struct kvm_dtable", "limit", 2)

    def __repr__(self) -> str:
        return f"{self._name} {table_text(self)}"


def _part(name: str, kind: type[SegmentView] | type[TableView]) -> Any:
    # Made anew at each access: a stored part that points back would be a reference cycle, and a
    # vCPU that nobody holds is to go at once.
    doc = f"{name.upper()}, live.\n\n>>> cpu.sregs.{name}\n{name} ...\n"
    return property(lambda self: kind(self, name), doc=doc)


class SpecialRegisters(_Page):
    """Segment, control and descriptor-table registers, live (struct kvm_sregs).

    ``cpu.sregs.cs.dpl``, ``cpu.sregs.cr3``, ``cpu.sregs.idt.base``.
    """

    __slots__ = ("_offset", "_views")

    @property
    def _page(self) -> SpecialRegisters:
        return self

    def __init__(self, shim: Any):
        offset = ffi.offsetof("struct kvm_sync_regs", "sregs")
        super().__init__(shim, lib.KVM_SYNC_X86_SREGS, offset, ffi.sizeof("struct kvm_sregs"))
        page = self._bytes
        self._views = {1: page, 2: page.cast("H"), 4: page.cast("I"), 8: page.cast("Q")}
        self._offset = 0

    cs: SegmentView = _part("cs", SegmentView)
    ds: SegmentView = _part("ds", SegmentView)
    es: SegmentView = _part("es", SegmentView)
    fs: SegmentView = _part("fs", SegmentView)
    gs: SegmentView = _part("gs", SegmentView)
    ss: SegmentView = _part("ss", SegmentView)
    tr: SegmentView = _part("tr", SegmentView)
    ldt: SegmentView = _part("ldt", SegmentView)
    gdt: TableView = _part("gdt", TableView)
    idt: TableView = _part("idt", TableView)
    cr0 = _field("struct kvm_sregs", "cr0", 8)
    cr2 = _field("struct kvm_sregs", "cr2", 8, "Address of the last page fault.")
    cr3 = _field("struct kvm_sregs", "cr3", 8)
    cr4 = _field("struct kvm_sregs", "cr4", 8)
    cr8 = _field("struct kvm_sregs", "cr8", 8, "Task priority.")
    efer = _field("struct kvm_sregs", "efer", 8)
    apic_base = _field("struct kvm_sregs", "apic_base", 8)

    def __iter__(self) -> Iterator[SegmentView]:
        """The segment registers."""
        return (getattr(self, name) for name in SEGMENTS)

    def copy(self) -> Sregs:
        """The registers as they are now, as a value.

        >>> cpu.sregs.copy().cr0 == cpu.sregs.cr0
        True
        """
        from .registers import Sregs

        if not self._fresh:
            self._refresh()
        structure = ffi.new("struct kvm_sregs *")
        ffi.memmove(structure, self._bytes, self._bytes.nbytes)
        return Sregs.from_c(structure)

    def __repr__(self) -> str:
        return special_text(self)
