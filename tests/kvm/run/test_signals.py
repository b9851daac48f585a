"""Signals while a guest runs: each in a process of its own, as a script would be."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

PRELUDE = """
import os, signal, sys, threading, time
import kvmpy

def spinning(vm, ring=3, code="1: jmp 1b"):
    vm.load(kvmpy.asm(code, org=0x1000), at=0x1000)
    cpu = vm.vcpu()
    cpu.enter(kvmpy.LONG_MODE, rip=0x1000, ring=ring)
    return cpu

def say(*words):
    print(*words, flush=True)

"""


class Script:
    """A Python process; ``expect("word")`` waits for the next line it prints."""

    def __init__(self, body):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(body)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def expect(self, line):
        got = self.process.stdout.readline().strip()
        if got != line:
            self.process.kill()
            pytest.fail(f"{got!r} instead of {line!r}; stderr: {self.process.stderr.read()}")

    def send(self, number):
        self.process.send_signal(number)

    def end(self, status=0):
        try:
            out, err = self.process.communicate(
                timeout=30 * (10 if "KVMPY_RIG" in os.environ else 1)
            )
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"does not end; stderr: {self.process.communicate()[1]}")
        assert self.process.returncode == status, err
        return out.split()


@pytest.fixture
def script():
    """Starts a Script; kills it if the test leaves it running."""
    scripts = []

    def make(body):
        scripts.append(Script(body))
        return scripts[-1]

    yield make
    for one in scripts:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


RINGS = pytest.mark.parametrize("ring", [0, 3])


@RINGS
def test_ctrl_c_in_the_main_thread(script, ring):
    """KeyboardInterrupt at once, out of run(); the vCPU can be run again, and is."""
    child = script(f"""
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm, {ring})
            for _ in range(3):
                try:
                    say("running")
                    cpu.run()
                except KeyboardInterrupt:
                    say("interrupted")
            say(cpu.run(timeout=0.01))
    """)
    for _ in range(3):
        child.expect("running")
        time.sleep(0.1)
        begin = time.monotonic()
        child.send(signal.SIGINT)
        child.expect("interrupted")
        assert time.monotonic() - begin < 5
    child.expect("Timeout()")
    child.end()


def test_ctrl_c_ends_a_script(script):
    """Without a handler of its own the script ends as any does: by the signal."""
    child = script("""
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            say("running")
            cpu.run()
    """)
    child.expect("running")
    time.sleep(0.1)
    child.send(signal.SIGINT)
    child.end(-signal.SIGINT)


def test_ctrl_c_while_c_handles_all_exits(script):
    """A guest that exits all the time to C: the signal mostly arrives outside KVM_RUN."""
    child = script("""
        with kvmpy.VM("2M") as vm:
            vm.count_io(0x10)
            cpu = spinning(vm, 0, "1: out 0x10, al; jmp 1b")
            for _ in range(20):
                try:
                    say("running")
                    cpu.run()
                except KeyboardInterrupt:
                    say("interrupted")
    """)
    for _ in range(20):
        child.expect("running")
        time.sleep(0.005)
        child.send(signal.SIGINT)
        child.expect("interrupted")
    child.end()


def test_ctrl_c_with_a_worker_thread(script):
    """The guest of another thread ends with Kicked(2), while the main thread, which waits for it,
    gets KeyboardInterrupt."""
    child = script("""
        results, never = [], threading.Event()
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            thread = threading.Thread(target=lambda: results.append(cpu.run()))
            thread.start()
            try:
                say("running")
                never.wait(60)
            except KeyboardInterrupt:
                thread.join(20)
                say("interrupted", *results)
    """)
    child.expect("running")
    time.sleep(0.2)
    child.send(signal.SIGINT)
    child.expect("interrupted Kicked(signal=2)")
    child.end()


def test_ctrl_c_with_many_worker_threads(script):
    """All running guests end, and those that do not run are left alone."""
    child = script("""
        results = []
        with kvmpy.VM("2M") as vm:
            cpus = [spinning(vm) for _ in range(6)]
            def work(cpu): results.append(cpu.run())
            threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus[:5]]
            for thread in threads: thread.start()
            try:
                say("running")
                time.sleep(60)
            except KeyboardInterrupt:
                for thread in threads: thread.join(20)
                say(results.count(kvmpy.Kicked(2)))
                say(cpus[5].run(timeout=0.01))
    """)
    child.expect("running")
    time.sleep(0.3)
    child.send(signal.SIGINT)
    child.expect("5")
    child.expect("Timeout()")
    child.end()


def test_sigterm_with_a_python_handler(script):
    """The handler runs, and what it raises comes out of run()."""
    child = script("""
        def stop(number, frame):
            raise SystemExit(7)
        signal.signal(signal.SIGTERM, stop)
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            say("running")
            cpu.run()
    """)
    child.expect("running")
    time.sleep(0.1)
    child.send(signal.SIGTERM)
    child.end(7)


def test_sigterm_without_a_handler(script):
    """Dies of it, as any process."""
    child = script("""
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            say("running")
            cpu.run()
    """)
    child.expect("running")
    time.sleep(0.1)
    child.send(signal.SIGTERM)
    child.end(-signal.SIGTERM)


def test_sigint_ignored_or_default_is_left_alone(script):
    """A process that ignores SIGINT (nohup, a background job) goes on ignoring it."""
    child = script("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            say("running")
            say(cpu.run(timeout=0.5))
            say(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            say("running")
            cpu.run()
    """)
    child.expect("running")
    time.sleep(0.1)
    child.send(signal.SIGINT)
    child.expect("Timeout()")
    child.expect("True")
    child.expect("running")
    time.sleep(0.1)
    child.send(signal.SIGINT)
    child.end(-signal.SIGINT)


