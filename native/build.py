"""Builds ``kvmpy._native``: the C shim, and KVM's structures and numbers as Python sees them; and
``kvmpy._measure``: what is measured of the host itself.

cffi's API mode: the C compiler, with the installed uapi headers, has the last word on every layout
and constant ("...;" means "there is more, ask the compiler"). What Python sees of our own sources
is read from their headers (declarations.py).
"""

import runpy
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
try:
    from declarations import declarations
finally:
    sys.path.pop(0)

HEADERS = sorted(str(path.relative_to(HERE.parent)) for path in HERE.glob("*/*.h"))
#: The rooms of the shim.
SHIM = ("run", "devices", "virtio", "watch")
COMPILE = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"]
#: It reads what hostile guests write: a slip ends the process, it does not run the guest's code.
#: (-U first: Python's own flags may ask for another level.)
HARDENING = ["-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
LINK = ["-Wl,-z,relro,-z,now,-z,noexecstack"]


def _module(name: str, includes: str, rooms: tuple[str, ...]) -> FFI:
    sources = sorted(str(path) for room in rooms for path in (HERE / room).glob("*.c"))
    builder = FFI()
    builder.set_source(
        name,
        includes,
        sources=[str(Path(path).relative_to(HERE.parent)) for path in sources],
        include_dirs=["native/kvm", *(f"native/{room}" for room in rooms)],
        depends=HEADERS,
        extra_compile_args=COMPILE + HARDENING,
        extra_link_args=LINK,
        py_limited_api=True,
    )
    return builder


ffi = _module("kvmpy._native", '#include "shim.h"\n#include "virtio.h"\n', SHIM)
ffi.cdef((HERE / "kvm" / "kvm_api.h").read_text())
ffi.cdef((HERE / "kvm" / "capabilities.h").read_text())
TABLE = runpy.run_path(str(HERE.parent / "kvmpy" / "ioctls" / "table.py"))["TABLE"]
ffi.cdef("".join(f"#define {row.split()[0]} ...\n" for row in TABLE.splitlines() if row))
ffi.cdef(declarations(HERE / "run" / "shim.h", HERE / "virtio" / "virtio.h"))

measure = _module("kvmpy._measure", '#include "measure.h"\n', ("measure",))
measure.cdef(declarations(HERE / "measure" / "measure.h"))

if __name__ == "__main__":
    ffi.compile(verbose=True)
    measure.compile(verbose=True)
