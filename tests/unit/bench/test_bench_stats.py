"""Statistics of benchmarks: against known distributions, brute force, and scipy."""

from __future__ import annotations

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given, settings, strategies as st
from made_up import FakeClock

from kvmpy.bench import shift, stats

#: Ties among them, and values whose differences floats cannot hold.
VALUES = st.one_of(
    st.integers(-5, 5).map(float), st.floats(-1e12, 1e12, allow_nan=False, allow_infinity=False)
)
SAMPLES = st.lists(VALUES, min_size=1, max_size=25)


def _scipy():
    return pytest.importorskip("scipy.stats", reason="scipy, the oracle, is not installed")


class TestOneSample:
    def test_mad_of_known_samples(self) -> None:
        assert stats.mad([1.0, 1, 2, 2, 4, 6, 9]) == 1

    def test_mad_of_normal_samples_is_their_sigma(self) -> None:
        clock = random.Random(1)
        samples = [clock.gauss(50, 4) for _ in range(20_000)]
        assert stats.mad(samples) * stats.MAD_TO_SIGMA == pytest.approx(4, rel=0.03)

    @given(SAMPLES, st.floats(0, 100))
    @settings(max_examples=50, deadline=None)
    def test_percentile_agrees_with_numpy(self, samples: list[float], percent: float) -> None:
        numpy = pytest.importorskip("numpy", reason="numpy, the oracle, is not installed")
        expected = float(numpy.percentile(samples, percent))
        scale = max(1.0, *map(abs, samples))
        assert stats._quantile(sorted(samples), percent / 100) == pytest.approx(
            expected, abs=1e-9 * scale
        )

    @pytest.mark.parametrize("count", [1, 5, 6, 7, 20, 101, 1100, 5000])
    def test_ranks_of_the_medians_interval_are_the_binomial_s(self, count: int) -> None:
        rank, reached = stats.median_ranks(count)
        binomial = _scipy().binom(count, 0.5)
        assert reached == pytest.approx(1 - 2 * binomial.cdf(rank - 1), abs=1e-12)
        assert 1 - 2 * binomial.cdf(rank) < 0.95  # one rank further in would be too little
        assert (reached >= 0.95) == (count >= 6)

    def test_rank_interval_covers_a_skewed_median_as_often_as_it_says(self) -> None:
        clock, true = random.Random(7), math.log(2)
        hits = 0
        for _ in range(2000):
            interval = stats.rank_interval([clock.expovariate(1) for _ in range(15)])
            hits += interval.low <= true <= interval.high
        assert hits / 2000 == pytest.approx(stats.median_ranks(15)[1], abs=0.015)

    def test_bootstrap_draws_vms_not_batches(self) -> None:
        """Batches of a VM that agree among themselves do not make the median surer."""
        clock = random.Random(3)
        vms = [[100 + clock.gauss(0, 5)] * 200 for _ in range(10)]
        by_vm = stats.bootstrap_interval(vms)
        by_batch = stats.rank_interval([sample for vm in vms for sample in vm])
        assert by_vm.high - by_vm.low > 3 * (by_batch.high - by_batch.low)
        assert by_vm == stats.bootstrap_interval(vms)

    def test_bootstrap_covers_the_median_of_vms_that_differ(self) -> None:
        clock, hits = random.Random(11), 0
        for seed in range(300):
            vms = [[place + clock.gauss(0, 1) for _ in range(5)] for place in
                   [clock.gauss(100, 2) for _ in range(12)]]  # fmt: skip
            interval = stats.bootstrap_interval(vms, resamples=300, seed=seed)
            hits += interval.low <= 100 <= interval.high
        assert 0.88 <= hits / 300 <= 0.99  # a percentile bootstrap of 12 is a little narrow

    @given(st.lists(st.lists(VALUES, min_size=1, max_size=6), min_size=2, max_size=5))
    def test_bootstrap_is_that_of_merged_groups(self, groups: list[list[float]]) -> None:
        """Only values between the groups' medians are looked at; merging every draw is the same."""
        choose = random.Random(5).choices
        medians = sorted(
            statistics.median_low(itertools.chain(*choose(groups, k=len(groups))))
            for _ in range(40)
        )
        found = stats.bootstrap_interval(groups, resamples=40, seed=5)
        assert found.low == stats._quantile(sorted(medians), (1 - found.confidence) / 2)
        assert found.high == stats._quantile(sorted(medians), 1 - (1 - found.confidence) / 2)

    @pytest.mark.parametrize("bad", [[], [1.0, math.nan], [math.inf]])
    def test_nothing_and_what_is_not_finite_is_refused(self, bad: list[float]) -> None:
        calls = (
            stats.mad, stats.rank_interval, stats.fences,
            lambda samples: stats.summarize([samples]),
            lambda samples: stats.bootstrap_interval([[1.0], samples]),
            lambda samples: shift.hodges_lehmann([1.0], samples),
            lambda samples: shift.mann_whitney(samples, [1.0]),
        )  # fmt: skip
        for call in calls:
            with pytest.raises(ValueError, match=r"no samples|not a finite number"):
                call(bad)

    def test_other_arguments_that_cannot_be(self) -> None:
        with pytest.raises(ValueError, match="draws among several"):
            stats.bootstrap_interval([[1.0, 2.0]])
        with pytest.raises(ValueError, match="confidence"):
            stats.median_ranks(10, 1.0)


