"""What a short script does not import: ``import kvmpy`` and the first names are fast for it."""

import subprocess
import sys

import pytest

API = "kvmpy.VM, kvmpy.VCPU, kvmpy.IoOut, kvmpy.Hlt, kvmpy.KvmIoctlError, kvmpy.GuestMemory"
ASSEMBLED = f"{API}, kvmpy.asm, kvmpy.LONG_MODE"

#: Of the standard library: what makes dataclasses costs more than all of the API's own modules.
STANDARD = {"ast", "dataclasses", "inspect", "json", "subprocess", "tempfile", "typing_extensions"}
OTHERS = {"psutil", "rich"}
#: Tables, records and whole rooms that few scripts use.
OWN = (
    "bench", "boot", "cli", "console", "cpuid.diff", "cpuid.edit", "cpuid.features",
    "cpuid.topology", "debug.breakpoints", "debug.stepping", "devices", "exits.explain", "guests",
    "host", "interrupts.irqchips", "interrupts.routing", "ioctls.enabling", "lab", "machine",
    "msrs.meanings", "msrs.table", "paravirt.xen", "probe", "report", "sched", "state.differences",
    "state.registers", "state.transfer", "state.vcpu", "state.xsave", "stats.kvm", "watch",
)  # fmt: skip


def imported(expression: str) -> set[str]:
    """The modules that ``import kvmpy`` and the expression bring into a fresh interpreter."""
    code = (
        f"import sys; before = set(sys.modules); import kvmpy; {expression}; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("names", [API, ASSEMBLED])
def test_a_script_imports_little(names):
    """Neither the parts it does not use, nor what would make their classes."""
    found = imported(names)
    assert {"kvmpy.vm", "kvmpy.vcpu", "kvmpy.exits.reasons"} <= found
    assert found & (STANDARD | OTHERS) == set()
    unwanted = tuple(f"kvmpy.{name}" for name in OWN)
    assert [name for name in found if name.startswith(unwanted)] == []


def test_the_package_alone_imports_nothing_of_its_own():
    """Each name brings its module when it is first used."""
    found = imported("None")
    assert {name for name in found if name.startswith("kvmpy")} == {"kvmpy", "kvmpy.lazy"}


def test_every_public_name_can_be_imported():
    """In a fresh interpreter, so that no other import has already put it there."""
    assert "kvmpy.paravirt.xen" in imported("[getattr(kvmpy, name) for name in kvmpy.__all__]")
