"""The experiments: what system calls and VM exits cost, measured and disclosed.

`kvmpy.bench.syscall.run()` and `kvmpy.bench.exits.run()` give a `Report` (`kvmpy.bench.record`).
"""

from __future__ import annotations

from . import record

__all__ = ["record"]
