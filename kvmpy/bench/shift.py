"""Two samples compared: by how much one lies above the other, and whether that could be chance.

Ranks only, as in :mod:`kvmpy.bench.stats`: the Hodges-Lehmann shift with its confidence interval,
and the Mann-Whitney test. Both are exact up to 100 values in all, ties included; above that the
normal approximation with corrections for ties and continuity is good to several digits.

Sources: Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", "The Two-Sample
Location Problem"; Mann and Whitney (1947); Hodges and Lehmann (1963); Holm (1979).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from .stats import CONFIDENCE, Interval, checked

_EXACT = 100
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class MannWhitney:
    """``u`` counts the pairs in which the second sample's value is the greater (a tie is half);
    ``p`` is two-sided: how often chance alone gives a ``u`` at least as far from the middle."""

    u: float
    p: float
    exact: bool


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice each value's rank among all; values that are equal share the mean of their ranks."""
    counts = Counter(values)
    ranks: dict[float, int] = {}
    below = 0
    for value in sorted(counts):
        ranks[value] = 2 * below + counts[value] + 1
        below += counts[value]
    return [ranks[value] for value in values]


def _rank_sums(ranks: Sequence[int], size: int) -> list[int]:
    """How many choices of ``size`` of the ranks have the sum s, for each s.

    The generating function, with its coefficients side by side in one long integer.
    """
    width = math.comb(len(ranks), size).bit_length()
    choices = [1] + [0] * size  # choices[k]: of k ranks, among those seen so far
    for rank in ranks:
        for k in range(size, 0, -1):
            choices[k] += choices[k - 1] << (rank * width)
    packed, mask, counts = choices[size], (1 << width) - 1, []
    step = width * 64  # taken off in blocks: a shift of the whole for each would be quadratic
    while packed:
        block = packed & ((1 << step) - 1)
        packed >>= step
        for _ in range(64):
            counts.append(block & mask)
            block >>= width
    return counts


def _exact_p(ranks: Sequence[int], size: int) -> float:
    """Two-sided p of the sum of the last ``size`` ranks."""
    counts = _rank_sums(ranks, size)
    # The mean of the sum is size * sum(ranks) / N; the N is multiplied out to stay with integers.
    total, n = sum(ranks), len(ranks)
    far = abs(sum(ranks[-size:]) * n - size * total)
    hits = sum(count for s, count in enumerate(counts) if abs(s * n - size * total) >= far)
    return hits / math.comb(n, size)


def _normal_p(u: float, n: int, m: int, ranks: Sequence[int]) -> float:
    total = n + m
    ties = sum(count**3 - count for count in Counter(ranks).values())
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    distance = max(0.0, abs(u - n * m / 2) - 0.5)
    return math.erfc(distance / math.sqrt(2 * variance))


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> MannWhitney:
    """The Mann-Whitney test of two independent samples, two-sided.

    Raises ValueError for a sample that is empty or has a value that is not finite.

    >>> kvmpy.bench.shift.mann_whitney([1, 2, 3], [4, 5, 6])
    MannWhitney(u=9.0, p=0.1, exact=True)
    """
    ranks = _doubled_ranks([*checked(first), *checked(second)])
    n, m = len(first), len(second)
    u = (sum(ranks[n:]) - m * (m + 1)) / 2
    exact = n + m <= _EXACT
    return MannWhitney(u, _exact_p(ranks, m) if exact else _normal_p(u, n, m, ranks), exact)


def _count_up_to(xs: Sequence[float], ys: Sequence[float], limit: float) -> int:
    """How many of the differences y - x are at most ``limit``; both sorted."""
    count = j = 0
    for x in xs:
        while j < len(ys) and ys[j] - x <= limit:
            j += 1
        count += j
    return count


def _nth_difference(xs: Sequence[float], ys: Sequence[float], rank: int) -> float:
    """The ``rank``-th smallest (from 1) of all y - x, without making them all; both sorted."""
    low, high = ys[0] - xs[-1], ys[-1] - xs[0]
    below = 0  # how many are smaller than ``low`` or equal, once low is not the minimum any longer
    if _count_up_to(xs, ys, low) >= rank:
        return low
    below, upto = _count_up_to(xs, ys, low), len(xs) * len(ys)
    while upto - below > len(xs) + len(ys):
        middle = low + (high - low) / 2
        if not low < middle < high:
            return high  # neighbours as floats: what is left is all equal
        count = _count_up_to(xs, ys, middle)
        if count >= rank:
            high, upto = middle, count
        else:
            low, below = middle, count
    rest: list[float] = []
    start = stop = 0
    for x in xs:
        while start < len(ys) and ys[start] - x <= low:
            start += 1
        while stop < len(ys) and ys[stop] - x <= high:
            stop += 1
        rest.extend(y - x for y in ys[start:stop])
    return sorted(rest)[rank - below - 1]


def _tail(n: int, m: int, confidence: float) -> tuple[int, float]:
    """How many differences to leave out at either end, plus 1, and the confidence that leaves."""
    pairs, alpha = n * m, 1 - confidence
    if n + m <= _EXACT:
        counts = _rank_sums([2 * i for i in range(1, n + m + 1)], m)[m * (m + 1) :: 2]
        total, cumulated, rank = math.comb(n + m, m), 0, 0
        while rank <= pairs // 2 and 2 * (cumulated + counts[rank]) <= alpha * total:
            cumulated += counts[rank]
            rank += 1
        if rank == 0:  # too few values: the whole range, and what that is worth
            return 1, max(0.0, 1 - 2 * counts[0] / total)
        return rank, 1 - 2 * cumulated / total
    deviation = math.sqrt(pairs * (n + m + 1) / 12)
    rank = int(pairs / 2 - _NORMAL.inv_cdf(1 - alpha / 2) * deviation - 0.5) + 1
    return max(1, rank), confidence


def hodges_lehmann(
    first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """By how much ``second`` lies above ``first``: the median of all pairwise differences.

    The interval inverts the Mann-Whitney test. If there are too few values for ``confidence`` it
    is the whole range, and its ``confidence`` says what that reaches. Ties make it wider, never
    narrower. Time is n log n: thousands of values are no matter.

    Raises ValueError for a sample that is empty or has a value that is not finite.

    >>> kvmpy.bench.shift.hodges_lehmann([1, 2, 3, 4, 5], [11, 12, 13, 14, 15])
    Interval(value=10, low=7, high=13, confidence=0.9682539682539683)
    """
    xs, ys = sorted(checked(first)), sorted(checked(second))
    pairs = len(xs) * len(ys)
    upper = _nth_difference(xs, ys, pairs // 2 + 1)
    shift = upper if pairs % 2 else (_nth_difference(xs, ys, pairs // 2) + upper) / 2
    rank, reached = _tail(len(xs), len(ys), confidence)
    low, high = _nth_difference(xs, ys, rank), _nth_difference(xs, ys, pairs + 1 - rank)
    return Interval(shift, low, high, reached)


def holm(ps: Sequence[float]) -> list[float]:
    """p values of tests made together, adjusted by Holm's method, in the same order.

    Of 60 rows that have not changed, three fall below 0.05 by chance; adjusted, one report in
    twenty has any.

    >>> kvmpy.bench.shift.holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(ps)
    largest = 0.0
    for position, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - position) * ps[i]))
        adjusted[i] = largest
    return adjusted
