"""`kvmpy lab deprivilege`: a kernel in ring 1 under a monitor, and in non-root ring 0.

What must hold is said by SDM vol. 3, "Protection" (privilege levels, limits), "Paging" (access
rights), and SDM vol. 2 for CLI, STI, POPF, PUSHF, IRET, SGDT, SIDT, STR, SMSW, MOV to SS.
"""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest

from kvmpy import lab
from kvmpy.guests import image
from kvmpy.lab import deprivilege
from kvmpy.report import page, terminal

_PVM = "interprets ring 0, without 32-bit paging and without IRET in 32-bit code"
both_ways = pytest.mark.not_on("kvm_pvm", reason=_PVM)


@pytest.fixture(scope="module")
def result() -> deprivilege.Result:
    return deprivilege.run()


def traps(result: deprivilege.Result, way: Any) -> dict[str, dict[str, float]]:
    return {name: ways[way].traps for name, ways in result.costs.items()}


@both_ways
def test_privileged_instructions_trap_in_ring_1(result: deprivilege.Result) -> None:
    assert result.failures == {}
    assert traps(result, "ring1") == {
        # INT to the monitor; the handler's STI and CLI; its IRET to ring 3 does not trap.
        "syscall": {"int": 1, "sti": 1, "cli": 1},
        "cli_sti": {"cli": 1, "sti": 1},
        "irqsave": {"cli": 1},  # PUSHF and POPF: unprivileged
        "cr3": {"cr": 2},
        "load_ss": {"ss": 1},  # RPL 0 at CPL 1
        "lgdt": {"table": 1},
        "lidt": {"table": 1},
        "in": {"in": 1},
        "hlt": {"hlt": 1},
    }


@both_ways
def test_a_patch_costs_a_trap_each(result: deprivilege.Result) -> None:
    before, after = traps(result, "ring1"), traps(result, "patched")
    added = {name: after[name].pop("patch", 0) for name in after}
    assert after == before
    assert added == {name: {"irqsave": 2, "syscall": 1}.get(name, 0) for name in after}


@both_ways
def test_nothing_traps_in_non_root_ring_0(result: deprivilege.Result) -> None:
    assert not any(traps(result, "ring0").values())
    exits = {name: ways["ring0"].exits for name, ways in result.costs.items()}
    if result.paging == "shadow":
        del exits["cr3"]  # KVM's own tables follow CR3
    for name, count in exits.items():
        assert count is not None, "KVM's statistics are there since 5.14"
        if name in ("in", "hlt"):
            assert count >= 1, name
        else:  # what an interrupt of the host causes is no whole exit an operation
            assert count < 0.5, name


@both_ways
def test_what_ring_0_sees(result: deprivilege.Result) -> None:
    symbols = image.load("lab-deprivilege")
    assert result.sights["ring0"] == deprivilege.Sight(
        cs=symbols["KERNEL_CS"],
        gdt=symbols["KERNEL_GDT"],
        idt=symbols["K_IDT"],
        tr=symbols["KERNEL_TSS"],
        ts=True,
        interrupts=False,
        late_ticks=1,
        early_ticks=0,
    )


@both_ways
def test_what_ring_1_sees(result: deprivilege.Result) -> None:
    symbols, seen = image.load("lab-deprivilege"), result.sights["ring1"]
    assert seen.cs == symbols["KERNEL_CS"] | 1
    assert seen.tr == symbols["MONITOR_TSS"]
    assert seen.idt == symbols["M_IDT"]
    assert seen.gdt != symbols["KERNEL_GDT"]
    assert not seen.ts
    assert seen.interrupts  # CLI changed the monitor's variable, PUSHF shows the machine's IF
    assert (seen.late_ticks, seen.early_ticks) == (0, 1)  # POPF changed neither


@both_ways
def test_patching_mends_all(result: deprivilege.Result) -> None:
    assert result.sights["patched"] == result.sights["ring0"]


@both_ways
def test_the_limit_keeps_ring_1_out(result: deprivilege.Result) -> None:
    # QEMU's TCG checks no limits; the result says so.
    emulated = result.emulator == "QEMU TCG"
    assert result.limit_stops is not emulated
    assert any("TCG" in text for text in result.caveats) is emulated


def test_stores(result: deprivilege.Result) -> None:
    for store in result.stores:
        if store.failure:
            assert (result.module, store.bits, store.paging) == ("kvm_pvm", 32, True), store
        elif store.barrier == "page":  # "Paging", access rights: rings 0 to 2 are supervisor mode
            assert (store.stored, store.exception) == (
                (False, "#PF(0x7)") if store.ring == 3 else (True, "")
            ), store
        elif store.bits == 64:  # "Limit Checking in 64-bit Mode": there is none
            assert store.stored, store
        elif result.emulator != "QEMU TCG":
            assert (store.stored, store.exception) == (False, "#GP(0)"), store


def test_what_it_cannot_show(result: deprivilege.Result, module: str) -> None:
    assert result.module == module
    if module == "kvm_pvm":
        assert set(result.failures) == {"ring1", "patched", "ring0"}
        assert len(result.caveats) == 1
        assert "32-bit IRET" in result.caveats[0]


def test_it_is_shown(result: deprivilege.Result) -> None:
    json.dumps(dataclasses.asdict(result))
    section = lab.section("deprivilege", result)
    stream = io.StringIO()
    terminal.section(section, stream)
    assert "A store past the barrier" in stream.getvalue()
    pictures = [block for block in section.blocks if hasattr(block, "svg")]
    assert pictures
    for picture in pictures:
        assert all(len(line) <= 79 for line in picture.text.splitlines())
    assert "".join(page.section(section)).count("<svg") == len(pictures)