class TestDisturbedBatches:
    """A seeded fake clock, whose interrupts are known."""

    @pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3])
    def test_the_share_is_found_and_the_median_stays(self, share: float) -> None:
        clock = FakeClock(seed=5, share=share)
        groups = [[clock.batch(100, calls=50) / 50 for _ in range(200)] for _ in range(10)]
        summary = stats.summarize(groups, resolution=1 / 50)
        assert summary.disturbed == pytest.approx(share, abs=0.02)
        assert summary.median == pytest.approx(100.7, rel=0.01)
        assert summary.count == 2000  # nothing was left out
        assert summary.maximum > summary.fences[1] or share == 0

    def test_noise_alone_disturbs_next_to_none(self) -> None:
        clock = random.Random(2)
        summary = stats.summarize([[clock.gauss(1000, 10) for _ in range(20_000)]])
        assert summary.disturbed < 0.0001

    def test_one_tick_of_a_coarse_clock_is_no_disturbance(self) -> None:
        samples = [100.0] * 90 + [101.0] * 10  # a MAD of 0
        assert stats.summarize([samples]).disturbed == 0.1
        assert stats.summarize([samples], resolution=1).disturbed == 0

    def test_batches_that_are_faster_are_never_disturbed(self) -> None:
        assert stats.summarize([[100.0, 101, 99, 100, 1]]).disturbed == 0

    def test_slopes_are_disturbed_either_way(self) -> None:
        """An interrupt in the shorter block of the two makes the difference too small."""
        clock = FakeClock(seed=8, share=0.05)
        slopes = [clock.batch(100, 100) - clock.batch(100, 50) for _ in range(2000)]
        summary = stats.summarize([slopes], slopes=True)
        assert summary.disturbed == pytest.approx(0.0975, abs=0.02)
        assert summary.minimum < 0 < summary.fences[0] <= summary.floor
        assert summary.median == pytest.approx(100 * 50, rel=0.01)

    def test_a_clock_that_changes_half_way_is_no_outlier(self) -> None:
        """Two humps of the same height: the fence lies above both, the interval spans both."""
        groups = [[100.0 + vm % 2 * 20] * 50 for vm in range(10)]
        summary = stats.summarize(groups)
        assert summary.disturbed == 0
        assert (summary.interval.low, summary.interval.high) == (100, 120)


