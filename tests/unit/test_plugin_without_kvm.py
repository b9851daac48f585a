"""The pytest plugin in projects of its own: what it costs them, and what it does without KVM."""

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.delenv("KVMPY_REQUIRE_KVM", raising=False)


NO_KVM = """
import pytest

@pytest.fixture(autouse=True)
def no_kvm(monkeypatch, tmp_path):
    from kvmpy.kvm import KVM
    monkeypatch.setattr(KVM.__init__, "__defaults__", (str(tmp_path / "kvm"),))
"""


def test_it_is_there_by_itself_and_imports_nothing(pytester):
    """A project that uses none of it pays an entry point, no more."""
    pytester.makepyfile("""
        import sys

        def test_modules(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("kvmpy")
            loaded = {name for name in sys.modules if name.split(".")[0] == "kvmpy"}
            assert loaded == {"kvmpy", "kvmpy.lazy", "kvmpy.pytest_plugin"}
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_fixtures_and_marker_have_a_description(pytester):
    result = pytester.runpytest_subprocess("--fixtures", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.kvmpy(*options): options of kvmpy.VM*"])
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines(["kvm -- *", "*/dev/kvm, open*", "machine -- *"])


def test_without_kvm_tests_are_skipped_with_the_remedy(pytester):
    pytester.makeconftest(NO_KVM)
    pytester.makepyfile("""
        def test_kvm(kvm): ...
        def test_vm(vm): ...
        def test_machine(machine): ...
        def test_other(): ...
    """)
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED * no usable KVM: * does not exist*modprobe kvm_intel*"])


def test_without_kvm_tests_fail_when_it_is_required(pytester, monkeypatch):
    monkeypatch.setenv("KVMPY_REQUIRE_KVM", "1")
    pytester.makeconftest(NO_KVM)
    pytester.makepyfile("def test_vm(vm): ...")
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["KVMPY_REQUIRE_KVM=1, and no usable KVM: *modprobe*"])
