"""A table of CPUID leaves: looked up, read, copied to and from struct kvm_cpuid2."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Self

from ..shim import ffi
from ..values import dataclass
from ..x86.bits import family_and_model

#: KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the leaf has subleaves.
HAS_INDEX = 1


@dataclass(frozen=True, slots=True)
class Leaf:
    """What CPUID gives for EAX = ``function`` (and ECX = ``index``, if flag HAS_INDEX is set)."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """Function and index: what a table finds it by.

        >>> kvmpy.Leaf(7, 1).key
        (7, 1)
        """
        return self.function, self.index

    def __repr__(self) -> str:
        index = f".{self.index:x}" if self.flags & HAS_INDEX else ""
        return (
            f"<CPUID {self.function:08x}{index} eax {self.eax:08x} ebx {self.ebx:08x} "
            f"ecx {self.ecx:08x} edx {self.edx:08x}>"
        )


class Table:
    """What :class:`kvmpy.Cpuid` is without its edits and comparisons."""

    def __init__(self, leaves: Iterable[Leaf]):
        self._leaves = tuple(leaves)
        self._by_key = {leaf.key: leaf for leaf in reversed(self._leaves)}
        self._c: Any = None

    def __iter__(self) -> Iterator[Leaf]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def __contains__(self, item: object) -> bool:
        return self.has(item) if isinstance(item, str) else item in self._leaves

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._by_key == other._by_key

    def __hash__(self) -> int:
        return hash(frozenset(self._by_key.values()))

    def get(self, function: int, index: int = 0) -> Leaf | None:
        """The leaf, or None.

        >>> cpu.cpuid.get(0x1234) is None
        True
        """
        return self._by_key.get((function, index))

    def __getitem__(self, key: int | tuple[int, int]) -> Leaf:
        function, index = key if isinstance(key, tuple) else (key, 0)
        leaf = self.get(function, index)
        if leaf is None:
            raise KeyError(f"no CPUID leaf {function:#x}.{index:x}")
        return leaf

    def with_leaf(self, leaf: Leaf) -> Self:
        """A copy in which ``leaf`` stands in for the one of its number, or is added.

        >>> kvmpy.Cpuid([]).with_leaf(kvmpy.Leaf(1, eax=0x306C3)).model
        60
        """
        if leaf.key not in self._by_key:
            return type(self)((*self._leaves, leaf))
        return type(self)(leaf if x.key == leaf.key else x for x in self._leaves)

    # -- features by name

    def has(self, feature: str) -> bool:
        """Whether the feature's bit is set. Names as in /proc/cpuinfo or QEMU, in any spelling.

        Raises ValueError, with close matches, for a name that no feature has.

        >>> cpu.cpuid.has("SSE2"), "tsc" in cpu.cpuid
        (True, True)
        """
        from .features import find

        return self._shows(find(feature))

    def _shows(self, feature: Any) -> bool:
        leaf = self._by_key.get((feature.function, feature.index))
        return leaf is not None and bool(getattr(leaf, feature.register) >> feature.bit & 1)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of all features whose bit is set, in the order of the leaves.

        >>> cpu.cpuid.features[0]
        'fpu'
        """
        from .features import table

        return tuple(name for name, feature in table().items() if self._shows(feature))

    # -- what it says

    @property
    def vendor(self) -> str:
        """The vendor string of leaf 0: "GenuineIntel", "AuthenticAMD".

        >>> cpu.cpuid.vendor in ("GenuineIntel", "AuthenticAMD")
        True
        """
        leaf = self[0]
        return _text(leaf.ebx, leaf.edx, leaf.ecx).rstrip("\0")

    @property
    def hypervisor(self) -> str | None:
        """The signature in leaf 40000000h; None if leaf 1 announces no hypervisor.

        >>> cpu.cpuid.hypervisor
        'KVMKVMKVM'
        """
        first, leaf = self.get(1), self.get(0x4000_0000)
        if first is None or not first.ecx >> 31:
            return None
        return _text(leaf.ebx, leaf.ecx, leaf.edx).rstrip("\0") if leaf else ""

    @property
    def brand(self) -> str:
        """The brand string of leaves 80000002h to 80000004h; "" where KVM leaves it to its user.

        >>> cpu.cpuid.with_brand("A virtual CPU").brand
        'A virtual CPU'
        """
        leaves = [self.get(function) for function in _BRAND]
        text = "".join(_text(x.eax, x.ebx, x.ecx, x.edx) for x in leaves if x)
        return " ".join(text.rstrip("\0").split())

    def with_brand(self, brand: str) -> Self:
        """A copy with this brand string, of at most 47 ASCII characters.

        >>> cpu.cpuid = cpu.cpuid.with_brand("kvmpy")
        """
        if len(brand) > 47 or not brand.isascii():
            raise ValueError(f"brand string {brand!r}: not 47 ASCII characters or fewer")
        words = struct.unpack("<12I", brand.encode().ljust(48, b"\0"))
        table = self
        for number, function in enumerate(_BRAND):
            registers = words[4 * number : 4 * number + 4]
            table = table.with_leaf(Leaf(function, 0, 0, *registers))
        return table

    @property
    def family(self) -> int:
        """The family, extended family included (SDM vol. 2, "CPUID", leaf 01h).

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).family
        26
        """
        eax = self[1].eax
        return family_and_model(eax)[0]

    @property
    def model(self) -> int:
        """The model, extended model included.

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).model
        2
        """
        eax = self[1].eax
        return family_and_model(eax)[1]

    @property
    def stepping(self) -> int:
        """The stepping.

        >>> kvmpy.Cpuid([kvmpy.Leaf(1, eax=0x00B0_0F21)]).stepping
        1
        """
        return self[1].eax & 0xF

    # -- struct kvm_cpuid2

    @classmethod
    def _from_c(cls, table: Any) -> Self:
        leaves = [
            Leaf(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
            for e in (table.entries[i] for i in range(table.nent))
        ]
        # KVM_GET_CPUID2 can leave empty entries at the end; leaf 0 itself is never all zero.
        while leaves and leaves[-1] == Leaf(0):
            leaves.pop()
        return cls(leaves)

    def _to_c(self) -> Any:
        """For KVM_SET_CPUID2, which only reads it: made once, for every vCPU that shows it."""
        if self._c is None:
            self._c = self._encode()
        return self._c

    def _encode(self) -> Any:
        table = ffi.new("struct kvm_cpuid2 *", {"entries": len(self._leaves)})
        table.nent = len(self._leaves)
        for entry, leaf in zip(table.entries, self._leaves, strict=True):
            entry.function, entry.index, entry.flags = leaf.function, leaf.index, leaf.flags
            entry.eax, entry.ebx, entry.ecx, entry.edx = leaf.eax, leaf.ebx, leaf.ecx, leaf.edx
        return table


_BRAND = (0x8000_0002, 0x8000_0003, 0x8000_0004)


def _text(*registers: int) -> str:
    return struct.pack(f"<{len(registers)}I", *registers).decode("latin-1")
