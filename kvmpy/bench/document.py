"""A benchmark's report, and its JSON, which comes back as it was.

A ``Report`` is complete: it can be compared, rendered and judged without the host it was made on.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from ..errors import KvmpyError
from .figures import figures
from .record import LARGEST, Disclosure, Reference, Row

#: Of the JSON; raised when an older reader would misread it.
FORMAT: Final = 1

_T = TypeVar("_T")


class RecordError(KvmpyError, ValueError):
    """JSON that is not a record of this version; the text says where and why."""


@dataclass(frozen=True)
class Report:
    """One run of a benchmark. ``benchmark``: "syscall" or "exit". ``seconds``: how long it took.
    ``warnings``: what disturbs figures on this host, a sentence each. ``steal``: the share of the
    pCPU's time, 0 to 1, that a hypervisor below took during the run; None if unknown."""

    benchmark: str
    rows: tuple[Row, ...]
    references: tuple[Reference, ...]
    disclosure: Disclosure
    quick: bool
    seconds: float
    warnings: tuple[str, ...] = ()
    steal: float | None = None

    def to_json(self, indent: int | None = None) -> str:
        """The whole report as JSON text; floats and integers come back exactly.

        Each row that has samples also gets its "statistics" (:attr:`Figure.statistics` of
        :mod:`kvmpy.bench.figures`), for readers that are not kvmpy: it computes them anew.

        >>> with kvmpy.KVM():
        ...     report = kvmpy.bench.exits.run(["cpuid"], quick=True)
        >>> kvmpy.bench.document.Report.from_json(report.to_json()) == report
        True
        """
        document = {"format": FORMAT} | _plain(self)
        for row, found in zip(document["rows"], figures(self), strict=True):
            if found.statistics:
                row["statistics"] = found.statistics
        return json.dumps(document, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that :meth:`to_json` has written.

        Raises RecordError for anything else.

        >>> kvmpy.bench.document.Report.from_json("[]")
        Traceback (most recent call last):
        kvmpy.bench.document.RecordError: not a kvmpy benchmark record of format 1
        """
        try:
            document = json.loads(text, parse_constant=_no_number)
        except ValueError as error:
            raise RecordError(f"not valid JSON: {error}") from None
        except RecursionError:
            raise RecordError("the JSON is nested too deeply") from None
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise RecordError(f"not a kvmpy benchmark record of format {FORMAT}")
        rows = document.get("rows")
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                row.pop("statistics", None)
        return _build(cls, document, "report")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):  # of samples there are millions: json takes a tuple as it is
        return value if _all_integers(value) else [_plain(item) for item in value]
    return value


def _all_integers(values: Sequence[Any]) -> bool:
    """Whether there are only integers, all in 64 bits."""
    if not set(map(type, values)) <= {int}:
        return False
    return not values or -LARGEST <= min(values) <= max(values) <= LARGEST


def _build(kind: type[_T], value: Any, where: str) -> _T:
    """A dataclass from what JSON gives for it, every field checked against its type."""
    if not isinstance(value, dict):
        raise RecordError(f"{where} is not an object")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = {
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - value.keys()):
        raise RecordError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise RecordError(f"{where} has {', '.join(unknown)}, which this version does not know")
    arguments = {key: _typed(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return kind(**arguments)
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from None


def _typed(hint: Any, value: Any, where: str) -> Any:
    """``value``, if it is of the type ``hint``, of those that the records use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast("type[Any]", hint), value, where)
    if hint == tuple[int, ...] and isinstance(value, list) and _all_integers(value):
        return tuple(value)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is Literal and isinstance(value, str) and value in arguments:
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(inner, value, where)
    if hint is float and type(value) in (int, float) and abs(value) <= LARGEST:
        return float(value)
    if hint is int and type(value) is int and abs(value) > LARGEST:
        raise RecordError(f"{where} does not fit in 64 bits")
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise RecordError(f"{where} is {value!r:.60}, not {getattr(hint, '__name__', hint)}")
