"""What is printed of a made-up report: golden text, a page that needs nothing else, pyperf's file;
and that what a hostile record says of itself is only text."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import made_up
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kvmpy.bench import pyperf, tables
from kvmpy.bench.compare import CompareError, compare
from kvmpy.bench.document import RecordError, Report
from kvmpy.bench.figures import figures
from kvmpy.bench.html import to_html
from kvmpy.bench.record import OUTCOMES
from kvmpy.bench.stats import Interval
from kvmpy.bench.svg import distributions
from kvmpy.report import terminal

RECORDED = Path(__file__).parents[1] / "recorded"
HOSTILE = "<script>alert(1)</script>\x1b[2J\"'&\ud800"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def text_of(report: Report, stream: io.StringIO) -> str:
    shown = tables.tables(report, figures(report))
    extra = tables.reference_table(report.references)
    terminal.show([*shown, *([extra] if extra else [])], stream)
    return stream.getvalue()


class TestText:
    @pytest.mark.parametrize("benchmark", ["syscall", "exit"])
    def test_plain_text_is_as_recorded(self, benchmark: str) -> None:
        text = text_of(made_up.report(benchmark=benchmark), io.StringIO())
        assert text == (RECORDED / f"bench_{benchmark}.txt").read_text()

    def test_comparison_is_as_recorded(self) -> None:
        found = compare(made_up.report(), made_up.report(seed=1, faster=0.97, kernel="6.12.0"))
        stream = io.StringIO()
        terminal.show(tables.comparison_tables(found), stream)
        assert stream.getvalue() == (RECORDED / "bench_compare.txt").read_text()

    @pytest.mark.parametrize("benchmark", ["syscall", "exit"])
    def test_a_terminal_of_80_columns_cuts_no_number(
        self, benchmark: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "xterm")
        report = made_up.report(benchmark=benchmark)
        text = re.sub(r"\x1b\[[0-9;]*m", "", text_of(report, Terminal()))
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        words = set(text.split())
        for table in tables.tables(report, figures(report)):
            numbers = {c for row in table.rows for c in row[table.left :] if c[:1].isdigit()}
            assert {part for c in numbers for part in c.split()} <= words

    def test_no_table_has_native_figures_beside_others(self) -> None:
        report = made_up.report()
        by_title = {t.title: t for t in tables.tables(report, figures(report))}
        matrix = by_title.pop("Ring 3 -> ring 0 -> ring 3")
        cells = [cell for row in matrix.rows for cell in row[2:]]
        assert {"interpreted", "#UD"} <= set(cells)
        assert all(row[0] == "64-bit" for row in matrix.rows if any("ns" in c for c in row))
        assert ("#", "compat 32") not in by_title["Native"].rows
        interpreted = by_title["Interpreted: a ring on the way runs in KVM's emulator"]
        assert [row for row in interpreted.rows if row[0] == "#"] == [
            ("#", "compat 32"), ("#", "legacy 32"),
        ]  # fmt: skip
        assert interpreted.notes == ("ring 0 is interpreted",)

    def test_a_label_of_some_rows_names_them(self) -> None:
        report = made_up.report()
        first, second, *_ = report.rows
        report = dataclasses.replace(
            report, rows=(dataclasses.replace(first, labels=("odd",)), second)
        )
        table = tables.tables(report, figures(report))[1]
        assert table.notes == ("odd: 64-bit SYSCALL H0",)
        labelled = tuple(dataclasses.replace(row, labels=("x",)) for row in made_up.rows()[:3])
        report = dataclasses.replace(report, rows=(*labelled, *made_up.rows()[3:]))
        assert tables.tables(report, figures(report))[1].notes == (
            "x: 64-bit SYSCALL H0, 64-bit SYSCALL H2, 64-bit int 0x80 H0",
        )  # SYSCALL entry and int 0x80 H2 have it not

    def test_failures_that_read_the_same_share_a_line(self) -> None:
        rows = [made_up.failed("long64", "int80", "#UD at int 0x80", measure="single-shot")]
        rows += [made_up.failed("long64", "callgate", f"#GP {n // 2}") for n in range(4)]
        rows = [dataclasses.replace(row, level=f"H{n}") for n, row in enumerate(rows)]
        report = dataclasses.replace(made_up.report(), rows=tuple(rows))
        assert tables.failure_table(figures(report)).rows == (
            ("64-bit", "int 0x80", "H0", "#UD at int 0x80"),
            ("64-bit", "call gate", "H1..H2", "#GP 0"),
            ("64-bit", "call gate", "H3..H4", "#GP 1"),
        )

    def test_few_vms_are_said(self) -> None:
        report = made_up.report()
        row = dataclasses.replace(report.rows[0], vms=(0,) * len(report.rows[0].samples))
        few = dataclasses.replace(report, rows=(row,), quick=True)
        assert "fewer than 5 VMs" in tables.legend(figures(few))
        assert "fewer than 5 VMs" not in tables.legend(figures(report))

    def test_what_is_within_noise_has_no_figure(self) -> None:
        """The empty block's slope: a few ticks either side of 0, in every VM."""
        row = made_up.row("baseline", "long64", "empty")
        noise = tuple(sample % 7 - 4 for sample in row.samples)
        report = made_up.report()
        report = dataclasses.replace(report, rows=(dataclasses.replace(row, samples=noise),))
        found = figures(report)
        (_, cells) = tables.figure_table("native", found).rows
        assert cells[:5] == ("nothing", "~0", "~0", "-", "~0")
        assert "~0: not told apart" in tables.legend(found)
        wide = tuple(2 + 90 * (vm % 2) for vm in row.vms)  # above 0, but anything up to twice it
        (uncertain,) = figures(
            dataclasses.replace(report, rows=(dataclasses.replace(row, samples=wide),))
        )
        assert uncertain.summary is not None
        assert uncertain.summary.interval.low > 0
        assert not uncertain.resolved
        assert "~0" not in tables.legend(figures(made_up.report()))
        assert "<svg" not in to_html(report)
        shift = tables._shift_cells(Interval(0.02, -0.01, 0.05, 0.95), -0.117)
        assert shift == ("0.02", "-0.01 .. 0.05")  # shares of a negative time mean nothing

    def test_core_cycles_have_a_column_where_they_are_known(self) -> None:
        report = made_up.report()
        first, second, *rest = report.rows
        report = dataclasses.replace(
            report, rows=(dataclasses.replace(first, cycles=131.5), second, *rest)
        )
        table = tables.tables(report, figures(report))[1]
        assert table.header[2:5] == ("ticks", "cycles", "95% CI")
        assert [row[3] for row in table.rows[1:3]] == ["132", "-"]
        assert {len(row) for row in table.rows[1:]} == {len(table.header)}
        assert "cycles" in tables.legend(figures(report))

    def test_a_clock_that_advances_in_steps_disturbs_no_batch(self) -> None:
        """AMD's TSC takes steps of tens of ticks: one step longer is not disturbed."""
        row = made_up.row("path", "long64", "syscall", measure="entry")
        steps = tuple(26 * (3 + (n % 5 == 0)) for n in range(len(row.samples) - 1))
        row = dataclasses.replace(row, samples=(*steps, 26 * 400), calls=1)
        (found,) = figures(dataclasses.replace(made_up.report(), rows=(row,)))
        assert found.summary is not None
        assert found.summary.mad == 0
        assert found.summary.disturbed == 1 / len(row.samples)

    def test_how_a_cell_fails_is_not_cut(self) -> None:
        for failure, cell in (
            ("#GP(0x18) at sysretq", "#GP(0x18)"),
            ("no PCID (CPUID 1, ECX bit 17)", "no PCID"),
            ("needs paging, and with it the guest shut down", "needs paging"),
            ("the processor refused the guest's state", "fails"),
        ):
            row = made_up.failed("long64", "syscall", failure)
            table = tables.matrix(figures(dataclasses.replace(made_up.report(), rows=(row,))))
            assert table is not None
            assert table.rows[0][4] == cell

    def test_the_host_s_row_states_its_mitigations(self) -> None:
        report = made_up.report()
        by_title = {t.title: t for t in tables.tables(report, figures(report))}
        host = by_title["The host's own system calls, root ring 3 -> root ring 0"]
        assert host.notes == ("the host's mitigations: retbleed",)
        assert tables.mitigations(made_up.report(mitigations={}).disclosure).endswith("not known")
        safe = made_up.report(mitigations={"meltdown": "Not affected"}).disclosure
        assert tables.mitigations(safe).endswith(": none")

    def test_parts_of_a_single_shot_are_named_by_the_whole(self) -> None:
        shot = [
            made_up.row("path", "long64", "int80", "H0", measure=measure, labels=("odd",))
            for measure in ("single-shot", "entry", "handler", "return")
        ]
        report = dataclasses.replace(made_up.report(), rows=(*shot, made_up.rows()[2]))
        assert tables.tables(report, figures(report))[1].notes == (
            "odd: 64-bit int 0x80 H0 single-shot",
        )

    def test_virtual_time_comes_first(self) -> None:
        report = made_up.report(virtual_time=True, emulator="QEMU TCG")
        assert tables.headline(report).startswith("Time is virtual")
        shown = tables.tables(report, figures(report))
        assert all(table.title.endswith("(virtual time)") for table in shown)
        assert "<h2>Native (virtual time)</h2>" in to_html(report)
        assert 'class="virtual">Time is virtual' in to_html(report)

    def test_without_the_rate_of_the_tsc_there_are_only_ticks(self) -> None:
        report = made_up.report(tsc_khz=None)
        first = tables.tables(report, figures(report))[1].rows[1]
        assert first[:3] == ("SYSCALL H0", "-", "99.8")
        assert "99.8 ticks" in tables.tables(report, figures(report))[0].rows[0]

    def test_rungs_that_read_the_same_share_a_line(self) -> None:
        rows = [made_up.failed("compat32", "syscall", "#UD at syscall") for _ in range(4)]
        rows = [dataclasses.replace(row, level=f"H{n}") for n, row in enumerate(rows)]
        report = dataclasses.replace(made_up.report(), rows=tuple(rows))
        table = tables.matrix(figures(report))
        assert table is not None
        assert table.rows == (("compat 32", "H0..H3", "-", "-", "#UD", "-"),)


