"""The guests of `bench syscall`: each round trip is real, and what cannot run says how it fails."""

import dataclasses

import pytest

import kvmpy
from kvmpy.bench import judgement, syscall
from kvmpy.bench.cells import LEVELS, MODES, PATHS, Cell, every_cell
from kvmpy.bench.document import Report
from kvmpy.bench.failures import GuestFailed
from kvmpy.bench.hostcall import canary_limit
from kvmpy.bench.lab import ALIGNMENTS, Lab
from kvmpy.bench.proof import prove
from kvmpy.host.cpu import identify
from kvmpy.probe import verdict as backend

UD, GP = 6, 13

#: What fails where, by vector; everything else arrives and comes back. The rigs' CPUs are
#: emulated: QEMU's does SYSENTER in compatibility mode, AMD's do not, and enters no valid state.
FAILS = {
    "kvm_intel": {("compat32", "syscall"): UD, ("legacy32", "syscall"): UD},
    "kvm_amd": {("long64", "sysenter"): UD, ("compat32", "sysenter"): UD},
    "kvm_pvm": {
        ("long64", "int80"): UD,
        ("long64", "sysenter"): UD,
        ("long64", "syscall"): GP,
        ("long64", "callgate"): UD,
        ("compat32", "int80"): UD,
        ("compat32", "callgate"): UD,
        ("legacy32", "int80"): UD,
        ("legacy32", "callgate"): UD,
    },
}
CELLS = [(mode, path) for mode in MODES for path in PATHS]
EMULATOR_FAULT = [("kvm_amd", "compat32", "sysenter")]


@pytest.fixture(scope="module")
def canaries():
    """The canary of each ring in long64, by ring."""
    found = {}
    for ring in (3, 0):
        with Lab("long64") as lab:
            found[ring] = lab.canary(ring, canary_limit())
    return found


@pytest.fixture
def lab_for(module, canaries):
    """``lab_for(mode)``: a lab as the benchmark makes it on this module."""
    labs = []

    def make(mode, **options):
        lab = Lab(mode, paging=module != "kvm_pvm", **options)
        interpreted = canaries[0].interpreted
        lab.plain = (interpreted and mode != "long64", interpreted)
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.vm.close()


def expected(module, mode, path):
    """The vector a cell fails with, None if it runs; skips what depends on more."""
    if module == "kvm_pvm" and mode == "compat32" and path in ("sysenter", "syscall"):
        if identify().vendor != "AuthenticAMD":
            pytest.skip("kvm_pvm: depends on the CPU vendor the guest sees")
        return UD if path == "sysenter" else GP  # its SYSRET goes to 64-bit code alone
    if (module, mode, path) in EMULATOR_FAULT and backend.verdict().emulator:
        pytest.skip("QEMU's CPU: SYSENTER in compatibility mode leads to an invalid state")
    return FAILS.get(module, {}).get((mode, path))


def test_canaries(canaries, module):
    """Ring 3 of 64-bit code is native everywhere; ring 0 is interpreted by kvm_pvm alone."""
    assert not canaries[3].interpreted
    assert canaries[0].interpreted == (module == "kvm_pvm")
    assert canaries[3].cost < canaries[3].limit


@pytest.mark.parametrize(("mode", "path"), CELLS)
def test_the_round_trip_is_real(lab_for, module, mode, path):
    """It arrives once, at CPL 0, comes back to CPL 3, every register as it was; or the exception
    says at which instruction."""
    vector = expected(module, mode, path)
    cell = Cell(mode, path, "H0")
    if vector is not None:
        with pytest.raises(GuestFailed) as error:
            prove(lab_for(mode), cell, handler="proof")
        assert error.value.vector == vector
        instruction = {"int80": "int 0x80", "callgate": "the far call"}.get(path, path)
        wanted = f"#UD at {instruction}" if vector == UD else "#GP at"
        assert wanted in str(error.value)
        if vector == GP:
            assert ("which runs in ring 3" if mode == "long64" else "the way back") in str(
                error.value
            )
        return
    proof = prove(lab_for(mode), cell, handler="proof")
    assert (proof.entered, proof.kernel_cpl, proof.user_cpl, proof.changed) == (1, 0, 3, ())
    assert proof.trouble == ""


@pytest.mark.parametrize(("mode", "path"), CELLS)
def test_every_rung_at_every_alignment(lab_for, module, mode, path):
    """The handlers that are timed bring all registers back; those that dispatch count the call
    and return its result."""
    if expected(module, mode, path) is not None:
        pytest.skip(f"{module}: has no {path} in {mode}")
    lab = lab_for(mode)
    levels = LEVELS[:3] if not lab.paging else LEVELS[:4]
    for level in levels:
        for copy in range(ALIGNMENTS):
            proof = prove(lab, Cell(mode, path, level), copy)
            assert proof.trouble == "", f"{level} at {copy}"
            dispatched = level in ("H2", "H3")
            assert proof.result == lab.image["RESULT" if dispatched else "SERVICE"]
            assert proof.entered == (1 if dispatched else None)


