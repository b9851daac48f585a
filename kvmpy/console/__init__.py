"""A guest's console: the terminal, and a script that talks to it."""
