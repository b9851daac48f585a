"""Claims on ports and addresses: overlaps, bounds, and a model of the table."""

import threading

import pytest
from hypothesis import given, settings, strategies as st

import kvmpy
from kvmpy.devices import DebugConsole, Uart
from kvmpy.run.bus import Bus, ClaimError
from kvmpy.run.claims import VmClaims


class Ports(VmClaims):
    """A VM's claims without a VM."""

    def __init__(self):
        self._bus = Bus()
        self.slots = {}


def nothing(address, size, value):
    return 0


@pytest.mark.parametrize(
    "ports", [-1, 0x10000, range(0xFFFF, 0x10001), range(5, 5), range(0, 10, 2), range(10, 0, -1)]
)
def test_no_ports(ports):
    """What is no range of ports is refused."""
    with pytest.raises(ClaimError):
        Ports().on_io(ports)(nothing)


@pytest.mark.parametrize(
    ("gpa", "size"), [(-1, 4), (0, 0), (0, -1), (1 << 64, 1), ((1 << 64) - 1, 2), (0, 1 << 64)]
)
def test_no_addresses(gpa, size):
    """The same for addresses."""
    with pytest.raises(ClaimError):
        Ports().on_mmio(gpa, size)(nothing)


def test_extremes():
    """All ports; the address space to its last byte."""
    ports = Ports()
    ports.on_io(range(0x10000))(nothing)
    ports.on_mmio(1, (1 << 64) - 1)(nothing)
    with pytest.raises(ClaimError, match="overlaps"):
        ports.on_io(0xFFFF)(nothing)
    with pytest.raises(ClaimError, match="overlaps"):
        ports.on_mmio((1 << 64) - 1, 1)(nothing)


def test_every_kind_of_claim_keeps_others_out():
    """Handlers, batches, counters and devices share one table."""
    ports = Ports()
    ports.on_io(range(0x10, 0x12))(nothing)
    ports.on_io_batch(0x12)(lambda batch: None)
    ports.count_io(0x13)
    ports.attach(Uart(), 0x14)
    for port in range(0x10, 0x1C):
        for claim in (lambda p: ports.on_io(p)(nothing), ports.count_io,
                      lambda p: ports.attach(DebugConsole(), p)):  # fmt: skip
            with pytest.raises(ClaimError, match="overlaps"):
                claim(port)
    ports.count_io(0x1C)


def test_release():
    """By the first port of the claim, once."""
    ports = Ports()
    ports.on_io(range(0x10, 0x20))(nothing)
    for wrong in (0x11, 0x1F, 0x0F, 0x20):
        with pytest.raises(ClaimError, match="no claim starts"):
            ports.release(wrong)
    ports.release(0x10)
    with pytest.raises(ClaimError):
        ports.release(0x10)
    ports.count_io(range(0x10, 0x20))
    with pytest.raises(ClaimError):
        ports.release(0x10, mmio=True)


def test_decorators_give_the_function_back():
    """It can be called as it is."""
    ports = Ports()
    assert ports.on_io(1)(nothing) is nothing
    assert ports.on_mmio(1, 1)(nothing) is nothing
    batch = print
    assert ports.on_io_batch(2)(batch) is batch


def test_a_closed_vm_has_no_bus():
    """ClosedError."""
    ports = Ports()
    ports._bus = None
    with pytest.raises(kvmpy.ClosedError):
        ports.count_io(1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 60), st.integers(1, 12)), max_size=60
    )
)
def test_claims_against_a_model(operations):
    """Any sequence of claims and releases: refused exactly when it should be."""
    bus = Bus()
    model = {False: {}, True: {}}  # first -> length
    for is_claim, mmio, first, length in operations:
        ranges = model[mmio]
        if is_claim:
            clash = any(a < first + length and first < a + n for a, n in ranges.items())
            try:
                bus.handle(first, length, nothing, mmio=mmio)
            except ClaimError:
                assert clash
            else:
                assert not clash
                ranges[first] = length
        else:
            try:
                bus.release(first, mmio=mmio)
            except ClaimError:
                assert first not in ranges
            else:
                del ranges[first]


def test_claims_from_many_threads():
    """Each port is claimed by one of them."""
    ports, won = Ports(), []

    def claim(name):
        for port in range(200):
            try:
                ports.on_io(port)(nothing)
            except ClaimError:
                continue
            won.append(port)

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(200))
