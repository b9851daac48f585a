"""Builds the C shim (cffi, native/build.py) and assembles the guest programs (native/guests)."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """The extension, and beside it the guests: both come out of native/ and need a compiler."""

    def run(self):
        super().run()
        import sys

        sys.path.insert(0, str(ROOT / "native"))
        try:
            import guests_build
        finally:
            sys.path.pop(0)
        package = ROOT / "kvmpy" if self.inplace else Path(self.build_lib) / "kvmpy"
        guests_build.build_all(package / "guests")


setup(
    cffi_modules=["native/build.py:ffi", "native/build.py:measure"],
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
