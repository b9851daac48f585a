"""Numbers, bytes and flags as people read them."""

from __future__ import annotations

from collections.abc import Mapping


def value_text(value: object) -> str:
    """A field's value for a reader: numbers from 10 on in hex, long bytes shortened.

    >>> kvmpy.text.value_text(255), kvmpy.text.value_text(7)
    ('0xff', '7')
    """
    match value:
        case bool() | None:
            return repr(value)
        case int():
            return hex(value) if abs(value) > 9 else str(value)
        case bytes():
            return (
                value.hex() if len(value) <= 16 else f"{value[:16].hex()}... ({len(value)} bytes)"
            )
        case tuple():
            return f"({', '.join(value_text(item) for item in value)})"
        case _:
            return repr(value)


def flags_text(value: int, names: Mapping[int, str]) -> str:
    """``0x5[PE ET]``: a number and its bits by name.

    >>> kvmpy.text.flags_text(5, {0: "PE", 2: "EM"})
    '0x5[PE EM]'
    """
    found = [name for bit, name in names.items() if value >> bit & 1]
    unnamed = value & ~sum(1 << bit for bit in names)
    if unnamed:
        found.append(hex(unnamed))
    return f"{value:#x}[{' '.join(found)}]" if value else "0"