def test_unrelated_signal_runs_its_handler_and_the_guest_goes_on(script):
    """SIGALRM with a Python handler, during a run without a deadline and during one with."""
    child = script("""
        calls = []
        def alarm(number, frame):
            calls.append(time.monotonic())
            if len(calls) >= 5 and len(calls) % 5 == 0:
                cpu.kick()
        signal.signal(signal.SIGALRM, alarm)
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm, 3, "1: inc rax; jmp 1b")
            cpu.run(timeout=0.01)
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            say(cpu.run())
            say(len(calls) >= 5, cpu.regs.rax > 0)
            before = len(calls)
            say(cpu.run(timeout=60))
            say(len(calls) > before)
            signal.setitimer(signal.ITIMER_REAL, 0)
    """)
    child.expect("Kicked(signal=0)")
    child.expect("True True")
    child.expect("Kicked(signal=0)")
    child.expect("True")
    child.end()


def test_signal_handler_that_raises(script):
    """What any signal's handler raises comes out of run(), and the state is whole."""
    child = script("""
        class Tick(Exception): pass
        def alarm(number, frame): raise Tick
        signal.signal(signal.SIGALRM, alarm)
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm, 3, "1: inc rax; jmp 1b")
            cpu.run(timeout=0.01)
            before = 0
            for _ in range(5):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                try: cpu.run()
                except Tick: pass
                assert cpu.regs.rax > before
                before = cpu.regs.rax
            say("done")
    """)
    child.expect("done")
    child.end()


def test_handler_installed_later_is_found(script):
    """signal.signal() after a first run replaces ours; the next run takes it over again."""
    child = script("""
        with kvmpy.VM("2M") as vm:
            cpu = spinning(vm)
            cpu.run(timeout=0.01)
            def handler(number, frame): raise LookupError
            signal.signal(signal.SIGINT, handler)
            results = []
            def work():
                results.append(cpu.run())
            thread = threading.Thread(target=work)
            thread.start()
            try:
                say("running")
                time.sleep(60)
            except LookupError:
                thread.join(20)
                say(*results)
    """)
    child.expect("running")
    time.sleep(0.2)
    child.send(signal.SIGINT)
    child.expect("Kicked(signal=2)")
    child.end()


def test_handlers_of_python_are_as_they_were(script):
    """getsignal() says what it said before."""
    child = script("""
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with kvmpy.VM("2M") as vm:
            spinning(vm).run(timeout=0.01)
        say(before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])
        try:
            say("sleeping")
            time.sleep(60)
        except KeyboardInterrupt:
            say("interrupted")
    """)
    child.expect("True")
    child.expect("sleeping")
    time.sleep(0.1)
    child.send(signal.SIGINT)
    child.expect("interrupted")
    child.end()


def test_ctrl_c_in_a_python_handler(script):
    """A handler that is interrupted: the KeyboardInterrupt is its exception, so it comes out."""
    child = script("""
        with kvmpy.VM("2M") as vm:
            @vm.on_io(0x10)
            def port(port, size, value):
                say("in handler")
                time.sleep(60)
            cpu = spinning(vm, 0, "out 0x10, al; hlt")
            try: cpu.run()
            except KeyboardInterrupt: say("interrupted")
            say(cpu.run())
    """)
    child.expect("in handler")
    time.sleep(0.1)
    child.send(signal.SIGINT)
    child.expect("interrupted")
    child.expect("Hlt()")
    child.end()


