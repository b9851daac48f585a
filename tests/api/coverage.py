#!/usr/bin/env python3
"""How much of KVM's x86 API kvmpy covers, and which KVM modules proved it.

    python tests/api/coverage.py [--brief] [host=results/host.xml kvm_amd=results/svm.xml ...]

Compares kvmpy/ioctls/table.py with the installed <linux/kvm.h> and with the list of the kernel's
KVM API document (documented.tsv), the exits with the header, and the methods that the table names
with the package. With JUnit files of test runs it also lists on which run a passed test made each
ioctl with success, saw each exit and enabled each capability. Exit status 1 when something of x86
is missing, or no test ever made an ioctl and no reason is stated here. A run whose tests made no
ioctl was left out (no /dev/kvm, no rig, no file). An ioctl that only such runs can show
(SHOWN_BY) is told, and does not count.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEADER = Path("/usr/include/linux/kvm.h")
DOCUMENTED = Path(__file__).with_name("documented.tsv")

#: Of the header, and not of x86 or not of KVM any longer: pattern -> why.
NOT_OURS = {
    r"KVM_(S390|PPC|ARM)_\w+": "another architecture's",
    r"KVM_(ALLOCATE_RMA|CREATE_SPAPR_TCE(_64)?|DIRTY_TLB)": "PowerPC's",
    r"KVM_(DE)?ASSIGN_\w+": "device assignment by KVM itself, removed in 4.12: VFIO took its place",
    r"KVM_SET_MEMORY_(REGION|ALIAS)": "never worked since 2.6.3x: KVM_SET_USER_MEMORY_REGION",
    r"KVM_GET_NESTED_STATE_SIZE": "no ioctl",
}
#: Exit reasons that x86 never gives.
NOT_OUR_EXITS = re.compile(r"KVM_EXIT_(S390|DCR|OSI|PAPR|WATCHDOG|EPR|ARM|RISCV|LOONGARCH)\w*")

_SEV = "needs AMD SEV or Intel TDX hardware; the structures and the error are tested"
_NEWER = "is of Linux 6.18 and newer: shown where the host has it"
_OLDER = "is of Linux before 6.4: shown where a rig or the host is that old"
#: Ioctls that a passed test need not have made: why.
UNPROVEN = {
    "KVM_MEMORY_ENCRYPT_OP": _SEV,
    "KVM_MEMORY_ENCRYPT_REG_REGION": _SEV,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": _SEV,
    "KVM_GET_ONE_REG": _NEWER,
    "KVM_SET_ONE_REG": _NEWER,
    "KVM_GET_REG_LIST": _NEWER,
    "KVM_GET_NR_MMU_PAGES": _OLDER,
}

_BOTH, _6_12 = ("kvm_amd", "kvm_intel"), ("kvm_amd_new",)
#: Ioctls that not every KVM has: the runs of ``make test`` that show them. Any run shows the rest.
SHOWN_BY = {
    "KVM_SMI": _BOTH,
    "KVM_GET_NESTED_STATE": _BOTH,
    "KVM_SET_NESTED_STATE": _BOTH,
    "KVM_HYPERV_EVENTFD": _BOTH,
    "KVM_GET_SUPPORTED_HV_CPUID": _BOTH,
    "KVM_SET_USER_MEMORY_REGION2": _6_12,
    "KVM_SET_MEMORY_ATTRIBUTES": _6_12,
    "KVM_CREATE_GUEST_MEMFD": _6_12,
    "KVM_PRE_FAULT_MEMORY": _6_12,
    # CONFIG_KVM_XEN
    "KVM_XEN_HVM_CONFIG": _6_12,
    "KVM_XEN_HVM_GET_ATTR": _6_12,
    "KVM_XEN_HVM_SET_ATTR": _6_12,
    "KVM_XEN_HVM_EVTCHN_SEND": _6_12,
    "KVM_XEN_VCPU_GET_ATTR": _6_12,
    "KVM_XEN_VCPU_SET_ATTR": _6_12,
}

#: Exits that none of the runs shows: why. Their decoding is tested in tests/unit.
UNSEEN = {
    "Exception_": "needs an Intel processor and a host that forbids split locks",
    "Intr": "comes with EINTR, which is no exit to kvmpy but a signal or a kick",
    "Nmi": "no KVM gives it on x86 any longer",
    "ApResetHold": "needs AMD SEV-ES hardware",
    "BusLock": "needs an Intel processor that detects bus locks",
    "Notify": "needs an Intel processor with a notification window",
    "Tdx": "needs Intel TDX hardware",
    "HypervOther": "of kernels newer than this package",
}

Rows = Mapping[str, Sequence[str]]


@dataclass
class Run:
    """What the passed tests of one run showed: names of ioctls, exits and enabled capabilities."""

    ioctls: set[str] = field(default_factory=set)
    exits: set[str] = field(default_factory=set)
    capabilities: set[str] = field(default_factory=set)

    def add(self, other: Run) -> None:
        """The other part of a run that was made in two."""
        self.ioctls |= other.ioctls
        self.exits |= other.exits
        self.capabilities |= other.capabilities


# ---------------------------------------------------------------- the package against the API


def table() -> dict[str, list[str]]:
    """kvmpy's rows by name."""
    from kvmpy.ioctls.table import TABLE

    return {row.split()[0]: row.split() for row in TABLE.splitlines() if row}


