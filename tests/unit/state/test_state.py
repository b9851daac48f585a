"""The records of kvmpy.state, VcpuState's two forms, and hostile input to both."""

import dataclasses
import json
import struct
import zlib

import pytest
from hypothesis import given, settings, strategies as st

import kvmpy
from kvmpy.cpuid.cpuid import Cpuid, Leaf
from kvmpy.state import (
    Clock,
    Component,
    DebugRegs,
    ExceptionEvent,
    Fpu,
    HostIdentity,
    InterruptEvent,
    Lapic,
    NestedState,
    NmiEvent,
    Regs,
    Segment,
    SmiEvent,
    Sregs2,
    VcpuEvents,
    VcpuState,
    Xcr,
    Xcrs,
    Xsave,
    layout_of,
)
from kvmpy.x86.state import StubTable

LAYOUT = layout_of({2: (256, 576), 5: (64, 832), 6: (512, 896), 7: (1024, 1408), 9: (8, 2432),
                    11: (16, 0), 17: (64, 2752), 18: (8192, 2816)})  # fmt: skip
XSAVE = Xsave(bytes(16384), LAYOUT)
NESTED = NestedState(struct.pack("<HHI", 0x100, 1, 128) + bytes(120))
STATE = VcpuState(
    host=HostIdentity("kvm_amd", "AuthenticAMD", 0xB00F21),
    vcpu_id=0,
    cpuid=Cpuid([Leaf(0, eax=1), Leaf(1, eax=0xB00F21, ecx=1 << 31), Leaf(7, 1, 1, edx=9)]),
    tsc_khz=2_500_000,
    mcg_cap=0x20,
    mp_state=3,
    regs=Regs(rax=1 << 63, rip=0x1000),
    sregs=Sregs2(cs=Segment(selector=8, type=11, present=1, s=1), cr0=0x80000011, flags=1,
                 pdptrs=(1, 2, 3, 4)),
    xsave=XSAVE.replace(zmm1=1 << 500, st0=7, pkru=5),
    xcrs=Xcrs((Xcr(0, 0xE7),)),
    debugregs=DebugRegs(db=(1, 2, 3, 4)),
    lapic=Lapic().replace(id=0, svr=0x1FF),
    msrs={0x10: 5, 0xC0000082: 1 << 63, 0x6E0: 0},
    refused_msrs=(0x345,),
    one_regs={0x2030_0003_0000_0000: bytes(range(8))},
    nested=NESTED,
    events=VcpuEvents(nmi=NmiEvent(pending=1), flags=13),
    stubs=StubTable(0xFF8100, 0xFF9000),
)  # fmt: skip


# ---------------------------------------------------------------- records


def test_register_texts():
    """Flags and types by name, numbers in hex."""
    assert "[ZF IF]" in repr(Regs(rflags=0x242))
    assert "code16 execute/read" in repr(STATE.sregs)
    assert "[PE ET PG]" in repr(STATE.sregs)
    assert "pdptrs 0000000000000001" in repr(STATE.sregs)
    assert repr(STATE.xcrs) == ("Xcrs(<XCR0 0xe7[x87 sse avx opmask zmm_hi256 hi16_zmm]>)")
    assert "kvm_amd, AuthenticAMD family 0x1a model 0x2" in repr(STATE)
    assert "events: <VcpuEvents nmi pending; flags 0xd[NMI_PENDING SHADOW SMM]>" in repr(STATE)
    assert "id 0" in repr(STATE.lapic)
    assert repr(Fpu(xmm=bytes(15) + b"\1" + bytes(240))).count("xmm0") == 1
    with pytest.raises(ValueError, match="XMM16"):
        Fpu().xmm_register(16)
    assert repr(Clock(7, 14, 8, 9)) == (
        "<Clock 7 ns, realtime 8, host TSC 9, flags 0xe[TSC_STABLE REALTIME HOST_TSC]>"
    )


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (ExceptionEvent(), "none"),
        (ExceptionEvent(pending=1, nr=14, has_error_code=1, error_code=6),
         "#PF pending error code 0x6"),
        (ExceptionEvent(injected=1, nr=200), "vector 200 injected"),
        (InterruptEvent(shadow=2), "none, shadow 0x2[STI]"),
        (InterruptEvent(injected=1, nr=0x80, soft=1), "software vector 0x80 injected"),
        (NmiEvent(1, 0, 1), "injected masked"),
        (SmiEvent(smm=1, latched_init=1), "smm latched_init"),
    ],
)  # fmt: skip
def test_event_texts(event, text):
    """Each in words."""
    assert repr(event) == text


def test_lapic_vectors():
    """256 bits, 32 in every 16 bytes."""
    area = bytearray(1024)
    area[0x200 + 0x10 * 7 + 3] = 0x80
    area[0x100] = 2
    lapic = Lapic(bytes(area))
    assert lapic.irr == {255}
    assert lapic.isr == {1}
    assert lapic.tmr == frozenset()
    assert Lapic().replace(id=0x12345).id == 0x12345
    assert Lapic().replace(lvt_lint0=0x10700).lvt("lint0") == "vector 0x0 extint masked"
    with pytest.raises(KeyError):
        Lapic().replace(nothing=1)
    with pytest.raises(ValueError, match="not in"):
        Lapic().replace(tpr=1 << 32)


