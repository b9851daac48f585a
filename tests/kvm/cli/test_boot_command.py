"""`python -m kvmpy boot`, as a shell sees it: output, exit status, signals, terminals."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

import kvmpy

BOOT = [sys.executable, "-m", "kvmpy", "boot"]
LIMIT = 240  # seconds; generous for emulated CPUs


def boot(*args: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*BOOT, *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=LIMIT, check=False)


@pytest.fixture
def flat(tmp_path: Path):
    """Assembles a real-mode program into a file that boots at 0x7c00."""

    def make(text: str) -> Path:
        path = tmp_path / "guest.bin"
        path.write_bytes(kvmpy.asm(text, bits=16, org=0x7C00))
        return path

    return make


def test_demo_reports_every_try_and_powers_off_with_0() -> None:
    result = boot("demo")
    text = result.stdout.decode()
    assert result.returncode == 0, result.stderr
    assert result.stderr == b""
    assert text.startswith("Hello from the kvmpy demo kernel: 64-bit long mode, CPL 0")
    for path in ("int 0x80", "int3", "call gate", "syscall", "sysenter", "ud2"):
        assert any(line.startswith(f"  {path} ") for line in text.splitlines()), path
    assert "All tries came back" in text
    assert max(map(len, text.splitlines())) <= 79


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_debug_exit_is_the_exit_status(flat, status: int) -> None:
    assert boot(flat(f"mov al, {status}; out 0xf4, al")).returncode == status


@pytest.mark.parametrize(
    ("irqchip", "version"), [("auto", 0xFF), ("none", 0xFF), ("kernel", 0x11), ("split", 0x20)]
)
def test_irqchip(tmp_path: Path, irqchip: str, version: int) -> None:
    """KVM's I/O APIC, our own, or none: by its version register."""
    code = "mov ebx, 0xfec00000; mov dword ptr [ebx], 1; mov eax, [ebx + 0x10]; out 0xf4, al"
    path = tmp_path / "guest.bin"
    path.write_bytes(kvmpy.asm(code, bits=32, org=0x10_0000))
    result = boot(
        path, "--mode", "protected", "--load-address", 0x10_0000, "--irqchip", irqchip
    )  # fmt: skip
    assert result.returncode == version, result.stderr


@pytest.mark.parametrize(("irqchip", "lapic"), [("none", 0), ("kernel", 1), ("split", 1)])
def test_cpuid_says_whether_there_is_a_lapic(flat, irqchip: str, lapic: int) -> None:
    code = "mov eax, 1; cpuid; shr edx, 9; and dl, 1; mov al, dl; out 0xf4, al"
    assert boot(flat(code), "--irqchip", irqchip).returncode == lapic


def test_halt_is_0_and_says_so(flat) -> None:
    result = boot(flat("cli; hlt"))
    assert result.returncode == 0
    assert result.stderr == b"kvmpy: the guest halted\n"


def test_a_halt_that_waits_for_an_interrupt_says_what_is_missing(flat) -> None:
    result = boot(flat("sti; hlt"))
    assert result.returncode == 0
    assert b"no interrupt controller (irqchip none)" in result.stderr


@pytest.mark.parametrize(
    "code", ["mov al, 0xfe; out 0x64, al", "mov al, 6; mov dx, 0xcf9; out dx, al"]
)
def test_reset_ends_the_machine(flat, code: str) -> None:
    result = boot(flat(code))
    assert result.returncode == 3
    assert b"reset" in result.stderr


def test_timeout_is_124_and_says_where_the_guest_was(flat, module: str) -> None:
    result = boot(flat("l: jmp l"), "--timeout", "0.3")
    assert result.returncode == 124
    assert b"0000:0x7c00 (ring 0, real mode)" in result.stderr
    assert (b"where kvm_pvm emulates" in result.stderr) is (module == "kvm_pvm")


