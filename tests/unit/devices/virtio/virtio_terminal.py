"""The driver of a console device."""

from itertools import pairwise

from virtio_driver import WRITE, Driver

RX, TX = 0, 1
RX_DATA, TX_DATA = 0x20_0000, 0x80_0000
RX_SIZE = 4096


class Terminal(Driver):
    """What Linux does: receive buffers of a page, and what is written in one buffer at a time."""

    def __init__(self, console, memory, **options):
        super().__init__(console, memory, **options)
        self.rx, self.tx = self.rings
        self.places = {}
        self.filled = 0

    def offer(self, *sizes, at=None):
        if at is None:
            at = RX_DATA + self.filled % 0x40_0000
            self.filled += sum(sizes)
        places, buffers = [], []
        for size in sizes:
            places.append((at, size))
            buffers.append((at, size, WRITE))
            at += size
        head = self.rx.add(*buffers)
        self.places[head] = places
        return head

    def offer_pages(self, count):
        for _ in range(count):
            self.offer(RX_SIZE)
        self.rx.set_used_event(self.rx.used_idx)
        self.notify(RX)

    def take_input(self):
        data = b""
        for head, length in self.rx.take():
            places = self.places.pop(head)
            data += b"".join(self.memory.read(gpa, size) for gpa, size in places)[:length]
        return data

    def read_input(self, count):
        """At least ``count`` bytes of input; the buffers are offered again."""
        data = b""
        while len(data) < count:
            taken = len(self.places)
            data += (new := self.take_input())
            if new:
                for _ in range(taken - len(self.places)):
                    self.offer(RX_SIZE)
                self.rx.set_used_event(self.rx.used_idx)
                self.notify(RX)
            else:
                assert self.wait_interrupt() in (0, 1)
        return data

    def prepare(self, data, *cuts, at=TX_DATA):
        self.memory.write(at, data)
        edges = [0, *cuts, len(data)]
        return self.tx.add(*[(at + a, b - a, 0) for a, b in pairwise(edges)])

    def write(self, data, *cuts):
        """Returns when the device is done with it."""
        if isinstance(data, int):
            super().write(data, *cuts)
            return
        head = self.prepare(data, *cuts)
        self.tx.set_used_event(self.tx.used_idx)
        assert self.complete(queue=TX) == [(head, 0)]
