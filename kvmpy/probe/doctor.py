"""Can this host run guests? What is wrong, and what to do about it."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import KvmPermissionError, KvmpyError, KvmUnavailableError
from ..host import topology
from .system import DEVICE, System

#: "note": information; "warning": guests run, and something is less than it could be;
#: "problem": guests do not run; "skipped": an earlier problem stands in the way.
Status = Literal["ok", "note", "warning", "problem", "skipped"]

_MIN_OPEN_FILES = 256
_MIN_MEMORY_KIB = 256 << 10


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, how it is, in words, and what to do if it is not well."""

    name: str
    status: Status
    finding: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which things build on each other."""

    checks: tuple[Check, ...]
    module: str

    @property
    def runs(self) -> bool:
        """Whether a guest ran."""
        return _ran(self.checks)

    @property
    def headline(self) -> str:
        """The outcome in a sentence."""
        if self.runs:
            count = sum(check.status == "warning" for check in self.checks)
            plural = "" if count == 1 else "s"
            noted = f", with {count} warning{plural}" if count else ""
            return f"Guests run on this host ({self.module}){noted}."
        first = next((check for check in self.checks if check.status == "problem"), None)
        return f"Guests do not run on this host: {first.finding if first else 'see below.'}"


_GUEST = "first guest"


def _ran(checks: Iterable[Check]) -> bool:
    return any(check.name == _GUEST and check.status == "ok" for check in checks)


_NESTED_REMEDY = (
    "Give this virtual machine nested virtualization on its host: under KVM, 'modprobe kvm_intel "
    "nested=1' (or kvm_amd) there and CPU model 'host'; on VMware and Hyper-V, expose "
    "virtualization to the guest; in a cloud, take an instance type with nested virtualization or "
    "a bare-metal one."
)
_FIRMWARE_REMEDY = "Enable VT-x (Intel) or SVM (AMD) in the firmware setup and power-cycle."


def examine(system: System | None = None) -> Diagnosis:
    """Look at everything. Never raises: a check that fails itself is a finding."""
    return _Examination(system or System()).run()


@dataclass
class _Examination:
    system: System
    checks: list[Check] = field(default_factory=list)

    def run(self) -> Diagnosis:
        self._guarded("CPU", self._cpu)
        self._guarded("module", self._module)
        self._guarded("device", self._device)
        self._guarded("permissions", self._permissions)
        with ExitStack() as stack:
            self._guarded("KVM", lambda: self._kvm(stack))
        self._guarded("backend", self._backend)
        self._guarded("ring 3 to 0", self._system_calls)
        self._guarded("assembler", self._assembler)
        self._guarded("limits", self._limits)
        self._guarded("memory", self._memory)
        self._guarded("pCPUs", self._cpus)
        self._guarded("network", self._tun)
        if self._ran:  # whatever looked like a problem, it is none
            self.checks = [
                replace(check, status="warning") if check.status == "problem" else check
                for check in self.checks
            ]
        return Diagnosis(tuple(self.checks), self._named_module())

    def _named_module(self) -> str:
        try:
            return self.system.module()
        except Exception:  # reported by _module already
            return "kvm"

    def _guarded(self, name: str, step: Callable[[], Iterator[Check] | None]) -> None:
        """Add what ``step`` yields; a bug or a strange system must not hide the other findings."""
        try:
            self.checks.extend(step() or ())
        except KvmpyError as error:
            self._add(name, "warning", f"Could not be checked: {error}.")
        except Exception as error:
            what = f"Could not be checked: {type(error).__name__}: {error}."
            self._add(name, "warning", what, "Report this as a bug of kvmpy.")

    def _add(self, name: str, status: Status, finding: str, remedy: str = "") -> None:
        self.checks.append(Check(name, status, finding, remedy))

    @property
    def _ran(self) -> bool:
        return _ran(self.checks)

    # -- what the machine has

    def _cpu(self) -> Iterator[Check]:
        cpu, module = self.system.cpu(), self.system.module()
        what = f"{cpu.model or cpu.vendor}, {cpu.extension or 'no VT-x or AMD-V'}"
        where = f"{what}; {cpu.surroundings}."
        if module == "kvm_pvm":
            yield Check("CPU", "ok", f"{where} kvm_pvm needs no extension.")
        elif cpu.extension is None:
            yield Check("CPU", "problem", where, _NESTED_REMEDY if cpu.nested else _FIRMWARE_REMEDY)
        elif not self.system.cpu_flags() & {"vmx", "svm"}:
            finding = f"{where} The kernel does not use {cpu.extension}: the firmware disables it."
            yield Check("CPU", "problem", finding, _FIRMWARE_REMEDY)
        else:
            yield Check("CPU", "ok", where)

    def _module(self) -> Iterator[Check]:
        module = self.system.module()
        if module != "kvm":
            yield Check("module", "ok", f"{module} is loaded.")
            return
        if self.system.exists(DEVICE):
            finding = "No vendor module can be seen in /sys/module, and there is a /dev/kvm."
            yield Check("module", "warning", finding)
            return
        wanted = {"VT-x": "kvm_intel", "AMD-V": "kvm_amd"}.get(self.system.cpu().extension or "")
        yield Check(
            "module",
            "problem",
            "No KVM module is loaded.",
            f"Load it: 'sudo modprobe {wanted}'; 'dmesg | grep -i kvm' tells why if that fails."
            if wanted
            else "Without VT-x or AMD-V only kvm_pvm can be, which not every kernel has.",
        )

    def _device(self) -> Iterator[Check]:
        if self.system.exists(DEVICE):
            yield Check("device", "ok", f"{DEVICE} exists.")
            return
        container = _container(self.system)
        remedy = (
            f"This is a container ({container}): pass the device in, 'docker run --device "
            f"{DEVICE}', or a device plugin in Kubernetes."
            if container
            else f"'sudo modprobe' the module above; udev then makes {DEVICE}."
        )
        yield Check("device", "problem", f"{DEVICE} does not exist.", remedy)

    def _permissions(self) -> Iterator[Check]:
        if not self.system.exists(DEVICE):
            yield Check("permissions", "skipped", f"There is no {DEVICE}.")
            return
        access = self.system.device_access()
        node = f"{DEVICE} is {access.group}'s, mode {access.mode:03o}"
        if access.readable:
            yield Check("permissions", "ok", f"{node}; {access.user} may read and write it.")
            return
        if access.member and not access.active:
            remedy = f"The membership counts from the next login on; or 'newgrp {access.group}'."
            finding = f"{node}. {access.user} was added to the group after this login."
        else:
            finding = f"{node}; {access.user} may not open it."
            join = f"sudo usermod -aG {{}} {access.user}', then log in again."
            if access.mode & 0o060 == 0o060 and access.group != "root":
                remedy = "'" + join.format(access.group)
            else:  # no group may open it, or none that a user should be in
                remedy = f"'sudo chgrp kvm {DEVICE}; sudo chmod 660 {DEVICE}; " + join.format("kvm")
        yield Check("permissions", "problem", finding, remedy)

    # -- KVM, step by step

    def _kvm(self, stack: ExitStack) -> None:
        """Open KVM, create a VM and a vCPU, run a guest; stop at the first that fails."""
        names = ("KVM", "VM", "vCPU", _GUEST)
        done = 0
        try:
            kvm = stack.enter_context(self.system.open_kvm())
            self._add(names[0], "ok", f"{DEVICE} opens and speaks KVM API version 12.")
            done = 1
            vm = stack.enter_context(self.system.create_vm(kvm))
            self._add(names[1], "ok", "KVM creates a VM with memory.")
            done = 2
            vcpu = self.system.create_vcpu(vm)
            self._add(names[2], "ok", "The VM gets a vCPU.")
            done = 3
            trouble = self.system.run_guest(vcpu)
            if trouble:
                self._add(_GUEST, "problem", f"A guest ended unexpectedly: {trouble}")
            else:
                self._add(_GUEST, "ok", "A guest ran: 64-bit, ring 0, HLT.")
            done = 4
        except KvmUnavailableError as error:
            self._add(names[done], "problem", error.problem, self._remedy(error))
        except (KvmpyError, OSError) as error:
            self._add(names[done], "problem", f"{error}.", _ioctl_remedy(self.system))
        for name in names[done + 1 :]:
            self._add(name, "skipped", f"{names[done]} comes first.")

    def _remedy(self, error: KvmUnavailableError) -> str:
        if isinstance(error, KvmPermissionError) and self.system.device_access().readable:
            return (
                "The file's mode allows it, so a container's device cgroup or a security module "
                f"forbids it: 'docker run --device {DEVICE}'."
            )
        earlier = [check for check in self.checks if check.status == "problem" and check.remedy]
        if earlier and error.errno:  # the cause, found above, has the better remedy
            return f"See {earlier[0].name} above."
        return error.remedy

    # -- how well

    def _backend(self) -> Iterator[Check]:
        if not self._ran:
            yield Check("backend", "skipped", "No guest ran.")
            return
        verdict = self.system.verdict()
        if verdict.emulator:
            remedy = "Good for tests; measure elsewhere."
        elif verdict.ring0 != "native":
            remedy = (
                "Round trips, ring 3 and software overheads compare; for a native ring 0 use a "
                "host with kvm_intel or kvm_amd."
            )
        elif verdict.paging == "shadow":
            remedy = "Load the module with ept=1 (kvm_intel) or npt=1 (kvm_amd) if the CPU has it."
        else:
            remedy = ""
        shadow = " Shadow paging: the guest's page table work is slow."
        finding = verdict.summary + (shadow if verdict.paging == "shadow" else "")
        yield Check("backend", "warning" if remedy else "ok", finding, remedy)

    def _system_calls(self) -> Iterator[Check]:
        if not self._ran:
            yield Check("ring 3 to 0", "skipped", "No guest ran.")
            return
        ways = self.system.ways_in()
        good = [way.instruction for way in ways if way.ring == 0]
        bad = [way.instruction for way in ways if way.ring != 0]
        finding = f"Ways from 64-bit ring 3 into ring 0: {', '.join(good) or 'none'}"
        finding += f"; not {', '.join(bad)}." if bad else "."
        # SYSENTER is #UD in long mode on every AMD CPU: that alone does not fault KVM.
        expected = not bad or (bad == ["sysenter"] and self.system.module() == "kvm_amd")
        yield Check("ring 3 to 0", "ok" if expected else "warning", finding)

    # -- around KVM

    def _assembler(self) -> Iterator[Check]:
        missing = [tool for tool in ("as", "ld") if self.system.which(tool) is None]
        if missing:
            finding = f"GNU {' and '.join(missing)} not found: kvmpy.asm() cannot assemble."
            yield Check("assembler", "warning", finding, "'sudo apt install binutils'.")
        else:
            yield Check("assembler", "ok", "GNU as and ld are there, for kvmpy.asm().")

    def _limits(self) -> Iterator[Check]:
        files = self.system.limit(resource.RLIMIT_NOFILE)
        space = self.system.limit(resource.RLIMIT_AS)
        if files is not None and files < _MIN_OPEN_FILES:
            finding = f"{files} open files are allowed; a VM takes one, each vCPU one more."
            yield Check("limits", "warning", finding, "'ulimit -n 4096'.")
        elif space is not None:
            finding = f"Address space is limited to {space >> 20} MiB, guest memory included."
            yield Check("limits", "warning", finding, "'ulimit -v unlimited'.")
        else:
            locked = self.system.limit(resource.RLIMIT_MEMLOCK)
            locked_text = "unlimited" if locked is None else f"{locked >> 10} KiB"
            finding = f"{files or 'unlimited'} open files, {locked_text} locked memory."
            yield Check("limits", "ok", finding)

    def _memory(self) -> Iterator[Check]:
        values: dict[str, int] = {}
        for line in (self.system.text("/proc/meminfo") or "").splitlines():
            name, _, rest = line.partition(":")
            if rest.split()[:1] and rest.split()[0].isdecimal():
                values[name] = int(rest.split()[0])
        free, pages = values.get("MemAvailable", 0), values.get("HugePages_Free", 0)
        low = free < _MIN_MEMORY_KIB
        finding = f"{free >> 10} MiB available; {pages} huge pages free"
        finding += "." if pages else " (backing='hugetlb' falls back to ordinary ones)."
        remedy = "'boot' gives a guest 256M unless told otherwise: use --memory." if low else ""
        yield Check("memory", "warning" if low else "ok", finding, remedy)

    def _cpus(self) -> Iterator[Check]:
        allowed = self.system.allowed_cpus()
        finding = f"This process may use pCPU {topology.format_cpu_list(allowed)}."
        yield Check("pCPUs", "ok", finding)

    def _tun(self) -> Iterator[Check]:
        if self.system.exists("/dev/net/tun"):
            yield Check("network", "ok", "/dev/net/tun exists, for guests with a network.")
        else:
            yield Check("network", "note", "No /dev/net/tun: needed only by guests with a network.")


def _container(system: System) -> str:
    """What kind of container this is, "" if none is recognised."""
    if system.exists("/.dockerenv"):
        return "Docker"
    if system.exists("/run/.containerenv"):
        return "Podman"
    if system.environment("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    return (system.text("/run/systemd/container") or "").strip()


def _ioctl_remedy(system: System) -> str:
    if system.cpu().nested:
        return f"See 'dmesg | grep -i kvm'. {_NESTED_REMEDY}"
    return "See 'dmesg | grep -i kvm'."
