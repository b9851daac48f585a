"""What the experiments show is made of: tables, pictures and sentences, for a terminal, a pipe or
a page that needs nothing else."""

from . import blocks, page, svg, table, terminal

__all__ = ["blocks", "page", "svg", "table", "terminal"]
