"""What the experiments show is made of: tables, pictures and sentences, for a terminal, a pipe or

Made by native/names_stub.py: do not edit.
"""

from . import (
    blocks as blocks,
    page as page,
    svg as svg,
    table as table,
    terminal as terminal,
)
