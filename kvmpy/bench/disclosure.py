"""What a benchmark's figures were taken on."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .. import __version__
from ..errors import KvmpyError
from ..host import backend, cpu, topology
from .record import Disclosure

if TYPE_CHECKING:
    from ..vcpu import VCPU

_INVARIANT_TSC: Final = 1 << 8  # CPUID 80000007h, EDX
_SYSFS: Final = Path("/sys/devices/system/cpu")


@contextmanager
def pinned(wanted: int | None) -> Iterator[int | None]:
    """Bind this thread to a pCPU for the block: ``wanted``, or the last one it may use (the first
    gets most interrupts). Gives its number, None where binding is not allowed.

    Raises PinError for a ``wanted`` that cannot be had.

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
    if cpu.cpuid(0x8000_0000)[0] < 0x8000_0007:
        return None
    return bool(cpu.cpuid(0x8000_0007)[3] & _INVARIANT_TSC)


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
    """Everything that `Disclosure` asks for. ``vcpu``: of one of the VMs measured.

    >>> verdict = kvmpy.host.backend.verdict()
    >>> kvmpy.bench.disclosure.collect(cpu, verdict, None).module.startswith("kvm")
    True
    """
    host = cpu.identify()
    parameters = {
        f"{module}.{name}": value
        for module in ("kvm", verdict.module)
        for name, value in backend.module_parameters(module).items()
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


def warnings(verdict: backend.Verdict, pinned_cpu: int | None) -> tuple[str, ...]:
    """What of this host makes figures mean less, a sentence each.

    >>> verdict = kvmpy.host.backend.verdict()
    >>> isinstance(kvmpy.bench.disclosure.warnings(verdict, 0), tuple)
    True
    """
    found = []
    if verdict.emulator:
        found.append(
            f"This host's CPU is emulated by {verdict.emulator}: time is virtual, and no figure "
            "here is one of hardware."
        )
    elif verdict.nested:
        found.append(
            "This host is a virtual machine itself: its own host's exits are in all times."
        )
    if verdict.ring0 == "emulated":
        found.append(
            f"{verdict.module} interprets ring 0: rows that cross it measure KVM's instruction "
            "emulator."
        )
    if pinned_cpu is None:
        found.append("The thread could not be bound to one pCPU.")
    return tuple(found)
