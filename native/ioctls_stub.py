"""Writes ``kvmpy/ioctls/__init__.pyi``, what type checkers and editors
know of the ioctls, from the table.

    python native/ioctls_stub.py > kvmpy/ioctls/__init__.pyi

tests/unit/ioctls/test_ioctls_table.py fails when the two differ.
"""

import runpy
from pathlib import Path

TABLE = Path(__file__).resolve().parent.parent / "kvmpy" / "ioctls" / "table.py"

HEAD = '''\
"""Every KVM ioctl of x86 by name. Made by native/ioctls_stub.py: do not edit."""

from .ioctl import Ioctl as Ioctl, lacks as lacks

ALL: dict[str, Ioctl]
'''


def stub() -> str:
    """The text of ``ioctls/__init__.pyi``."""
    text = HEAD
    for row in runpy.run_path(str(TABLE))["TABLE"].splitlines():
        if not row:
            continue
        name, fds, direction, argument, capability, section, method = row.split()
        takes = {"-": "nothing", "=": "an integer", "uint64_t": f"{direction} uint64_t"}.get(
            argument, f"{direction} struct {argument}"
        )
        text += f'\n{name}: Ioctl\n"""On a {fds.replace(",", " or ")} descriptor; {takes}.\n'
        text += f"\nCapability: {'none' if capability == '-' else 'KVM_CAP_' + capability}. "
        text += f"KVM API: {'no section' if section == '-' else section}. Method: {method}.\n"
        text += '"""\n'
    return text


if __name__ == "__main__":
    print(stub(), end="")
