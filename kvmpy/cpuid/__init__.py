"""CPUID: the table that a guest sees, its features by name, edits, topology."""
