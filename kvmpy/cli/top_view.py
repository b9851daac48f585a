"""What ``kvmpy top`` shows of a sample, as lines of styled text: the same on a terminal and not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..watch.find import MachineInfo
    from ..watch.samples import MachineSample, Sample, VcpuSample

#: A piece of a line, and rich's name for its style.
Piece = tuple[str, str]
Line = Sequence[Piece]

_COLUMNS = "vCPU pCPU allowed  guest  host steal  wait  poll exits/s  by reason"
_ALLOWED = 7  # characters for the CPU list
_SHARES = ("guest", "host", "steal", "wait", "halt_poll")
_BUSY = {"guest": "green", "host": "yellow", "steal": "red"}
#: From this share on it has its colour.
_STRIKING = {"guest": 0.5, "host": 0.5, "steal": 0.1}
_PLAIN_WIDTH = 80
#: Samples for which a machine that has ended is still named.
_FAREWELL = 10


def rate(value: float | None) -> str:
    """A rate in 5 characters at most: 0.4, 33, 8120, 12.3k, 1.2M."""
    if value is None:
        return "-"
    if value < 9.95:
        return f"{value:.1f}" if value >= 0.05 else "0"
    if value < 9999.5:
        return f"{value:.0f}"
    power = 1 + (value >= 999.5e3) + (value >= 999.5e6)
    value /= 1000**power
    return (f"{value:.1f}" if value < 99.95 else f"{value:.0f}") + "kMG"[power - 1]


def share(value: float | None) -> str:
    """A share in per cent: 97.2, and of several vCPUs 312."""
    if value is None:
        return "-"
    return f"{100 * value:.1f}" if value < 0.9995 else f"{100 * value:.0f}"


def _size(size: int) -> str:
    for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
        if size >= 1 << shift and not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return f"{size} bytes"


def fitting(items: Sequence[str], width: int, separator: str = "  ") -> str:
    """As many whole items as there is room for."""
    text = ""
    for item in items:
        longer = text + separator + item if text else item
        if len(longer) > width:
            break
        text = longer
    return text


def _clip(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "+"


class View:
    """Turns samples into lines. ``width`` in characters, for each call."""

    def __init__(self) -> None:
        self._gone: dict[str, tuple[int, MachineInfo]] = {}

    def body(self, sample: Sample, width: int) -> list[Line]:
        """All machines, each with its vCPUs, then what is not there, and why."""
        self._note_ended(sample)
        lines: list[Line] = []
        for machine in sample.machines:
            lines += _machine(machine, width)
        for _, info in self._gone.values():
            lines.append([(_clip(f"process {info.pid}  {info.name}: ended", width), "bold red")])
        notes = {note: None for machine in sample.machines for note in machine.notes}
        lines += [[(_clip(f"- {note}", width), "dim")] for note in notes]
        for pid, reason in sample.refused.items():
            lines.append([(_clip(f"process {pid} cannot be watched: {reason}", width), "dim")])
        return lines

    def title(self, sample: Sample, width: int) -> Line:
        """The clock, and how much there is to see."""
        machines, cpus = len(sample.machines), sum(len(m.vcpus) for m in sample.machines)
        seconds = max((machine.seconds for machine in sample.machines), default=0.0)
        text = (
            f"kvmpy top  {time.strftime('%H:%M:%S', time.localtime(sample.time))}  "
            f"{machines} machine{'s' * (machines != 1)}, {cpus} vCPU{'s' * (cpus != 1)}"
        )
        return [(_clip(f"{text}, {seconds:.1f} s" if seconds else text, width), "bold")]

    def columns(self, width: int) -> Line:
        """The headings of the vCPUs' columns."""
        return [(_COLUMNS[:width].ljust(width), "reverse")]

    def plain(self, sample: Sample) -> list[str]:
        """The whole as text, for a pipe."""
        lines = [self.title(sample, _PLAIN_WIDTH), [(_COLUMNS, "")]]
        lines += self.body(sample, _PLAIN_WIDTH)
        return ["".join(text for text, _ in line).rstrip() for line in lines]

    def _note_ended(self, sample: Sample) -> None:
        left = {key: (n - 1, info) for key, (n, info) in self._gone.items() if n > 1}
        left |= {info.socket: (_FAREWELL, info) for info in sample.ended}
        self._gone = left


def _machine(machine: MachineSample, width: int) -> list[Line]:
    info = machine.info
    cpus = f"{info.cpus} vCPU{'s' * (info.cpus != 1)}"
    facts = f", {_size(info.memory)}, {cpus}"
    start = f"process {info.pid}  "
    name = _clip(info.name, max(width - len(start) - len(facts), 8))
    lines: list[Line] = [[(_clip(start + name + facts, width), "bold cyan")]]
    if info.cpus > 1:
        used = (f"{name} {share(machine.total(name))}%" for name in ("guest", "host", "steal"))
        exits = f"{rate(machine.total('exits'))} exits/s"
        lines.append(_indented("together", [*used, exits], width))
    reasons = machine.totals("reasons")
    if reasons:
        lines.append(_indented("to user space", _with_cost(machine, reasons), width))
    settled = machine.totals("kvm")
    if settled:
        items = [f"{name.removesuffix('_exits')} {rate(x)}" for name, x in settled.items()]
        lines.append(_indented("in KVM", items, width))
    return [*lines, *(_vcpu(vcpu, width) for vcpu in machine.vcpus)]


def _indented(label: str, items: Sequence[str], width: int) -> Line:
    return [(f"  {label:<13} ", "dim"), (fitting(items, width - 16), "")]


def _with_cost(machine: MachineSample, reasons: Mapping[str, float]) -> list[str]:
    """Rates by reason; of a measured machine, how long an exit took."""
    spent: dict[str, float] = {}
    for vcpu in machine.vcpus:
        for name, each in vcpu.handling_us.items():
            spent[name] = spent.get(name, 0) + each * vcpu.reasons[name]
    return [
        f"{name} {rate(x)}" + (f" ({spent[name] / x:.1f} us)" if name in spent else "")
        for name, x in reasons.items()
    ]


def _vcpu(vcpu: VcpuSample, width: int) -> Line:
    pcpu = "-" if vcpu.pcpu is None else str(vcpu.pcpu)
    allowed = _clip(vcpu.allowed or "-", _ALLOWED)
    line: list[Piece] = [(f"{vcpu.id:4} {pcpu:>4} {allowed:<{_ALLOWED}}", "")]
    if vcpu.state != "running":
        return [*line, (f"  {vcpu.state}", "dim")]
    for name in _SHARES:
        value: float | None = getattr(vcpu, name)
        striking = value is not None and value >= _STRIKING.get(name, 2)
        line.append((f" {share(value):>5}", _BUSY[name] if striking else ""))
    line.append((f" {rate(vcpu.exits):>7}  ", ""))
    used = sum(len(text) for text, _ in line)
    line.append((fitting(_by_reason(vcpu), width - used, " "), ""))
    return line


def _by_reason(vcpu: VcpuSample) -> list[str]:
    """What came to user space, then what KVM settled."""
    user = [f"{name} {rate(x)}" for name, x in vcpu.reasons.items()]
    settled = [
        f"{name.removesuffix('_exits')} {rate(x)}"
        for name, x in vcpu.kvm.items()
        if name.endswith("_exits")
    ]
    return user + settled
