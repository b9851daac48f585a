"""The driver of a network device."""

import os
import struct
from itertools import pairwise

from virtio_driver import WRITE, Driver

RX, TX = 0, 1
F_CSUM, F_GUEST_CSUM, F_MAC, F_HOST_TSO4 = 1 << 0, 1 << 1, 1 << 5, 1 << 11
F_MRG_RXBUF, F_STATUS = 1 << 15, 1 << 16
RX_DATA, TX_DATA = 0x20_0000, 0x80_0000
MAC = "52:54:00:12:34:56"
HEADER = 12


def header(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0, buffers=0):
    return struct.pack(
        "<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, buffers
    )


def frame(size=60, tag=0):
    head = bytes.fromhex("ffffffffffff 525400123456 0800")
    return (head + (bytes([tag]) + os.urandom(251)) * (size // 200 + 1))[:size]


class Card(Driver):
    """Receive buffers one after another; frames sent one at a time, or prepared."""

    def __init__(self, net, memory, **options):
        super().__init__(net, memory, **options)
        self.rx, self.tx = self.rings
        self.places = {}
        self.filled = 0
        self.received = []
        self.suppress(RX)
        self.suppress(TX)

    def suppress(self, queue):
        """With the event index: interrupt for the next one."""
        self.rings[queue].set_used_event(self.rings[queue].used_idx)

    def offer(self, *sizes, flags=WRITE):
        """One chain with buffers of these sizes."""
        buffers = []
        for size in sizes:
            buffers.append((RX_DATA + self.filled, size, flags))
            self.filled = (self.filled + size) % 0x40_0000
        head = self.rx.add(*buffers)
        self.places[head] = buffers
        return head

    def poll(self):
        """Chains returned: (head, what is in it)."""
        done = []
        for head, length in self.rx.take():
            data = b"".join(self.memory.read(gpa, size) for gpa, size, _ in self.places.pop(head))
            assert length <= len(data)
            done.append((head, data[:length]))
        self.received += done
        if done:  # else it is set already, and was before this look at the ring
            self.suppress(RX)
        return done

    def wait(self, count=1):
        """The next ``count`` chains."""
        while len(self.received) < count:
            if not self.poll():
                assert self.wait_interrupt() in (0, 1)
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def next_frame(self):
        """Header and frame, put together from the buffers it is in."""
        ((_, data),) = self.wait()
        count = struct.unpack_from("<H", data, 10)[0]
        data += b"".join(part for _, part in (self.wait(count - 1) if count > 1 else []))
        return data[:HEADER], data[HEADER:]

    def prepare(self, data, *cuts, head=None):
        """A frame in the transmit queue, cut into buffers at ``cuts``."""
        data = (header() if head is None else head) + data
        place = TX_DATA + 0x2_0000 * (self.tx.avail_idx % 32)
        self.memory.write(place, data)
        edges = [0, *cuts, len(data)]
        return self.tx.add(*[(place + a, b - a, 0) for a, b in pairwise(edges)])

    def send(self, data, *cuts, head=None):
        sent = self.prepare(data, *cuts, head=head)
        self.suppress(TX)
        assert self.complete(queue=TX) == [(sent, 0)]
