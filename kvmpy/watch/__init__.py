"""Watching vCPUs: those of the machines in this process, or of any of this user's processes.

    with kvmpy.watch.Watch() as watch:
        time.sleep(1)
        for machine in watch.sample().machines:
            for vcpu in machine.vcpus:
                print(machine.pid, vcpu.id, vcpu.pcpu, vcpu.guest, vcpu.exits)

Nothing of it runs in the watched process: see :mod:`kvmpy.watch.publish`.
"""

from .find import MachineInfo, PeerError, machines
from .samples import MachineSample, Sample, VcpuSample
from .watch import Watch

__all__ = [
    "MachineInfo", "MachineSample", "PeerError", "Sample", "VcpuSample", "Watch", "machines",
]  # fmt: skip
