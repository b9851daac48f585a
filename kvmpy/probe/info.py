"""Everything ``info`` tells, as one plain object."""

from __future__ import annotations

import dataclasses
import platform
from typing import Any

from .. import __version__
from ..host import cpu, topology
from ..host.module import module_name, module_parameters
from ..kvm import API_VERSION, KVM
from ..x86.modes import Mode
from . import capabilities, modes, verdict as backend


def collect() -> dict[str, Any]:
    """What this host's KVM offers, ready for JSON. Takes 50 to 300 ms: it runs guests.

    Keys:

    ``kvmpy``, ``kernel``: versions. ``module``, ``parameters``: the KVM module and what it was
    loaded with. ``api_version``: 12.
    ``cpu``: :class:`~kvmpy.host.cpu.HostCpu`. ``pcpus``: those this process may use, as a list.
    ``verdict``: :class:`~kvmpy.probe.verdict.Verdict`, with ``summary`` and ``performance``.
    ``limits``: :func:`~kvmpy.probe.capabilities.limits`.
    ``capabilities``: name -> value of KVM_CHECK_EXTENSION, 0 for absent.
    ``modes``: list of ``mode``, ``ring``, ``outcome`` (native, emulated, fails), ``nanoseconds``
    for an instruction (or null), ``detail``.
    ``ways_in``: list of ``instruction`` (in 64-bit ring 3), ``ring`` its handler starts in (or
    null), ``detail``.

    Raises a KvmUnavailableError when there is no usable KVM.
    """
    module = module_name()
    parameters = module_parameters(module)
    host = cpu.identify()
    with KVM() as kvm:
        found = list(capabilities.read(kvm))
        limits = capabilities.limits(kvm)
    results = modes.probe_all()
    by_ring = {result.ring: result for result in results if result.mode is Mode.LONG_64}
    verdict = backend.judge(module, parameters, host, by_ring[0], by_ring[3])
    return {
        "kvmpy": __version__,
        "kernel": f"{platform.system()} {platform.release()}",
        "module": module,
        "parameters": parameters,
        "api_version": API_VERSION,
        "cpu": dataclasses.asdict(host)
        | {"nested": host.nested, "surroundings": host.surroundings},
        "pcpus": sorted(topology.allowed_cpus()),
        "verdict": dataclasses.asdict(verdict)
        | {"summary": verdict.summary, "performance": verdict.performance},
        "limits": limits,
        "capabilities": {item.name: item.value for item in found},
        "modes": [dataclasses.asdict(r) | {"mode": r.mode.value} for r in results],
        "ways_in": [dataclasses.asdict(way) for way in modes.ways_in()],
    }
