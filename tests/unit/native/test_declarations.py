"""What Python sees of the C sources is read from their headers, and nothing of it stands twice."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

from kvmpy import _measure, _native

NATIVE = Path(__file__).resolve().parents[3] / "native"
declarations = runpy.run_path(str(NATIVE / "declarations.py"))["declarations"]

HEADER = """
/* Not for Python: */
#define SHIM_MACRO(x) (x)
#define SHIM_SIZE 16 /* but this is */
struct shim_hidden;
int shim_private(struct shim_hidden *hidden);

API enum shim_kind { SHIM_ONE, SHIM_TWO };
API struct shim_thing {
	int number;
	_Atomic int guarded; /* cffi cannot read it */
	pthread_mutex_t lock;
	uint8_t bytes[SHIM_SIZE];
	struct shim_hidden held;
	int (*call)(struct shim_thing *thing, int number);
};
API int shim_public(struct shim_thing *thing,
	const struct shim_other *other);
static inline int shim_inline(void) { return 0; }
"""


def test_a_header_is_read(tmp_path):
    """Marked declarations and numbers, whole; of a structure what cffi can read."""
    (tmp_path / "thing.h").write_text(HEADER)
    text = " ".join(declarations(tmp_path / "thing.h").split())
    assert "#define SHIM_SIZE ..." in text
    assert "SHIM_MACRO" not in text
    assert "shim_private" not in text
    assert "shim_inline" not in text
    assert "enum shim_kind { SHIM_ONE, SHIM_TWO };" in text
    assert "struct shim_other;" in text
    assert "struct shim_thing { int number; uint8_t bytes[...]; " in text
    assert "int (*call)(struct shim_thing *thing, int number); ...; };" in text
    assert "int shim_public(struct shim_thing *thing, const struct shim_other *other);" in text
    assert "guarded" not in text
    assert "lock" not in text
    assert "held" not in text


def test_a_new_declaration_reaches_python(tmp_path):
    """Written in the header alone, it can be called."""
    (tmp_path / "thing.h").write_text(
        "#define API\n#define SHIM_ANSWER 42\nAPI int shim_answer(void);\n"
    )
    program = f"""
import sys
sys.path.insert(0, {str(NATIVE)!r})
from pathlib import Path
from cffi import FFI
from declarations import declarations
ffi = FFI()
ffi.cdef(declarations(Path("thing.h")))
ffi.set_source("made_up", '#include "thing.h"\\nint shim_answer(void) {{ return SHIM_ANSWER; }}',
               include_dirs=["."])
ffi.compile()
import made_up
assert made_up.lib.shim_answer() == made_up.lib.SHIM_ANSWER == 42
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


def test_there_is_no_second_place():
    """No list of declarations beside the headers."""
    names = {name for name in dir(_native.lib) if name.startswith("shim_")}
    headers = {path.name for path in NATIVE.glob("*/*.h")}
    assert headers == {
        "access.h", "capabilities.h", "kvm_api.h", "kvm_compat.h", "measure.h", "shim.h",
        "virtio.h",
    }  # fmt: skip
    text = "".join(path.read_text() for path in NATIVE.glob("*/*.h"))
    for name in names:
        assert len(re.findall(rf"^API .*\b{name}\(", text, re.MULTILINE)) == 1, name


def test_what_a_guest_meets_can_be_counted():
    """Measuring the host is no part of the shim."""
    assert {name for name in dir(_measure.lib) if not name.startswith("_")} == {
        "measure_count_guest", "measure_cpuid", "measure_host_calls", "measure_host_try",
        "measure_spin", "measure_spin_ticks", "measure_tsc",
    }  # fmt: skip
    assert not [name for name in dir(_native.lib) if name.startswith("measure_")]


def test_a_vcpu_loads_no_measuring():
    """Not even the import."""
    code = (
        "import sys, kvmpy; kvmpy.VM, kvmpy.VCPU, kvmpy.Machine, kvmpy.asm; "
        "assert 'kvmpy._measure' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
