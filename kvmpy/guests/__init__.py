"""The guest programs that come with the package, assembled from native/guests when it is built."""

from __future__ import annotations

from importlib import resources


def names() -> list[str]:
    """What :func:`load` knows: "demo.elf", "boot16.bin" ...

    >>> "demo.elf" in kvmpy.guests.names()
    True
    """
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name for name in files if name.endswith((".elf", ".bin")))


def load(name: str) -> bytes:
    """The bytes of a bundled guest. Raises FileNotFoundError for an unknown name.

    >>> len(kvmpy.guests.load("demo.elf")) > 4096
    True
    """
    return (resources.files(__name__) / name).read_bytes()
