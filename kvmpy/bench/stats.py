"""Statistics of one sample: order statistics, spread, confidence intervals, disturbed batches.

Pure functions of numbers, in the samples' own unit. They are all based on ranks: times have a
hard floor and a long tail of interrupts, so that a mean and a standard deviation tell of the tail.
Samples come in groups, one for each VM they were taken in: two batches in one VM share its
placement in caches and memory and are not independent, so the VM is what intervals resample.

Two samples are compared by :mod:`kvmpy.bench.shift`.

Sources: Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996), type 7; Conover,
"Practical Nonparametric Statistics", "Confidence interval for a quantile"; Davison and Hinkley,
"Bootstrap Methods and their Application", "Several samples".
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

CONFIDENCE = 0.95
RESAMPLES = 1000
#: Makes the median absolute deviation of normal samples their standard deviation.
MAD_TO_SIGMA = 1.4826
#: A batch further from the median than this many sigmas was disturbed.
FENCE = 5.0
#: Fewer groups have too few different draws for an interval.
ENOUGH_GROUPS = 5

Groups = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the bounds of its confidence interval, both included.

    ``confidence`` is what the bounds reach: with few samples less than was asked for.
    """

    value: float
    low: float
    high: float
    confidence: float

    @property
    def half_width(self) -> float:
        """Half the distance of the bounds, relative to the estimate; infinity for 0.

        >>> kvmpy.bench.stats.Interval(100.0, 99.0, 101.0, 0.95).half_width
        0.01
        """
        return (self.high - self.low) / 2 / abs(self.value) if self.value else math.inf


@dataclass(frozen=True, slots=True)
class Summary:
    """What a row's samples say. Nothing is left out: disturbed batches are counted, and stay in.

    ``count`` samples of ``groups`` VMs. ``disturbed`` is the share, 0 to 1, of batches outside
    ``fences``; ``floor`` is the smallest inside. ``interval`` is that of the median.
    """

    count: int
    groups: int
    minimum: float
    median: float
    mad: float
    p99: float
    maximum: float
    interval: Interval
    fences: tuple[float, float]
    floor: float
    disturbed: float


def checked(samples: Sequence[float]) -> Sequence[float]:
    """The samples as they are. Raises ValueError if there are none, or one is not finite.

    >>> kvmpy.bench.stats.checked([1.5, 2.5])
    [1.5, 2.5]
    """
    if not samples:
        raise ValueError("no samples")
    if not all(map(math.isfinite, samples)):
        raise ValueError("a sample is not a finite number")
    return samples


def mad(samples: Sequence[float]) -> float:
    """Median absolute deviation from the median, not scaled.

    Raises ValueError without samples, or if one is not finite.

    >>> kvmpy.bench.stats.mad([1, 2, 3, 4, 100])
    1
    """
    middle = median(checked(samples))
    return median(abs(sample - middle) for sample in samples)


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = (len(ordered) - 1) * share
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    # This way round equal neighbours give exactly themselves.
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@cache
def median_ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    """The rank r for which [r-th smallest, r-th largest] covers the median of any continuous
    distribution with at least ``confidence``, and the confidence it has.

    If ``count`` samples cannot reach it (below 6 for 0.95), r is 1: the whole range.

    >>> rank, reached = kvmpy.bench.stats.median_ranks(10)
    >>> rank, round(reached, 4)
    (2, 0.9785)
    """
    if count < 1 or not 0 < confidence < 1:
        raise ValueError(f"no interval for {count} samples and confidence {confidence}")
    # As integers: 2**-count is 0.0 as a float from 1075 samples on.
    allowed = int((1 - confidence) / 2 * 2**52) * 2**count >> 52
    tail, below, rank = 1, 1, 1  # P(fewer than ``rank`` samples below the median) * 2**count
    while rank <= count // 2:
        below = below * (count - rank + 1) // rank
        if tail + below > allowed:
            break
        tail += below
        rank += 1
    return rank, max(0.0, 1 - 2 * tail / 2**count)


