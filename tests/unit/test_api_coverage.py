"""The judge of API coverage: what it reads, and that it notices what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from api import coverage
from api.coverage import Run

ROWS = coverage.table()
DOCUMENT = coverage.DOCUMENTED.read_text()
HEADER = """\
#define KVM_GET_REGS              _IOR(KVMIO,  0x81, struct kvm_regs)
#define KVM_RUN                   _IO(KVMIO,   0x80)
#define KVM_SET_USER_MEMORY_REGION _IOW(KVMIO, 0x46, \\
\t\t\t\t\tstruct kvm_userspace_memory_region)
#define KVM_PPC_GET_PVINFO\t  _IOW(KVMIO,  0xa1, struct kvm_ppc_pvinfo)
#define KVM_BRAND_NEW             _IOWR(KVMIO, 0xff, struct kvm_new)
#define KVM_DEV_OF_ANOTHER        _IO(VFIO,    0x01)
#define KVM_CAP_IRQCHIP\t  0
/* KVM_OLD _IO(KVMIO, 0x01) */
#define KVM_EXIT_UNKNOWN          0
#define KVM_EXIT_IO               2
#define KVM_EXIT_IO_OUT 1
#define KVM_EXIT_S390_SIEIC       13
#define KVM_EXIT_NEWEST           99
"""


def junit(path: Path, *cases: str) -> Path:
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    return path


def case(name: str, ioctls: str, inside: str = "", **others: str) -> str:
    properties = "".join(
        f'<property name="{kind}" value="{value}"/>'
        for kind, value in {"ioctls": ioctls, **others}.items()
    )
    return (
        f'<testcase classname="tests.kvm.test_x" name="{name}">'
        f"<properties>{properties}</properties>{inside}</testcase>"
    )


def test_header() -> None:
    """Ioctls by their number's macro, over continued lines; exits without their inner numbers."""
    assert coverage.header_ioctls(HEADER) == {
        "KVM_GET_REGS", "KVM_RUN", "KVM_SET_USER_MEMORY_REGION", "KVM_PPC_GET_PVINFO",
        "KVM_BRAND_NEW",
    }  # fmt: skip
    assert coverage.header_exits(HEADER) == {
        "KVM_EXIT_UNKNOWN": 0, "KVM_EXIT_IO": 2, "KVM_EXIT_NEWEST": 99,
    }  # fmt: skip


def test_what_only_the_header_has() -> None:
    """An ioctl and an exit of a newer header are missing; another architecture's are not."""
    assert list(coverage.check_header(ROWS, HEADER)) == [
        f"{coverage.HEADER}: only 5 ioctls were found in it",
        f"KVM_BRAND_NEW is in {coverage.HEADER}, and not in kvmpy/ioctls/table.py",
    ]
    found = list(coverage.check_exits(coverage.header_exits(HEADER)))
    assert found[0].endswith("only 3 exit reasons were found in it")
    assert found[1:] == ["KVM_EXIT_NEWEST = 99 has no class in kvmpy/exits.py"]


@pytest.mark.skipif(not coverage.HEADER.exists(), reason="<linux/kvm.h> is not installed")
def test_complete() -> None:
    """This checkout's table, with this machine's header."""
    header = coverage.HEADER.read_text()
    assert list(coverage.check_header(ROWS, header)) == []
    assert list(coverage.check_exits(coverage.header_exits(header))) == []
    assert list(coverage.check_documented(ROWS, DOCUMENT)) == []
    assert list(coverage.check_methods(ROWS)) == []


def test_a_row_less() -> None:
    """The header and the document each miss it; a wrong section or descriptor is told."""
    rows = {name: row for name, row in ROWS.items() if name != "KVM_NMI"}
    header = "#define KVM_NMI _IO(KVMIO, 0x9a)\n" + HEADER
    assert any("KVM_NMI is in" in line for line in coverage.check_header(rows, header))
    assert list(coverage.check_documented(rows, DOCUMENT)) == [
        "KVM_NMI (KVM API 4.64) is not in kvmpy/ioctls/table.py"
    ]
    wrong = {**ROWS, "KVM_NMI": [*ROWS["KVM_NMI"][:5], "4.65", "VCPU.nmi"]}
    assert list(coverage.check_documented(wrong, DOCUMENT)) == [
        "KVM_NMI: section 4.65 in the table, 4.64 in the document"
    ]
    wrong = {**ROWS, "KVM_NMI": ["KVM_NMI", "vm", *ROWS["KVM_NMI"][2:]]}
    assert list(coverage.check_documented(wrong, DOCUMENT)) == [
        "KVM_NMI: the document also has it on vcpu"
    ]


def test_methods_that_do_not_exist() -> None:
    """Neither a class nor an attribute may be made up."""
    rows = {
        "KVM_NMI": [*ROWS["KVM_NMI"][:6], "VCPU.knock"],
        "KVM_SMI": [*ROWS["KVM_SMI"][:6], "Processor.smi"],
    }
    assert list(coverage.check_methods(rows)) == [
        "KVM_NMI: the table names VCPU.knock, which does not exist",
        "KVM_SMI: the table names Processor.smi, and there is no Processor",
    ]


