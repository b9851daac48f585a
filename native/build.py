"""Builds ``kvmpy._native``: the C shim, and KVM's structures and numbers as Python sees them.

cffi's API mode: the C compiler, with the installed uapi headers, has the last word on every layout
and constant below ("...;" means "there is more, ask the compiler").
"""

import runpy
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOMS = ("run", "devices", "virtio", "watch", "measure")
SOURCES = sorted(f"native/{room}/{path.name}" for room in ROOMS for path in (HERE / room).glob("*.c"))
HEADERS = sorted(str(path.relative_to(HERE.parent)) for path in HERE.glob("*/*.h"))
FOLDERS = ["native/kvm", *(f"native/{room}" for room in ROOMS)]

ffi = FFI()
for name in ("kvm/kvm_api.h", "kvm/capabilities.h", "cdef.h"):
    ffi.cdef((HERE / name).read_text())
TABLE = runpy.run_path(str(HERE.parent / "kvmpy" / "ioctls" / "table.py"))["TABLE"]
ffi.cdef("".join(f"#define {row.split()[0]} ...\n" for row in TABLE.splitlines() if row))
ffi.set_source(
    "kvmpy._native",
    '#include "shim.h"\n#include "virtio.h"\n',
    sources=SOURCES,
    include_dirs=FOLDERS,
    depends=HEADERS,
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffi.compile(verbose=True)
