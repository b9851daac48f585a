"""The pytest plugin with guests: fixtures, and what a failing test's report shows."""

import pytest

pytest_plugins = ["pytester"]

GUEST = """
    import kvmpy
    import threading

    def sector(text, rest):
        code = "".join(f"mov al, {byte}; out dx, al;" for byte in text)
        return kvmpy.asm(f"mov dx, 0x3f8; {code} mov ebx, 0x1234abcd; {rest}", 16, org=0x7C00)
"""


@pytest.fixture
def outcome(pytester):
    """``outcome(tests)``: what pytest makes of them.

    In a process of its own: pytester drops the modules that a run in this one has imported, and
    a second copy of kvmpy's would not fit the first.
    """

    def run(tests, *arguments):
        pytester.makepyfile(GUEST + tests)
        # Without Hypothesis's plugin, whose import takes longer than all the rest.
        plain = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        return pytester.runpytest_subprocess(*plain, *arguments)

    return run


def test_kvm_and_vm(outcome):
    outcome("""
    import pytest

    def test_kvm(kvm):
        assert kvm.check_extension("KVM_CAP_USER_MEMORY") == 1

    def test_vm(vm):
        assert vm.memory.size == 16 << 20
        assert not vm.has_irqchip

    @pytest.mark.kvmpy(memory="4M", irqchip=True)
    class TestOptions:
        def test_of_the_class(self, vm):
            assert (vm.memory.size, vm.has_irqchip) == (4 << 20, True)

        @pytest.mark.kvmpy(memory="2M")
        def test_the_nearest_counts(self, vm):
            assert (vm.memory.size, vm.has_irqchip) == (2 << 20, True)
    """).assert_outcomes(passed=4)


def test_vm_is_closed_after_the_test(outcome):
    outcome("""
    kept = []

    def test_one(vm):
        kept.append((vm, vm.vcpu()))

    def test_two():
        assert kept[0][0].closed and kept[0][1].closed
    """).assert_outcomes(passed=2)


def test_machine_is_stopped_after_the_test(outcome):
    """Spinning guests, two of them, one never started: no thread, no descriptor stays."""
    outcome("""
    def test_spinning(machine):
        for _ in range(2):
            m = machine(sector(b"up", "1: jmp 1b"), format="flat", memory="2M")
            m.start()
            m.console.expect("up", timeout=60)
        machine(sector(b"", "hlt"), format="flat", memory="2M")

    def test_after():
        assert not [t.name for t in threading.enumerate() if t.name.startswith(("vCPU", "kvmpy"))]
    """).assert_outcomes(passed=2)


def test_a_failing_test_shows_console_and_registers(outcome):
    """Of a guest that still runs, of one that has ended, and in the order they were made."""
    result = outcome("""
    def test_it(machine):
        one = machine(sector(b"still here\\n", "1: jmp 1b"), format="flat", memory="2M")
        two = machine(sector(b"gone\\n", "hlt"), format="flat", memory="2M")
        for m in (one, two):
            m.start()
        two.wait(60)
        one.console.expect("never", timeout=0.2)
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([
        "*ExpectTimeout: no b'never' within 0.2 s*",
        "*- console (all output, 11 bytes) of guest 0 -*",
        "still here",
        "*- registers of vCPU 0 of guest 0 -*",
        "rax * rbx 000000001234abcd *",
        "rip *",
        "cs *",
        "*- console (all output, 5 bytes) of guest 1 -*",
        "gone",
        "*- registers of vCPU 0 of guest 1 -*",
        "rax * rbx 000000001234abcd *",
    ])  # fmt: skip


def test_a_failing_test_shows_a_vcpu_in_a_thread_of_its_own(outcome):
    """The report kicks it out first."""
    result = outcome("""
    def test_it(vm):
        vm.load(sector(b"", "out 0x10, al; 1: jmp 1b"), at=0x7C00)
        cpu = vm.vcpu()
        cpu.enter(kvmpy.REAL_MODE, rip=0x7C00)
        running = threading.Event()
        vm.on_io(0x10)(lambda port, size, value: running.set())
        thread = threading.Thread(target=cpu.run, daemon=True)
        thread.start()
        assert running.wait(60)
        assert False, "on purpose"
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- registers of vCPU 0 -*", "rax * rbx 000000001234abcd *"])


def test_output_of_a_machine_without_a_console(outcome):
    """run() keeps the serial port's output: the report shows it too."""
    result = outcome("""
    def test_it(machine):
        m = machine(sector(b"by run\\n", "hlt"), format="flat", memory="2M")
        assert m.run(timeout=60).ending == "reset"
    """)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*- console (the end of 7 bytes of output) -*", "by run"])


def test_a_passing_test_shows_nothing(outcome):
    result = outcome("""
    def test_it(machine):
        machine(sector(b"x", "hlt"), format="flat", memory="2M").run(timeout=60)
    """, "-rA")  # fmt: skip
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*registers of*")


@pytest.mark.slow  # the plugin gives up on it twice, after seconds
def test_a_handler_that_does_not_return_is_bounded(outcome):
    """Report and teardown give up on it, and say so; the other machines are closed all the same."""
    result = outcome("""
    release = threading.Event()

    def test_it(machine):
        other = machine(sector(b"", "2: jmp 2b"), format="flat", memory="2M")
        other.start()
        m = machine(sector(b"", "out 0x10, al; hlt"), format="flat", memory="2M")
        inside = threading.Event()
        m.vm.on_io(0x10)(lambda port, size, value: inside.set() or release.wait(60) and None)
        m.start()
        assert inside.wait(60)
        assert False, "on purpose"

    def test_after():
        release.set()
        for thread in threading.enumerate():
            if thread.name.startswith("vCPU"):
                thread.join(60)
                assert not thread.is_alive()
    """)
    result.assert_outcomes(failed=1, errors=1, passed=1)
    result.stdout.fnmatch_lines(["*StillRunningError: a handler has held*", "*not readable: *"])
