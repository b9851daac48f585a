"""The console a script drives, against guests that are threads here: pipes, no KVM."""

import os
import re
import threading

import pytest

import kvmpy
from kvmpy.console import script as expect
from kvmpy.console.output import Match, printable
from kvmpy.console.script import ScriptConsole

LIMIT = 30.0


class Guest:
    """A console's other end: ``put`` prints; as a receiver it takes ``room`` bytes until read."""

    def __init__(self, **options):
        reader, self.fd = os.pipe()
        self._lock = threading.Lock()
        self._event = None
        self.room, self.got, self.calls = 1 << 30, bytearray(), 0
        self.console = ScriptConsole(reader, self, ended=lambda: "the guest ended so", **options)

    def put(self, data):
        while data:
            data = data[os.write(self.fd, data) :]

    def end(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def receive(self, data, *, space_eventfd=None):
        with self._lock:
            taken = min(self.room, len(data))
            self.got += data[:taken]
            self.room -= taken
            self.calls += 1
            self._event = space_eventfd if taken < len(data) else None
        return taken

    def make_room(self, count):
        with self._lock:
            self.room += count
            event, self._event = self._event, None
            if event is not None:
                os.eventfd_write(event, 1)


@pytest.fixture
def guest():
    """A guest that says what it is told to."""
    guest = Guest()
    yield guest
    guest.console.close()
    guest.end()


@pytest.fixture
def made():
    """``made(**options)``: a guest whose console has them."""
    guests = []
    yield lambda **options: guests.append(Guest(**options)) or guests[-1]
    for guest in guests:
        guest.console.close()
        guest.end()


def later(action, *arguments):
    """In a thread, which is joined by the test's end."""
    thread = threading.Thread(target=action, args=arguments)
    thread.start()
    return thread


# ---------------------------------------------------------------- expect


def test_expect_consumes_up_to_the_match(guest):
    guest.put(b"boot\r\nhost login: more")
    match = guest.console.expect(rb"(?P<host>\w+) login: ", timeout=LIMIT)
    assert (match.before, match.after) == (b"boot\r\n", b"host login: ")
    assert (match.start, match.end, match.index) == (6, 18, 0)
    assert match["host"] == match[1] == match.group("host") == b"host"
    assert match.groupdict() == {"host": b"host"}
    assert guest.console.before == b"boot\r\n"
    assert guest.console.after == b"host login: "
    assert guest.console.expect(b"e$", timeout=LIMIT).before == b"mor"
    with pytest.raises(IndexError, match="no such group"):
        match[2]
    with pytest.raises(IndexError, match="'guest'"):
        match["guest"]


def test_expect_waits_for_what_comes_later(guest):
    thread = later(lambda: [guest.put(bytes([byte])) for byte in b"slowly... done\n"])
    assert guest.console.expect([b"panic", b"done"], timeout=LIMIT).index == 1
    thread.join()


def test_a_growing_match_at_a_prompt(guest):
    """No newline will come: silence ends it."""
    guest.put(b"host login:")
    assert guest.console.expect(rb"login:.*", timeout=LIMIT).after == b"login:"


def test_timeout_says_what_and_shows_the_tail_and_takes_nothing(guest):
    guest.put(b"\x1b[1mLinux\r\nready> ")
    guest.console.expect(b"Linux", timeout=LIMIT)
    with pytest.raises(kvmpy.ExpectTimeout) as info:
        guest.console.expect([rb"logi[n]", b"root"], timeout=0.05)
    assert isinstance(info.value, TimeoutError)
    assert isinstance(info.value, kvmpy.KvmpyError)
    text = str(info.value)
    assert text.startswith("no b'logi[n]' or b'root' within 0.05 s; 9 bytes came since")
    assert "all output, 18 bytes:" in text
    assert text.endswith("  | \\x1b[1mLinux\n  | ready>")
    assert info.value.tail == b"\x1b[1mLinux\r\nready> "
    assert guest.console.expect(b"ready", timeout=0).before == b"\r\n"


def test_timeout_while_output_never_stops(guest):
    """Bytes keep coming; the time is up all the same."""
    stop = threading.Event()

    def chatter():
        while not stop.is_set():
            guest.put(b"noise\n")

    thread = later(chatter)
    try:
        with pytest.raises(kvmpy.ExpectTimeout):
            guest.console.expect(b"signal", timeout=0.2)
    finally:
        stop.set()
        thread.join()


def test_a_regular_expression_that_was_meant_literally(guest):
    guest.put(b"(initramfs) ")
    with pytest.raises(kvmpy.ExpectTimeout, match="did you mean exact=True"):
        guest.console.expect(b"(initramfs) ", timeout=0.01)
    assert guest.console.expect(b"(initramfs) ", exact=True, timeout=LIMIT).start == 0


def test_the_guests_end_while_waiting(guest):
    """How it ended, and the tail; what came before is still to be had."""
    thread = later(lambda: (guest.put(b"Kernel panic\n"), guest.end()))
    with pytest.raises(kvmpy.ExpectEof) as info:
        guest.console.expect(b"login", timeout=LIMIT)
    thread.join()
    assert isinstance(info.value, EOFError)
    assert str(info.value).startswith("the guest ended so before b'login' appeared; 13 bytes")
    assert str(info.value).endswith("| Kernel panic")
    assert guest.console.expect(rb"panic", timeout=LIMIT).before == b"Kernel "
    with pytest.raises(kvmpy.ExpectEof):
        guest.console.send(b"anybody?")


def test_close_ends_a_script_that_waits(guest):
    started = threading.Event()
    errors = []

    def script():
        started.set()
        try:
            guest.console.expect(b"never", timeout=LIMIT)
        except (kvmpy.ExpectEof, kvmpy.ClosedError) as error:
            errors.append(error)

    thread = later(script)
    started.wait(LIMIT)
    guest.console.close()
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert "closed" in str(errors[0])
    with pytest.raises(kvmpy.ClosedError):
        guest.console.expect(b"x")
    guest.console.close()


def test_two_scripts_take_turns(guest):
    """Neither sees what the other has taken."""
    got = []
    threads = [
        later(lambda: got.append(guest.console.expect(rb"<\d+>", timeout=LIMIT).after))
        for _ in range(8)
    ]
    guest.put(b"".join(b"<%d>" % n for n in range(8)))
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(got) == [b"<%d>" % n for n in range(8)]


def test_no_turn_in_time(guest):
    thread = later(lambda: guest.console.expect(b"done", timeout=LIMIT))
    while guest.console._turn.acquire(blocking=False):
        guest.console._turn.release()
    with pytest.raises(kvmpy.ExpectTimeout, match="another script"):
        guest.console.expect(b"x", timeout=0.01)
    guest.put(b"done")
    thread.join()


# ---------------------------------------------------------------- much output


def test_megabytes_of_output_and_their_log(guest, made, tmp_path):
    guest = made(log=tmp_path / "log")
    text = b"".join(b"%07d: some output\r\n" % n for n in range(400_000))  # 9 MiB
    thread = later(lambda: (guest.put(text), guest.put(b"the end"), guest.end()))
    match = guest.console.expect(rb"the en[d]", timeout=LIMIT)
    thread.join()
    assert match.before == text
    assert guest.console.output == text + b"the end"
    assert guest.console.drain(LIMIT)
    guest.console.close()
    assert (tmp_path / "log").read_bytes() == text + b"the end"


def test_a_script_that_does_not_read_blocks_no_guest(made):
    """The guest's writes return although nobody waits; beyond the limit the oldest goes, and
    everybody is told."""
    guest = made(limit=1 << 16)
    guest.put(b"first ")
    for _ in range(200):
        guest.put(b"x" * 9999 + b"\n")
    guest.put(b"last")
    guest.end()
    assert guest.console.drain(LIMIT)
    assert len(guest.console.output) == 1 << 16
    assert guest.console.dropped == 2_000_010 - (1 << 16)
    with pytest.raises(kvmpy.ExpectEof, match=r"the first 1934474 are no longer kept"):
        guest.console.expect(b"first", timeout=0)
    match = guest.console.expect(b"last", timeout=0)
    assert match.end == 2_000_010
    assert len(match.before) == (1 << 16) - 4


def test_a_log_that_cannot_be_written_loses_no_output(made):
    guest = made(log="/dev/full")
    guest.put(b"text")
    assert guest.console.expect(b"text", timeout=LIMIT)
    assert "No space left" in str(guest.console.log_error)


def test_limit_below_the_tail_is_refused():
    with pytest.raises(ValueError, match="below 4096"):
        ScriptConsole(0, limit=100)


def test_tail_of_much_output(guest):
    guest.put(b"a" * 10_000 + b"z")
    guest.console.expect(b"z", timeout=LIMIT)
    assert guest.console.tail == b"a" * 4095 + b"z"
    assert guest.console.tail_title == "the last 4096 of 10001 bytes of output"


def test_printable():
    assert printable(b"a\tb\r\n\x07\x1b[0m\xfe\r") == "a\tb\n\\x07\\x1b[0m\\xfe\\x0d"


def test_match_shows_no_private_parts():
    assert repr(Match(0, b"", b"x", 0, 1, (b"x",), {})).endswith("start=0, end=1)")


# ---------------------------------------------------------------- input


def test_input_waits_for_room_and_keeps_its_order(guest):
    """A queue of 100 bytes, made room 70 at a time: nothing is lost, nobody spins."""
    guest.room = 100
    data = bytes(range(256)) * 20
    guest.console.send(data)
    guest.console.sendline("é")
    want = data + "é\n".encode()
    while len(guest.got) < len(want):
        guest.make_room(70)
    assert guest.got == want
    assert guest.calls < 3 * len(want) / 70 + 10


def test_send_waits_when_the_guest_reads_nothing(guest, monkeypatch):
    monkeypatch.setattr(expect, "QUEUE_BYTES", 1000)
    guest.room = 0
    guest.console.send(b"x" * 1000)
    with pytest.raises(kvmpy.ExpectTimeout, match=r"no room for 1 bytes of input within 0\.05 s"):
        guest.console.send(b"y", timeout=0.05)
    thread = later(lambda: guest.console.send(b"z" * 5000, timeout=LIMIT))
    while thread.is_alive() or len(guest.got) < 6000:
        guest.make_room(500)
    assert guest.got == b"x" * 1000 + b"z" * 5000


def test_close_with_input_that_was_never_taken(guest):
    """The receiver is told to forget the eventfd: its number will be somebody else's."""
    guest.room = 0
    guest.console.send(b"unread")
    while not guest.calls:
        pass
    guest.console.close()
    assert guest._event is None


def test_a_console_without_input():
    reader, writer = os.pipe()
    with ScriptConsole(reader) as console:
        with pytest.raises(kvmpy.UnsupportedError, match="no input"):
            console.send(b"x")
        os.close(writer)
        with pytest.raises(kvmpy.ExpectEof, match=re.escape("the console's output ended before")):
            console.expect(b"x", timeout=LIMIT)


def test_nothing_is_left_open(made):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        guest = Guest(log=os.devnull)
        guest.put(b"x")
        guest.console.close()
        guest.end()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [t for t in threading.enumerate() if t.name == "kvmpy-script"]
