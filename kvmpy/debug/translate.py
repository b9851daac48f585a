"""Guest virtual addresses: translated by KVM, translated by hand with every step shown, and memory
read and written by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import ioctls
from ..errors import GuestMemoryError
from ..record import Record
from ..shim import ffi
from ..values import dataclass
from ..vcpu_fd import VcpuFd

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..x86 import walk as walks


_PAGE = 4096


@dataclass(frozen=True, repr=False)
class Translation(Record):
    """What KVM_TRANSLATE says of a guest virtual address.

    ``physical_address`` is meaningful when ``valid``. ``writeable`` and ``usermode`` are constants
    in KVM (1 and 0): :meth:`VCPU.walk` knows the permissions.
    """

    c_name = "struct kvm_translation"
    linear_address: int = 0
    physical_address: int = 0
    valid: int = 0
    writeable: int = 0
    usermode: int = 0

    @property
    def gpa(self) -> int | None:
        """The guest physical address; None when there is no translation.

        >>> cpu.translate(0x1234).gpa == 0x1234  # paging is off after a reset
        True
        """
        return self.physical_address if self.valid else None

    def __repr__(self) -> str:
        found = f"gpa {self.physical_address:#x}" if self.valid else "nothing"
        return f"Translation(gva {self.linear_address:#x} -> {found})"


class VcpuTranslate(VcpuFd):
    """Guest virtual addresses of a vCPU."""

    def translate(self, gva: int) -> Translation:
        """KVM_TRANSLATE: a guest virtual (linear) address, 0..2**64-1, by the vCPU's current mode
        and page tables.

        >>> cpu.translate(0x1234)
        Translation(gva 0x1234 -> gpa 0x1234)
        """
        structure = ffi.new("struct kvm_translation *", {"linear_address": _checked(gva)})
        ioctls.KVM_TRANSLATE(self._settle(0), structure, f"gva {gva:#x}")
        return Translation.from_c(structure)

    def walk(self, gva: int) -> walks.PageWalk:
        """Translate a guest virtual (linear) address by hand, through the tables that CR3 points
        to, and keep every entry on the way; ``str()`` of the result shows them with their flags.

        Reserved bits are not checked. Raises ValueError for an address beyond 2**64-1.

        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> walked = cpu.walk(0x1234)
        >>> hex(walked.gpa), [level.name for level in walked.levels][:2]
        ('0x1234', ['PML4', 'PDPT'])
        """
        from ..x86 import walk as walks

        sregs = self.sregs
        paging = walks.Paging.of(sregs.cr0, sregs.cr4, sregs.efer)
        return walks.walk(
            self.vm.memory, sregs.cr3, _checked(gva), paging,
            pse=bool(sregs.cr4 >> 4 & 1), nx=bool(sregs.efer >> 11 & 1),
        )  # fmt: skip

    def read_virtual(self, gva: int, size: int) -> bytes:
        """``size`` bytes of memory at a guest virtual (linear) address, whatever its permissions.

        Software breakpoints of :meth:`breakpoint` do not show. Raises GuestMemoryError where there
        is no translation, or no RAM behind it.

        >>> vm.load(b"hello", at=0x1FFE)
        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.read_virtual(0x1FFE, 5)
        b'hello'
        """
        data = bytearray()
        for gpa, length in self._pieces(gva, size):
            data += self.vm.memory.read(gpa, length)
        if self._debugger is not None:
            self._debugger.hide(gva, data)
        return bytes(data)

    def write_virtual(self, gva: int, data: Buffer) -> None:
        """Write to memory at a guest virtual (linear) address, whatever its permissions.

        All of it or nothing: raises GuestMemoryError, and writes nothing, where a byte has no
        translation or no RAM behind it. A software breakpoint in the range stays; what is written
        shows when it is removed.

        >>> cpu.enter(kvmpy.LONG_MODE, rip=0x1000)
        >>> cpu.write_virtual(0x2000, b"hi")
        >>> vm.memory.read(0x2000, 2)
        b'hi'
        """
        raw = memoryview(data).cast("B")
        pieces = list(self._pieces(gva, len(raw)))
        for gpa, length in pieces:
            if not self.vm.memory.contains(gpa, length):
                raise GuestMemoryError(f"no RAM at {gpa:#x}+{length:#x}")
        kept = bytearray(raw)
        if self._debugger is not None:
            self._debugger.replace(gva, kept)
        at = 0
        for gpa, length in pieces:
            self.vm.memory.write(gpa, kept[at : at + length])
            at += length

    def _pieces(self, gva: int, size: int) -> Iterator[tuple[int, int]]:
        """(gpa, length) of the range, page by page."""
        if size < 0 or gva < 0 or gva + size > 1 << 64:
            raise ValueError(f"virtual addresses {gva:#x}+{size:#x} are not in 0..2**64-1")
        while size:
            length = min(size, _PAGE - gva % _PAGE)
            found = self.walk(gva)
            if found.gpa is None:
                raise GuestMemoryError(str(found))
            yield found.gpa, length
            gva, size = gva + length, size - length


def _checked(gva: int) -> int:
    if not 0 <= gva < 1 << 64:
        raise ValueError(f"virtual address {gva:#x} is not in 0..2**64-1")
    return gva
