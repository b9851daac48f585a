"""Breakpoints, single steps, address translation, guest handlers' events."""