def header_ioctls(text: str) -> set[str]:
    """The names that a header defines as KVM ioctls."""
    text = text.replace("\\\n", " ")
    return set(re.findall(r"^#define\s+(KVM_\w+)\s+_IO[RW]*\s*\(\s*KVMIO", text, re.MULTILINE))


def header_exits(text: str) -> dict[str, int]:
    """The exit reasons that a header defines and x86 can give."""
    found = re.findall(r"^#define\s+(KVM_EXIT_\w+)\s+(\d+)\b", text, re.MULTILINE)
    inner = ("KVM_EXIT_IO_", "KVM_EXIT_HYPERV_", "KVM_EXIT_XEN_")
    return {
        name: int(number)
        for name, number in found
        if not name.startswith(inner) and not NOT_OUR_EXITS.fullmatch(name)
    }


def check_header(rows: Rows, text: str) -> Iterator[str]:
    """Every ioctl of the header is in the table, or not ours."""
    names = header_ioctls(text)
    if len(names) < 100:
        yield f"{HEADER}: only {len(names)} ioctls were found in it"
    for name in sorted(names - set(rows)):
        if not any(re.fullmatch(pattern, name) for pattern in NOT_OURS):
            yield f"{name} is in {HEADER}, and not in kvmpy/ioctls/table.py"


def check_documented(rows: Rows, text: str) -> Iterator[str]:
    """Every documented ioctl of x86 is in the table, under its section and descriptor."""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        section, name, architectures, descriptors = line.split("\t")
        if not {"x86", "all"} & set(architectures.split(",")):
            continue
        row = rows.get(name)
        if row is None:
            yield f"{name} (KVM API {section}) is not in kvmpy/ioctls/table.py"
            continue
        if row[5] != section:
            yield f"{name}: section {row[5]} in the table, {section} in the document"
        missing = set(descriptors.split(",")) - set(row[1].split(",")) - {""}
        # The document has these wrong: KVM takes them on a vCPU, and on the VM.
        wrong = re.fullmatch(r"KVM_([GS]ET_DEBUGREGS|MEMORY_ENCRYPT_\w+)", name)
        if missing and not wrong:
            yield f"{name}: the document also has it on {', '.join(sorted(missing))}"


