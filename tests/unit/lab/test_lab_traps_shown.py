"""What `kvmpy lab traps` says of registers and stacks, on some that are made up."""

import dataclasses

import pytest

from kvmpy.lab.show import traps as traps_shown
from kvmpy.lab.traps import NOT_CANONICAL, USER_FLAGS, Result, State, Sysret, Trip
from kvmpy.report.table import Table

IF = 1 << 9
MASK = 0x47700
BACK = 0x10_2002
GENERAL = {"rax": 1, "rcx": 2, "rdx": 3, "r11": 4}
BEFORE = State(0x10_2000, 0x20_6000, 0x33, 0x2B, USER_FLAGS, 3, 0, GENERAL)
HANDLER = State(0x10_3000, 0x20_6000, 0x10, 0x18, USER_FLAGS & ~IF, 0, 0, GENERAL)
SOURCES = {
    "gate.offset": 0x10_3000,
    "gate.CS": 0x10,
    "TSS.RSP0": 0x7F_F000,
    "SYSENTER_CS": 0x10,
    "SYSENTER_ESP": 0x20_7000,
    "SYSENTER_EIP": 0x10_3100,
    "STAR[47:32]": 0x10,
    "STAR[63:48]": 0x23,
    "LSTAR": 0x10_3200,
    "FMASK": MASK,
}
SAVED = {"rcx": BACK, "r11": USER_FLAGS}


def trip(path, inside, after, pushed=()):
    return Trip("long64", path, "", None, BEFORE, inside, after, pushed, SOURCES, BACK)


INT80 = trip(
    "int80",
    dataclasses.replace(HANDLER, rsp=0x7F_EFD8, ss=0),
    dataclasses.replace(BEFORE, rip=BACK),
    (BACK, 0x33, USER_FLAGS, 0x20_6000, 0x2B),
)
SYSENTER = trip(
    "sysenter",
    dataclasses.replace(
        HANDLER, rip=0x10_3100, rsp=0x20_7000, general=GENERAL | {"rcx": 0x20_6000, "rdx": BACK}
    ),
    dataclasses.replace(BEFORE, rip=BACK, ss=0x3B, rflags=USER_FLAGS & ~IF),
)
SYSENTER = dataclasses.replace(
    SYSENTER,
    before=dataclasses.replace(BEFORE, general=GENERAL | {"rcx": 0x20_6000, "rdx": BACK}),
)
SYSCALL = trip(
    "syscall",
    dataclasses.replace(HANDLER, rip=0x10_3200, rflags=USER_FLAGS & ~MASK, general=GENERAL | SAVED),
    dataclasses.replace(BEFORE, rip=BACK),
)
HOLE = Sysret(
    0x20_6000, 0x7F_F000, 0x10_4000, True, 13, 0, 0x20_5FD0,
    (0, 0x10_4000, 0x10, 0x1_0002, 0x20_6000, 0x18),
)  # fmt: skip


def made_up(**changes):
    trips = [INT80, SYSENTER, SYSCALL]
    for mode in ("compat32", "legacy32"):
        trips += [Trip(mode, path, "#UD at syscall", 6) for path in ("int80", "sysenter")]
        trips.append(Trip(mode, "syscall", "#UD at syscall", 6))
    found = Result(
        module="kvm_intel", verdict="", emulator=None, vendor="GenuineIntel", cpu_model="a CPU",
        interpreted=False, paging=True, trips=tuple(trips), sysret=HOLE,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (INT80, ("gate.offset", "gate.CS", "null", "TSS.RSP0", "pushed, at +0",
                 "pushed, +8, +32", "pushed, at +24", "pushed, at +16", "IF", "40 bytes pushed",
                 "none", "unchanged")),
        (SYSENTER, ("SYSENTER_EIP", "SYSENTER_CS", "SYSENTER_CS + 8", "SYSENTER_ESP", "lost",
                    "lost", "lost", "lost", "IF", "nothing", "none", "unchanged")),
        (SYSCALL, ("LSTAR", "STAR[47:32]", "STAR[47:32] + 8", "unchanged: user's", "in RCX",
                   "lost", "in RSP", "in R11", "IF DF AC: FMASK", "nothing", "RCX, R11",
                   "unchanged")),
    ],
)  # fmt: skip
def test_the_way_in(made, expected):
    assert tuple(dict(traps_shown._way_in(made)).values()) == expected


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (INT80, ("IRETQ", "popped", "popped", "popped", "popped", "popped")),
        (SYSENTER, ("SYSEXIT", "RDX", "SYSENTER_CS + 32", "SYSENTER_CS + 40", "RCX",
                    "handler's: IF=0")),
        (SYSCALL, ("SYSRET", "RCX", "STAR[63:48] + 16", "STAR[63:48] + 8", "unchanged", "R11")),
    ],
)  # fmt: skip
def test_the_way_back(made, expected):
    assert tuple(dict(traps_shown._way_back(made)).values()) == expected