def test_xcrs():
    """Seventeen registers do not fit, in neither direction."""
    structure = kvmpy._native.ffi.new("struct kvm_xcrs *")
    structure.nr_xcrs = 17
    with pytest.raises(ValueError, match="more than 16"):
        Xcrs.from_c(structure)
    with pytest.raises(ValueError, match="more than 16"):
        Xcrs((Xcr(),) * 17).to_c()
    assert Xcrs.from_c(Xcrs((Xcr(0, 7), Xcr(1, 2))).to_c()).with_xcr0(3).xcrs == (
        Xcr(0, 3), Xcr(1, 2),
    )  # fmt: skip
    assert Xcrs(()).xcr0 == 1


def test_nested_headers():
    """VMX and SVM; sizes that lie are refused."""
    none = (1 << 64) - 1
    vmx = struct.pack("<HHI2QHHIQ", 0, 0, 128, 0x1000, none, 1, 0, 1, 77).ljust(128, b"\0")
    header = NestedState(vmx).header
    assert (header.vmxon_pa, header.vmcs12_pa) == (0x1000, None)
    assert (header.smm_flags, header.flags, header.preemption_timer_deadline) == (1, 1, 77)
    assert NESTED.header == kvmpy.state.SvmHeader(0)
    assert "GIF_SET" in repr(NESTED)
    assert NestedState(struct.pack("<HHI", 0, 9, 128) + bytes(120)).format == "9"
    for bad in (b"", bytes(128), struct.pack("<HHI", 0, 0, 256) + bytes(120), bytes(1 << 17)):
        with pytest.raises(ValueError, match="nested state"):
            NestedState(bad)


# ---------------------------------------------------------------- XSAVE


def test_vector_registers_overlap_as_they_do():
    """XMM is YMM's low half, YMM ZMM's; 16 to 31 lie in one piece."""
    area = XSAVE.replace(zmm3=(1 << 512) - 1)
    assert area.value("xmm3") == (1 << 128) - 1
    assert area.value("ymm3") == (1 << 256) - 1
    assert area.xstate_bv == 1 << 1 | 1 << 2 | 1 << 6
    area = area.replace(xmm3=0, zmm31=5, k7=6, tmm7=b"\7" * 1024)
    assert area.value("ymm3") == (1 << 256) - (1 << 128)
    assert (area.value("xmm31"), area.value("k7"), area["tmm7"]) == (5, 6, b"\7" * 1024)
    assert area["hi16_zmm"][-64:] == (5).to_bytes(64, "little")


def test_initial_state():
    """A component whose bit is clear reads as after reset, whatever its bytes are; waking one up
    leaves no old bytes."""
    raw = bytearray(XSAVE.data)
    raw[0:512] = b"\xee" * 512
    raw[576:832] = b"\xdd" * 256
    area = Xsave(bytes(raw), LAYOUT)
    assert (area.value("fcw"), area.value("mxcsr"), area.value("ymm1")) == (0x37F, 0x1F80, 0)
    area = area.replace(xmm1=1)
    assert area.value("xmm0") == 0
    assert area.value("ymm0") == 0
    area = area.replace(ymm0=1 << 200)
    assert area.value("ymm1") == 1
    area = area.replace(st0=9)
    assert (area.value("fcw"), area.value("st1"), area.value("mxcsr")) == (0x37F, 0, 0x1F80)
    assert Xsave(bytes(raw), LAYOUT) == XSAVE
    assert hash(Xsave(bytes(raw), LAYOUT)) == hash(XSAVE)
    assert area != XSAVE


@pytest.mark.parametrize("name", ["xmm32", "ymm", "zmm01", "foo", "bndregs", "tmm8", "xmm-1"])
def test_unknown_register(name):
    """KeyError, with what there is."""
    assert name not in XSAVE
    with pytest.raises(KeyError, match="it has"):
        _ = XSAVE[name]


def test_values_that_do_not_fit():
    """Too large, negative, too few bytes."""
    for value in (1 << 128, -1, b"123"):
        with pytest.raises(ValueError, match="xmm0"):
            XSAVE.replace(xmm0=value)


def test_area_that_cannot_be():
    """Compacted, too short, a layout that is not one."""
    raw = bytearray(4096)
    raw[527] = 0x80
    with pytest.raises(ValueError, match="compacted"):
        Xsave(bytes(raw), LAYOUT)
    with pytest.raises(ValueError, match="575 bytes"):
        Xsave(bytes(575), LAYOUT)
    odd = Component(2, 100, 8)
    for layout in ((), LAYOUT[2:], (*LAYOUT[:2], odd), (*LAYOUT, LAYOUT[-1])):
        with pytest.raises(ValueError, match="layout"):
            Xsave(bytes(4096), layout)
    assert "tiledata" not in Xsave(bytes(4096), LAYOUT).components()
    with pytest.raises(ValueError, match="it does not fit"):
        XSAVE.replace(tmm7=1).resized(4096)


