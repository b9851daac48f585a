"""What ``import kvmpy`` offers: public names, their members and signatures, as plain data.

    python tests/api/names.py > tests/api/names.json

tests/unit/test_public_names.py compares the two: a change of the public API is made on purpose,
in the recorded file and in CHANGELOG.md.
"""

import functools
import inspect
import json
import sys
import types

import kvmpy


def members(thing):
    """Public attributes of a class, by name: what each is, and its signature if it has one."""
    found = {}
    for name in sorted(dir(thing)):
        if name.startswith("_") or name in dir(BaseException):
            continue
        found[name] = description(inspect.getattr_static(thing, name))
    return found


def description(value):
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, (property, functools.cached_property)):
        return "property"
    if inspect.isroutine(value):
        try:
            return str(inspect.signature(value))
        except ValueError:
            return "built in"
    if inspect.isclass(value):
        return "class"
    return "value"


def offered():
    """name -> its description; a class -> its members; a room -> its public names."""
    found = {}
    for name in sorted(kvmpy.__all__):
        value = getattr(kvmpy, name)
        if isinstance(value, types.ModuleType):
            names = getattr(value, "__all__", None) or [
                one
                for one, held in vars(value).items()
                if not one.startswith("_")
                and one not in ("TYPE_CHECKING", "ffi", "lib")
                and not isinstance(held, types.ModuleType)
                and getattr(held, "__module__", value.__name__) == value.__name__
            ]
            found[name] = {one: description(getattr(value, one)) for one in sorted(names)}
        elif inspect.isclass(value):
            found[name] = {"()": signature(value), **members(value)}
        else:
            found[name] = description(value)
    return found


def signature(kind):
    try:
        return str(inspect.signature(kind))
    except ValueError:
        return "built in"


if __name__ == "__main__":
    json.dump(offered(), sys.stdout, indent=1, sort_keys=True)
    print()
