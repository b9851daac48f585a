"""Where a state was taken: the KVM module and the processor, and what stands against going on
elsewhere."""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from ..cpuid.cpuid import Cpuid
from ..x86.bits import family_and_model
from .differences import Difference

_IDENTITY: Final = struct.Struct("<16s12sI")


@dataclass(frozen=True)
class HostIdentity:
    """``module``: kvm_intel, kvm_amd, kvm_pvm; ``vendor``: CPUID's vendor string; ``signature``:
    EAX of CPUID leaf 1 (family, model, stepping). Of the host, not of what the guest is shown."""

    module: str
    vendor: str
    signature: int

    @classmethod
    @functools.cache
    def here(cls) -> HostIdentity:
        """This host's.

        >>> kvmpy.state.HostIdentity.here().vendor in ("AuthenticAMD", "GenuineIntel")
        True
        """
        from ..host.cpuid import cpuid
        from ..host.module import module_name

        _, ebx, ecx, edx = cpuid(0)
        vendor = struct.pack("<3I", ebx, edx, ecx).decode("latin-1")
        return cls(module_name(), vendor, cpuid(1)[0])

    @property
    def model(self) -> str:
        """Family and model, as the manuals add them up (SDM vol. 2, "CPUID", leaf 01H).

        >>> kvmpy.state.HostIdentity("kvm_intel", "GenuineIntel", 0x306C3).model
        'family 0x6 model 0x3c'
        """
        family, model = family_and_model(self.signature)
        return f"family {family:#x} model {model:#x}"

    def to_bytes(self) -> bytes:
        """Fixed-length form."""
        module, vendor = self.module.encode("latin-1"), self.vendor.encode("latin-1")
        if len(module) > 16 or len(vendor) > 12:
            raise ValueError(f"{self!r} is too long")
        return _IDENTITY.pack(module, vendor, self.signature)

    @classmethod
    def from_bytes(cls, data: bytes) -> HostIdentity:
        """The inverse of :meth:`to_bytes`."""
        module, vendor, signature = _IDENTITY.unpack(data)
        return cls(
            module.rstrip(b"\0").decode("latin-1"), vendor.rstrip(b"\0").decode("latin-1"),
            signature,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """As a dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostIdentity:
        """The inverse of :meth:`to_json`."""
        return cls.from_bytes(cls(**data).to_bytes())


#: CPUID words whose bits say what the guest may use: (function, index, register).
_FEATURE_WORDS: Final = (
    (0x1, 0, "ecx"), (0x1, 0, "edx"), (0x7, 0, "ebx"), (0x7, 0, "ecx"), (0x7, 0, "edx"),
    (0x7, 1, "eax"), (0x7, 1, "ecx"), (0x7, 1, "edx"), (0x7, 2, "edx"), (0xD, 0, "eax"),
    (0xD, 0, "edx"), (0xD, 1, "eax"), (0x80000001, 0, "ecx"), (0x80000001, 0, "edx"),
    (0x80000007, 0, "edx"), (0x80000008, 0, "ebx"), (0x80000021, 0, "eax"),
)  # fmt: skip
#: Bits that KVM_GET_SUPPORTED_CPUID may lack and a guest may have: MWAIT, x2APIC, TSC deadline,
#: hypervisor (all KVM's own doing), HTT (topology).
_FREE: Final = {
    (0x1, 0, "ecx"): 1 << 3 | 1 << 21 | 1 << 24 | 1 << 31,
    (0x1, 0, "edx"): 1 << 28,
}
#: Bits and words that follow CR4, XCR0, APIC_BASE and MISC_ENABLE while the guest runs: OSXSAVE,
#: MWAIT, APIC, OSPKE, the XSAVE area's size.
_RUNTIME: Final = {
    (0x1, 0, "ecx"): 1 << 27 | 1 << 3,
    (0x1, 0, "edx"): 1 << 9,
    (0x7, 0, "ecx"): 1 << 4,
    (0x80000001, 0, "edx"): 1 << 9,
    (0xD, 0, "ebx"): 0xFFFF_FFFF,
    (0xD, 1, "ebx"): 0xFFFF_FFFF,
}


def at_rest(cpuid: Cpuid) -> dict[tuple[int, int, str], int]:
    """CPUID word by word, without what follows the guest's control registers."""
    words = {}
    for leaf in cpuid:
        for register in ("eax", "ebx", "ecx", "edx"):
            key = leaf.function, leaf.index, register
            words[key] = getattr(leaf, register) & ~_RUNTIME.get(key, 0)
    return words


def missing_features(saved: Cpuid, *here: Cpuid) -> Iterator[Difference]:
    """Feature bits that a guest was shown and that none of the tables here has."""
    for key in _FEATURE_WORDS:
        function, index, register = key
        had = saved.get(function, index)
        if had is None:
            continue
        allowed = _FREE.get(key, 0) | _RUNTIME.get(key, 0)
        for table in here:
            leaf = table.get(function, index)
            allowed |= getattr(leaf, register) if leaf else 0
        missing = getattr(had, register) & ~allowed
        for bit in range(32):
            if missing >> bit & 1:
                yield Difference(f"cpuid[{function:#x}, {index}].{register} bit {bit}", 1, 0)
