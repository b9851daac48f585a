"""Debian's cloud kernel on a network, and 100 MiB through its virtio console."""

import hashlib
import os
import re
import select
import threading

import pytest
from linux.guest import LIMIT, shell

from kvmpy.devices.virtio import Net, VirtioConsole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.not_on("kvm_pvm", reason="interprets ring 0: minutes for each boot"),
]
MIB = 1 << 20


# ---------------------------------------------------------------- network


def test_two_guests(linux, namespace, wait_until):
    """Two guests, each on a tap, both taps on one bridge: they ping and transfer."""
    namespace.bridge("one0", "two0")
    cards = [namespace(Net, name) for name in ("one0", "two0")]
    machines = [linux(devices=[card]) for card in cards]
    for number, machine in enumerate(machines, 1):
        shell(machine, f"ip addr add 10.9.0.{number}/24 dev eth0 && ip link set eth0 up")
    for name in ("one0", "two0"):
        wait_until(lambda name=name: namespace.is_forwarding(name))
    for machine, card in zip(machines, cards, strict=True):
        assert card.mac in shell(machine, "cat /sys/class/net/eth0/address")
    for machine, peer in zip(machines, ("10.9.0.2", "10.9.0.1"), strict=True):
        check_ping(machine, peer)
    check_transfer(*machines)
    assert [card.fault for card in cards] == ["", ""]


def check_ping(machine, peer):
    """It reaches the other, with small packets and large, and no packet is lost."""
    shell(machine, f"ping -c 1 -w 30 {peer}")  # ARP
    for size in (56, 1400):
        report = shell(machine, f"ping -c 10 -i 0.1 -s {size} {peer}")
        assert re.search("10 packets received, 0% packet loss", report), report


def check_transfer(sender, receiver):
    """16 MiB over TCP, segmentation offloaded: the same at the other end."""
    shell(receiver, "(nc -l -p 5000 | sha256sum > /run/sum; : > /run/done) > /dev/null 2>&1 &")
    shell(sender, "dd if=/dev/urandom of=/run/data bs=1M count=16 2>/dev/null")
    sent = shell(sender, "sha256sum < /run/data")
    # The listener may not be there yet.
    shell(sender, "until nc 10.9.0.2 5000 < /run/data; do sleep 0.1; done")
    shell(receiver, "until [ -e /run/done ]; do sleep 0.1; done")
    assert shell(receiver, "cat /run/sum") == sent


# ---------------------------------------------------------------- console

STREAM = 100 * MIB


def test_100_mib_through_the_console(linux):
    """Into the guest and back out, through hvc0: not one byte is lost, added or changed."""
    reader, writer = os.pipe()
    console = VirtioConsole(writer)
    os.close(writer)
    try:
        machine = linux(devices=[console], memory="512M")
        # Open all the while: a terminal forgets its settings when it is closed.
        shell(machine, "exec 5<>/dev/hvc0 && stty -F /dev/hvc0 raw -echo")
        data = os.urandom(MIB) * (STREAM // MIB - 1) + os.urandom(MIB)
        expected = hashlib.sha256(data).hexdigest()
        shell(machine, f"(head -c {STREAM} <&5 >/run/data; sha256sum </run/data >/run/sum) &")
        _feed(console, data)
        assert shell(machine, "wait; cat /run/sum").split()[0] == expected
        collected = hashlib.sha256()
        collector = threading.Thread(target=_collect, args=(reader, STREAM, collected), daemon=True)
        collector.start()
        shell(machine, "cat /run/data >&5")
        collector.join(LIMIT)
        assert not collector.is_alive()
        assert collected.hexdigest() == expected
        assert console.fault == ""
    finally:
        os.close(reader)


def _feed(console, data):
    """All of ``data`` to the guest, at its pace."""
    space, left = os.eventfd(0), memoryview(data)
    try:
        while left:
            piece = bytes(left[:MIB])
            taken = console.receive(piece, space_eventfd=space)
            left = left[taken:]
            if taken < len(piece):  # only who was refused is told of space
                assert select.select([space], [], [], LIMIT)[0], f"{len(left)} bytes left"
                os.eventfd_read(space)
        console.receive(b"")
    finally:
        os.close(space)


def _collect(fd, size, digest):
    """``size`` bytes from ``fd``, into ``digest``."""
    while size > 0 and (data := os.read(fd, min(size, MIB))):
        digest.update(data)
        size -= len(data)