def test_a_kernel_that_this_module_cannot_boot_is_announced(tmp_path: Path, module: str) -> None:
    code = kvmpy.asm("mov al, 5; out 0xf4, al")
    begin, size = 0x10_0000, 64 + 56 + len(code)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, begin + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, begin, begin, size, size, 4096)
    path = tmp_path / "vmlinux"
    path.write_bytes(header + segment + code)
    result = boot(path, "--format", "linux")
    assert result.returncode == 5, result.stderr
    assert (b"does not reach user space" in result.stderr) is (module == "kvm_pvm")


def test_exit_limit_is_124_and_counts_accesses_to_what_is_not_there(flat) -> None:
    result = boot(flat("l: out 0x90, al; in al, 0x91; jmp l"), "--max-exits", "50", "--json")
    record = json.loads(result.stdout)
    assert result.returncode == 124
    assert record["ending"] == "exit-limit"
    assert record["exits"]["IO"]["count"] == 50
    assert {u["address"]: u["count"] for u in record["unclaimed"]} == {0x90: 25, 0x91: 25}


def test_serial_input_reaches_the_guest_from_a_pipe(flat) -> None:
    # Echo until a newline, then end with status 0.
    echo = """
    wait:   mov dx, 0x3fd; in al, dx; test al, 1; jz wait
            mov dx, 0x3f8; in al, dx; out dx, al
            cmp al, 10; jne wait
            mov al, 0; out 0xf4, al
    """
    result = boot(flat(echo), "--timeout", "60", stdin=b"to the guest\nnever read")
    assert result.stdout == b"to the guest\n"
    assert result.returncode == 0


def test_long_input_is_neither_lost_nor_reordered(flat) -> None:
    echo = """
    wait:   mov dx, 0x3fd; in al, dx; test al, 1; jz wait
            mov dx, 0x3f8; in al, dx; out dx, al
            cmp al, '.'; jne wait
            mov al, 0; out 0xf4, al
    """
    text = b"".join(b"%05d" % i for i in range(2000))  # more than the UART's queue holds
    result = boot(flat(echo), "--timeout", "120", stdin=text + b".")
    assert result.stdout == text + b"."


def test_prompt_without_a_newline_is_shown_while_the_guest_spins(flat) -> None:
    image = flat("mov dx, 0x3f8; mov al, '>'; out dx, al; l: jmp l")
    with subprocess.Popen([*BOOT, image], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as p:
        try:
            assert os.read(p.stdout.fileno(), 10) == b">"
        finally:
            p.terminate()
            assert p.wait(LIMIT) == 128 + signal.SIGTERM


def test_ctrl_c_ends_a_spinning_guest_at_once(flat) -> None:
    image = flat("mov al, 'x'; out 0xe9, al; l: jmp l")
    command = [*BOOT, image]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as p:
        assert os.read(p.stdout.fileno(), 10) == b"x"
        p.send_signal(signal.SIGINT)
        _, stderr = p.communicate(timeout=LIMIT)
    assert p.returncode == 130
    assert stderr == b"kvmpy: interrupted\n"


def test_unexpected_exit_explains_itself_with_status_1(flat) -> None:
    result = boot(flat("mov ah, 0x0e; int 0x10"))
    text = result.stderr.decode()
    assert result.returncode == 1
    assert "int 0x10" in text
    assert "BIOS" in text
    assert "rip" in text


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["/nonexistent/kernel"], 1, "/nonexistent/kernel: No such file or directory"),
        (["/"], 1, "/: Is a directory"),
        (["/dev/null"], 1, "empty"),
        (["demo", "--memory", "0"], 2, "memory size '0' is not a positive multiple"),
        (["demo", "--memory", "3000T"], 1, ""),
        (["demo", "--memory", "lots"], 2, "'lots' is not a size"),
        (["demo", "--timeout", "-1"], 2, "not a number of seconds above 0"),
        (["demo", "--max-exits", "0"], 2, "not a count"),
        (["demo", "--pin", "9999"], 2, "does not exist"),
        (["demo", "--format", "coff"], 2, "invalid choice"),
        (["demo", "--format", "multiboot"], 1, ""),
        (["demo", "--initrd", "/nonexistent"], 1, "/nonexistent: No such file"),
        (["demo", "--frobnicate"], 2, "unrecognized arguments: --frobnicate"),
        ([], 2, "required: IMAGE"),
    ],
)
def test_wrong_input_gets_one_clear_error(args, status: int, message: str) -> None:
    result = boot(*args)
    text = result.stderr.decode()
    assert result.returncode == status, text
    assert message in text
    assert "Traceback" not in text
    assert result.stdout == b""


