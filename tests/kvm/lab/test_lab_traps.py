"""`kvmpy lab traps`: what the CPU saves and loads is what the manuals say."""

import dataclasses
import json
import sys

import pytest

from kvmpy import lab
from kvmpy.bench.cells import MODES
from kvmpy.host import topology
from kvmpy.lab import traps
from kvmpy.lab.show.traps import BY_MANUAL
from kvmpy.probe import verdict as backend
from kvmpy.report import terminal
from kvmpy.report.table import Table

UD, GP = 6, 13
IF, DF, AC = 1 << 9, 1 << 10, 1 << 18
USER_CS = {"long64": 0x33, "compat32": 0x23, "legacy32": 0x23}
KERNEL_CS, KERNEL_SS, USER_SS = 0x10, 0x18, 0x2B


@pytest.fixture(scope="module")
def result():
    allowed = topology.allowed_cpus()
    found = traps.run(min(allowed))
    assert topology.allowed_cpus() == allowed  # pinned for the while alone
    return found


@pytest.fixture
def trip(result, module):
    """``trip(mode, path)``: one that came to ring 0; skips where this module has none."""

    def find(mode, path):
        (found,) = [each for each in result.trips if (each.mode, each.path) == (mode, path)]
        if found.inside is None:
            pytest.skip(f"{module}: {path} in {mode} gives {found.failure}")
        if (mode, path, result.emulator) == ("compat32", "sysenter", "QEMU TCG"):
            # When the state is refused depends on when the next exit comes.
            pytest.skip("QEMU's CPU: SYSENTER in compatibility mode leads to an invalid state")
        return found

    return find


def test_every_call_was_tried(result):
    assert {(mode, path) for mode in MODES for path in traps.PATHS} <= {
        (trip.mode, trip.path) for trip in result.trips
    }
    for trip in result.trips:
        assert bool(trip.failure) == (trip.after is None)
        assert trip.before.cs == USER_CS[trip.mode]
        assert trip.before.rflags == traps.USER_FLAGS


@pytest.mark.not_on("kvm_pvm", reason="its emulator has calls of its own mind")
def test_what_runs_is_what_the_vendor_says(result):
    """SDM vol. 2 and APM vol. 3: SYSCALL, SYSENTER."""
    for trip in result.trips:
        key = trip.mode, trip.path
        if (*key, result.emulator) == ("compat32", "sysenter", "QEMU TCG"):
            continue  # QEMU's CPU does it, AMD's do not
        assert (not trip.failure) == (key in BY_MANUAL[result.vendor]), trip.failure
        assert trip.vector == (UD if trip.failure else None)
        assert not trip.failure or trip.failure == f"#UD at {trip.path}"


@pytest.mark.parametrize("mode", MODES)
def test_a_gate_pushes_everything(result, module, mode, trip):
    """SDM vol. 3, "Exception- or Interrupt-Handler Procedures" and "64-Bit Mode Stack Frame"."""
    path = "int3" if (module, mode) == ("kvm_pvm", "long64") else "int80"
    call = trip(mode, path)
    before, inside, after = call.before, call.inside, call.after
    assert call.pushed == (call.back, before.cs, before.rflags, before.rsp, before.ss)
    assert inside.rip == call.sources["gate.offset"]
    assert (inside.cs, inside.cpl) == (KERNEL_CS, 0)
    width = 4 if mode == "legacy32" else 8
    assert inside.ss == (call.sources["TSS.SS0"] if mode == "legacy32" else 0)
    stack = call.sources["TSS.ESP0" if mode == "legacy32" else "TSS.RSP0"]
    assert inside.rsp == stack - 5 * width
    assert not inside.rflags & IF  # an interrupt gate's doing
    assert inside.rflags & DF  # and this is the handler's to clear
    assert inside.general == before.general
    assert inside.gs_base == before.gs_base
    assert after == dataclasses.replace(before, rip=call.back)