def rank_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median, and its distribution-free confidence interval by ranks. For independent samples.

    Raises ValueError without samples, or if one is not finite.

    >>> kvmpy.bench.stats.rank_interval([1, 2, 3, 4, 5, 6, 7, 8])
    Interval(value=4.5, low=1, high=8, confidence=0.9921875)
    """
    ordered = sorted(checked(samples))
    rank, reached = median_ranks(len(ordered), confidence)
    return Interval(median(ordered), ordered[rank - 1], ordered[-rank], reached)


def bootstrap_interval(
    groups: Groups,
    confidence: float = CONFIDENCE,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The median of all samples, and its confidence interval by the percentile bootstrap.

    Whole groups are drawn, with replacement. The same groups and seed give the same interval.
    Raises ValueError for fewer than 2 groups, an empty one, or a sample that is not finite.

    >>> vms = [[10, 11, 10], [12, 11, 11], [10, 10, 11], [11, 13, 11]]
    >>> kvmpy.bench.stats.bootstrap_interval(vms).value
    11.0
    """
    if len(groups) < 2:
        raise ValueError(f"{len(groups)} group: the bootstrap draws among several")
    ordered = [sorted(checked(group)) for group in groups]
    pooled = sorted(sample for group in ordered for sample in group)
    # The median of any draw lies between the groups' own medians: only those values are looked at.
    own = [group[(len(group) - 1) // 2] for group in ordered]
    first, last = bisect_left(pooled, min(own)), bisect_right(pooled, max(own))
    values = sorted(set(pooled[first:last]))
    below = [[bisect_right(group, value) for value in values] for group in ordered]
    sizes = list(map(len, ordered))
    choose = random.Random(seed).choices
    places = range(len(groups))
    medians = sorted(
        values[_median_of(choose(places, k=len(groups)), below, sizes)]
        for _ in range(max(1, resamples))
    )
    tail = (1 - confidence) / 2
    low, high = _quantile(medians, tail), _quantile(medians, 1 - tail)
    return Interval(median(pooled), low, high, confidence)


def _median_of(drawn: Sequence[int], below: Sequence[Sequence[int]], sizes: Sequence[int]) -> int:
    """Which value is the lower median of all samples of the groups ``drawn``, without merging them:
    ``below[group][value]`` samples of a group are that value or less. Found by halves."""
    half = (sum([sizes[group] for group in drawn]) + 1) // 2
    counts = [below[group] for group in drawn]
    low, high = 0, len(counts[0]) - 1
    while low < high:
        middle = (low + high) // 2
        if sum([count[middle] for count in counts]) >= half:
            high = middle
        else:
            low = middle + 1
    return low


def fences(
    samples: Sequence[float], *, resolution: float = 0.0, slopes: bool = False
) -> tuple[float, float]:
    """The values below and above which a batch was disturbed: 5 sigmas from the median, sigma from
    the MAD.

    Of times only above, the lower one is minus infinity: an interrupt, another thread or a clock
    that slows down adds time, nothing takes time away. ``slopes`` are differences of two times and
    are disturbed either way. ``resolution`` is the smallest difference that the clock can show, in
    the samples' unit: samples that are all equal but for one tick are not disturbed.

    Raises ValueError without samples, or if one is not finite.

    >>> kvmpy.bench.stats.fences([100, 101, 99, 100, 900], resolution=1)
    (-inf, 107.413)
    """
    reach = FENCE * MAD_TO_SIGMA * max(mad(samples), resolution)
    middle = median(samples)
    return middle - reach if slopes else -math.inf, middle + reach


def summarize(groups: Groups, *, resolution: float = 0.0, slopes: bool = False) -> Summary:
    """Everything that is reported of a row. ``groups``: the samples, one sequence for each VM;
    ``resolution`` and ``slopes``: see :func:`fences`.

    The median's interval draws VMs (bootstrap) when there are at least 5, else it is that of the
    single samples by ranks, which takes them as independent. Raises ValueError without samples,
    for an empty group, or if a sample is not finite.

    >>> kvmpy.bench.stats.summarize([[10, 11, 10, 12, 90, 11]]).disturbed
    0.16666666666666666
    """
    pooled = sorted(checked([sample for group in groups for sample in group]))
    interval = bootstrap_interval(groups) if len(groups) >= ENOUGH_GROUPS else rank_interval(pooled)
    low, high = fences(pooled, resolution=resolution, slopes=slopes)
    first, last = bisect_left(pooled, low), bisect_right(pooled, high)
    return Summary(
        count=len(pooled),
        groups=len(groups),
        minimum=pooled[0],
        median=interval.value,
        mad=mad(pooled),
        p99=_quantile(pooled, 0.99),
        maximum=pooled[-1],
        interval=interval,
        fences=(low, high),
        floor=pooled[first],
        disturbed=(len(pooled) - (last - first)) / len(pooled),
    )
