"""What a benchmark's figures were taken on."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import __version__
from ..errors import KvmpyError
from ..host import cpu, topology
from ..host.cpuid import cpuid
from ..host.module import module_parameters
from ..probe import disturbance, verdict as backend
from ..probe.system import System
from .counters import run_delay
from .record import Disclosure

if TYPE_CHECKING:
    from ..vcpu import VCPU

#: Called before anything is measured with what disturbs here.
Warned = Callable[[Sequence[disturbance.Disturbance]], None] | None

_WAITING: Final = 0.01  # share of a run
_INVARIANT_TSC: Final = 1 << 8  # CPUID 80000007h, EDX
_SYSFS: Final = Path("/sys/devices/system/cpu")


@contextmanager
def pinned(wanted: int | None) -> Iterator[int | None]:
    """Bind this thread to a pCPU for the block: ``wanted``, or the last one it may use (the first
    gets most interrupts). Gives its number, None where binding is not allowed.

    Raises PinError for a ``wanted`` that is not available.

    >>> with kvmpy.bench.disclosure.pinned(None) as cpu_number:
    ...     cpu_number is None or cpu_number >= 0
    True
    """
    allowed = topology.allowed_cpus()
    number = max(allowed) if wanted is None else topology.check_pin(wanted)
    try:
        os.sched_setaffinity(0, {number})
    except OSError:
        if wanted is not None:
            raise
        yield None
        return
    try:
        yield number
    finally:
        os.sched_setaffinity(0, allowed)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _mitigations() -> dict[str, str]:
    try:
        files = sorted((_SYSFS / "vulnerabilities").iterdir())
    except OSError:
        return {}
    return {file.name: _text(file) for file in files}


def _microcode() -> str:
    for line in _text(Path("/proc/cpuinfo")).splitlines():
        if line.startswith("microcode"):
            return line.partition(":")[2].strip()
    return ""


def _invariant_tsc() -> bool | None:
    if cpuid(0x8000_0000)[0] < 0x8000_0007:
        return None
    return bool(cpuid(0x8000_0007)[3] & _INVARIANT_TSC)


def tsc_khz(vcpu: VCPU) -> int | None:
    """Rate of the guest's TSC in kHz, None if KVM does not say.

    >>> kvmpy.bench.disclosure.tsc_khz(cpu) != 0
    True
    """
    try:
        return vcpu.tsc_khz or None
    except KvmpyError:
        return None


def collect(vcpu: VCPU, verdict: backend.Verdict, pinned_cpu: int | None) -> Disclosure:
    """Everything that ``Disclosure`` asks for. ``vcpu``: of one of the VMs measured.

    >>> verdict = kvmpy.probe.verdict.verdict()
    >>> kvmpy.bench.disclosure.collect(cpu, verdict, None).module.startswith("kvm")
    True
    """
    host = cpu.identify()
    parameters = {
        f"{module}.{name}": value
        for module in ("kvm", verdict.module)
        for name, value in module_parameters(module).items()
    }
    siblings = topology.smt_siblings(pinned_cpu) - {pinned_cpu} if pinned_cpu is not None else ()
    governor = _SYSFS / f"cpu{pinned_cpu or 0}/cpufreq/scaling_governor"
    return Disclosure(
        module=verdict.module,
        parameters=parameters,
        verdict=verdict.summary,
        ring0=verdict.ring0,
        ring3=verdict.ring3,
        cpu_model=host.model,
        vendor=host.vendor,
        microcode=_microcode(),
        kernel=f"{platform.system()} {platform.release()}",
        command_line=_text(Path("/proc/cmdline")),
        tsc_khz=tsc_khz(vcpu),
        invariant_tsc=_invariant_tsc(),
        tsc_scaling=_tsc_scaling(vcpu),
        paging=verdict.paging,
        mitigations=_mitigations(),
        governor=_text(governor),
        smt=tuple(sorted(siblings)),
        pinned_cpu=pinned_cpu,
        hypervisor=host.hypervisor,
        nested=host.nested,
        emulator=host.emulator,
        virtual_time=host.emulator is not None,
        load_average=os.getloadavg(),
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        versions={"kvmpy": __version__, "python": platform.python_version()},
    )


def _tsc_scaling(vcpu: VCPU) -> bool | None:
    """KVM_CAP_TSC_CONTROL: the guest's TSC can run at another rate than the host's."""
    return bool(vcpu.vm.check_extension("TSC_CONTROL"))


class _Unbound(System):
    """The system as it was before this thread was bound to one pCPU."""

    def __init__(self, allowed: frozenset[int]):
        self._allowed = allowed

    def allowed_cpus(self) -> frozenset[int]:
        return self._allowed


class Surroundings:
    """What disturbs a run on this host (:mod:`kvmpy.probe.disturbance`): looked for when it is
    made, before the run, and while the run is under way.

    ``allowed``: pCPUs that the process could use before its thread was bound to one of them.
    ``warned``: called now with what was found, if there is anything.

    >>> verdict = kvmpy.probe.verdict.verdict()
    >>> around = kvmpy.bench.disclosure.Surroundings(verdict, 0, frozenset({0, 1}))
    >>> all(isinstance(text, str) for text in around.warnings())
    True
    """

    def __init__(
        self,
        verdict: backend.Verdict,
        pinned_cpu: int | None,
        allowed: frozenset[int],
        warned: Warned = None,
    ):
        self._found = disturbance.examine(verdict, pinned_cpu, _Unbound(allowed))
        if warned and self._found:
            warned(self._found)
        self._watch = disturbance.DisturbanceWatch(pinned_cpu)
        self._started, self._waited = time.monotonic(), run_delay()

    def warnings(self) -> tuple[str, ...]:
        """All that was found, and what was seen since, a sentence or two each.

        >>> verdict = kvmpy.probe.verdict.verdict()
        >>> around = kvmpy.bench.disclosure.Surroundings(verdict, None, frozenset({0}))
        >>> isinstance(around.warnings(), tuple)
        True
        """
        seen = [*map(str, self._found), *map(str, self._watch.seen())]
        waited = run_delay().get("run_delay_ns", 0) - self._waited.get("run_delay_ns", 0)
        share = waited / 1e9 / max(1e-9, time.monotonic() - self._started)
        if share > _WAITING:
            seen.append(f"waiting: other threads had this one's pCPU for {share:.1%} of the run.")
        return tuple(dict.fromkeys(seen))

    def steal(self) -> float | None:
        """Share of the pCPU's time, 0 to 1, that was stolen since; None if unknown.

        >>> verdict = kvmpy.probe.verdict.verdict()
        >>> around = kvmpy.bench.disclosure.Surroundings(verdict, 0, frozenset({0}))
        >>> (around.steal() or 0.0) < 1
        True
        """
        return self._watch.steal()
