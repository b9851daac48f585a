"""The experiments: what system calls and VM exits cost, measured and disclosed.

``kvmpy.bench.syscall.run()`` and ``kvmpy.bench.exits.run()`` give a ``Report``
(:mod:`kvmpy.bench.document`). From there: ``figures`` are its rows with their statistics,
``tables``, ``html``, ``svg`` and ``pyperf`` show them, ``compare`` sets two reports against each
other.
"""

from ..lazy import attach

_TABLE = """
cells
compare
counters
disclosure
document
exits
failures
figures
hostcall
html
judgement
lab
proof
pyperf
record
references
shift
stats
svg
syscall
tables
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
