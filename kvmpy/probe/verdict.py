"""The verdict: what of a guest this host's KVM runs natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..host.module import module_name, module_parameters
from ..values import dataclass

if TYPE_CHECKING:
    from ..host.cpu import HostCpu
    from .modes import ModeOutcome, ModeResult


@dataclass(frozen=True, slots=True)
class Verdict:
    """What runs natively here. Results carry it, so that a figure says what it was taken on.

    ``ring0``, ``ring3``: 64-bit code there is "native", "emulated" (KVM interprets it) or "fails";
    the ``_ns`` are nanoseconds for one simple instruction, None where it fails.
    ``nested``: this host is known to be a virtual machine itself. ``emulator``: the program that
    emulates this host's CPU, None if none was recognised; "native" then means by that CPU.
    ``paging``: "EPT", "NPT", "shadow", or None if the module does not say.
    ``detail``: how a ring fails, "" if none does.
    ``unrestricted_guest``: whether VT-x runs real mode itself; None where that does not apply.
    ``nested_guests``: whether guests get VT-x or AMD-V; None if the module does not say.
    """

    module: str
    ring0: ModeOutcome
    ring3: ModeOutcome
    ring0_ns: float | None
    ring3_ns: float | None
    extension: str | None
    hypervisor: str | None
    nested: bool
    emulator: str | None
    paging: str | None
    unrestricted_guest: bool | None
    nested_guests: bool | None
    detail: str = ""

    @property
    def performance(self) -> bool:
        """Whether times taken here tell of hardware: rings 0 and 3 native, no emulated CPU.

        >>> kvmpy.probe.verdict.verdict().performance in (True, False)
        True
        """
        return self.ring0 == self.ring3 == "native" and self.emulator is None

    @property
    def summary(self) -> str:
        """The verdict in one or two sentences.

        >>> with kvmpy.KVM():
        ...     kvmpy.probe.verdict.verdict().summary
        '...kvm_...'
        """
        text = f"{self.module}: {self._rings()}{self._where()}."
        if self.detail:
            return f"{text} {self.detail}."
        if self.emulator:
            return f"{text} Times taken here say nothing about hardware."
        if self.ring0 == "emulated":
            return f"{text} Times that include ring 0 measure the emulator."
        return text

    def _rings(self) -> str:
        if self.ring0 == self.ring3:
            verb = "fail" if self.ring0 == "fails" else f"are {self.ring0}"
            return f"rings 0 and 3 {verb}"
        return ", ".join(
            f"ring {ring} {'fails' if outcome == 'fails' else f'is {outcome}'}"
            + (f" ({ns:.0f} ns an instruction)" if outcome == "emulated" and ns else "")
            for ring, outcome, ns in (
                (3, self.ring3, self.ring3_ns),
                (0, self.ring0, self.ring0_ns),
            )
        )

    def _where(self) -> str:
        if self.emulator:
            return f", nested, on emulated {self.extension or 'CPU'} ({self.emulator})"
        return f", nested under {self.hypervisor}" if self.hypervisor else ""


def _flag(parameters: dict[str, str], name: str) -> bool | None:
    value = parameters.get(name)
    return None if value is None else value in ("Y", "1")


def _paging(module: str, parameters: dict[str, str]) -> str | None:
    name = {"kvm_intel": "ept", "kvm_amd": "npt"}.get(module)
    if name is None:
        return "shadow" if module == "kvm_pvm" else None
    on = _flag(parameters, name)
    return None if on is None else name.upper() if on else "shadow"


def judge(
    module: str, parameters: dict[str, str], cpu: HostCpu, ring0: ModeResult, ring3: ModeResult
) -> Verdict:
    """Put the verdict together from what was found out."""
    return Verdict(
        module=module,
        ring0=ring0.outcome,
        ring3=ring3.outcome,
        ring0_ns=ring0.nanoseconds,
        ring3_ns=ring3.nanoseconds,
        extension=cpu.extension,
        hypervisor=cpu.hypervisor,
        nested=cpu.nested,
        emulator=cpu.emulator,
        paging=_paging(module, parameters),
        unrestricted_guest=_flag(parameters, "unrestricted_guest"),
        nested_guests=_flag(parameters, "nested"),
        detail="; ".join(
            f"ring {result.ring}: {result.detail}" for result in (ring0, ring3) if result.detail
        ),
    )


def verdict() -> Verdict:
    """Find out, by running and timing a tiny guest in rings 0 and 3; takes 10 to 100 ms.

    Raises a KvmUnavailableError when no guest can be run here.

    >>> with kvmpy.KVM():
    ...     kvmpy.probe.verdict.verdict().module
    'kvm_...'
    """
    from ..host.cpu import identify
    from ..x86.modes import Mode
    from .modes import probe

    module = module_name()
    return judge(
        module,
        module_parameters(module),
        identify(),
        probe(Mode.LONG_64, 0),
        probe(Mode.LONG_64, 3),
    )
