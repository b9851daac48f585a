"""A VM: all of its topics in one class, and how it begins and ends (KVM API, "4.2 KVM_CREATE_VM"
and on)."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Literal

from . import ioctls
from .arguments import integer
from .cpuid.cpuid import Cpuid
from .device import VmDevices
from .errors import ClosedError
from .interrupts.eventfds import VmEvents
from .kvm import KVM
from .memory.dirty import VmDirty
from .memory.guest import GuestMemory
from .memory.slots import Slots
from .msrs.filters import VmMsrs
from .msrs.pmu import VmPmu
from .run.bus import Bus
from .run.claims import VmClaims
from .run.enabling import VmEnabling
from .shim import ffi, lib
from .state.clock import VmClock
from .stats.methods import WithStats
from .vcpu import VCPU
from .x86 import layout

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .host.topology import Pin
    from .memory.encryption import VmSev
    from .memory.guest import Backing
    from .paravirt.hyperv import VmHyperv
    from .paravirt.xen_calls import VmXen


class VM(
    VmClaims, VmClock, VmDevices, VmDirty, VmEnabling, VmEvents, VmMsrs,
    VmPmu, WithStats,
):  # fmt: skip
    """A virtual machine, without devices unless asked for.

    ``memory``: RAM from guest physical address 0, as a size ("16M", or bytes), a GuestMemory that
    the caller keeps and closes, or None for none yet. ``backing`` as in GuestMemory.
    ``irqchip``: "kernel" or True creates KVM's PIC, IOAPIC and LAPICs, "split" the LAPICs alone;
    ``pit`` the i8254 (it implies the irqchip, "kernel"). With an irqchip HLT no longer exits: KVM
    waits for an interrupt itself. See :meth:`create_irqchip`, :meth:`create_pit`.
    ``type``: a VmType. ``dirty_ring``: entries of each vCPU's dirty ring, as
    :meth:`enable_dirty_ring` takes them. ``pmu`` False: as :meth:`disable_pmu`.

    ``kvm``: an open KVM; by default /dev/kvm is opened for the call.

    Closing a VM closes its vCPUs, ending runs of other threads. Raises a KvmUnavailableError when
    there is no usable KVM.
    """

    def __init__(
        self,
        memory: int | str | GuestMemory | None = None,
        *,
        backing: Backing = "anonymous",
        irqchip: bool | Literal["kernel", "split"] = False,
        pit: bool = False,
        type: int = 0,
        dirty_ring: int | None = None,
        pmu: bool = True,
        kvm: KVM | None = None,
    ):
        if irqchip not in (True, False, "kernel", "split") or (irqchip == "split" and pit):
            raise ValueError(f"irqchip={irqchip!r}, pit={pit!r}: the irqchip is True, False, "
                             "'kernel' or 'split', and a split one has no PIT")  # fmt: skip
        if isinstance(memory, GuestMemory) and memory.closed:
            raise ClosedError("the guest memory is closed")
        self._owns_memory = not isinstance(memory, GuestMemory)
        self._next_id = 0
        self._vcpus: list[weakref.ref[VCPU]] = []
        self.memory = memory if isinstance(memory, GuestMemory) else GuestMemory()
        self.slots = Slots(self, self.memory)
        self._guest_memfds = weakref.WeakSet()
        self._kvm = kvm or KVM()
        self._owns_kvm = kvm is None
        try:
            fd = self._kvm.create_vm(type)
            self._opened(fd, fd)
            self.run_size = self._kvm.vcpu_mmap_size
            self.sync_fields = self.check_extension(lib.KVM_CAP_SYNC_REGS)
            self._bus = Bus()
            if dirty_ring is not None:
                self.enable_dirty_ring(dirty_ring)
            if not pmu:
                self.disable_pmu()
            self._create(memory, backing)
            if irqchip or pit:
                self.create_irqchip(split=irqchip == "split")
            if pit:
                # With port 0x61: its bits gate channel 2 and show its output, by which kernels
                # measure their clocks.
                self.create_pit()
        except BaseException:
            self.close()
            raise

    def _create(self, memory: int | str | GuestMemory | None, backing: Backing) -> None:
        # Before the first vCPU: kvm_intel without unrestricted guest needs these pages to run real
        # mode, and they must lie outside all memory. The identity map cannot be set once a vCPU
        # exists; then the irqchip, the PIT, and vCPUs last.
        ioctls.KVM_SET_TSS_ADDR(self._fd, layout.TSS_ADDR, f"{layout.TSS_ADDR:#x}")
        identity = ffi.new("uint64_t *", layout.IDENTITY_MAP)
        ioctls.KVM_SET_IDENTITY_MAP_ADDR(self._fd, identity, f"{layout.IDENTITY_MAP:#x}")
        # Existing regions now, later ones as they are added.
        for region in self.memory.regions:
            self.slots.add(region)
        self.memory._adopters.append(self.slots)
        if memory is not None and not isinstance(memory, GuestMemory):
            self.memory.add_ram(memory, backing=backing)

    # -- memory

    def load(self, data: Buffer, at: int) -> None:
        """Write ``data`` to guest memory at guest physical address ``at``.

        >>> vm.load(kvmpy.asm("hlt"), at=0x1000)
        >>> vm.memory.read(0x1000, 1).hex()
        'f4'
        """
        self.memory.write(at, data)

    # -- vCPUs

    def vcpu(
        self, id: int | None = None, *, pin: Pin | None = None, cpuid: Cpuid | str | None = "host"
    ) -> VCPU:
        """KVM_CREATE_VCPU. ``id`` is its APIC id, by default the one after the highest so far.

        ``pin``: the pCPUs that a thread is bound to when it runs this vCPU, as for
        :attr:`VCPU.pin`: ``3``, ``{0, 1}``, ``range(2)``, ``"0-1"``. Raises PinError if this
        process may not use one of them.
        ``cpuid``: what CPUID shows: "host" for all that KVM supports, made this vCPU's own; a
        Cpuid table; or None to leave it unset.

        >>> vm.vcpu().id, vm.vcpu(id=5).id
        (0, 5)
        """
        vcpu_id = self._next_id if id is None else integer(id, "id")
        if pin is not None:
            from .host.topology import check_pins

            pin = check_pins(pin)
        if isinstance(cpuid, str):
            if cpuid != "host":
                raise ValueError(f"cpuid={cpuid!r}: give 'host', a Cpuid or None")
            cpuid = self._kvm.host_cpuid(vcpu_id, lapic=self.has_irqchip)
        vcpu = VCPU(self, vcpu_id)
        if pin is not None:
            vcpu.pin = pin
        # CPUID before MSRs: since 6.13 MSRs that depend on it read as zero until it is set.
        if cpuid is not None:
            vcpu.set_cpuid(cpuid)
        self._next_id = max(self._next_id, vcpu_id + 1)
        self._vcpus.append(weakref.ref(vcpu))
        return vcpu

    @property
    def vcpus(self) -> list[VCPU]:
        """The vCPUs that are still held.

        >>> cpu in vm.vcpus
        True
        """
        return self._held_vcpus()

    # -- rare topics, each an object of its own

    @property
    def xen(self) -> VmXen:
        """KVM as Xen: ``vm.xen.configure(...)``, attributes, event channels.

        >>> if kvm.check_extension("KVM_CAP_XEN_HVM"):
        ...     vm.xen.configure(0x4000_0000)
        """
        from .paravirt.xen_calls import VmXen

        return VmXen(self)

    @property
    def hyperv(self) -> VmHyperv:
        """KVM as Hyper-V: ``vm.hyperv.eventfd(...)``.

        >>> import os; event = os.eventfd(0)
        >>> if kvm.check_extension("KVM_CAP_HYPERV_EVENTFD"):
        ...     vm.hyperv.eventfd(1, event)
        >>> os.close(event)
        """
        from .paravirt.hyperv import VmHyperv

        return VmHyperv(self)

    @property
    def sev(self) -> VmSev:
        """AMD's encrypted guests: ``vm.sev.op(...)``, and the memory that may be encrypted.

        >>> try:
        ...     vm.sev.op(kvmpy.encryption.SevCommand.GUEST_STATUS)
        ... except kvmpy.KvmpyError as error:
        ...     str(error).split(":")[0]
        'KVM_MEMORY_ENCRYPT_OP'
        """
        from .memory.encryption import VmSev

        return VmSev(self)

    # -- life

    def close(self) -> None:
        """End the vCPUs, then the VM, then its memory (unless the caller made it).

        >>> vm.close()
        >>> vm
        <VM, closed>
        """
        try:
            for vcpu in self.vcpus:
                vcpu.close()
        finally:
            self._close_vm()

    def _in_child(self) -> None:
        super()._in_child()
        self._bus = None

    def _close_vm(self) -> None:
        for device in self._bus.devices() if self._bus else ():
            disconnect = getattr(device, "disconnect", None)
            if disconnect is not None:
                disconnect()
        self._close_stats()
        super().close()
        self._bus = None
        if self._owns_kvm:
            self._kvm.close()
        adopters = self.memory._adopters
        adopters[:] = [adopter for adopter in adopters if adopter is not self.slots]
        self._close_memory()
        if self._owns_memory:
            self.memory.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<VM, closed>"
        return f"<VM fd {self._fd}, {len(self.vcpus)} vCPUs, {self.memory!r}>"
