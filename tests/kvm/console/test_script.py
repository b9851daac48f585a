"""A script beside its guest: start(), the console, wait(), stop()."""

import os
import threading

import pytest
from conftest import RIG

import kvmpy

COM1 = 0x3F8
LIMIT = 20.0 * (10 if RIG else 1)
#: Prints "> ", then echoes each line with "you said: " before it; "q" ends with status 5.
TALKER = f"""
        xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
        mov si, offset prompt; call print
next:   call get
        cmp al, 'q'; je quit
        cmp al, 10; je line
        mov [di + 0x8000], al; inc di
        jmp next
line:   mov byte ptr [di + 0x8000], 0
        mov si, offset said; call print
        mov si, 0x8000; call print
        mov si, offset prompt; call print
        xor di, di
        jmp next
quit:   mov al, 5; out 0xf4, al
get:    mov dx, {COM1 + 5}
1:      in al, dx; test al, 1; jz 1b
        mov dx, {COM1}; in al, dx
        ret
print:  mov dx, {COM1}
2:      lodsb; test al, al; jz 3f
        out dx, al; jmp 2b
3:      ret
said:   .asciz "you said: "
prompt: .asciz "\\r\\n> "
"""


@pytest.fixture
def guest():
    """``guest(code)``: a machine with this boot sector, closed after the test."""
    made = []

    def make(code, **options):
        image = kvmpy.asm(code, 16, org=0x7C00)
        made.append(kvmpy.Machine(image, format="flat", memory="2M", **options))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def say(text):
    return f"mov dx, {COM1};" + "".join(f"mov al, {byte}; out dx, al;" for byte in text)


def test_a_dialogue(guest):
    m = guest(TALKER)
    m.start()
    m.console.expect("> ", timeout=LIMIT)
    for text in (b"hello", b"a longer line " * 20):
        m.console.sendline(text)
        assert m.console.expect(rb"you said: (.*)\r\n", timeout=LIMIT)[1] == text
    assert m.running
    m.console.send("q")
    outcome = m.wait(LIMIT)
    assert (outcome.ending, outcome.status) == ("debug-exit", 5)
    assert not m.running
    with pytest.raises(kvmpy.ExpectEof, match=r"^the guest ended with status 5 before b'never'"):
        m.console.expect("never", timeout=LIMIT)
    assert m.console.output.count(b"\r\n> ") == 3


def test_input_longer_than_the_uarts_queue(guest):
    """The console waits for room: nothing is lost or reordered."""
    echo = f"""
    1:  mov dx, {COM1 + 5}; in al, dx; test al, 1; jz 1b
        mov dx, {COM1}; in al, dx; out dx, al
        cmp al, '.'; jne 1b
        hlt
    """
    text = b"".join(b"%05d" % n for n in range(2000)) + b"."
    m = guest(echo)
    m.start()
    m.console.send(text)
    assert m.wait(6 * LIMIT).ending == "halt"
    assert m.console.output == text


def test_all_output_is_there_when_wait_returns(guest):
    count = 20000
    m = guest(f"mov ecx, {count}; mov dx, {COM1}; 1: mov al, 'x'; out dx, al; dec ecx; jnz 1b; hlt")
    m.start()
    assert m.wait(6 * LIMIT).ending == "halt"
    assert m.console.output == b"x" * count


def test_a_script_that_never_reads(guest):
    """More than pipe and sink hold: the guest goes on, and stop() finds it running."""
    seen = threading.Event()
    m = guest(f"mov ecx, 80000; mov dx, {COM1}; 1: mov al, 'x'; out dx, al; dec ecx; jnz 1b;"
              "out 0x10, al; 2: jmp 2b")  # fmt: skip
    m.vm.on_io(0x10)(lambda port, size, value: seen.set())
    m.start()
    assert seen.wait(6 * LIMIT)
    m.stop()
    assert m.wait(0).ending == "interrupted"
    assert m.console.output == b"x" * 80000


def test_wait_in_vain_shows_the_tail(guest):
    m = guest(say(b"stuck here\n") + "1: jmp 1b")
    m.start()
    m.console.expect("here", timeout=LIMIT)
    with pytest.raises(
        kvmpy.StillRunningError, match=r"(?s)within 0\.05 s\nall output.*stuck here"
    ):
        m.wait(0.05)
    m.stop()
    assert m.cpu.regs.rip > 0x7C00


