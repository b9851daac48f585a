"""Builds ``kvmpy._native``: the C shim and the few KVM structures Python reads and writes.

cffi's API mode: the C compiler, with the installed uapi headers, has the last word on every layout
and constant below ("...;" means "there is more, ask the compiler").
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = sorted(path.name for path in HERE.glob("*.c"))
HEADERS = sorted(path.name for path in HERE.glob("*.h"))

ffi = FFI()
for name in ("cdef.h", "capabilities.h"):
    ffi.cdef((HERE / name).read_text())
ffi.set_source(
    "kvmpy._native",
    '#include "shim.h"\n',
    sources=[f"native/{name}" for name in SOURCES],
    include_dirs=["native"],
    depends=[f"native/{name}" for name in HEADERS],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
