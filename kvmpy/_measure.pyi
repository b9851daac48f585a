"""What is measured of the host, compiled (native/measure). Private."""

from ._native import _FFI, _Lib

lib: _Lib
ffi: _FFI