# ---------------------------------------------------------------- the two forms


@pytest.mark.parametrize("state", [
    STATE, dataclasses.replace(STATE, lapic=None, nested=None, stubs=None, one_regs={}, msrs={}),
])  # fmt: skip
def test_round_trips(state):
    """Nothing is lost in either form."""
    assert VcpuState.from_bytes(state.to_bytes()) == state
    assert VcpuState.from_json(state.to_json(indent=1)) == state
    assert kvmpy.diff(state, VcpuState.from_json(state.to_json())) == []
    assert len(state.to_bytes()) < 16000


def test_edit_and_difference():
    """replace() and diff(): every part is named."""
    other = dataclasses.replace(
        STATE, mp_state=0, msrs={**STATE.msrs, 0x10: 6}, lapic=None,
        regs=dataclasses.replace(STATE.regs, rax=5), xsave=STATE.xsave.replace(k1=1),
        cpuid=STATE.cpuid.with_leaf(Leaf(1, eax=1, ecx=1 << 31)).with_leaf(Leaf(9)),
    )  # fmt: skip
    found = kvmpy.diff(STATE, other)
    assert found.paths() == [
        "cpuid[0x1, 0].eax", "cpuid[0x9, 0]", "mp_state", "regs.rax", "xsave[opmask]", "lapic",
        "msrs[TSC]",
    ]  # fmt: skip
    assert "msrs[TSC]          0x5" in repr(found)
    assert repr(found[2]) == "mp_state  0x3 -> 0x0"
    assert repr(kvmpy.diff(STATE, STATE)) == "no differences"
    assert STATE.msr("TSC") == 5
    with pytest.raises(KeyError, match="STAR"):
        STATE.msr("STAR")
    with pytest.raises(TypeError, match="no parts"):
        kvmpy.diff(3, 4)


def sealed(body, count, version=1, magic=b"kvmpyCPU"):
    """A header that fits, so that what is behind it is looked at."""
    head = struct.pack("<8sHHII", magic, version, count, len(body), zlib.crc32(body))
    return head + body


def test_damaged_bytes():
    """Each damage by name."""
    good = STATE.to_bytes()
    body = good[20:]
    for data, message in [
        (b"", "too short"),
        (good[:-1], "bytes after the header"),
        (good + b"\0", "bytes after the header"),
        (b"x" + good[1:], "starts with"),
        (good[:8] + b"\2" + good[9:], "version 2"),
        (good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
        (sealed(body, 1), "too many"),
        (sealed(body, 99), "in the middle of a part"),
        (sealed(struct.pack("<HI", 0, 99), 1), "beyond the end"),
        (sealed(struct.pack("<HI", 999, 0), 1), "unknown"),
        (sealed(struct.pack("<HI", 1, 4) + bytes(4) + struct.pack("<HI", 1, 4) + bytes(4), 2),
         "twice"),
        (sealed(b"", 0), "host is missing"),
    ]:  # fmt: skip
        with pytest.raises(kvmpy.StateFormatError, match=message):
            VcpuState.from_bytes(data)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_hostile_bytes(data):
    """Any change behind a header that fits: a state, or StateFormatError; nothing else."""
    body = bytearray(STATE.to_bytes()[20:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    count = data.draw(st.sampled_from([18, 18, 18, 17, 0, 65535]))
    try:
        state = VcpuState.from_bytes(sealed(bytes(body), count))
    except kvmpy.StateFormatError:
        return
    assert VcpuState.from_bytes(state.to_bytes()) == state


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_hostile_json(data):
    """The same for JSON: a part, or a part of a part, is anything."""
    document = json.loads(STATE.to_json())
    part = data.draw(st.sampled_from(sorted(document)))
    value = data.draw(JSON)
    if isinstance(document[part], dict) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(document[part])))
        document[part][key] = value
    else:
        document[part] = value
    try:
        state = VcpuState.from_json(json.dumps(document))
    except kvmpy.StateFormatError:
        return
    assert VcpuState.from_json(state.to_json()) == state
    assert VcpuState.from_bytes(state.to_bytes()) == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "x"}', "[" * 100000, b"\xff"])
def test_not_a_state(text):
    """StateFormatError, not JSON's own."""
    with pytest.raises(kvmpy.StateFormatError):
        VcpuState.from_json(text)


def test_json_of_another_version():
    """Refused by version; parts too few are named."""
    document = json.loads(STATE.to_json())
    with pytest.raises(kvmpy.StateFormatError, match="version 2"):
        VcpuState.from_json(json.dumps({**document, "version": 2}))
    with pytest.raises(kvmpy.StateFormatError, match="version True"):
        VcpuState.from_json(json.dumps({**document, "version": True}))
    del document["msrs"]
    with pytest.raises(kvmpy.StateFormatError, match="msrs"):
        VcpuState.from_json(json.dumps(document))


def test_errors_are_kvmpy_errors():
    """Both are KvmpyErrors, and ValueErrors."""
    for kind in (kvmpy.StateFormatError, kvmpy.StateMismatchError):
        assert issubclass(kind, kvmpy.KvmpyError)
        assert issubclass(kind, ValueError)