def test_pcid(lab_for, module):
    """The rung that keeps the TLB comes back right as well."""
    lab = lab_for("long64")
    if not lab.has_pcid:
        pytest.skip(f"{module}: the guest's CPU has no PCID")
    if module == "kvm_pvm":
        pytest.skip("kvm_pvm: no 64-bit path comes back")
    assert prove(lab, Cell("long64", "syscall", "H3-pcid")).trouble == ""
    assert lab.cpu.sregs.cr4 >> 17 & 1


@pytest.fixture
def working(lab_for, module):
    """A lab and a path that comes back on this module."""
    mode, path = ("legacy32", "syscall") if module == "kvm_pvm" else ("long64", "int80")
    if module == "kvm_pvm" and backend.verdict().extension == "VT-x":
        path = "sysenter"
    return lab_for(mode), mode, path


def test_the_proof_sees_a_lost_register(working):
    """A handler that loses EBX is caught, and the register named."""
    lab, mode, path = working
    cell = Cell(mode, path, "H0")
    prove(lab, cell)
    entry = lab.image[f"entry.{path}.H0.0"]
    returning = {"int80": "iretq", "syscall": "sysret", "sysenter": "sysexit"}[path]
    bits = 64 if mode == "long64" else 32
    lab.vm.load(kvmpy.asm(f"xor ebx, ebx; {returning}", bits), at=entry)
    assert prove(lab, cell).changed == ("rbx" if bits == 64 else "ebx",)


def test_the_proof_sees_a_handler_that_was_not_entered(working):
    """A trip that does nothing is no round trip."""
    lab, mode, path = working
    cell = Cell(mode, path, "H0")
    prove(lab, cell, handler="proof")
    lab.vm.load(lab.image.code[: lab.image["kernel"] - 0x10_0000].replace(
        {"int80": b"\xcd\x80", "syscall": b"\x0f\x05", "sysenter": b"\x0f\x34"}[path], b"\x66\x90"
    ), at=0x10_0000)  # fmt: skip
    assert "ran 0 times" in prove(lab, cell, handler="proof").trouble


def test_timed_loops_count_too(working):
    """Rungs that dispatch count every call of the timed loops; the records are there."""
    lab, mode, path = working
    batches = lab.batches(Cell(mode, path, "H2"), 3, block=1, repeats=2)
    assert len(batches.words) == 3 * 2 * 2
    assert all(batches.words)
    trips = 2 * (1 + 2) + 2  # two that come before are not timed
    assert batches.counters["calls"] == 3 * trips
    assert lab.calls_seen == 4 * trips  # the batch that is thrown away is the fourth


def test_blocks_of_the_same_length(working):
    """For core cycles: the loops make N trips and N, and a counter is read around them."""
    lab, mode, path = working

    class Counter:
        count = 0

        def read(self):
            self.count += 7
            return self.count

    lab.cycles = Counter()
    batches = lab.batches(Cell(mode, path, "H2"), 3, block=1, repeats=2, second=1)
    trips = 2 * (1 + 1) + 1
    assert batches.counters["calls"] == 3 * trips
    assert batches.counters["guest_cycles"] == 7
    assert lab.calls_seen == 4 * trips


def test_a_call_that_is_lost_is_noticed(working):
    """Fewer calls than trips end the measurement."""
    lab, mode, path = working
    cell = Cell(mode, path, "H2")
    lab.batches(cell, 1, block=1, repeats=1)
    code = bytes(lab.image.variant(*lab.plain))
    inc = b"\xff\x04\x25" if mode == "long64" else b"\xff\x05"
    at = code.rindex(inc)  # the service's counter
    lab.vm.load(b"\x90" * (7 if mode == "long64" else 6), at=0x10_0000 + at)
    with pytest.raises(GuestFailed, match="0 arrived"):
        lab.batches(cell, 1, block=1, repeats=1)


def test_single_shots_are_in_order(working):
    """The four stamps follow one another, and the parts make the whole."""
    lab, mode, path = working
    batches = lab.batches(Cell(mode, path, "H0", single=True), 2, block=1, repeats=3)
    assert len(batches.words) == 2 * 3 * 4
    for at in range(0, len(batches.words), 4):
        t0, t1, t2, t3 = batches.words[at : at + 4]
        steps = [b - a & 0xFFFF_FFFF for a, b in ((t0, t1), (t1, t2), (t2, t3))]
        assert all(steps)
        assert sum(steps) == t3 - t0 & 0xFFFF_FFFF


