"""Interrupt controllers, lines, routing, MSIs, eventfds."""
