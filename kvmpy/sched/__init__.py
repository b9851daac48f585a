"""Two-level scheduling, seen: vCPUs take turns on a pCPU, guest threads take turns on a vCPU."""

from ..lazy import attach

_TABLE = """
engine: GuestError run switch_costs
gantt
result: Result
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