def test_no_exits_in_a_native_loop(lab_for):
    """Ring 3 alone: the exits are the batches' own, the host's interrupts aside."""
    cell = Cell("long64", "adds")
    batches = lab_for("long64").batches(cell, 20, block=16, repeats=4)
    if "insn_emulation" not in batches.counters:
        pytest.skip("this KVM has no binary statistics")
    _, interpreted = judgement.unexpected(batches.counters)
    assert interpreted == 0


def _of_vendor(table, name):
    """The CPUID table with another vendor's name in leaf 0."""
    ebx, edx, ecx = (int.from_bytes(name[i : i + 4].encode(), "little") for i in (0, 4, 8))
    return kvmpy.Cpuid(
        dataclasses.replace(leaf, ebx=ebx, ecx=ecx, edx=edx) if leaf.function == 0 else leaf
        for leaf in table
    )


@pytest.mark.not_on("kvm_pvm", reason="interprets 32-bit code whatever the vendor")
def test_a_path_that_kvm_emulates_is_found_out(lab_for, module):
    """With the other vendor's CPUID KVM runs the absent instruction itself: the counters say so."""
    mode, path, vendor = {
        "kvm_intel": ("compat32", "syscall", "AuthenticAMD"),
        "kvm_amd": ("compat32", "sysenter", "GenuineIntel"),
    }[module]
    with kvmpy.KVM() as kvm:
        table = _of_vendor(kvm.supported_cpuid(), vendor)
    cell = Cell(mode, path, "H2")
    lab = lab_for(mode, cpuid=table)
    try:
        assert prove(lab, cell).trouble == ""
        batches = lab.batches(cell, 2, block=1, repeats=2)
    except GuestFailed as error:
        pytest.skip(f"this KVM does not emulate {path} in {mode}: {error}")
    row = syscall.Row(cell.name, cell.kind, mode, path, counters=batches.counters)
    judged = judgement.judge(row, backend.verdict(), vendor_differs=True)
    assert judged.outcome == "emulated-by-kvm"
    assert any("vendor" in label for label in judged.labels)


def test_a_run(module):
    """A report of some cells: outcomes as the module has them, complete, JSON and back."""
    steps = []
    cells = [
        Cell("long64", "adds"),
        Cell("long64", "syscall", "H0"),
        Cell("legacy32", "int80", "H2"),
        Cell("legacy32", "int80", "H0", single=True),
    ]
    report = syscall.run(cells, quick=True, progress=lambda done, what: steps.append(done))
    assert steps == sorted(steps)
    assert 0 <= steps[0] <= steps[-1] <= 1
    rows = {row.key: row for row in report.rows}
    adds = rows["calibration", "long64", "adds", "", "round-trip"]
    assert adds.outcome == "native"
    assert len(adds.samples) == len(adds.vms) == syscall.QUICK.vms * syscall.QUICK.batches
    call = rows["path", "long64", "syscall", "H0", "round-trip"]
    assert call.outcome == ("fails" if module == "kvm_pvm" else "native")
    assert bool(call.failure) == (call.outcome == "fails")
    if call.outcome == "native":
        assert {16 * n for n in range(ALIGNMENTS)} == set(call.alignments)
    hosts = [row for row in report.rows if row.kind == "host"]
    assert [row.path for row in hosts] == ["getppid", "no such call"]
    assert all(set(row.vms) == set(range(syscall.QUICK.vms)) for row in hosts)
    found = report.disclosure
    assert found.module == module
    assert found.virtual_time == bool(found.emulator)
    if found.virtual_time:
        assert all("virtual time" in row.labels for row in report.rows if row.samples)
        assert "time is virtual" in " ".join(report.warnings)
    assert report.steal is None or 0 <= report.steal <= 1
    assert Report.from_json(report.to_json()) == report


@pytest.mark.slow
def test_the_whole_table(module):
    """Every cell has its row; native rows never cross an interpreted ring."""
    report = syscall.run(quick=True)
    keys = {row.key for row in report.rows}
    for cell in every_cell():
        measure = "single-shot" if cell.single else "round-trip"
        assert (cell.kind, cell.mode, cell.path, cell.level, measure) in keys
    for row in report.rows:
        assert (row.outcome == "fails") == bool(row.failure) == (not row.samples), row.name
        if any(canary.interpreted for canary in row.canaries):
            assert row.outcome != "native", row.name
    assert all(row.failure for row in report.rows if row.outcome == "fails")


def test_cells_that_are_none():
    """Are refused before anything runs."""
    with pytest.raises(ValueError, match="not in the table"):
        syscall.run([Cell("long64", "syscall", "H7")])
