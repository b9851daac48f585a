"""Two-level scheduling, seen: vCPUs take turns on a pCPU, guest threads take turns on a vCPU.

Made by native/names_stub.py: do not edit.
"""

from . import (
    gantt as gantt,
)
from .engine import (
    GuestError as GuestError,
    run as run,
    switch_costs as switch_costs,
)
from .result import (
    Result as Result,
)