def exit_classes() -> dict[int, list[str]]:
    """The names of kvmpy's exits by reason."""
    from kvmpy.exits import reasons as exits

    found: dict[int, list[str]] = {}
    kinds = [kind for kind in vars(exits).values() if isinstance(kind, type)]
    for kind in kinds:
        leaf = issubclass(kind, exits.Exit) and not kind.__subclasses__()
        if leaf and kind.reason >= 0:
            found.setdefault(kind.reason, []).append(kind.__name__)
    return found


def all_reasons(header: Mapping[str, int]) -> dict[str, int]:
    """The header's exit reasons, and those of newer kernels that kvmpy has."""
    from kvmpy.exits.names import REASONS

    newer = {f"KVM_EXIT_{REASONS[n]}": n for n in exit_classes() if n not in header.values()}
    return dict(sorted({**header, **newer}.items(), key=lambda item: item[1]))


def check_exits(reasons: Mapping[str, int]) -> Iterator[str]:
    """Every exit reason of the header that x86 can give has a class."""
    known = exit_classes()
    if len(reasons) < 20:
        yield f"{HEADER}: only {len(reasons)} exit reasons were found in it"
    for name, number in reasons.items():
        if number not in known:
            yield f"{name} = {number} has no class in kvmpy/exits.py"


def check_methods(rows: Rows) -> Iterator[str]:
    """The method that a row names exists."""
    import kvmpy

    for name, row in rows.items():
        owner, *attributes = row[6].split(".")
        kind = getattr(kvmpy, owner, None)
        if kind is None:
            yield f"{name}: the table names {row[6]}, and there is no {owner}"
        elif not has(kind, attributes):
            yield f"{name}: the table names {row[6]}, which does not exist"


def has(kind: type, attributes: list[str]) -> bool:
    """Whether its instances have them, one behind the other: ``["xen", "get"]`` of VM."""
    if not attributes:
        return True
    first, *rest = attributes
    found = inspect.getattr_static(kind, first, None)
    if rest:  # an object of its own: the property says of which class
        from kvmpy.memory import encryption
        from kvmpy.paravirt import hyperv, xen_calls
        from kvmpy.state import mce

        name = inspect.signature(found.fget).return_annotation
        (held,) = (
            vars(room)[name] for room in (encryption, hyperv, mce, xen_calls) if name in vars(room)
        )
        return has(held, rest)
    sources = (inspect.getsource(base) for base in kind.__mro__ if base is not object)
    return found is not None or any(f"self.{first}:" in source for source in sources)


# ---------------------------------------------------------------- what test runs showed


def read_run(path: Path) -> Run:
    """What the passed tests of a JUnit file showed, as tests/conftest.py noted it there."""
    run = Run()
    if not path.exists():
        return run
    spoilt: set[tuple[str | None, str | None]] = set()
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))
    for case in cases:  # a test whose teardown fails has two
        if any(case.find(tag) is not None for tag in ("failure", "error", "skipped")):
            spoilt.add((case.get("classname"), case.get("name")))
    for case in cases:
        if (case.get("classname"), case.get("name")) not in spoilt:
            for found in case.iter("property"):
                if found.get("name") in ("ioctls", "exits", "capabilities"):
                    names = (found.get("value") or "").split()
                    getattr(run, str(found.get("name"))).update(names)
    return run


def judge_proofs(rows: Rows, runs: Mapping[str, Run]) -> tuple[list[str], list[str]]:
    """(what is missing, remarks): every ioctl was made by a passed test somewhere, or the reason
    why not is stated, or only a run that was not made shows it."""
    missing, remarks = [], []
    made = {name for name, run in runs.items() if run.ioctls}
    shown = set().union(*(run.ioctls for run in runs.values()))
    if not shown:
        return [], ["no test results: nothing is proved"]
    for name in rows:
        if name in shown or name in UNPROVEN:
            continue
        able = SHOWN_BY.get(name, ())
        if able and not made.intersection(able):
            remarks.append(f"{name}: not shown: left to {' and '.join(able)}, not run")
        else:
            missing.append(f"{name}: no passed test made it with success, and no reason is stated")
    remarks += [f"{name}: shown after all: it {UNPROVEN[name]}" for name in _stale(shown)]
    return missing, remarks


