"""Exits by which the guest asks its hypervisor for something: hypercalls, MSRs, system events.

Most wait for an answer: ``cpu.answer(value)``, or ``cpu.refuse()``. Each says what the guest gets
when it is run on without one, which is what KVM gives it for what KVM does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .base import Exit, exit_value
from .names import HYPERCALLS, MSR_REASONS, NUMBERS, SYSTEM_EVENTS, TDVMCALLS, bit_names


@exit_value
class Hypercall(Exit):
    """A hypercall of KVM's own that is left to user space (KVM_CAP_EXIT_HYPERCALL).

    ``answer(value)`` gives the guest its RAX; without an answer it gets -KVM_ENOSYS (-1000).
    ``longmode``: the guest made it from 64-bit code.
    """

    reason: ClassVar[int] = NUMBERS["HYPERCALL"]
    answerable: ClassVar[bool] = True
    number: int
    args: tuple[int, ...]
    longmode: bool = True

    @property
    def name(self) -> str:
        """KVM_HC_* without the prefix.

        >>> kvmpy.Hypercall(12, (0x200000, 1, 0x10, 0, 0, 0)).name
        'MAP_GPA_RANGE'
        """
        return HYPERCALLS.get(self.number, f"hypercall {self.number}")


@exit_value
class SystemEvent(Exit):
    """The guest asked for shutdown, reset or suspend, or crashed, through KVM itself.

    On x86: a Hyper-V guest's crash (its parameters are in MSRs 0x40000100..0x40000104), reset and
    shutdown by Hyper-V or Xen, SEV and TDX guests' end (``data``: their words).
    """

    reason: ClassVar[int] = NUMBERS["SYSTEM_EVENT"]
    type: int
    data: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """KVM_SYSTEM_EVENT_* in words.

        >>> kvmpy.SystemEvent(3).name
        'crash'
        """
        return SYSTEM_EVENTS.get(self.type, f"system event {self.type}")


@exit_value
class Rdmsr(Exit):
    """The guest reads an MSR that is left to user space (:meth:`VM.user_space_msrs`).

    ``answer(value)`` gives it EDX:EAX; ``refuse()``, like no answer at all, gives it #GP, as KVM
    does by itself.
    """

    reason: ClassVar[int] = NUMBERS["X86_RDMSR"]
    answerable: ClassVar[bool] = True
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {"why": MSR_REASONS}
    index: int
    why: int

    @property
    def reasons(self) -> frozenset[str]:
        """Why user space has it: of "filter", "unknown", "inval".

        >>> sorted(kvmpy.Rdmsr(0x10, 0b100).reasons)
        ['filter']
        """
        return bit_names(self.why, MSR_REASONS)


@exit_value
class Wrmsr(Exit):
    """The guest writes an MSR that is left to user space (:meth:`VM.user_space_msrs`).

    Running on is success, ``refuse()`` gives the guest #GP. Until either, registers are those
    before the instruction.
    """

    reason: ClassVar[int] = NUMBERS["X86_WRMSR"]
    answerable: ClassVar[bool] = True
    flag_names: ClassVar[Mapping[str, Mapping[int, str]]] = {"why": MSR_REASONS}
    index: int
    data: int
    why: int

    @property
    def reasons(self) -> frozenset[str]:
        """Why user space has it: of "filter", "unknown", "inval".

        >>> sorted(kvmpy.Wrmsr(0x10, 5, 0b010).reasons)
        ['unknown']
        """
        return bit_names(self.why, MSR_REASONS)


@exit_value
class Hyperv(Exit):
    """Base of what a guest wants of Hyper-V."""

    reason: ClassVar[int] = NUMBERS["HYPERV"]


@exit_value
class HypervSynic(Hyperv):
    """The guest changed its synthetic interrupt controller: ``msr`` was written; ``control`` is
    SCONTROL, the pages are SIEFP and SIMP."""

    msr: int
    control: int
    event_page: int
    message_page: int


@exit_value
class HypervHypercall(Hyperv):
    """A Hyper-V hypercall that is left to user space (HvPostMessage, HvSignalEvent, the
    debugger's). ``input`` is the input value, ``params`` the two parameters or their addresses.

    ``answer(value)`` gives the result value; without one it is HV_STATUS_INVALID_HYPERCALL_CODE.
    """

    answerable: ClassVar[bool] = True
    input: int
    params: tuple[int, ...]

    @property
    def code(self) -> int:
        """The call code, 0..0xffff (Hyper-V TLFS, "Hypercall Inputs").

        >>> hex(kvmpy.HypervHypercall(0x1005C, (0x1000, 0)).code)
        '0x5c'
        """
        return self.input & 0xFFFF


@exit_value
class HypervSyndbg(Hyperv):
    """The guest used the synthetic debugger's ``msr``. ``answer(value)`` gives the status."""

    answerable: ClassVar[bool] = True
    msr: int
    control: int
    status: int
    send_page: int
    receive_page: int
    pending_page: int


@exit_value
class HypervOther(Hyperv):
    """A Hyper-V exit of a type this package does not know."""

    type: int


@exit_value
class Xen(Exit):
    """A Xen hypercall: ``number`` and six ``params``, made at privilege level ``cpl``, from 64-bit
    code if ``longmode``.

    ``answer(value)`` gives its result (a negative errno as 64 bits is a failure); without one it
    is -ENOSYS. ``type`` other than 1 is none this package knows, and the rest is zero then.
    """

    reason: ClassVar[int] = NUMBERS["XEN"]
    answerable: ClassVar[bool] = True
    number: int = 0
    params: tuple[int, ...] = ()
    longmode: bool = False
    cpl: int = 0
    type: int = 1


@exit_value
class Tdx(Exit):
    """A TDVMCALL of a TDX guest. ``data``: five words, by ``number`` (KVM API, "KVM_EXIT_TDX").

    ``answer(value)`` gives the return value; without one ``status``, which KVM has put there.
    """

    reason: ClassVar[int] = NUMBERS["TDX"]
    answerable: ClassVar[bool] = True
    flags: int
    number: int
    status: int
    data: tuple[int, ...]

    @property
    def name(self) -> str:
        """TDVMCALL_* without the prefix.

        >>> kvmpy.Tdx(0, 0x10002, 3, (0x1000, 0x2000, 0, 0, 0)).name
        'GET_QUOTE'
        """
        return TDVMCALLS.get(self.number, f"TDVMCALL {self.number:#x}")
