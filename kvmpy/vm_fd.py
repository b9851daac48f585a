"""What every topic of a VM is built on: its descriptor, memory, bus and capabilities."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from .fd import gone
from .ioctls import capabilities
from .ioctls.capabilities import Asked

if TYPE_CHECKING:
    from .kvm import KVM
    from .memory.guest import GuestMemory
    from .run.bus import Bus


class VmFd(Asked):
    """A VM's descriptor (KVM API, "4.2 KVM_CREATE_VM"). :class:`kvmpy.VM` is all of its topics."""

    _what = "VM"
    #: Guest memory; closed with the VM unless the caller made it.
    memory: GuestMemory
    #: Bytes of a vCPU's kvm_run mapping.
    run_size: int
    #: KVM_CAP_SYNC_REGS: the parts of the state that the kvm_run page has.
    sync_fields: int
    #: Entries of each vCPU's dirty ring, 0 without.
    dirty_ring_entries: int = 0
    _bus: Bus | None = None
    _kvm: KVM
    # Every vCPU that was made. Held weakly: one that nobody holds is to go at once.
    _vcpus: list[weakref.ref[Any]]

    @property
    def bus(self) -> Bus:
        """Who owns which port and address. Raises ClosedError after close(), ForkedError
        in a child process.

        >>> list(vm.bus.devices())
        []
        """
        if self._bus is None:
            raise gone(self._what, self._process)
        return self._bus

    def _held_vcpus(self) -> list[Any]:
        return [vcpu for ref in self._vcpus if (vcpu := ref()) is not None]

    def enable_capability(self, capability: int | str, *args: int, flags: int = 0) -> None:
        """KVM_ENABLE_CAP on the VM, by number or name, with up to four arguments of 64 bits
        (``kvmpy.enabling.TABLE`` says what they mean).

        Raises UnsupportedError when this KVM has no such capability, KvmIoctlError when it does
        not take the arguments, or not any longer.

        >>> vm.enable_capability("EXCEPTION_PAYLOAD", 1)
        """
        capabilities.enable(self.fileno(), "vm", capability, args, flags, bool(self._vcpus))
