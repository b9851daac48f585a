"""Instructions tried in this process: the child that makes the try, and how it ends."""

import contextlib
import errno
import os
import signal
from pathlib import Path

import pytest

from kvmpy import _measure
from kvmpy.lab import tries as _tries

lib, ffi = _measure.lib, _measure.ffi
PAGE_FAULT, GENERAL_PROTECTION, INVALID_OPCODE, DIVIDE = 14, 13, 6, 0


def attempt(code: bytes, *, entry: int = 0, operand: int = 0, memory: bytes = b"") -> object:
    """What became of machine code; raises OSError."""
    result = ffi.new("struct measure_host_try *")
    error = lib.measure_host_try(code, len(code), entry, operand, memory, len(memory), result)
    if error:
        raise OSError(-error, os.strerror(-error))
    return result


def test_a_try_reports_with_what_it_found():
    """RBX is the operand, RSI memory, RDI where to report; RAX and RDX come back."""
    code = bytes.fromhex("4889d8 488b16 8907")  # mov rax, rbx; mov rdx, [rsi]; mov [rdi], eax
    result = attempt(code, operand=7 << 40, memory=(9).to_bytes(8, "little"))
    assert result.reported
    assert (result.rax, result.rdx) == (7 << 40, 9)


def test_it_starts_where_it_is_told():
    """Not at the first byte; and with a stack."""
    result = attempt(bytes.fromhex("0f0b 6a05 58 8907"), entry=2)  # ud2; push 5; pop rax
    assert (result.reported, result.rax) == (True, 5)


@pytest.mark.parametrize(
    ("code", "number", "vector"),
    [
        ("f4", signal.SIGSEGV, GENERAL_PROTECTION),  # hlt
        ("0f0b", signal.SIGILL, INVALID_OPCODE),  # ud2
        ("31c9 f7f1", signal.SIGFPE, DIVIDE),  # div ecx, by zero
        ("31c9 8b01", signal.SIGSEGV, PAGE_FAULT),  # mov eax, [0]
        ("31e4 50", signal.SIGSEGV, PAGE_FAULT),  # push, without a stack
    ],
)
def test_exceptions_by_their_vector(code, number, vector):
    """The kernel says which it was; the handler needs no stack of the try's."""
    result = attempt(bytes.fromhex(code))
    assert (result.reported, result.signal, result.vector) == (False, number, vector)


def test_what_does_not_come_back_is_ended():
    """By an alarm, in two seconds."""
    assert attempt(bytes.fromhex("ebfe")).signal == signal.SIGALRM


def test_what_exits_by_itself():
    """No signal, nothing reported."""
    result = attempt(bytes.fromhex("b83c000000 31ff 0f05"))  # exit(0)
    assert (result.reported, result.signal) == (False, 0)


def test_wrong_arguments():
    """An entry outside of the code; more memory than there is."""
    for arguments in ({"entry": 1}, {"memory": bytes(8192)}):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            attempt(b"\xf4", **arguments)


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text().splitlines())


def children() -> set[str]:
    """Processes, dead ones as well, whose parent this one is."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[1]) == os.getpid():
                found.add(name)
    return found


def test_nothing_is_left():
    """Neither children nor mappings, and this process's handlers are its own."""
    attempt(b"\xf4")
    handler, mapped, parent_of = signal.getsignal(signal.SIGSEGV), mappings(), children()
    for _ in range(20):
        attempt(b"\xf4")
    assert mappings() <= mapped + 2
    assert children() <= parent_of
    assert signal.getsignal(signal.SIGSEGV) is handler


def test_outcomes():
    """As values, with the exception's name and what the kernel made of it."""
    here = _tries.here(_tries.Try("hlt"))
    assert here == _tries.Tried("exception", "#GP", 0, signal="SIGSEGV")
    assert here.word == "#GP"
    assert _tries.here(_tries.Try("cpl")).value & 3 == 3
    assert _tries.here(_tries.Try("lldt")).name == "#GP"
