"""The parts of the rigs that need no emulator."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rigs import guest, host, kernel, qemufix, session, table, vmx
from rigs.cpio import CpioWriter


def parse_cpio(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive independently of the writer: path -> (mode, data)."""
    entries: dict[str, tuple[int, bytes]] = {}
    offset = 0
    while True:
        assert offset % 4 == 0
        assert data[offset : offset + 6] == b"070701"
        fields = [int(data[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[offset + 110 : offset + 110 + name_size - 1].decode()
        begin = (offset + 110 + name_size + 3) & ~3
        offset = (begin + size + 3) & ~3
        if name == "TRAILER!!!":
            assert offset == len(data)
            return entries
        assert name not in entries
        entries[name] = (mode, data[begin : begin + size])


class TestCpio:
    def test_entries_come_back(self) -> None:
        stream = io.BytesIO()
        with CpioWriter(stream) as archive:
            archive.file("a/b/c", b"12345", 0o755)
            archive.symlink("/a/link", "b/c")
            archive.directory("a")
        entries = parse_cpio(stream.getvalue())
        assert list(entries) == ["a", "a/b", "a/b/c", "a/link"]
        assert entries["a"] == (0o040755, b"")
        assert entries["a/b/c"] == (0o100755, b"12345")
        assert entries["a/link"] == (0o120777, b"b/c")

    def test_tree_leaves_out_what_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").write_bytes(b"x" * 7)
        (tmp_path / "refused").mkdir()
        (tmp_path / "refused" / "file").write_bytes(b"y")
        (tmp_path / "kept" / "link").symlink_to("file")
        stream = io.BytesIO()
        with CpioWriter(stream) as archive:
            archive.tree(tmp_path, "top", keep=lambda path: path != "refused")
        entries = parse_cpio(stream.getvalue())
        assert set(entries) == {"top", "top/kept", "top/kept/file", "top/kept/link"}

    @pytest.mark.skipif(shutil.which("cpio") is None, reason="the cpio program is not installed")
    def test_the_cpio_program_agrees(self, tmp_path: Path) -> None:
        archive_path = tmp_path / "archive"
        with open(archive_path, "wb") as stream, CpioWriter(stream) as archive:
            archive.file("directory/file", b"content\n", 0o640, mtime=1_000_000_000)
        subprocess.run(
            ["cpio", "-idm", "--quiet", "-F", str(archive_path)], cwd=tmp_path, check=True
        )
        unpacked = tmp_path / "directory" / "file"
        assert unpacked.read_bytes() == b"content\n"
        assert unpacked.stat().st_mode & 0o777 == 0o640
        assert unpacked.stat().st_mtime == 1_000_000_000


class TestOutcome:
    def message(self, junit: bytes) -> bytes:
        packed = gzip.compress(junit)
        return b"start\nexit 3\njunit %d\n%bend\n" % (len(packed), packed)

    @pytest.mark.parametrize("step", [1, 7, 10_000])
    def test_in_pieces_of_any_size(self, step: int) -> None:
        outcome = session.Outcome()
        data = self.message(b"<testsuites/>\nend\n" * 50)
        for offset in range(0, len(data), step):
            assert not outcome.complete
            outcome.feed(data[offset : offset + step], now=5.0)
        assert outcome.complete
        assert (outcome.started_at, outcome.status) == (5.0, 3)
        assert outcome.junit == b"<testsuites/>\nend\n" * 50

    def test_without_junit(self) -> None:
        outcome = session.Outcome()
        outcome.feed(b"start\nexit 0\nend\n", now=0.0)
        assert (outcome.complete, outcome.status, outcome.junit) == (True, 0, None)

    @pytest.mark.parametrize("data", [b"exit x\n", b"junit -1\n", b"gibberish\n"])
    def test_gibberish_is_refused(self, data: bytes) -> None:
        with pytest.raises(host.RigError, match="broken outcome"):
            session.Outcome().feed(data, now=0.0)

    def test_damaged_junit_is_refused(self) -> None:
        data = bytearray(self.message(b"<testsuites/>" * 9))
        data[-len(b"end\n") - 1] ^= 1  # in the last byte of gzip's trailer
        with pytest.raises(host.RigError, match="damaged"):
            session.Outcome().feed(bytes(data), now=0.0)


class TestSession:
    """The emulator is a shell script here: the ports are files to it as well."""

    def run(
        self, script: str, tmp_path: Path, timeout: float = 10.0
    ) -> tuple[int, session.Session]:
        def command(ports: session.Ports) -> list[str]:
            arguments = [ports.console, ports.output, ports.outcome]
            return ["sh", "-c", script, "sh", *arguments]

        ran = session.Session("fake", timeout)
        return ran.run(command, tmp_path / "log", os.environ), ran

    def test_status_and_output(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        status, _ = self.run(
            r'echo start >$3; printf "out\0put" >$2; printf "exit 7\nend\n" >$3; sleep 60', tmp_path
        )
        assert status == 7
        assert capfdbinary.readouterr().out == b"out\0put"

    def test_hang_is_killed_and_shown(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        pid = tmp_path / "pid"
        status, _ = self.run(f'echo $$ >{pid}; echo "it hung" >$1; sleep 60', tmp_path, timeout=0.5)
        assert status == session.EXIT_TIMEOUT
        errors = capfdbinary.readouterr().err
        assert b"| it hung" in errors
        assert b"killed at its limit of 0.5 s (did not reach the command)" in errors
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    def test_emulator_that_dies(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        status, _ = self.run("echo no such machine >&2; exit 1", tmp_path)
        assert status == session.EXIT_NO_OUTCOME
        assert b"| no such machine" in capfdbinary.readouterr().err

    def test_panic_ends_it(
        self,
        tmp_path: Path,
        capfdbinary: pytest.CaptureFixture[bytes],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(session, "_PANIC_GRACE", 0.1)
        status, _ = self.run('echo "Kernel panic - not syncing: oh" >$1; sleep 60', tmp_path)
        assert status == session.EXIT_NO_OUTCOME
        assert b"the inner kernel panicked" in capfdbinary.readouterr().err


class TestKernel:
    def bzimage(self, elf: bytes, version: int = 0x20F) -> bytes:
        compressed = lzma.compress(elf)
        setup = bytearray(5 * 512)
        setup[0x1F1] = 4
        setup[0x202:0x206] = b"HdrS"
        struct.pack_into("<H", setup, 0x206, version)
        struct.pack_into("<II", setup, 0x248, 16, len(compressed) + 4)
        size = struct.pack("<I", len(elf))  # the kernel's build appends it
        return bytes(setup) + bytes(16) + compressed + size + b"tail"

    def test_decompress(self) -> None:
        image = kernel.BzImage.parse(self.bzimage(b"\x7fELF" + bytes(1000)))
        assert len(image.setup) == 5 * 512
        assert image.decompress() == b"\x7fELF" + bytes(1000)

    def test_not_a_bzimage(self) -> None:
        with pytest.raises(host.RigError, match="not a bzImage"):
            kernel.BzImage.parse(bytes(4096))
        with pytest.raises(host.RigError, match="too old"):
            kernel.BzImage.parse(self.bzimage(b"", version=0x205))

    def test_module_signature_and_dependencies(self) -> None:
        module = b"\x7fELF...\0depends=irqbypass,ccp-x\0name=kvm\0"
        trailer = struct.pack(">3xBB3xI", 2, 3, 5) + b"~Module signature appended~\n"
        assert kernel._unsigned(module + b"sskkkSSSSS" + trailer) == module
        assert kernel._unsigned(module) == module
        assert kernel._module_dependencies(module) == ["irqbypass", "ccp_x"]
        assert kernel._module_dependencies(b"depends=\0") == []

    def test_option_rom_passes_the_bios_checks(self) -> None:
        rom = vmx.option_rom()
        assert rom[:3] == b"\x55\xaa\x01"
        assert len(rom) == 512
        assert sum(rom) % 256 == 0


class TestGuest:
    def test_script_quotes_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTEST_ADDOPTS", "-x")
        job = guest.Job(
            ["printf", "%s", "it's"], memory=64, kernel="", junit=True, environment={"A": "b c"}
        )
        script = job.script("svm", "/", {"PATH": os.defpath})
        shell = subprocess.run(
            ["sh", "-c", script + "echo; echo $A $PYTEST_ADDOPTS $KVMPY_RIG"],
            capture_output=True,
            text=True,
            check=True,
        )
        lines = shell.stdout.splitlines()
        assert lines[0] == "it's"
        assert lines[1].startswith("b c ")
        assert lines[1].endswith(f"-x --junitxml={guest.JUNIT} svm")


class TestHost:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KVMPY_RIG_CACHE", str(tmp_path))

    def test_cached_builds_once_and_whole(self, tmp_path: Path) -> None:
        built = []

        def build(directory: Path) -> None:
            built.append(directory)
            (directory / "file").write_text("x")

        for _ in range(2):
            assert (host.cached("kind", "key", build) / "file").read_text() == "x"
        assert len(built) == 1

        def fail(directory: Path) -> None:
            (directory / "half").write_text("x")
            raise host.RigError("no")

        with pytest.raises(host.RigError):
            host.cached("kind", "other", fail)
        assert not (tmp_path / "kind-other").exists()
        assert list((tmp_path / "work").iterdir()) == [tmp_path / "work" / "lock"]

    def test_abandoned_work_is_removed_and_live_work_is_not(self, tmp_path: Path) -> None:
        abandoned = tmp_path / "work" / "svm-abandoned"
        abandoned.mkdir(parents=True)
        with host.work_directory("vmx") as live, host.work_directory("svm") as other:
            assert live.exists()
            assert other.exists()
            assert not abandoned.exists()
        assert not live.exists()

    def test_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(host.Unavailable, match=r"sudo apt-get install -y some-package$"):
            host.need({"/nonexistent/file": "some-package", "sh": "dash"})


JUNIT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.kvm.test_vm" name="test_plain"/>
<testcase classname="tests.kvm.test_vm.TestClose" name="test_twice[1]">{0}</testcase>
<testcase classname="tests.kvm.test_vcpu" name="test_other"/>
</testsuite></testsuites>"""


class TestTable:
    def runs(self, tmp_path: Path, **bodies: str) -> list[table.Run]:
        found = []
        for name, body in bodies.items():
            path = tmp_path / f"{name}.xml"
            path.write_text(JUNIT.format(body))
            found.append(table.read(name, path))
        return found

    def test_all_passed_is_one_line_a_file(self, tmp_path: Path) -> None:
        runs = self.runs(tmp_path, host="", svm="")
        lines = table.render(runs, width=80).splitlines()
        assert [line.split() for line in lines if line.startswith("tests/")] == [
            ["tests/kvm/test_vcpu.py", "1", "1"],
            ["tests/kvm/test_vm.py", "2", "2"],
        ]
        assert "test_plain" not in "\n".join(lines)
        assert "test_plain" in table.render(runs, full=True)
        assert not table.failed(runs)

    def test_skip_shows_its_reason(self, tmp_path: Path) -> None:
        skip = '<skipped message="SYSENTER in long mode is #UD on AMD">tests/x.py:1: ...</skipped>'
        runs = self.runs(tmp_path, host="", svm=skip)
        text = table.render(runs, width=80)
        (line,) = (line for line in text.splitlines() if "TestClose::test_twice[1]" in line)
        assert line.split()[-3:] == ["passed", "skipped", "[1]"]
        assert "[1] SYSENTER in long mode is #UD on AMD" in text
        assert "1 skip 1" in text
        assert not table.failed(runs)
        assert max(map(len, text.splitlines())) <= 80

    @pytest.mark.parametrize("tag", ["failure", "error"])
    def test_failure_fails(self, tmp_path: Path, tag: str) -> None:
        runs = self.runs(tmp_path, host="", svm=f'<{tag} message="boom&#10;more">trace</{tag}>')
        text = table.render(runs)
        assert "[1] svm tests/kvm/test_vm.py::TestClose::test_twice[1]: boom\n" in text
        assert table.failed(runs)

    def test_a_failed_teardown_is_not_hidden_by_its_test(self, tmp_path: Path) -> None:
        path = tmp_path / "x.xml"
        case = '<testcase classname="test_x" name="test_a">{}</testcase>'
        for first, second in (("", '<error message="e"/>'), ('<failure message="f"/>', "")):
            path.write_text(f"<t>{case.format(first)}{case.format(second)}</t>")
            assert table.failed([table.read("x", path)])

    def test_a_run_that_was_left_out_is_named_and_no_failure(self, tmp_path: Path) -> None:
        table.write_left_out(tmp_path / "new" / "x.xml", "no <root> here")
        run = table.read("svm", tmp_path / "new" / "x.xml")
        assert not table.failed([run])
        assert "svm: left out: no <root> here\n" in table.render([run])

    @pytest.mark.parametrize("content", [None, "<testsuites>", "<testsuites/>"])
    def test_a_run_without_results_fails(self, tmp_path: Path, content: str | None) -> None:
        path = tmp_path / "x.xml"
        if content is not None:
            path.write_text(content)
        run = table.read("svm", path)
        assert run.problem
        assert table.failed([run])
        assert run.problem in table.render([run])


class TestQemuFix:
    """A miniature of the two checks, and of everything that must not be taken for them."""

    STACK = b"\x83\xe1\x07\x83\xf9\x01\x0f\x85"
    PORT = b"\x83\xe0\x0f\x83\xf8\x09\x0f\x85\x00\x01\x00\x00\x83\xbf\x70\x01\x00\x00\x66"

    def program(self, text: bytes = b"invalid tss type\0", port: bytes = PORT) -> bytes:
        code = self.STACK + struct.pack("<i", 4) + bytes(4)  # the jump skips 4 bytes
        lea = b"\x48\x8d\x35" + struct.pack("<i", len(port))
        return b"\x90" * 5 + code + lea + port + text

    def test_finds_both_masks(self) -> None:
        data = self.program()
        sites = qemufix.find_sites(data)
        assert [data[site] for site in sites] == [0x07, 0x0F]
        assert [data[site - 2 : site] for site in sites] == [b"\x83\xe1", b"\x83\xe0"]

    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 100, STACK + b"\xff\xff\xff\x7f", STACK + b"\0\0\0\x80", STACK]
    )
    def test_other_code_is_left_alone(self, data: bytes) -> None:
        assert qemufix.find_sites(data) == []

    def test_one_check_alone_is_left_alone(self) -> None:
        assert qemufix.find_sites(self.program(text=b"invalid cookie\0")) == []
        assert qemufix.find_sites(self.program(port=b"")) == []
        assert qemufix.find_sites(self.program() * 2) == []
