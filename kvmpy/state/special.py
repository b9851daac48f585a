"""Segments, descriptor tables and control registers as values."""

from __future__ import annotations

from ..record import Record
from ..values import dataclass
from ..x86.bits import segment_kind, segment_text, special_text, table_text


@dataclass(frozen=True, repr=False)
class Segment(Record):
    """A segment register with its hidden part (struct kvm_segment).

    ``limit`` in bytes, granularity applied. ``kind`` says the type in words.

    >>> kvmpy.state.Segment(selector=0x10, limit=0xFFFFFFFF, type=11, present=1, s=1, l=1, g=1)
    <0010 base 0000000000000000 limit ffffffff dpl 0 code64 execute/read>
    """

    c_name = "struct kvm_segment"
    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 -- the field's name in struct kvm_segment
    g: int = 0
    avl: int = 0
    unusable: int = 0

    @property
    def kind(self) -> str:
        """The type in words: "code64 execute/read", "data read/write", "TSS busy".

        >>> cpu.sregs.copy().cs.kind
        'code16 execute/read'
        """
        return segment_kind(self)

    def __repr__(self) -> str:
        return f"<{segment_text(self)}>"


@dataclass(frozen=True, repr=False)
class DescriptorTable(Record):
    """GDTR or IDTR (struct kvm_dtable).

    >>> kvmpy.state.DescriptorTable(base=0x5000, limit=0x7F)
    <base 0000000000005000 limit 007f>
    """

    c_name = "struct kvm_dtable"
    base: int = 0
    limit: int = 0

    def __repr__(self) -> str:
        return f"<{table_text(self)}>"


@dataclass(frozen=True, repr=False)
class SpecialRegisters(Record):
    """What struct kvm_sregs and kvm_sregs2 have in common, and all that a CPU mode determines."""

    cs: Segment = Segment()
    ds: Segment = Segment()
    es: Segment = Segment()
    fs: Segment = Segment()
    gs: Segment = Segment()
    ss: Segment = Segment()
    tr: Segment = Segment()
    ldt: Segment = Segment()
    gdt: DescriptorTable = DescriptorTable()
    idt: DescriptorTable = DescriptorTable()
    cr0: int = 0
    cr2: int = 0
    cr3: int = 0
    cr4: int = 0
    cr8: int = 0
    efer: int = 0
    apic_base: int = 0

    def __repr__(self) -> str:
        return special_text(self)
