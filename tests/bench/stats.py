"""Medians, their spread, and how far to trust them. Pure functions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Kind = Literal["ratio", "difference", "value"]

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median with the bounds of its 95 % bootstrap confidence interval."""

    value: float
    low: float
    high: float


def mad(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median."""
    middle = median(samples)
    return median(abs(sample - middle) for sample in samples)


def bootstrap(samples: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The median, and its confidence interval by the percentile bootstrap.

    Raises ValueError without samples. The same samples and seed give the same interval.
    """
    if not samples:
        raise ValueError("no samples")
    choose = random.Random(seed).choices
    size = len(samples)
    medians = sorted(median(choose(samples, k=size)) for _ in range(resamples))
    tail = int(resamples * (1 - CONFIDENCE) / 2)
    return Estimate(median(samples), medians[tail], medians[-1 - tail])


_COMBINE: dict[Kind, Callable[[float, float], float]] = {
    "ratio": lambda bare, ours: ours / bare,
    "difference": lambda bare, ours: ours - bare,
}


def compare(kind: Kind, bare: Sequence[float], ours: Sequence[float]) -> Estimate:
    """What ``ours`` costs, relative to ``bare`` as ``kind`` says.

    Sample i of both was taken in round i, one right after the other: the pairs are compared, so
    that what drifts from round to round (clock rates, other load) drops out. ``bare`` is not
    looked at for kind "value". Raises ValueError for lengths that differ.
    """
    if kind == "value":
        return bootstrap(ours)
    combine = _COMBINE[kind]
    return bootstrap([combine(b, o) for b, o in zip(bare, ours, strict=True)])
