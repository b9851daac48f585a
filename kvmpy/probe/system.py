"""What the doctor asks of the system, in one place, so that tests can answer instead."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..host import cpu, topology
from ..host.module import module_name
from . import verdict as backend

if TYPE_CHECKING:
    from ..kvm import KVM
    from ..vcpu import VCPU
    from ..vm import VM
    from .modes import WayIn

DEVICE = "/dev/kvm"


@dataclass(frozen=True, slots=True)
class DeviceAccess:
    """Who may open the device node, and who asks."""

    group: str
    mode: int
    readable: bool
    user: str
    is_root: bool
    #: In the group by /etc/group; ``active``: and in this session.
    member: bool
    active: bool


class System:
    """The questions. Each answers for the machine it runs on, and none changes anything."""

    def kernel(self) -> str:
        """Operating system and release."""
        return f"{platform.system()} {platform.release()}"

    def cpu(self) -> cpu.HostCpu:
        """What the CPU is."""
        return cpu.identify()

    def cpu_flags(self) -> frozenset[str]:
        """Flags of /proc/cpuinfo; empty if it cannot be read."""
        for line in (self.text("/proc/cpuinfo") or "").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
        return frozenset()

    def module(self) -> str:
        """The KVM vendor module."""
        return module_name()

    def text(self, path: str) -> str | None:
        """A file's contents, None if it cannot be read."""
        try:
            return Path(path).read_text(errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.exists(path)

    def environment(self, name: str) -> str:
        """An environment variable, "" if unset."""
        return os.environ.get(name, "")

    def which(self, program: str) -> str | None:
        """Where a program is."""
        return shutil.which(program)

    def limit(self, number: int) -> int | None:
        """The soft limit RLIMIT_* of this process, None for none."""
        soft, _ = resource.getrlimit(number)
        return None if soft == resource.RLIM_INFINITY else soft

    def allowed_cpus(self) -> frozenset[int]:
        """The pCPUs this process may use."""
        return topology.allowed_cpus()

    def device_access(self) -> DeviceAccess:
        """Who may open /dev/kvm. Raises OSError if it is not there."""
        status = os.stat(DEVICE)
        user = _user()
        group, members = _group(status.st_gid)
        active = status.st_gid in (os.getegid(), *os.getgroups())
        return DeviceAccess(
            group=group,
            mode=status.st_mode & 0o777,
            readable=os.access(DEVICE, os.R_OK | os.W_OK),
            user=user,
            is_root=os.geteuid() == 0,
            member=active or user in members,
            active=active,
        )

    # -- KVM itself

    def open_kvm(self) -> KVM:
        """/dev/kvm. Raises a KvmUnavailableError."""
        from ..kvm import KVM

        return KVM(DEVICE)

    def create_vm(self, kvm: KVM) -> VM:
        """A small VM. Raises KvmUnavailableError or KvmIoctlError."""
        from ..vm import VM

        return VM("1M", kvm=kvm)

    def create_vcpu(self, vm: VM) -> VCPU:
        """Its vCPU. Raises KvmIoctlError."""
        return vm.vcpu()

    def run_guest(self, vcpu: VCPU) -> str:
        """Run HLT in 64-bit ring 0; "" if it ends as it should, else what happened."""
        from ..exits.reasons import Hlt
        from ..x86.modes import Mode

        vcpu.vm.load(b"\xf4", at=0x1000)
        vcpu.enter(Mode.LONG_64, rip=0x1000)
        exit = vcpu.run(timeout=5.0)
        return "" if isinstance(exit, Hlt) else vcpu.explain(exit)

    def verdict(self) -> backend.Verdict:
        """What runs natively."""
        return backend.verdict()

    def ways_in(self) -> list[WayIn]:
        """How 64-bit ring 3 gets to ring 0."""
        from .modes import ways_in

        return ways_in()


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user without an entry
        return f"uid {os.geteuid()}"


def _group(gid: int) -> tuple[str, list[str]]:
    try:
        entry = grp.getgrgid(gid)
    except KeyError:
        return f"gid {gid}", []
    return entry.gr_name, entry.gr_mem
