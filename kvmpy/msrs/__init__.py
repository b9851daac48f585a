"""Model-specific registers: by number and name, what they mean, who answers for them."""

from ..lazy import attach

_TABLE = """
msrs: CHUNK FeatureMsrs Msrs describe index_of name_of names
"""
__getattr__, __dir__ = attach(__name__, _TABLE)
