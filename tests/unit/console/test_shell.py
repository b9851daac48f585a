"""Commands through real shells, on a terminal that echoes, as a guest's serial port does."""

import os
import pty
import shutil
import signal

import pytest

import kvmpy
from kvmpy.console.script import ScriptConsole

LIMIT = 30.0
SHELLS = {
    "busybox ash": ["busybox", "sh"],
    "dash": ["dash", "-i"],
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "bash, posix, no line editor": ["bash", "--norc", "--posix", "--noediting", "-i"],
}


class Terminal:
    """The terminal as a receiver: takes what it has room for; reading it makes room."""

    def __init__(self, fd):
        self.fd = fd

    def receive(self, data, *, space_eventfd=None):
        return os.write(self.fd, data) if data else 0


@pytest.fixture(params=SHELLS, ids=list(SHELLS))
def shell(request):
    """A console with a shell behind it, 80 columns wide."""
    command = SHELLS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on PATH")
    pid, fd = pty.fork()
    if pid == 0:
        environment = {"PATH": os.environ["PATH"], "TERM": "linux", "PS1": "\\w # ", "HOME": "/"}
        os.execvpe(command[0], command, environment)
    with ScriptConsole(os.dup(fd), Terminal(fd), ended=lambda: "the shell ended") as console:
        yield console
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(fd)


def run(shell, command):
    result = shell.run(command, timeout=LIMIT)
    assert result.command == command
    assert result.complete
    return result.output, result.status


@pytest.mark.parametrize(
    ("command", "output", "status"),
    [
        ("echo hello", "hello\n", 0),
        ("true", "", 0),
        ("false", "", 1),
        ("printf 'no newline'", "no newline", 0),
        ("printf '\\n\\nx\\n\\n'", "\n\nx\n\n", 0),
        ("printf 'a\\rb\\r\\n'", "a\rb\r\n", 0),
        ("printf '\\303\\251\\377'", "é\\xff", 0),
        ("(exit 255)", "", 255),
        ("echo one; false; echo $?", "one\n1\n", 0),
        (
            "echo \"it's\" 'a \"quote\"' \\$HOME '$HOME' `echo sub` !!",
            'it\'s a "quote" $HOME $HOME sub !!\n',
            0,
        ),
        ("echo one\necho two; false", "one\ntwo\n", 1),
        ("cat <<END\n\there: $((6 * 7))\nEND", "\there: 42\n", 0),
        ("echo 'ein Käse\t'", "ein Käse\t\n", 0),
        ("printf '\\n<%s-%s %s>\\n' kvmpy 1-end 3", "\n<kvmpy-1-end 3>\n", 0),
        ("echo >&2 error; exit_status() { return 7; }; exit_status", "error\n", 7),
    ],
)
def test_output_and_status_are_the_commands_own(shell, command, output, status):
    assert run(shell, command) == (output, status)


def test_one_after_the_other_in_the_same_shell(shell):
    """Directories and variables stay."""
    assert run(shell, "cd /usr; x=1") == ("", 0)
    assert run(shell, "pwd; echo $x") == ("/usr\n1\n", 0)
    assert run(shell, "x=$((x + 1)); echo $x") == ("2\n", 0)


@pytest.mark.parametrize("command", ["if", "echo 'open", "echo $(", "fi; echo x", "a() {"])
def test_wrong_syntax_is_the_commands_own_failure(shell, command):
    result = shell.run(command, timeout=LIMIT)
    assert result.status not in (0, 127)
    assert run(shell, "echo still here") == ("still here\n", 0)


def test_a_command_there_is_not(shell):
    output, status = run(shell, "no-such-command --at-all")
    assert status == 127
    assert "not found" in output


def test_long_commands(shell):
    """Far longer than a line editor's or terminal's line, and wrapped by the echo."""
    words = " ".join(f"word-{n:05d}" for n in range(1500))
    assert run(shell, f"echo {words}") == (f"{words}\n", 0)
    assert run(shell, "echo " + "'\"\\\t'" * 300 + " | wc -c")[0].strip().isdigit()


def test_long_output(shell):
    output, status = run(shell, "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i + 1)); done")
    assert output == "".join(f"line {n}\n" for n in range(20000))
    assert status == 0


def test_output_that_holds_the_typed_text(shell):
    """A trace shows what was typed, and marks there are none in it."""
    run(shell, "set -x")
    output, status = run(shell, "echo traced")
    assert "traced\n" in output
    assert status == 0
    run(shell, "set +x")
    assert run(shell, "echo quiet") == ("quiet\n", 0)


def test_a_command_that_takes_too_long(shell):
    """Says so; once interrupted, the shell is there again."""
    with pytest.raises(kvmpy.ExpectTimeout) as info:
        shell.run("echo begun; sleep 1000", timeout=1)
    assert b"\nbegun\r\n" in info.value.tail
    shell.send(b"\x03")
    assert run(shell, "echo back") == ("back\n", 0)


def test_a_command_that_ends_the_shell(shell):
    with pytest.raises(kvmpy.ExpectEof, match="the shell ended before"):
        shell.run("exit 3", timeout=LIMIT)


def test_more_output_than_is_kept(shell):
    """The result says that its beginning is lost."""
    shell._output._limit = 1 << 14
    result = shell.run("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i + 1)); done", LIMIT)
    assert not result.complete
    assert result.output.endswith("line 4998\nline 4999\n")
    assert result.status == 0


def test_a_nul_byte_is_refused(shell):
    with pytest.raises(ValueError, match="NUL"):
        shell.run("echo \0")
