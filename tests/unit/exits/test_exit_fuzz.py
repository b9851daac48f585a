"""kvm_run as nobody's kernel would leave it: decoding and answering keep within it."""

from hypothesis import given, strategies as st

import kvmpy
from kvmpy import _native
from kvmpy.exits import reasons as exits
from kvmpy.run import decode as exit_decode

_lib, _ffi = _native.lib, _native.ffi
RUN_SIZE = 3 * 4096
UNION = 32  # where kvm_run's union of exits begins
REPLY = 2  # SHIM_PENDING_REPLY
GUARD = b"\xa5" * 64


class Page:
    """A vCPU that is only memory: shim_decode and the answers look at nothing else."""

    def __init__(self, reason, union):
        self.memory = _ffi.new("char[]", RUN_SIZE + len(GUARD))
        self.bytes = _ffi.buffer(self.memory)
        self.bytes[RUN_SIZE:] = GUARD
        self.bytes[UNION : UNION + len(union)] = union
        self.vcpu = _ffi.new("struct shim_vcpu *")
        self.vcpu.run = _ffi.cast("struct kvm_run *", self.memory)
        self.vcpu.run_size = RUN_SIZE
        self.vcpu.run.exit_reason = reason
        self.vcpu.pending = REPLY

    def decode(self):
        words = _ffi.new(f"uint64_t[{_lib.SHIM_DECODE_WORDS}]")
        count = _lib.shim_decode(self.vcpu, words)
        assert 1 <= count <= _lib.SHIM_DECODE_WORDS
        run_page = memoryview(self.bytes)[:RUN_SIZE]
        return exit_decode.decode(_ffi.unpack(words, count), run_page)


REASON = st.one_of(st.integers(0, 64), st.integers(0, (1 << 32) - 1))
#: Any bytes, or small words, which counts and types are made of.
UNIONS = st.one_of(
    st.binary(min_size=256, max_size=256),
    st.lists(st.integers(0, 20), min_size=64, max_size=64).map(
        lambda words: b"".join(word.to_bytes(4, "little") for word in words)
    ),
)


@given(REASON, UNIONS)
def test_decode(reason, union):
    """An Exit with a repr, and its reason the number KVM gave."""
    exit = Page(reason, union).decode()
    assert isinstance(exit, exits.Exit)
    assert repr(exit).startswith(type(exit).__name__)
    assert exit.number == reason if isinstance(exit, exits.OtherExit) else exit.reason == reason


@given(REASON, UNIONS, st.integers(0, (1 << 64) - 1), st.booleans())
def test_answer(reason, union, value, refuse):
    """Taken exactly once by what can be answered, and nothing beyond the union is written."""
    page = Page(reason, union)
    exit = page.decode()
    act = _lib.shim_refuse if refuse else lambda vcpu: _lib.shim_reply(vcpu, value)
    taken = act(page.vcpu) == 0
    if isinstance(exit, kvmpy.Xen):
        assert taken == (exit.type == 1)
    else:
        assert taken == exit.answerable
    assert act(page.vcpu) != 0
    assert bytes(page.bytes[RUN_SIZE:]) == GUARD
    assert not any(page.bytes[UNION + 256 : RUN_SIZE])