def _stale(shown: set[str]) -> list[str]:
    """Reasons that a run has overtaken; those that name a kernel hold for other ones."""
    found = shown.intersection(UNPROVEN)
    return sorted(name for name in found if UNPROVEN[name] not in (_NEWER, _OLDER))


# ---------------------------------------------------------------- the report


def _line(name: str, what: str, marks: Iterable[bool], width: int = 32) -> str:
    cells = (f"{'yes' if mark else '-':<11}" for mark in marks)
    return f"{name:<{width}} {what:<30} {' '.join(cells)}".rstrip()


def _head(name: str, what: str, runs: Iterable[str]) -> str:
    return f"{name:<32} {what:<30} {' '.join(f'{run:<11}' for run in runs)}".rstrip()


def report(rows: Rows, reasons: Mapping[str, int], runs: Mapping[str, Run]) -> Iterator[str]:
    """Tables for people: ioctls, exits and capabilities to enable; and which runs showed them."""
    yield _head("ioctl", "method", runs)
    for name, row in rows.items():
        marks = [name in run.ioctls for run in runs.values()]
        yield _line(name, row[6], marks)
        if runs and name in UNPROVEN and not any(marks):
            yield f"    {UNPROVEN[name]}"
    yield ""
    yield _head("exit reason", "class", runs)
    for name, number in reasons.items():
        for kind in exit_classes().get(number, ()):
            marks = [kind in run.exits for run in runs.values()]
            yield _line(name, kind, marks)
            if runs and kind in UNSEEN and not any(marks):
                yield f"    {UNSEEN[kind]}"
    yield ""
    yield _head("capability to enable", "method", runs)
    from kvmpy.ioctls import enabling

    for row in enabling.TABLE.values():
        method = row.method or f"{row.target.upper()}.enable_capability"
        yield _line(row.name, method, (row.name in run.capabilities for run in runs.values()))


def summary(rows: Rows, reasons: Mapping[str, int], runs: Mapping[str, Run]) -> Iterator[str]:
    """The totals."""
    from kvmpy.ioctls import capabilities, enabling

    kinds = {kind for number in reasons.values() for kind in exit_classes().get(number, ())}
    enabled = set(enabling.TABLE)

    def shown(names: set[str], attribute: str) -> str:
        found = set().union(*(getattr(run, attribute) for run in runs.values())) & names
        return f", {len(found)} shown by passed tests" if runs else ""

    yield f"{len(rows)} ioctls of x86{shown(set(rows), 'ioctls')}"
    yield f"{len(kinds)} exits of {len(reasons)} reasons{shown(kinds, 'exits')}"
    yield (
        f"{len(capabilities.names())} capabilities by name, {len(enabled)} to enable"
        f"{shown(enabled, 'capabilities')}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Report and judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("junit", nargs="*", metavar="NAME=FILE", help="a run's JUnit XML")
    parser.add_argument("--brief", action="store_true", help="only totals and what is missing")
    given = parser.parse_args(arguments)
    runs: dict[str, Run] = {}
    for name, _, path in (text.partition("=") for text in given.junit):
        runs.setdefault(name, Run()).add(read_run(Path(path)))
    header, rows = HEADER.read_text(), table()
    reasons = all_reasons(header_exits(header))
    missing, remarks = judge_proofs(rows, runs)
    problems = [
        *check_header(rows, header),
        *check_documented(rows, DOCUMENTED.read_text()),
        *check_exits(reasons),
        *check_methods(rows),
        *missing,
    ]
    made = {name: run for name, run in runs.items() if run.ioctls}
    if not given.brief:
        print("\n".join([*report(rows, reasons, made), ""]))
    print("\n".join([*summary(rows, reasons, made), *remarks]))
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
