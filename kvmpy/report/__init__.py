"""What the experiments show is made of: tables, pictures and sentences, for a terminal, a pipe or
a page that needs nothing else."""

from ..lazy import attach

_TABLE = """
blocks
page
svg
table
terminal
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
