"""What callers hand in, checked: one rule for each kind, wherever it is taken."""

from __future__ import annotations

import math
import operator
import time
from typing import Any, SupportsIndex

#: Of a code object: calling it runs nothing yet. CO_GENERATOR, CO_COROUTINE,
#: CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR.
_DEFERRED = 0x20 | 0x80 | 0x100 | 0x200
#: Seconds, 31 years: with more a deadline would not fit in every clock.
_EVER = 1e9


def seconds(timeout: float | None, name: str = "timeout") -> float:
    """A time to wait, in seconds. None, infinity, and anything above 31 years mean no limit:
    ``math.inf``.

    Raises ValueError for a negative number and NaN, TypeError for what is no number.

    >>> kvmpy.arguments.seconds(1), kvmpy.arguments.seconds(None)
    (1.0, inf)
    """
    if timeout is None:
        return math.inf
    if isinstance(timeout, (str, bytes, bytearray)):
        raise TypeError(f"{name} {timeout!r} is not a number of seconds")
    try:
        value = float(timeout)
    except OverflowError:  # an integer beyond any float
        value = math.inf if timeout > 0 else -math.inf
    except TypeError:
        raise TypeError(f"{name} {timeout!r} is not a number of seconds") from None
    if not value >= 0:
        raise ValueError(f"{name} {timeout!r} is not a number of seconds >= 0")
    return value if value < _EVER else math.inf


def deadline(timeout: float | None) -> float:
    """When ``timeout`` seconds from now will be up, on ``time.monotonic()``'s clock.

    >>> kvmpy.arguments.deadline(None)
    inf
    """
    return time.monotonic() + seconds(timeout)


def left(until: float) -> float | None:
    """Seconds until a :func:`deadline`, 0 once it has passed; None if it never will.

    >>> kvmpy.arguments.left(float("inf")), kvmpy.arguments.left(0)
    (None, 0.0)
    """
    return None if until == math.inf else max(until - time.monotonic(), 0.0)


def nanoseconds(timeout: float | None, unlimited: int = -1) -> int:
    """The same for the shim: ``unlimited`` for no limit.

    >>> kvmpy.arguments.nanoseconds(0.5), kvmpy.arguments.nanoseconds(None)
    (500000000, -1)
    """
    value = seconds(timeout)
    return unlimited if value == math.inf else int(value * 1e9)


def encoded(data: bytes | str, name: str = "data") -> bytes:
    """Text as UTF-8, or the bytes of any buffer.

    Raises TypeError for anything else: ``bytes(5)`` would be five zeros.

    >>> kvmpy.arguments.encoded("root"), kvmpy.arguments.encoded(bytearray(2))
    (b'root', b'\\x00\\x00')
    """
    if isinstance(data, str):
        return data.encode()
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise TypeError(f"{name} {data!r} is neither text nor a buffer of bytes") from None


def integer(value: SupportsIndex, name: str) -> int:
    """An integer of any kind, numpy's too.

    Raises TypeError for what is none, 5.0 among it.

    >>> kvmpy.arguments.integer(5, "size")
    5
    """
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} {value!r} is not an integer") from None


def _unwrapped(handler: Any) -> Any:
    while hasattr(handler, "func"):  # functools.partial
        handler = handler.func
    return handler


def named(handler: object) -> str:
    """A handler for an error's text: its name, and where it is written.

    >>> kvmpy.arguments.named(print)
    'print'
    """
    inner = _unwrapped(handler)
    name = getattr(inner, "__qualname__", None) or repr(inner)
    code = getattr(inner, "__code__", None)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def check_handler(handler: object) -> None:
    """Raises TypeError for what cannot be called, and for coroutines and generators, which a call
    only makes: their code would never run.

    >>> kvmpy.arguments.check_handler(print)
    """
    if not callable(handler):
        raise TypeError(f"the handler {handler!r} cannot be called")
    inner = _unwrapped(handler)
    if not hasattr(inner, "__code__"):
        inner = type(inner).__dict__.get("__call__")  # an object's
    code = getattr(inner, "__code__", None)
    if code is not None and code.co_flags & _DEFERRED:
        raise TypeError(
            f"the handler {handler!r} ({code.co_filename}:{code.co_firstlineno}) is a coroutine or "
            "a generator: a call would run none of it"
        )
