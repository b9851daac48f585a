"""Builds bare.c and calls it through ctypes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("bare.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "kvmpy-bench"


def build(cache: Path | None = None) -> Path:
    """The compiled library; named after its source, so it is built once per version of it."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    key = SOURCE.read_bytes() + shlex.join((*compiler, *FLAGS)).encode()
    output = (cache or _cache()) / f"bare-{hashlib.sha256(key).hexdigest()[:16]}.so"
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = output.with_suffix(f".{os.getpid()}")
        command = (*compiler, *FLAGS, "-o", str(scratch), str(SOURCE))
        print(shlex.join(command), file=sys.stderr)
        subprocess.run(command, check=True)
        scratch.replace(output)  # two benchmarks at once never see half a library
    return output


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, f"bare.c: {os.strerror(-result)}")
    return result


class Library:
    """bare.c's functions for one guest program."""

    def __init__(self, guest: bytes, memory_size: int):
        self._guest = (guest, len(guest), memory_size)
        lib = ctypes.CDLL(str(build()))
        program = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]
        self._open, self._close = lib.bare_open, lib.bare_close
        self._open.argtypes, self._open.restype = program, ctypes.c_void_p
        self._close.argtypes, self._close.restype = [ctypes.c_void_p], None
        self._exits, self._life = lib.bare_exits, lib.bare_life
        self._ioctls = lib.bare_ioctls
        self._ioctls.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_int]
        self._ioctls.restype = ctypes.c_int64
        self._exits.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
        self._exits.restype = ctypes.c_int64
        self._life.argtypes, self._life.restype = [*program, ctypes.c_int], ctypes.c_int64

    def open(self) -> Loop:
        """A VM in the guest's loop."""
        handle = self._open(*self._guest)
        if not handle:
            raise OSError("bare.c cannot set up its VM")
        return Loop(self, handle)

    def life(self, *, cpuid: bool) -> int:
        """ns of one VM's life; ``cpuid`` sets what KVM supports."""
        return _checked(self._life(*self._guest, cpuid))

    def ioctls(self, kvm: int, count: int, *, structure: bool) -> int:
        """ns of ``count`` ioctls on /dev/kvm's descriptor, with an integer or a structure."""
        return _checked(self._ioctls(kvm, count, structure))


class Loop:
    """A bare VM whose guest exits for ever."""

    def __init__(self, library: Library, handle: int):
        self._library, self._handle = library, handle

    def exits(self, count: int) -> int:
        """ns of ``count`` exits."""
        return _checked(self._library._exits(self._handle, count))

    def close(self) -> None:
        """Close the VM."""
        self._library._close(self._handle)