class _Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    VOID = ("meta", "br", "line", "path")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _assert_self_contained(text: str) -> _Page:
    page = _Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "a", "base"} & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "xlink:href", "srcset", "style", "data", "action"}
    assert not [name for name in names if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    return page


class TestHtml:
    def test_page_has_everything_and_needs_nothing(self) -> None:
        report = made_up.report()
        page = _assert_self_contained(to_html(report))
        text = "\n".join(page.text)
        for row in figures(report):
            assert row.label in text
        for field in dataclasses.fields(report.disclosure):
            assert field.name.replace("_", " ") in text
        assert report.references[0].source in text
        assert text.index("Published elsewhere") > text.index("What the figures were taken on")
        assert report.warnings[0] in text
        classes = [value for name, value in page.attributes if name == "class"]
        # every row with samples: 8 native, host, calibration, 2 interpreted
        assert classes.count("violin") == 12

    def test_no_text_of_a_picture_keeps_its_colour_in_the_dark(self) -> None:
        """The attribute says dark ink, for a picture by itself; the page's style has to win."""
        text = to_html(made_up.report())
        style = text[text.index("<style>") : text.index("</style>")]
        assert "svg text { fill: var(--ink) }" in style
        for name in set(re.findall(r'class="(\w+)" (?:fill|stroke)=', text)):
            assert f"svg .{name}" in style

    def test_classes_never_share_an_axis(self) -> None:
        page = _Page(to_html(made_up.report()))
        assert page.tags.count("svg") == 5  # interpreted rows are of two modes

    @pytest.mark.parametrize("benchmark", ["syscall", "exit"])
    def test_text_of_a_report_is_only_text(self, benchmark: str) -> None:
        page = _assert_self_contained(to_html(_poisoned(made_up.report(benchmark=benchmark))))
        assert any("<script>alert(1)</script>" in text for text in page.text)
        assert not any("\x1b" in text or "\ud800" in text for text in page.text)

    def test_a_page_with_thousands_of_batches_stays_small(self) -> None:
        row = made_up.report().rows[0]
        many = dataclasses.replace(
            row, samples=row.samples * 50, vms=row.vms * 50, alignments=row.alignments * 50
        )
        figure = figures(dataclasses.replace(made_up.report(), rows=(many,)))[0]
        assert len(distributions([figure])) < 20_000

    def test_pictures_of_a_class_share_an_axis(self) -> None:
        """The legacy row's picture has the marks of one that also shows the compat row."""
        interpreted = [
            figure for figure in figures(made_up.report()) if figure.kind == "interpreted"
        ]
        wide = dataclasses.replace(interpreted[0], ns=100.0)
        alone = distributions(interpreted[1:])
        shared = distributions(interpreted[1:], among=[wide])
        assert "500000" not in alone
        assert "500000" in shared

    def test_slopes_of_zero_and_less_are_counted_not_drawn(self) -> None:
        row = dataclasses.replace(
            made_up.report().rows[0], samples=(-5, 0, 64, 65), vms=(), alignments=()
        )
        report = dataclasses.replace(made_up.report(), rows=(row,))
        assert "2 at 0 or less" in distributions(figures(report))
        none = dataclasses.replace(row, samples=(-5, 0))
        assert distributions(figures(dataclasses.replace(report, rows=(none,)))) == ""

    @pytest.mark.parametrize("value", [1, 64, 10**18])
    def test_samples_that_are_all_equal_are_drawn(self, value: int) -> None:
        row = dataclasses.replace(
            made_up.report().rows[0], samples=(value,) * 9, vms=(), alignments=()
        )
        picture = distributions(figures(dataclasses.replace(made_up.report(), rows=(row,))))
        assert picture.count('class="violin"') == 1


def _poisoned(report: Report) -> Report:
    """Every text that a record can hold, replaced."""

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            fixed = ("kind", "measure", "unit", "outcome", "benchmark")
            odd = {} if "rows" in value or "name" in value else {HOSTILE: HOSTILE}
            extra = odd if key in ("parameters", "mitigations", "versions") else {}
            return {k: v if k in fixed else poison(v, k) for k, v in value.items()} | extra
        if isinstance(value, list):
            return [poison(item) for item in value]
        return HOSTILE + value if isinstance(value, str) else value

    return Report.from_json(json.dumps(poison(json.loads(report.to_json()))))


def _render_everything(report: Report) -> None:
    found = figures(report)
    shown = [*tables.tables(report, found), tables.reference_table(report.references)]
    for stream in (io.StringIO(), Terminal()):
        terminal.show([table for table in shown if table], stream)
        assert "\x1b[2J" not in stream.getvalue()
        stream.getvalue().encode()  # no lone surrogate
    _assert_self_contained(to_html(report))
    for outcome in OUTCOMES:
        text = pyperf.to_pyperf(report, outcome)
        assert text is None or json.loads(text)["version"] == "1.0"
    with contextlib.suppress(CompareError):  # two rows of one key, or none
        tables.comparison_tables(compare(report, report))


def _paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    below = value.items() if isinstance(value, dict) else enumerate(value)
    found = [at] if at else []
    for key, item in below:
        if isinstance(item, dict | list):
            found += _paths(item, (*at, key))
        else:
            found.append((*at, key))
    return found


def _small() -> dict[str, Any]:
    rows = [made_up.rows()[n] for n in (0, 8, 9, 13)]
    rows += [made_up.exits()[0]]
    short = [
        dataclasses.replace(
            row, samples=row.samples[:6], vms=row.vms[:6], alignments=row.alignments[:6]
        )
        for row in rows
    ]
    report = dataclasses.replace(made_up.report(), rows=tuple(short))
    document: dict[str, Any] = json.loads(report.to_json())
    return document


_DOCUMENT = _small()
_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.just(HOSTILE), st.just(-1), st.just(0), st.just(10**400), st.just(2**63 - 1),
    st.sampled_from(["native", "fails", "interpreted", "emulated-by-kvm", "ns", "ticks"]),
    st.lists(st.integers(-3, 3), max_size=6), st.dictionaries(st.text(max_size=3), st.integers()),
)  # fmt: skip


