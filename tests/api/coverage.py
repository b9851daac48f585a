#!/usr/bin/env python3
"""How much of KVM's x86 API kvmpy covers, and which KVM module proved it.

    python tests/api/coverage.py [kvm_pvm=results/host.xml kvm_amd=results/svm.xml ...]

Compares kvmpy/ioctl_table.py with the installed <linux/kvm.h> and with the list of the kernel's KVM
API document (documented.tsv), exits and capabilities with the header, and the table's methods with
the package. With JUnit files of test runs it lists for every ioctl on which module a passed test
made it with success. Exit status 1 when something of x86 is missing, or was never made, without a
reason stated here.
"""

from __future__ import annotations

import inspect
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from pathlib import Path

HEADERS = (Path("/usr/include/linux/kvm.h"), Path("/usr/include/x86_64-linux-gnu/asm/kvm.h"))
DOCUMENTED = Path(__file__).with_name("documented.tsv")

#: Of the header, and not of x86 or not of KVM any more: pattern -> why.
NOT_OURS = {
    r"KVM_(S390|PPC|ARM)_\w+": "another architecture's",
    r"KVM_(ALLOCATE_RMA|CREATE_SPAPR_TCE(_64)?|DIRTY_TLB)": "PowerPC's",
    r"KVM_(DE)?ASSIGN_\w+": "device assignment by KVM itself, removed in 4.12: VFIO took its place",
    r"KVM_SET_MEMORY_(REGION|ALIAS)": "never worked since 2.6.3x: KVM_SET_USER_MEMORY_REGION",
    r"KVM_GET_NESTED_STATE_SIZE": "no ioctl",
}
#: Exit reasons that x86 never gives.
NOT_OUR_EXITS = re.compile(r"KVM_EXIT_(S390|DCR|OSI|PAPR|WATCHDOG|EPR|ARM|RISCV|LOONGARCH)\w*")

#: Ioctls that no test can make with success on the modules we have: why.
UNPROVEN: dict[str, str] = {}


def table() -> dict[str, list[str]]:
    """kvmpy's rows by name."""
    from kvmpy.ioctl_table import TABLE

    return {row.split()[0]: row.split() for row in TABLE.splitlines() if row}


def header_ioctls(text: str) -> set[str]:
    """The names that a header defines as KVM ioctls."""
    text = text.replace("\\\n", " ")
    return set(re.findall(r"^#define\s+(KVM_\w+)\s+_IO[RW]*\s*\(\s*KVMIO", text, re.MULTILINE))


def check_header(rows: Iterable[str]) -> Iterator[str]:
    """Every ioctl of the installed header is in the table, or not ours."""
    names = header_ioctls(HEADERS[0].read_text())
    if len(names) < 100:
        yield f"{HEADERS[0]}: only {len(names)} ioctls were found in it"
    for name in sorted(names - set(rows)):
        if not any(re.fullmatch(pattern, name) for pattern in NOT_OURS):
            yield f"{name} is in {HEADERS[0]}, and not in kvmpy/ioctl_table.py"


def check_documented(rows: dict[str, list[str]]) -> Iterator[str]:
    """Every documented ioctl of x86 is in the table, under its section and descriptor."""
    for line in DOCUMENTED.read_text().splitlines():
        if line.startswith("#"):
            continue
        section, name, architectures, descriptors = line.split("\t")
        if not {"x86", "all"} & set(architectures.split(",")):
            continue
        row = rows.get(name)
        if row is None:
            yield f"{name} (KVM API {section}) is not in kvmpy/ioctl_table.py"
            continue
        if row[5] != section:
            yield f"{name}: section {row[5]} in the table, {section} in the document"
        missing = set(descriptors.split(",")) - set(row[1].split(",")) - {""}
        # The document has these wrong: KVM takes them on a vCPU, and on the VM.
        if (
            missing
            and name not in ("KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS")
            and (not name.startswith("KVM_MEMORY_ENCRYPT"))
        ):
            yield f"{name}: the document also has it on {', '.join(missing)}"


def check_exits() -> Iterator[str]:
    """Every exit reason of the header that x86 can give has a class."""
    from kvmpy import exits

    known = {kind.reason for kind in _subclasses(exits.Exit) if kind.reason >= 0}
    text = HEADERS[0].read_text()
    for name, number in re.findall(r"^#define\s+(KVM_EXIT_\w+)\s+(\d+)", text, re.MULTILINE):
        inner = name.startswith(("KVM_EXIT_IO_", "KVM_EXIT_HYPERV_", "KVM_EXIT_XEN_"))
        if not inner and not NOT_OUR_EXITS.fullmatch(name) and int(number) not in known:
            yield f"{name} = {number} has no class in kvmpy/exits.py"


def _subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def check_methods(rows: dict[str, list[str]]) -> Iterator[str]:
    """The method that a row names exists."""
    import kvmpy

    for name, row in rows.items():
        owner, _, attribute = row[6].partition(".")
        kind = getattr(kvmpy, owner, None)
        if kind is None:
            yield f"{name}: the table names {row[6]}, and there is no {owner}"
        elif (
            attribute
            and not hasattr(kind, attribute)
            and (f"self.{attribute}:" not in inspect.getsource(kind))
        ):
            yield f"{name}: the table names {row[6]}, which does not exist"


def proofs(files: Iterable[str]) -> Iterator[tuple[str, set[str]]]:
    """(module, ioctls made with success by its passed tests) of each "module=file.xml"."""
    for given in files:
        module, _, path = given.partition("=")
        made: set[str] = set()
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            if case.find("failure") is None and case.find("error") is None:
                for found in case.iter("property"):
                    if found.get("name") == "ioctls":
                        made.update((found.get("value") or "").split())
        yield module, made


def check_proofs(rows: Iterable[str], made: dict[str, set[str]]) -> Iterator[str]:
    """Every ioctl was made by a passed test somewhere, or the reason why not is stated."""
    everywhere = set().union(*made.values())
    for name in rows:
        if name not in everywhere and name not in UNPROVEN:
            yield f"{name}: no passed test made it with success, and no reason is stated"
    for name in sorted(set(UNPROVEN) & everywhere):
        yield f"{name}: a reason says that it cannot be shown, and a test showed it"


def report(rows: dict[str, list[str]], made: dict[str, set[str]]) -> Iterator[str]:
    """The table for people: ioctl, method, and on which modules it was proved."""
    yield f"{'ioctl':<32} {'method':<30} {' '.join(f'{module:<10}' for module in made)}"
    for name, row in rows.items():
        marks = " ".join(f"{'yes' if name in found else '-':<10}" for found in made.values())
        yield f"{name:<32} {row[6]:<30} {marks}".rstrip()
        if made and name in UNPROVEN:
            yield f"    {UNPROVEN[name]}"


def main(arguments: list[str]) -> int:
    """Report and judge."""
    rows = table()
    made = dict(proofs(arguments))
    problems = [
        *check_header(rows),
        *check_documented(rows),
        *check_exits(),
        *check_methods(rows),
        *(check_proofs(rows, made) if made else ()),
    ]
    print("\n".join(report(rows, made)))
    shown = sum(any(name in found for found in made.values()) for name in rows)
    print(
        f"\n{len(rows)} ioctls of x86, {len(rows)} in the table"
        + (f", {shown} made by a passed test, {len(UNPROVEN)} with a reason" if made else "")
    )
    for problem in problems:
        print(f"missing: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
