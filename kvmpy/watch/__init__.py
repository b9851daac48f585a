"""Watching vCPUs: those of the machines in this process, or of any of this user's processes.

    with kvmpy.watch.Watch() as watch:
        time.sleep(1)
        for machine in watch.sample().machines:
            for vcpu in machine.vcpus:
                print(machine.pid, vcpu.id, vcpu.pcpu, vcpu.guest, vcpu.exits)

Nothing of it runs in the watched process: see :mod:`kvmpy.watch.publish`.
"""

from ..lazy import attach

_TABLE = """
find: MachineInfo PeerError machines
samples: MachineSample Sample VcpuSample
watch: Watch
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