def test_closed_stdout_is_no_traceback() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [*BOOT, "demo"], stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.PIPE,
        timeout=LIMIT, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr


def test_stats_name_the_exits() -> None:
    result = boot("demo", "--stats")
    text = result.stderr.decode()
    assert result.returncode == 0
    assert "exit reason" in text
    assert any(line.startswith("IO ") for line in text.splitlines())


def _read_until(fd: int, wanted: bytes) -> bytes:
    seen = b""
    deadline = time.monotonic() + LIMIT
    while wanted not in seen:
        assert time.monotonic() < deadline, seen
        seen += os.read(fd, 1000)
    return seen


def test_terminal_is_raw_while_the_guest_runs_and_restored_after_the_escape_key(flat) -> None:
    image = flat("""
            mov dx, 0x3f8; mov al, '>'; out dx, al
    wait:   mov dx, 0x3fd; in al, dx; test al, 1; jz wait
            mov dx, 0x3f8; in al, dx; out dx, al
            jmp wait
    """)
    pid, fd = pty.fork()
    if pid == 0:  # the child has the terminal as its own
        os.execv(sys.executable, [*BOOT, str(image)])
    try:
        before = termios.tcgetattr(fd)[3]
        assert b"Ctrl-]" in _read_until(fd, b">")
        while termios.tcgetattr(fd)[3] & termios.ICANON:
            time.sleep(0.01)
        os.write(fd, b"\x03")  # Ctrl-C is a key like any other to the guest
        _read_until(fd, b"\x03")
        os.write(fd, b"\x1d")
        _read_until(fd, b"ended by the user")
        assert termios.tcgetattr(fd)[3] & (termios.ICANON | termios.ECHO) == before & (
            termios.ICANON | termios.ECHO
        )
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
        pid = 0
    finally:
        os.close(fd)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGSEGV, signal.SIGKILL],
    ids=lambda number: number.name,
)
def test_terminal_is_restored_whatever_ends_the_command(flat, number) -> None:
    """Also by what no process can catch. It has the terminal from a shell, whose session it is."""
    image = flat("mov dx, 0x3f8; mov al, '>'; out dx, al; 1: jmp 1b")
    shell, fd = pty.fork()
    if shell == 0:
        os.execv("/bin/sh", ["sh", "-c", '"$@"; sleep 600', "sh", *BOOT, str(image)])
    children = Path(f"/proc/{shell}/task/{shell}/children")
    try:
        before = termios.tcgetattr(fd)
        _read_until(fd, b">")
        while termios.tcgetattr(fd)[3] & termios.ICANON:
            time.sleep(0.01)
        (command,) = map(int, children.read_text().split())
        os.kill(command, number)
        end = time.monotonic() + LIMIT
        while termios.tcgetattr(fd) != before and time.monotonic() < end:
            time.sleep(0.01)
        assert termios.tcgetattr(fd) == before
        while str(command) in children.read_text().split():
            time.sleep(0.01)
    finally:
        for pid in (*map(int, children.read_text().split()), shell):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(shell, 0)
        os.close(fd)


def test_a_slow_reader_gets_all_of_the_output(flat) -> None:
    # More than a pipe and the sink hold: the guest is held back, and its end waits for the rest.
    count = 72000
    image = flat(f"mov ecx, {count}; mov dx, 0x3f8; l: mov al, 'x'; out dx, al; dec ecx; jnz l; "
                 "mov al, 3; out 0xf4, al")  # fmt: skip
    with subprocess.Popen([*BOOT, image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as p:
        time.sleep(1)
        output = p.stdout.read()
        assert p.wait(LIMIT) == 3
    assert output == b"x" * count
