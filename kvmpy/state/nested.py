"""Nested virtualization state: a guest that is a hypervisor itself (KVM API, "4.114
KVM_GET_NESTED_STATE").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..shim import ffi
from ..text import flags_text
from ..values import dataclass

_C: Final = "struct kvm_nested_state *"
HEADER_SIZE: Final = int(ffi.sizeof("struct kvm_nested_state"))
#: More than any format has: header, VMCS, shadow VMCS.
MOST_SIZE: Final = 1 << 16

FLAGS: Final = {
    0: "GUEST_MODE", 1: "RUN_PENDING", 2: "EVMCS", 3: "MTF_PENDING", 8: "GIF_SET",
}  # fmt: skip
_FORMATS: Final = {0: "VMX", 1: "SVM"}
_NOWHERE: Final = (1 << 64) - 1


@dataclass(frozen=True)
class VmxHeader:
    """What KVM says of a VT-x guest hypervisor: where its VMXON region and current VMCS are (None
    for neither), SMM flags, and the preemption timer's deadline if flags has bit 0."""

    vmxon_pa: int | None
    vmcs12_pa: int | None
    smm_flags: int
    flags: int
    preemption_timer_deadline: int


@dataclass(frozen=True)
class SvmHeader:
    """What KVM says of an AMD-V guest hypervisor: where the VMCB of its guest is."""

    vmcb_pa: int


@dataclass(frozen=True, repr=False)
class NestedState:
    """The whole of it as KVM gave it, ``data``, with the header decoded.

    Raises ValueError for bytes that cannot be it. ``cpu.nested_state`` reads and sets one.

    >>> kvmpy.state.NestedState((256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120))
    <NestedState SVM flags 0x100[GIF_SET] SvmHeader(vmcb_pa=0) 0 bytes of data>
    """

    data: bytes

    def __post_init__(self) -> None:
        if not HEADER_SIZE <= len(self.data) <= MOST_SIZE:
            raise ValueError(f"a nested state of {len(self.data)} bytes")
        if self._c().size != len(self.data):
            raise ValueError(f"a nested state of {len(self.data)} bytes says {self._c().size}")

    def _c(self) -> Any:
        return ffi.cast(_C, ffi.from_buffer(self.data))

    @property
    def flags(self) -> int:
        """KVM_STATE_NESTED_*, as in ``kvmpy.state.nested.FLAGS``.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> kvmpy.state.NestedState(raw).flags
        256
        """
        return int(ffi.from_buffer("uint16_t[]", self.data[:2])[0])

    @property
    def format(self) -> str:
        """ "VMX" or "SVM", or the number of another format.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> kvmpy.state.NestedState(raw).format
        'SVM'
        """
        number = int.from_bytes(self.data[2:4], "little")
        return _FORMATS.get(number, str(number))

    @property
    def header(self) -> VmxHeader | SvmHeader | None:
        """The vendor's part of the header; None for a format that is not known here.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> kvmpy.state.NestedState(raw).header.vmcb_pa
        0
        """
        keep = self.data  # what the structure below points into
        header = ffi.cast(_C, ffi.from_buffer(keep)).hdr
        if self.format == "VMX":
            vmx = header.vmx
            return VmxHeader(
                None if vmx.vmxon_pa == _NOWHERE else vmx.vmxon_pa,
                None if vmx.vmcs12_pa == _NOWHERE else vmx.vmcs12_pa,
                vmx.smm.flags, vmx.flags, vmx.preemption_timer_deadline,
            )  # fmt: skip
        return SvmHeader(header.svm.vmcb_pa) if self.format == "SVM" else None

    @property
    def is_guest_mode(self) -> bool:
        """Whether the guest hypervisor's own guest was running.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> kvmpy.state.NestedState(raw).is_guest_mode
        False
        """
        return bool(self.flags & 1)

    def to_json(self) -> dict[str, Any]:
        """The bytes as hex.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> sorted(kvmpy.state.NestedState(raw).to_json())
        ['data']
        """
        return {"data": self.data.hex()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NestedState:
        """The inverse of :meth:`to_json`.

        >>> raw = (256 | 1 << 16 | 128 << 32).to_bytes(8, "little") + bytes(120)
        >>> state = kvmpy.state.NestedState(raw)
        >>> kvmpy.state.NestedState.from_json(state.to_json()) == state
        True
        """
        return cls(bytes.fromhex(data["data"]))

    def __repr__(self) -> str:
        return (
            f"<NestedState {self.format} flags {flags_text(self.flags, FLAGS)} {self.header} "
            f"{len(self.data) - HEADER_SIZE} bytes of data>"
        )
