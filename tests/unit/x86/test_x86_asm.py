"""The assembler: what comes out, what it says when it cannot, and its cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmpy.errors import AsmError
from kvmpy.x86 import asm as module
from kvmpy.x86.asm import asm

pytestmark = pytest.mark.skipif(
    not (shutil.which("as") and shutil.which("ld")), reason="GNU as and ld are not installed"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module._memory_cache.clear()
    yield tmp_path / "kvmpy" / "asm"
    module._memory_cache.clear()


def tools_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tools run from now on, `--version` aside."""
    seen: list[str] = []
    real = subprocess.run

    def spy(command: list[str], **options: object) -> object:
        if "--version" not in command:
            seen.append(Path(command[0]).name)
        return real(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", spy)
    return seen


@pytest.mark.parametrize(
    ("text", "bits", "code"),
    [
        ("mov al, 'A'; out 0xe9, al; hlt", 64, "b041 e6e9 f4"),
        ("mov al, 'A'\nout 0xe9, al\nhlt", 16, "b041 e6e9 f4"),
        ("mov al, ';'; mov bl, '#'; mov cl, ' '; mov dl, '\\n'", 32, "b03b b323 b120 b20a"),
        ("mov ax, 0x1234; int 0x10", 16, "b83412 cd10"),
        ("mov ax, 0x1234", 32, "66b83412"),
        ("mov eax, [ebx]", 32, "8b03"),
        ("mov rax, [rbx]; syscall; iretq", 64, "488b03 0f05 48cf"),
        ("", 64, ""),
        ("# only a comment", 64, ""),
        ("nop # and a comment", 64, "90"),
        (".code32; mov eax, 1", 16, "b801000000"),
    ],
)
def test_intel_syntax(text: str, bits: int, code: str) -> None:
    assert asm(text, bits) == bytes.fromhex(code)  # type: ignore[arg-type]


def test_att_syntax() -> None:
    assert asm("movb $0x41, %al; outb %al, $0xe9", syntax="att") == bytes.fromhex("b041e6e9")


def test_absolute_references_are_resolved_against_org() -> None:
    code = asm('movabs rax, offset message\nmessage: .ascii "hi"', org=0x12_3456_7000)
    assert code == b"\x48\xb8" + (0x12_3456_700A).to_bytes(8, "little") + b"hi"
    assert asm("mov si, offset end; end:", 16, org=0x7C00) == bytes.fromhex("be037c")
    assert asm("jmp 0x10, offset on; on: hlt", 16, org=0x7C00) == bytes.fromhex("ea057c1000f4")
    assert asm(".long here; here:", 32, org=0xFFFF_F000) == bytes.fromhex("04f0ffff")


def test_sections_follow_one_another_without_gaps() -> None:
    code = asm(".data; .byte 2; .bss; .skip 2; .section .rodata; .byte 1; .text; nop", 64)
    assert code == bytes([0x90, 1, 2, 0, 0])


@pytest.mark.parametrize(
    ("text", "bits", "parts"),
    [
        ("nop\nfoo bar\nnop", 64, ["line 2: Error: no such instruction: `foo bar'", "    foo bar"]),
        ("mov rbx", 64, ["line 1: Error: number of operands mismatch for `mov'"]),
        ("nop\nmov rax, [nowhere]\n", 64, ["line 2: undefined reference to `nowhere'"]),
        ("bad1\nbad2", 64, ["line 1: ", "line 2: "]),
        ("mov ax, [far_off]\n.org 0x20000\nfar_off:", 16, ["line 1: ", "0x20000", "too large"]),
        (".byte 0x1ff", 64, ["line 1: Warning: value 0x1ff truncated"]),
        ('.incbin "/nonexistent"', 64, ["line 1: Error: file not found"]),
        ("nop\0", 64, ["NUL"]),
    ],
)
def test_errors_carry_message_and_line(text: str, bits: int, parts: list[str]) -> None:
    with pytest.raises(AsmError) as caught:
        asm(text, bits)  # type: ignore[arg-type]
    for part in parts:
        assert part.replace("0x20000", "20000") in str(caught.value)


def test_an_address_out_of_reach_is_an_error() -> None:
    with pytest.raises(AsmError, match=r"line 1: relocation truncated to fit"):
        asm("mov eax, offset here; here:", 64, org=1 << 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 8}, "bits is 8, it must be 16, 32 or 64"),
        ({"syntax": "masm"}, "syntax is 'masm'"),
        ({"org": -1}, "org is -0x1"),
        ({"bits": 16, "org": 1 << 32}, "org is 0x100000000, outside the 32-bit"),
        ({"org": 1 << 64}, "outside the 64-bit"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asm("nop", **arguments)  # type: ignore[arg-type]


def test_second_time_runs_nothing(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    seen = tools_run(monkeypatch)
    assert asm("nop") == b"\x90"
    assert seen == ["as", "ld"]
    assert asm("nop") == b"\x90"
    module._memory_cache.clear()  # as in a new process
    assert asm("nop") == b"\x90"
    assert seen == ["as", "ld"]
    assert len(list(cache.iterdir())) == 1


def test_everything_that_matters_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [asm("mov eax, 1; x: .word offset x", bits, org=org)
                for bits in (16, 32) for org in (0, 0x100)]  # fmt: skip
    assert len(set(variants)) == 4
    seen = tools_run(monkeypatch)
    monkeypatch.setattr(module, "_version", lambda name: f"GNU {name} of the future")
    asm("mov eax, 1; x: .word offset x", 16)
    assert seen == ["as", "ld"]


@pytest.mark.parametrize("damage", [b"", b"short", bytes(33)])
def test_damaged_cache_file_is_ignored(cache: Path, damage: bytes) -> None:
    asm("nop")
    (entry,) = cache.iterdir()
    entry.write_bytes(damage)
    module._memory_cache.clear()
    assert asm("nop") == b"\x90"
    assert entry.read_bytes().endswith(b"\x90")


def test_unwritable_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    assert asm("nop") == b"\x90"


def test_relative_cache_home_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert module.cache_directory() == Path("/home/somebody/.cache/kvmpy")


def test_text_that_includes_files_is_not_cached(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "data"
    for content in (b"one", b"two"):
        file.write_bytes(content)
        assert asm(f'.incbin "{file}"') == content
    assert not cache.exists()


def test_missing_binutils_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AsmError, match="GNU as not found in PATH: install binutils"):
        asm("nop")


def test_another_assembler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "as"
    fake.write_text("#!/bin/sh\necho Solaris assembler\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(AsmError, match="not from GNU binutils: 'Solaris assembler'"):
        asm("nop")


def test_endless_assembly_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    asm("nop")  # the version is known from here on
    monkeypatch.setattr(module, "TIMEOUT", 0.001)
    with pytest.raises(AsmError, match=r"as ran for more than 0\.001 s"):
        asm("inc eax; .rept 300000; nop; .endr")
