"""Builds ``kvmpy._native``: the C shim, and KVM's structures and numbers as Python sees them.

cffi's API mode: the C compiler, with the installed uapi headers, has the last word on every layout
and constant below ("...;" means "there is more, ask the compiler").
"""

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = sorted(path.name for path in HERE.glob("*.c"))
HEADERS = sorted(path.name for path in HERE.glob("*.h"))

ffi = FFI()
for name in ("kvm_api.h", "capabilities.h", "cdef.h"):
    ffi.cdef((HERE / name).read_text())
TABLE = runpy.run_path(str(HERE.parent / "kvmpy" / "ioctls" / "table.py"))["TABLE"]
ffi.cdef("".join(f"#define {row.split()[0]} ...\n" for row in TABLE.splitlines() if row))
ffi.set_source(
    "kvmpy._native",
    '#include "shim.h"\n#include "virtio.h"\n',
    sources=[f"native/{name}" for name in SOURCES],
    include_dirs=["native"],
    depends=[f"native/{name}" for name in HEADERS],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