class TestHostile:
    def test_poisoned_reports_are_shown(self) -> None:
        for benchmark in ("syscall", "exit"):
            _render_everything(_poisoned(made_up.report(benchmark=benchmark)))

    @given(st.lists(st.tuples(st.sampled_from(_paths(_DOCUMENT)), _VALUES), min_size=1, max_size=4))
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    def test_a_changed_record_is_refused_or_shown(
        self, changes: list[tuple[tuple[Any, ...], Any]]
    ) -> None:
        document = copy.deepcopy(_DOCUMENT)
        for (*path, last), value in changes:
            target = document
            try:
                for key in path:
                    target = target[key]
                target[last] = value
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took the place away
        try:
            report = Report.from_json(json.dumps(document))
        except RecordError:
            return
        _render_everything(report)


class TestPyperf:
    def test_pyperf_reads_it_and_agrees(self, tmp_path: Path) -> None:
        theirs = pytest.importorskip("pyperf", reason="pyperf, the oracle, is not installed")
        report = made_up.report()
        path = tmp_path / "native.json"
        path.write_text(pyperf.to_pyperf(report) or "")
        suite = theirs.BenchmarkSuite.load(str(path))
        native = [figure for figure in figures(report) if figure.kind == "native"]
        assert suite.get_benchmark_names() == [
            f"syscall {figure.mode} {figure.label}" for figure in native
        ]
        for benchmark, figure in zip(suite, native, strict=True):
            assert figure.summary is not None
            assert figure.ns is not None
            assert benchmark.median() * 1e9 == pytest.approx(figure.summary.median * figure.ns)
            assert benchmark.get_nrun() == made_up.VMS
            assert benchmark.get_nvalue() == made_up.VMS * made_up.BATCHES
            assert benchmark.get_unit() == "second"
        assert suite.get_metadata()["kvm_module"] == "kvm_intel"

    def test_classes_are_apart(self) -> None:
        report = made_up.report()
        text = pyperf.to_pyperf(report, "interpreted")
        assert text is not None
        names = [item["metadata"]["name"] for item in json.loads(text)["benchmarks"]]
        assert names == [
            "syscall compat 32 int 0x80 H0 [interpreted]",
            "syscall legacy 32 int 0x80 H0 [interpreted]",
        ]
        assert "interpreted" not in (pyperf.to_pyperf(report) or "")
        assert pyperf.to_pyperf(report, "fails") is None

    def test_values_that_pyperf_refuses_are_counted(self) -> None:
        row = dataclasses.replace(
            made_up.report().rows[0], samples=(-5, 0, 64), vms=(0, 0, 1), alignments=()
        )
        text = pyperf.to_pyperf(dataclasses.replace(made_up.report(), rows=(row,)))
        (benchmark,) = json.loads(text or "")["benchmarks"]
        assert benchmark["metadata"]["dropped_values"] == 2
        assert len(benchmark["runs"]) == 1

    def test_ticks_of_an_unknown_rate_are_left_out(self) -> None:
        report = made_up.report(tsc_khz=None)
        assert pyperf.to_pyperf(report) is None
        assert pyperf.to_pyperf(report, "host") is not None  # measured in ns