def test_faults_in_python_are_not_hidden(script):
    """The kick's signal is one nobody uses: SIGUSR1 and the first realtime signals stay free."""
    child = script("""
        from kvmpy import _native
        with kvmpy.VM("2M") as vm:
            spinning(vm).run(timeout=0.01)
        say(_native.lib.shim_kick_signal() > signal.SIGRTMIN)
    """)
    child.expect("True")
    child.end()


BLOCK_ALL = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"


def test_budgets_kicks_pauses_and_close_with_all_signals_blocked(script):
    """As daemons do in their threads."""
    child = script(f"""
        vm = kvmpy.VM(memory="2M")
        cpu = spinning(vm)
        done = []
        ready = threading.Event()
        def main():
            {BLOCK_ALL}
            say(cpu.run(timeout=0.2))
            ready.set()
            for _ in range(3):
                done.append(cpu.run())
            try:
                cpu.run()
            except kvmpy.ClosedError:
                say("closed")
        thread = threading.Thread(target=main, daemon=True)
        thread.start()
        ready.wait()
        def running():
            while cpu.thread_id is None:
                time.sleep(0.001)
            time.sleep(0.1)
        for round in range(3):
            running()
            assert cpu.pause() is True
            cpu.resume()
            cpu.kick()
            while len(done) == round:
                time.sleep(0.001)
        say(*done)
        running()
        vm.close()
        thread.join()
    """)
    child.expect("Timeout()")
    child.expect("Kicked(signal=0) Kicked(signal=0) Kicked(signal=0)")
    child.expect("closed")
    child.end()


def test_a_budget_with_signals_blocked_in_the_main_thread_and_by_the_parent(script):
    """A mask is inherited over exec."""
    child = script(f"""
        {BLOCK_ALL}
        if "inherited" not in sys.argv:
            body = open("/proc/self/cmdline").read().split("\\0")[2]
            os.execv(sys.executable, [sys.executable, "-c", body, "inherited"])
        with kvmpy.VM(memory="2M") as vm:
            say(spinning(vm).run(timeout=0.2))
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            say({{signal.SIGINT, signal.SIGTERM, signal.SIGUSR1}} <= blocked)
    """)
    child.expect("Timeout()")
    child.expect("True")  # those that are not ours are left as they were
    child.end()


@pytest.mark.parametrize("handler", ["signal.signal(signal.SIGUSR1, note)", ""])
def test_a_handler_that_chains_to_ours(script, handler):
    """faulthandler's does: each handler in the chain is called once, in its turn."""
    child = script(f"""
        import faulthandler
        notes = []
        def note(*_):
            notes.append(1)
        signal.signal(signal.SIGUSR1, note)
        {handler}
        stacks = open("/dev/null", "w")
        def hit():
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            before = len(notes)
            cpu.run(timeout=0.6)
            say(len(notes) - before)
        with kvmpy.VM(memory="2M") as vm:
            cpu = spinning(vm)
            hit()
            for _ in range(3):
                faulthandler.register(signal.SIGUSR1, file=stacks, chain=True)
                hit()
                hit()
                faulthandler.unregister(signal.SIGUSR1)
                hit()
            signal.signal(signal.SIGUSR1, note)
            hit()
            faulthandler.register(signal.SIGUSR1, file=stacks)  # this one does not chain
            hit()
            faulthandler.unregister(signal.SIGUSR1)
            hit()
    """)
    for hits in [1] * 11 + [0, 1]:
        child.expect(str(hits))
    child.end()


def test_more_handlers_than_are_kept_track_of(script):
    """Each other function in turn: those beyond our room stay as they are, and work."""
    child = script("""
        import ctypes
        libc = ctypes.CDLL(None)
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
        seen = []
        made = [handler(lambda _, number=number: seen.append(number)) for number in range(12)]
        libc.signal.restype = ctypes.c_void_p
        with kvmpy.VM(memory="2M") as vm:
            cpu = spinning(vm)
            for each in made:
                libc.signal(int(signal.SIGUSR1), each)
                cpu.run(timeout=0.01)
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGUSR1)
                cpu.run(timeout=0.01)
        say(seen == list(range(12)))
    """)
    child.expect("True")
    child.end()