@pytest.mark.parametrize("mode", MODES)
def test_sysenter_saves_nothing(mode, trip):
    """SDM vol. 2, "SYSENTER", "SYSEXIT"."""
    call = trip(mode, "sysenter")
    before, inside, after = call.before, call.inside, call.after
    assert call.pushed == ()
    assert inside.rip == call.sources["SYSENTER_EIP"]
    assert inside.rsp == call.sources["SYSENTER_ESP"] != before.rsp
    assert (inside.cs, inside.ss, inside.cpl) == (KERNEL_CS, KERNEL_SS, 0)
    assert inside.rflags == before.rflags & ~IF
    assert inside.general == before.general
    assert (after.rip, after.rsp) == (inside.general["rdx"], inside.general["rcx"])
    wide = mode == "long64"
    assert after.cs == call.sources["SYSENTER_CS"] + (32 if wide else 16) | 3
    assert after.ss == call.sources["SYSENTER_CS"] + (40 if wide else 24) | 3
    assert after.rflags == inside.rflags  # IF is not given back


@pytest.mark.parametrize("mode", ["long64", "compat32"])
def test_syscall_saves_two_things_in_registers(module, mode, trip):
    """SDM vol. 2, "SYSCALL", "SYSRET"; APM vol. 3 for compatibility mode."""
    call = trip(mode, "syscall")
    before, inside, after = call.before, call.inside, call.after
    assert call.pushed == ()
    assert call.sources["LSTAR"] != call.sources["CSTAR"]
    assert inside.rip == call.sources["LSTAR" if mode == "long64" else "CSTAR"]
    assert inside.rsp == before.rsp
    assert (inside.cs, inside.ss, inside.cpl) == (KERNEL_CS, KERNEL_SS, 0)
    saved = {"rcx": call.back, "r11": before.rflags}
    assert inside.general == before.general | saved
    assert inside.rflags == before.rflags & ~call.sources["FMASK"]
    assert not inside.rflags & (IF | DF | AC)
    assert inside.gs_base == before.gs_base
    if module != "kvm_pvm":  # whose emulator takes every SYSRET for a 64-bit one
        assert (after.rip, after.rsp, after.rflags) == (call.back, before.rsp, before.rflags)
        assert (after.cs, after.ss) == (USER_CS[mode], USER_SS)


def test_legacy_syscall_keeps_the_flags(module, trip):
    """APM vol. 3, "SYSCALL", "SYSRET": legacy mode has no FMASK and no R11."""
    call = trip("legacy32", "syscall")
    before, inside, after = call.before, call.inside, call.after
    assert inside.rip == call.sources["STAR[31:0]"]
    assert inside.rsp == before.rsp
    assert inside.general == before.general | {"rcx": call.back}
    assert inside.rflags == before.rflags & ~IF
    if module != "kvm_pvm":  # whose emulator takes every SYSRET for a 64-bit one
        assert (after.cs, after.ss) == (USER_CS["legacy32"], USER_SS)
        assert after.rflags == inside.rflags | IF


def test_sysret_to_an_address_that_is_not_canonical(result, module):
    """SDM vol. 2, "SYSRET": #GP(0) before anything is loaded. APM vol. 3: it is loaded unchecked,
    and the fetch in ring 3 fails."""
    found = result.sysret
    assert not found.failure
    assert found.vector == GP
    assert found.entered == (module != "kvm_pvm")
    error, rip, cs, _, rsp, _ = found.frame
    assert error == 0
    assert rsp == found.user_rsp
    if module == "kvm_intel":
        assert (found.ring, rip, cs) == (0, found.sysret_at, KERNEL_CS)
        assert found.frame_at == found.user_rsp - 6 * 8  # no change of stacks
    else:
        assert (found.ring, rip, cs) == (3, traps.NOT_CANONICAL, USER_CS["long64"])
        assert found.frame_at == found.ring0_rsp - 6 * 8


def test_what_it_shows(result, capsys):
    section = lab.section("traps", result)
    terminal.section(section, sys.stdout)
    text = capsys.readouterr().out
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert all(len(line) < 80 for table in tables for line in _rows(table))
    matrix = next(table for table in tables if "What runs" in table.title)
    assert len(matrix.rows) == len(MODES) * len(traps.PATHS)
    assert result.module in text
    assert "CVE-2012-0217" in text
    if backend.verdict().emulator:
        assert result.emulator in text
    assert json.loads(json.dumps(dataclasses.asdict(result)))["module"] == result.module


def _rows(table):
    return terminal.plain(dataclasses.replace(table, notes=())).splitlines()
