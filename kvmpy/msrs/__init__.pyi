"""Model-specific registers: by number and name, what they mean, who answers for them.

Made by native/names_stub.py: do not edit.
"""

from .msrs import (
    CHUNK as CHUNK,
    FeatureMsrs as FeatureMsrs,
    Msrs as Msrs,
    describe as describe,
    index_of as index_of,
    name_of as name_of,
    names as names,
)
