"""A whole machine: memory, devices, a loaded image, a vCPU, a console, and how it ends."""

from .console import Console
from .machine import Machine, Outcome

__all__ = ["Console", "Machine", "Outcome"]