def test_a_stack_segment_from_the_tss():
    """Legacy mode takes it from there, and not from the gate's CS, which is next to it."""
    legacy = dataclasses.replace(
        INT80, mode="legacy32", sources={"gate.CS": 0x10, "TSS.SS0": 0x18, "TSS.ESP0": 0x7F_F000},
        inside=dataclasses.replace(INT80.inside, ss=0x18, rsp=0x7F_EFEC),
    )  # fmt: skip
    found = dict(traps_shown._way_in(legacy))
    assert (found["new CS"], found["new SS"], found["new ESP"]) == (
        "gate.CS", "TSS.SS0", "TSS.ESP0"
    )  # fmt: skip
    assert (found["old EIP"], found["on the stack"]) == ("pushed, at +0", "20 bytes pushed")


def test_a_value_from_nowhere_is_shown_as_it_is():
    odd = dataclasses.replace(
        SYSCALL, inside=dataclasses.replace(SYSCALL.inside, rip=0x123, cs=0x80, rsp=0x456)
    )
    found = dict(traps_shown._way_in(odd))
    assert (found["new RIP"], found["new CS"], found["new RSP"]) == ("0x123", "0x80", "0x456")
    assert found["old RSP"] == "lost"


def blocks_of(result):
    return list(traps_shown.blocks(result))


def words_of(result):
    return "\n".join(block for block in blocks_of(result) if isinstance(block, str))


def matrix_of(result):
    (found,) = (
        block for block in blocks_of(result)
        if isinstance(block, Table) and block.header[0] == "ring 3 is"
    )  # fmt: skip
    return found


def test_the_matrix_marks_what_the_manual_has_otherwise():
    marked = [row[:3] for row in matrix_of(made_up()).rows if row[2].endswith("*")]
    assert marked == [
        ("compat 32-bit", "int 0x80", "#UD *"),
        ("compat 32-bit", "SYSENTER", "#UD *"),
        ("legacy 32-bit", "int 0x80", "#UD *"),
        ("legacy 32-bit", "SYSENTER", "#UD *"),
    ]
    assert "this CPU, or KVM" in matrix_of(made_up()).notes[0]
    assert "Bochs" in matrix_of(made_up(emulator="Bochs")).notes[0]


def test_sysret_in_ring_0_and_in_ring_3():
    assert "still in ring 0" in words_of(made_up())
    assert "overwritten" in words_of(made_up())
    user = dataclasses.replace(
        HOLE, ring=3, frame_at=0x7F_EFD0, frame=(0, NOT_CANONICAL, 0x33, 2, 0x20_6000, 0x2B)
    )
    assert "That is AMD's way" in words_of(made_up(sysret=user))
    assert "A SYSCALL in the last two bytes" in words_of(made_up(sysret=user))
    started = dataclasses.replace(user, entered=False)
    assert "ring 0 is started at SYSRET" in words_of(made_up(sysret=started))
    failed = dataclasses.replace(HOLE, failure="no end within 2 s", frame=())
    assert "ends otherwise: no end" in words_of(made_up(sysret=failed))


def test_no_call_at_all():
    """Nothing to read out, but the matrix says why."""
    trips = tuple(
        dataclasses.replace(trip, inside=None, after=None, failure="#XX at out", vector=None)
        for trip in made_up().trips
    )
    result = made_up(trips=trips)
    assert "nothing to read out" in words_of(result)
    assert {row[2] for row in matrix_of(result).rows} == {"fails *"}
    assert any("#XX at out" in note for note in matrix_of(result).notes)