def test_document_list() -> None:
    """Four columns a line; of x86 there are about a hundred, each once."""
    lines = [line.split("\t") for line in DOCUMENT.splitlines() if not line.startswith("#")]
    assert {len(line) for line in lines} == {4}
    ours = [line[1] for line in lines if {"x86", "all"} & set(line[2].split(","))]
    assert len(ours) > 90
    assert len(ours) == len(set(ours))


def test_only_passed_tests_prove(tmp_path: Path) -> None:
    """Not a failed one, a skipped one, or one whose teardown failed."""
    path = junit(
        tmp_path / "run.xml",
        case("a", "KVM_RUN KVM_NMI", exits="Hlt IoOut", capabilities="HALT_POLL"),
        case("b", "KVM_SMI", '<failure message="no"/>'),
        case("c", "KVM_GET_REGS", '<skipped message="xfail" type="pytest.xfail"/>'),
        case("d", "KVM_SET_REGS", exits="Debug"),
        '<testcase classname="tests.kvm.test_x" name="d"><error message="leak"/></testcase>',
        '<testcase classname="tests.kvm.test_x" name="e"/>',
    )
    assert coverage.read_run(path) == Run({"KVM_RUN", "KVM_NMI"}, {"Hlt", "IoOut"}, {"HALT_POLL"})
    assert coverage.read_run(tmp_path / "not there.xml") == Run()


def test_what_was_never_made() -> None:
    """An ioctl that no test made is missing, unless there is a reason, or its run was not made."""
    everything = set(ROWS) - set(coverage.UNPROVEN) - set(coverage.SHOWN_BY)
    complete = {"host": Run(everything), "kvm_amd": Run(set(coverage.SHOWN_BY))}
    assert coverage.judge_proofs(ROWS, complete) == ([], [])
    never = [
        "KVM_NMI: no passed test made it with success, and no reason is stated",
    ]
    less = {"host": Run(everything - {"KVM_NMI"}), "kvm_amd": Run(set(coverage.SHOWN_BY))}
    assert coverage.judge_proofs(ROWS, less) == (never, [])
    # A rig left out excuses what only it shows, and nothing else.
    less["kvm_amd"] = Run()
    less["kvm_amd_new"] = Run(set(coverage.SHOWN_BY) - {"KVM_SMI"})
    assert coverage.judge_proofs(ROWS, less) == (
        never, ["KVM_SMI: not shown: left to kvm_amd and kvm_intel, not run"],
    )  # fmt: skip
    less["kvm_amd"] = Run({"KVM_RUN"})
    missing, remarks = coverage.judge_proofs(ROWS, less)
    assert [line.partition(":")[0] for line in missing] == ["KVM_NMI", "KVM_SMI"]
    assert remarks == []


def test_reasons_that_do_not_hold_any_more() -> None:
    """Told, and no failure: somebody's machine has more than ours."""
    missing, remarks = coverage.judge_proofs(
        ROWS, {"host": Run(set(ROWS) - {"KVM_GET_REG_LIST"}), "kvm_amd": Run()}
    )
    assert missing == []
    assert any(line.startswith("KVM_MEMORY_ENCRYPT_OP: shown after all") for line in remarks)
    assert not any("ONE_REG" in line for line in remarks)


def test_reasons_are_about_rows() -> None:
    """A reason for what the table does not have would hide a slip of the pen."""
    assert set(coverage.UNPROVEN) | set(coverage.SHOWN_BY) <= set(ROWS)
    assert not set(coverage.UNPROVEN) & set(coverage.SHOWN_BY)
    assert all(len(reason.split()) > 4 for reason in coverage.UNPROVEN.values())
    exits = {name for names in coverage.exit_classes().values() for name in names}
    assert set(coverage.UNSEEN) <= exits


def test_no_run_at_all() -> None:
    """Without results there is nothing to judge."""
    assert coverage.judge_proofs(ROWS, {}) == ([], ["no test results: nothing is proved"])
    assert coverage.judge_proofs(ROWS, {"host": Run()})[0] == []


@pytest.mark.skipif(not coverage.HEADER.exists(), reason="<linux/kvm.h> is not installed")
def test_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status, the tables, and --brief without them."""
    enough = " ".join(ROWS)
    good = junit(tmp_path / "good.xml", case("a", enough, exits="Hlt", capabilities="HALT_POLL"))
    bad = junit(tmp_path / "bad.xml", case("a", enough.replace("KVM_NMI ", "")))
    assert coverage.main([f"host={good}", f"kvm_amd={tmp_path / 'none.xml'}"]) == 0
    text = capsys.readouterr().out
    assert "\nKVM_NMI                          VCPU.nmi                       yes\n" in text
    assert "\nKVM_EXIT_HLT                     Hlt                            yes\n" in text
    assert "\nHALT_POLL                        VM.limit_halt_poll             yes\n" in text
    assert f"{len(ROWS)} ioctls of x86, {len(ROWS)} shown by passed tests" in text
    assert coverage.main(["--brief", f"host={bad}"]) == 1
    written = capsys.readouterr()
    assert "VCPU.nmi" not in written.out
    assert written.err.startswith("missing: KVM_NMI: no passed test")
    assert coverage.main([]) == 0
    monkeypatch.setattr(
        coverage, "table", lambda: {name: row for name, row in ROWS.items() if name != "KVM_NMI"}
    )
    assert coverage.main(["--brief"]) == 1
    assert "missing: KVM_NMI is in" in capsys.readouterr().err