class TestTwoSamples:
    @given(SAMPLES, SAMPLES)
    @settings(deadline=None)
    def test_shift_is_the_median_of_all_differences(self, a: list[float], b: list[float]) -> None:
        expected = statistics.median(y - x for x in a for y in b)
        assert shift.hodges_lehmann(a, b).value == expected

    @given(SAMPLES, SAMPLES, st.data())
    @settings(deadline=None)
    def test_nth_difference_is_the_sorted_lists(
        self, a: list[float], b: list[float], data: st.DataObject
    ) -> None:
        differences = sorted(y - x for x in a for y in b)
        rank = data.draw(st.integers(1, len(differences)))
        found = shift._nth_difference(sorted(a), sorted(b), rank)
        assert found == differences[rank - 1]

    @given(SAMPLES, SAMPLES)
    @settings(max_examples=60, deadline=None)
    def test_exact_p_without_ties_is_scipy_s(self, a: list[float], b: list[float]) -> None:
        a, b = sorted(set(a)), sorted(set(b) - set(a)) or [1e13]
        ours = shift.mann_whitney(a, b)
        theirs = _scipy().mannwhitneyu(b, a, method="exact")
        assert ours.exact
        assert (ours.u, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))

    @given(st.lists(st.integers(0, 4), min_size=2, max_size=9), st.data())
    @settings(deadline=None)
    def test_exact_p_with_ties_is_that_of_all_permutations(
        self, values: list[int], data: st.DataObject
    ) -> None:
        size = data.draw(st.integers(1, len(values) - 1))
        first, second = values[size:], values[:size]
        middle = len(first) * len(second) / 2

        def u_of(chosen: tuple[int, ...]) -> float:
            rest = [values[i] for i in range(len(values)) if i not in chosen]
            return sum((y > x) + (y == x) / 2 for y in (values[i] for i in chosen) for x in rest)

        all_u = [u_of(chosen) for chosen in itertools.combinations(range(len(values)), size)]
        ours = shift.mann_whitney(first, second)
        assert ours.u == u_of(tuple(range(size)))
        far = sum(abs(u - middle) >= abs(ours.u - middle) for u in all_u)
        assert ours.p == pytest.approx(far / len(all_u))

    @pytest.mark.parametrize("levels", [5, 1_000_000])
    def test_large_samples_are_scipy_s_normal_approximation(self, levels: int) -> None:
        clock = random.Random(levels)
        a = [float(clock.randrange(levels)) for _ in range(150)]
        b = [float(clock.randrange(levels)) * 1.1 // 1 for _ in range(170)]
        ours = shift.mann_whitney(a, b)
        theirs = _scipy().mannwhitneyu(b, a, method="asymptotic")
        assert not ours.exact
        assert (ours.u, ours.p) == pytest.approx((theirs.statistic, theirs.pvalue))

    def test_all_equal_is_no_difference(self) -> None:
        for count in (5, 200):
            assert shift.mann_whitney([1.0] * count, [1.0] * count).p == 1
            assert shift.hodges_lehmann([1.0] * count, [1.0] * count).high == 0

    @pytest.mark.parametrize("sizes", [(6, 7), (10, 10), (70, 80)])
    def test_the_interval_is_where_the_test_does_not_reject(self, sizes: tuple[int, int]) -> None:
        clock = random.Random(sum(sizes))
        a, b = ([clock.gauss(0, 1) for _ in range(size)] for size in sizes)
        interval = shift.hodges_lehmann(a, b)
        for bound, inwards in ((interval.low, 1), (interval.high, -1)):
            outside = [y - bound + 1e-9 * inwards for y in b]
            inside = [y - bound - 1e-9 * inwards for y in b]
            alpha = 1 - interval.confidence
            assert shift.mann_whitney(a, outside).p <= alpha * 1.01
            assert shift.mann_whitney(a, inside).p >= alpha * 0.99

    def test_the_interval_covers_the_true_shift(self) -> None:
        clock, hits = random.Random(13), 0
        for _ in range(1000):
            a = [clock.expovariate(1) for _ in range(10)]
            b = [clock.expovariate(1) + 0.4 for _ in range(10)]
            interval = shift.hodges_lehmann(a, b)
            hits += interval.low <= 0.4 <= interval.high
        assert hits / 1000 == pytest.approx(interval.confidence, abs=0.02)
        assert interval.confidence >= 0.95

    def test_too_few_values_say_what_they_reach(self) -> None:
        interval = shift.hodges_lehmann([1.0, 2.0], [5.0, 7.0])
        assert (interval.low, interval.high) == (3, 6)
        assert interval.confidence == pytest.approx(2 / 3)

    def test_thousands_of_values_with_ties(self) -> None:
        clock = random.Random(4)
        a = [float(clock.randrange(90, 110)) for _ in range(3000)]
        b = [float(clock.randrange(93, 113)) for _ in range(3000)]
        interval = shift.hodges_lehmann(a, b)
        assert interval.low <= 3 <= interval.high
        assert interval.value == statistics.median(
            [y - x for x in sorted(a)[::7] for y in sorted(b)[::7]]
        )

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    def test_holm_is_step_down_and_keeps_the_order(self, ps: list[float]) -> None:
        adjusted = shift.holm(ps)
        assert all(p <= q <= 1 for p, q in zip(ps, adjusted, strict=True))
        pairs = sorted(zip(ps, adjusted, strict=True))
        assert [q for _, q in pairs] == sorted(q for _, q in pairs)
        assert min(adjusted) == min(1.0, min(ps) * len(ps))
