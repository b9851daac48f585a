"""VT-x and AMD-V themselves: what this host offers, and a guest that is a hypervisor.

The guest (native/guests/lab-vmx.S, lab-svm.S) turns the extension on, runs a guest of its own, and
turns it off; before each right step it tries wrong ones. It tells the host how each step went.

Levels, as KVM's documentation counts them: L0 is KVM on the host, L1 its guest, L2 the guest's
guest (Documentation/virt/kvm/x86/nested-vmx.rst and running-nested-guests.rst).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import KvmpyError, UnsupportedError
from ..exits.reasons import Exit, Hlt, IoOut
from ..guests import image
from ..host.cpu import HostCpu, identify
from ..kvm import KVM
from ..probe import verdict as backend
from ..vm import VM
from ..x86.modes import Mode
from . import vmx_codes as codes, vmx_offer
from .vmx_codes import VmxStep as VmxStep
from .vmx_offer import Feature

if TYPE_CHECKING:
    from ..vcpu import VCPU

_MEMORY: Final = 4 << 20
_TIMEOUT: Final = 10.0  # seconds for a step: some take 1 ms in an emulated CPU
_MOST_STEPS: Final = 100
_MOST_EXITS: Final = 1000  # to the host, in a step
_UD, _GP = 6, 13
_CF, _ZF = 1 << 0, 1 << 6
_ON_L0: Final = ("exits", "irq_exits", "pf_taken", "nested_run")


@dataclass(frozen=True)
class Result:
    """``extension``: "VT-x" or "AMD-V", of the guest program; ``offered``: whether KVM offers it to
    guests. ``l2_saw``: what CPUID has told L2, text that L1 had put there; "" if L2 never ran.
    ``trips``: how many exits of L2 were counted together, with ``exits_per_trip`` exits to L0 for
    each. ``remedy``: what would turn nesting on, "" where it is on. ``failure``: why the guest did
    not come to its end, "" if it did."""

    module: str
    verdict: str
    vendor: str
    extension: str
    offered: bool
    features: tuple[Feature, ...]
    facts: tuple[tuple[str, str], ...]
    steps: tuple[VmxStep, ...]
    l2_saw: str
    trips: int
    exits_per_trip: float | None
    remedy: str
    failure: str

    def step(self, name: str) -> VmxStep | None:
        """A step by name, None if the guest did not get there.

        >>> result = kvmpy.lab.experiment("vmx").run()
        >>> result.step("warp") is None
        True
        """
        return next((step for step in self.steps if step.name == name), None)


def run(pin: int | None = None) -> Result:
    """Ask what is offered and run the guest; takes milliseconds. ``pin``: the pCPU to run on.

    >>> result = kvmpy.lab.experiment("vmx").run()
    >>> result.steps[0].outcome  # VMXON or VMRUN before it is turned on
    '#UD...'
    """
    host, verdict = identify(), backend.verdict()
    intel = verdict.module == "kvm_intel" or (
        verdict.module != "kvm_amd" and host.vendor == "GenuineIntel"
    )
    with KVM() as kvm:
        offered = kvm.supported_cpuid().has("vmx" if intel else "svm")
        offer = vmx_offer.collect(kvm, host, verdict.module)
    with _Guest("lab-vmx" if intel else "lab-svm", pin, verdict.ring0 == "native") as guest:
        steps, failure = guest.steps()
        saw = guest.l2_saw
        trips = guest.image["TRIPS"]
    return Result(
        module=verdict.module,
        verdict=verdict.summary,
        vendor=host.vendor,
        extension="VT-x" if intel else "AMD-V",
        offered=offered,
        features=offer.features,
        facts=offer.facts,
        steps=steps,
        l2_saw=saw,
        trips=trips,
        exits_per_trip=_per_trip(steps, trips),
        remedy="" if offered else _remedy(verdict, host),
        failure=failure,
    )


def _per_trip(steps: Iterable[VmxStep], trips: int) -> float | None:
    found = next((step for step in steps if step.name == "trips"), None)
    return None if found is None or found.exits is None else found.exits / trips


def _remedy(verdict: backend.Verdict, host: HostCpu) -> str:
    module = verdict.module
    if module in ("kvm_intel", "kvm_amd"):
        if verdict.nested_guests is False:
            return (
                f"{module} was loaded with nested=0. Without guests running: modprobe -r {module} "
                f"&& modprobe {module} nested=1 (or {module}.nested=1 on the kernel command line)."
            )
        return f"{module} has nesting on, and leaves the feature out of what it supports."
    if module == "kvm_pvm":
        return (
            "kvm_pvm runs guests in ring 3 without VT-x or AMD-V, which this host's CPU "
            f"{'does not show' if host.extension is None else 'has'}: there is nothing to hand on, "
            "and no parameter changes it. Take a host with kvm_intel or kvm_amd."
        )
    return f"{module} offers guests neither VT-x nor AMD-V."


class _Guest:
    """The VM with the hypervisor in it."""

    def __init__(self, name: str, pin: int | None, counts: bool):
        self.image = image.load(name)
        self._vmx = name == "lab-vmx"
        self._counts = counts
        self._names = {
            value: key.removeprefix("step.")
            for key, value in self.image.symbols.items()
            if key.startswith("step.")
        }
        self.vm = VM(_MEMORY)
        try:
            self.vm.load(self.image.code, at=image.ORIGIN)
            self.cpu = self.vm.vcpu(pin=pin)
            self.cpu.enter(
                Mode.LONG_64, rip=self.image["start"], rsp=self.image["STACK"],
                handlers={_UD: self.image["fault_ud"], _GP: self.image["fault_gp"]},
            )  # fmt: skip
        except BaseException:
            self.vm.close()
            raise

    def __enter__(self) -> _Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.vm.close()

    @property
    def l2_saw(self) -> str:
        raw = self.vm.memory.read(self.image["L2_SAW"], 12)
        return raw.decode("latin-1").strip("\0\n ")

    def steps(self) -> tuple[tuple[VmxStep, ...], str]:
        """All steps until the guest halts, and why it did not, if so."""
        found: list[VmxStep] = []
        before = _statistics(self.cpu) if self._counts else {}
        for _ in range(_MOST_STEPS):
            try:
                exit = self.cpu.run(timeout=_TIMEOUT, max_exits=_MOST_EXITS)
            except KvmpyError as error:
                return tuple(found), str(error)
            after = _statistics(self.cpu) if self._counts else {}
            if isinstance(exit, Hlt):
                return tuple(found), ""
            name = self._names.get(self.cpu.regs.rax)
            if not isinstance(exit, IoOut) or exit.port != self.image["REPORT_PORT"] or not name:
                return tuple(found), self._stopped(exit, found)
            found.append(self._step(name, before, after))
            before = after
        return tuple(found), f"no end after {_MOST_STEPS} steps"

    def _stopped(self, exit: Exit, found: list[VmxStep]) -> str:
        from ..exits.explain import headline

        last = found[-1].title if found else "the start"
        return f"{headline(exit)}, after: {last}"

    def _step(self, name: str, before: Mapping[str, int], after: Mapping[str, int]) -> VmxStep:
        regs = self.cpu.regs
        added = {key: after[key] - before[key] for key in after if key in before}
        fault, flags = regs.rbx, regs.rdx
        exits = None
        if "exits" in added:  # one of them is the report
            exits = added["exits"] - added.get("irq_exits", 0) - added.get("pf_taken", 0) - 1
        told = self._vmx and not fault and codes.sets_flags(name)
        step = VmxStep(
            name=name,
            title=codes.TITLES.get(name, name),
            vector=fault - 1 if fault else None,
            error_code=regs.rcx if fault else 0,
            carry=told and bool(flags & _CF),
            zero=told and bool(flags & _ZF),
            first=regs.rsi,
            second=regs.rdi,
            exits=None if exits is None else max(exits, 0),
            entries=added.get("nested_run"),
            outcome="",
        )
        return codes.explained(step, self._vmx)


def _statistics(cpu: VCPU) -> dict[str, int]:
    try:
        now = cpu.stats.snapshot()
    except UnsupportedError:
        return {}
    return {name: int(now[name]) for name in _ON_L0 if name in now}
