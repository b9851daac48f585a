"""A Linux guest in a test: what a test says to its shell."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmpy import Machine

#: Seconds that a guest may live, and that a test waits for a word of it.
LIMIT = 900.0 if os.environ.get("KVMPY_RIG") else 60.0


def shell(machine: Machine, command: str) -> str:
    """What ``command`` prints in the guest; it must succeed."""
    result = machine.console.run(command, timeout=LIMIT)
    assert result.status == 0, result
    return result.output


def power_off(machine: Machine) -> None:
    """End the guest as its user would, and close the machine."""
    machine.console.sendline("poweroff -f")
    assert machine.wait(LIMIT).ending == "power-off"
    machine.close()