def test_a_budget_ends_it(guest):
    m = guest(say(b">") + "1: jmp 1b")
    m.start(timeout=0.1)
    assert (outcome := m.wait(LIMIT)).ending == "timeout"
    assert outcome.status == 124
    with pytest.raises(kvmpy.ExpectEof, match="timeout: the guest was at"):
        m.console.expect("x", timeout=LIMIT)


def test_an_exception_in_a_handler(guest):
    def handler(port, size, value):
        raise LookupError("of ours")

    m = guest(say(b"last words") + "out 0x10, al; hlt")
    m.vm.on_io(0x10)(handler)
    m.start()
    with pytest.raises(LookupError, match="of ours"):
        m.wait(LIMIT)
    with pytest.raises(kvmpy.ExpectEof, match="an error of its host"):
        m.console.expect("x", timeout=LIMIT)
    assert m.console.output == b"last words"


def test_stop_from_a_handler(guest):
    m = guest("1: out 0x10, al; jmp 1b")
    m.vm.on_io(0x10)(lambda port, size, value: m.stop())
    m.start()
    assert m.wait(LIMIT).ending == "interrupted"


def test_close_ends_a_spinning_guest_and_its_script(guest):
    before = len(os.listdir("/proc/self/fd"))
    m = guest(say(b"go") + "1: jmp 1b")
    m.start()
    m.console.expect("go", timeout=LIMIT)
    errors = []

    def script():
        try:
            m.console.expect("never", timeout=LIMIT)
        except kvmpy.ExpectEof as error:
            errors.append(str(error))

    thread = threading.Thread(target=script)
    thread.start()
    m.close()
    thread.join(LIMIT)
    assert "ended by the user before b'never'" in errors[0]
    m.close()
    assert m.console.output == b"go"
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(kvmpy.ClosedError):
        m.start()


def test_what_start_refuses(guest):
    m = guest("hlt")
    with pytest.raises(RuntimeError, match="not started"):
        m.wait()
    m.stop()
    m.start()
    assert m.wait(LIMIT).ending == "halt"
    with pytest.raises(RuntimeError, match="started before"):
        m.start()


def test_output_of_ones_own_leaves_no_console(guest):
    reader, writer = os.pipe()
    try:
        m = guest(say(b"out") + "hlt", output=writer)
        with pytest.raises(ValueError, match="output"):
            _ = m.console
        m.start()
        assert m.wait(LIMIT).ending == "halt"
        assert os.read(reader, 10) == b"out"
    finally:
        os.close(reader)
        os.close(writer)


def test_kernel_and_log_by_path(tmp_path):
    (tmp_path / "sector").write_bytes(kvmpy.asm(say(b"from a file") + "hlt", 16, org=0x7C00))
    with kvmpy.Machine(
        tmp_path / "sector", format="flat", memory="2M", console_log=tmp_path / "log"
    ) as m:
        m.start()
        m.wait(LIMIT)
    assert (tmp_path / "log").read_bytes() == b"from a file"
    with pytest.raises(kvmpy.ImageError, match="nowhere: No such file"):
        kvmpy.Machine(kernel=str(tmp_path / "nowhere"))


def test_a_machine_that_was_never_started(guest):
    """Its console ends when it is closed."""
    m = guest("hlt")
    assert m.console.output == b""
    m.close()
    with pytest.raises(kvmpy.ClosedError):
        m.console.expect("x")


def test_the_uart_forgets_the_eventfd_of_a_console_that_is_closed(start, vm):
    """Its number may be another file's by the time there is room."""
    uart = kvmpy.Uart()
    vm.attach(uart, COM1)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert uart.receive(b"x" * 5000, space_eventfd=event) < 5000
        assert uart.receive(b"") == 0
        cpu = start(f"mov dx, {COM1 + 2}; mov al, 7; out dx, al; hlt")
        cpu.expect(kvmpy.Hlt, timeout=LIMIT)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)
    finally:
        os.close(event)
