"""Assemble guest code with GNU as, cached by content.

``ld`` resolves absolute references against ``org``, so the result is the flat image of the code as
it will sit in guest memory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ..errors import AsmError

if TYPE_CHECKING:
    import subprocess

TIMEOUT: Final = 30.0  # seconds for one run of as or ld; .rept can make them endless
_FORMAT: Final = "2"  # part of the key: change it with the options or the linker script

_CODE: Final = {16: ".code16", 32: ".code32", 64: ".code64"}
# Directives, and not -msyntax with -mnaked-reg: with the options as takes no segment override.
_SYNTAX: Final = {
    "intel": ".intel_syntax noprefix; .intel_mnemonic",
    "att": ".att_syntax prefix; .att_mnemonic",
}
# One output section, so that --oformat binary has no gaps and .data and .bss follow the code.
_SCRIPT: Final = """SECTIONS {{ . = {org:#x};
  .all : {{ *(.text .text.*) *(.rodata .rodata.*) *(.data .data.*) *(.bss .bss.*) *(COMMON) }}
  /DISCARD/ : {{ *(.comment .note .note.* .eh_frame .debug_*) }} }}
"""
_INCLUDES: Final = re.compile(r"\.inc(lude|bin)\b", re.IGNORECASE)
_AS_LINE: Final = re.compile(
    r"^\{standard input\}:(\d+):\s*((?:Warning|Error|Fatal error):.*)$", re.MULTILINE
)
_LD_LINE: Final = re.compile(r"\{standard input\}:(\d+):\s*(?:\(.*?\): )?(.*)$", re.MULTILINE)

_memory_cache: dict[str, bytes] = {}


def asm(
    text: str,
    bits: Literal[16, 32, 64] = 64,
    *,
    syntax: Literal["intel", "att"] = "intel",
    org: int = 0,
) -> bytes:
    """Assemble ``text`` to a flat binary that runs at address ``org``.

    Statements are separated by newlines or ``;``, comments start with ``#``; directives are those
    of GNU as. ``bits`` is the initial code size, and ``.code16`` and the like change it. Results
    are kept in memory and under $XDG_CACHE_HOME/kvmpy (text that includes other files is not).

    Raises AsmError: the assembler or linker refused the text (the message has its words and the
    line concerned), it ran for more than 30 s, or binutils is not installed; ValueError: ``bits``,
    ``syntax`` or ``org`` is out of range.

    >>> kvmpy.asm("mov al, 'A'; out 0xe9, al; hlt").hex()
    'b041e6e9f4'
    >>> kvmpy.asm("jmp start; start: hlt", bits=16, org=0x7c00).hex()
    'eb00f4'
    """
    if bits not in _CODE:
        raise ValueError(f"bits is {bits!r}, it must be 16, 32 or 64")
    if syntax not in _SYNTAX:
        raise ValueError(f"syntax is {syntax!r}, it must be 'intel' or 'att'")
    if not 0 <= org < 1 << (64 if bits == 64 else 32):
        raise ValueError(f"org is {org:#x}, outside the {max(bits, 32)}-bit address space")
    if "\0" in text:
        raise AsmError("the text contains a NUL character")
    key = _key(text, bits, syntax, org)
    cacheable = not _INCLUDES.search(text)
    code = _memory_cache.get(key) if cacheable else None
    if code is None and cacheable:
        code = _read_cache(key)
    if code is None:
        code = _assemble(text, bits, syntax, org)
        if cacheable:
            _write_cache(key, code)
    if cacheable:
        _memory_cache[key] = code
    return code


def _key(text: str, bits: int, syntax: str, org: int) -> str:
    identity = "\0".join((_FORMAT, _version("as"), _version("ld"), f"{bits} {syntax} {org}", text))
    return hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise AsmError(f"GNU {name} not found in PATH: install binutils (apt install binutils)")
    return path


@functools.cache
def _version_of(path: str, mtime_ns: int) -> str:
    first_line, _, _ = _run([path, "--version"], "").stdout.partition("\n")
    if "GNU" not in first_line:
        raise AsmError(f"{path} is not from GNU binutils: {first_line!r}")
    return first_line


def _version(name: str) -> str:
    path = _tool(name)
    return _version_of(path, os.stat(path).st_mtime_ns)


def _run(command: list[str], stdin: str) -> subprocess.CompletedProcess[str]:
    """Run a tool in the C locale, so that its messages can be read here."""
    import subprocess

    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=TIMEOUT,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        raise AsmError(f"{name} ran for more than {TIMEOUT:g} s; is a .rept too large?") from None
    except OSError as error:
        raise AsmError(f"cannot run {command[0]}: {error.strerror}") from error


def _assemble(text: str, bits: int, syntax: str, org: int) -> bytes:
    import tempfile

    # The code size shares a line with the user's first, so that line numbers stay the user's.
    source = f"{_SYNTAX[syntax]}; {_CODE[bits]}; {text}\n"
    elf, emulation = ("--64", "elf_x86_64") if bits == 64 else ("--32", "elf_i386")
    with tempfile.TemporaryDirectory(prefix="kvmpy-asm-") as directory:
        obj, script, out = (str(Path(directory, name)) for name in ("code.o", "ld.x", "code.bin"))
        # -g: ld names the line of an undefined symbol. Debug sections are discarded by the script.
        # Warnings are fatal: truncated values and unterminated comments make wrong code.
        options = [elf, "-g", "--fatal-warnings"]
        command = [_tool("as"), *options, "-o", obj, "-"]
        result = _run(command, source)
        if result.returncode:
            raise AsmError(_explain(result.stderr, text, _AS_LINE))
        Path(script).write_text(_SCRIPT.format(org=org))
        command = [_tool("ld"), "-m", emulation, "--oformat", "binary", "-e", f"{org:#x}"]
        result = _run([*command, "-T", script, "-o", out, obj], "")
        if result.returncode:
            raise AsmError(_explain(result.stderr, text, _LD_LINE))
        return Path(out).read_bytes()


def _explain(stderr: str, text: str, pattern: re.Pattern[str]) -> str:
    """The tool's own messages, each with the line of ``text`` that it is about."""
    lines = text.split("\n")
    found = [(int(match[1]), match[2].strip()) for match in pattern.finditer(stderr)]
    if not found:
        return stderr.strip() or "the assembler failed without a message"
    return "\n".join(
        f"line {number}: {message}"
        + (f"\n    {lines[number - 1].strip()}" if 0 < number <= len(lines) else "")
        for number, message in found
    )


def cache_directory() -> Path:
    """$XDG_CACHE_HOME/kvmpy, or ~/.cache/kvmpy. It may not exist.

    >>> kvmpy.x86.asm.cache_directory().name
    'kvmpy'
    """
    # An empty or relative XDG_CACHE_HOME counts as unset (XDG Base Directory Specification).
    root = os.environ.get("XDG_CACHE_HOME", "")
    return Path(root if os.path.isabs(root) else os.path.expanduser("~/.cache"), "kvmpy")


def _read_cache(key: str) -> bytes | None:
    """A cached result; None when there is none or its digest is wrong (a truncated file)."""
    try:
        data = Path(cache_directory(), "asm", key).read_bytes()
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write_cache(key: str, code: bytes) -> None:
    """Store a result by atomic rename. A cache that cannot be written only costs time."""
    import tempfile

    directory = Path(cache_directory(), "asm")
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, Path(directory, key))
        except OSError:
            os.unlink(temporary)
            raise
