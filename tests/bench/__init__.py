"""The benchmark: kvmpy against a bare C loop, and against the project's own limits.

Start with ``run.py``.
"""
